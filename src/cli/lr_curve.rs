//! The learning-rate finder's curve, as SVG and in letters.

use super::lr_find::rounded;
use crate::train::lr_find::Curve;
use std::fmt::Write;

/// A rate to be marked.
pub(super) struct Mark {
    pub(super) name: &'static str,
    pub(super) lr: f64,
}

/// What of a curve is drawn: the logarithms of the rates, and losses from the least to a little above the first.
struct Frame {
    x: [f64; 2],
    y: [f64; 2],
}

impl Frame {
    fn of(curve: &Curve) -> Self {
        let (logs, losses) = (|| curve.tried.iter().map(|t| t.lr.log10()), || curve.tried.iter().map(|t| t.smoothed));
        let (low, high) = losses().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        let first = losses().next().unwrap_or(high);
        let high = high.min(first + 0.5 * (first - low)).max(low + 1e-3);
        let (left, right) = (logs().next().unwrap_or(0.0), logs().next_back().unwrap_or(1.0));
        let room = 0.05 * (high - low);
        Frame { x: [left, right.max(left + 0.1)], y: [low - room, high + room] }
    }

    /// A point's place, 0 to 1 from left to right and from bottom to top.
    fn place(&self, lr: f64, loss: f64) -> [f64; 2] {
        let part = |[a, b]: [f64; 2], v: f64| (v - a) / (b - a);
        [part(self.x, lr.log10()), part(self.y, loss)]
    }

    /// About five round losses.
    fn losses(&self) -> Vec<f64> {
        let span = self.y[1] - self.y[0];
        let power = 10f64.powf((span / 5.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| span / s <= 6.0).unwrap_or(span);
        let first = (self.y[0] / step).ceil() as i64;
        (first..).map(|i| i as f64 * step).take_while(|v| *v <= self.y[1]).collect()
    }

    /// The powers of ten among the rates.
    fn rates(&self) -> Vec<f64> {
        let powers = (self.x[0] - 1e-9).ceil() as i32..=(self.x[1] + 1e-9).floor() as i32;
        powers.map(|p| 10f64.powi(p)).collect()
    }
}

/// A loss, with as many digits as tell the ticks apart.
fn loss(value: f64, ticks: &[f64]) -> String {
    let step = ticks.windows(2).map(|w| w[1] - w[0]).next().unwrap_or(1.0);
    format!("{value:.*}", (-step.log10()).ceil().max(0.0) as usize)
}

const COLOURS: [&str; 3] = ["#d55e00", "#009e73", "#cc79a7"];

/// A picture of its own, readable on a white page.
pub(super) fn svg(curve: &Curve, marks: &[Mark], title: &str) -> String {
    let (width, height, left, top, right, bottom) = (720.0, 440.0, 64.0, 44.0, 24.0, 56.0);
    let frame = Frame::of(curve);
    let at = |lr: f64, loss: f64| {
        let [x, y] = frame.place(lr, loss);
        (left + x * (width - left - right), height - bottom - y * (height - top - bottom))
    };
    let (floor, ceiling) = (height - bottom, top);
    let title: String = title.chars().filter(|c| !"<>&\"'".contains(*c)).collect();
    let mut s = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"{left}\" y=\"26\" font-size=\"16\">Learning-rate finder: {title}</text>\n\
         <clipPath id=\"plot\"><rect x=\"{left}\" y=\"{ceiling}\" width=\"{}\" height=\"{}\"/></clipPath>\n",
        width - left - right,
        floor - ceiling
    );
    let mut add = |line: String| _ = writeln!(s, "{line}");
    let ticks = frame.losses();
    for &tick in &ticks {
        let (_, y) = at(1.0, tick);
        add(format!("<path d=\"M{left} {y:.1}H{:.1}\" stroke=\"#ddd\"/>", width - right));
        add(format!(
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 8.0,
            y + 4.0,
            loss(tick, &ticks)
        ));
    }
    for lr in frame.rates() {
        let (x, _) = at(lr, 0.0);
        add(format!("<path d=\"M{x:.1} {ceiling}V{floor}\" stroke=\"#eee\"/>"));
        add(format!("<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{lr:e}</text>", floor + 20.0));
    }
    add(format!(
        "<rect x=\"{left}\" y=\"{ceiling}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#888\"/>",
        width - left - right,
        floor - ceiling
    ));
    add(format!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">learning rate (logarithmic)</text>",
        (left + width - right) / 2.0,
        height - 14.0
    ));
    add(format!(
        "<text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\">loss, smoothed</text>",
        (floor + ceiling) / 2.0
    ));
    let points = curve.tried.iter().map(|t| at(t.lr, t.smoothed));
    let points = points.fold(String::new(), |text, (x, y)| text + &format!("{x:.1},{y:.1} "));
    add(format!(
        "<polyline clip-path=\"url(#plot)\" points=\"{}\" fill=\"none\" stroke=\"#0072b2\" stroke-width=\"2\"/>",
        points.trim_end()
    ));
    for (i, (mark, colour)) in marks.iter().zip(COLOURS).enumerate() {
        let nearest =
            curve.tried.iter().min_by(|a, b| (a.lr / mark.lr).ln().abs().total_cmp(&(b.lr / mark.lr).ln().abs()));
        let Some(nearest) = nearest else { continue };
        let (x, y) = at(mark.lr, nearest.smoothed);
        // Below the curve's beginning, which is high.
        let row = floor - 50.0 + 18.0 * i as f64;
        add(format!("<path d=\"M{x:.1} {ceiling}V{floor}\" stroke=\"{colour}\" stroke-dasharray=\"4 4\"/>"));
        add(format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{colour}\"/>"));
        add(format!("<circle cx=\"{}\" cy=\"{}\" r=\"5\" fill=\"{colour}\"/>", left + 16.0, row - 4.0));
        add(format!("<text x=\"{}\" y=\"{row}\">{}: {}</text>", left + 28.0, mark.name, rounded(mark.lr)));
    }
    s + "</svg>\n"
}

/// The smoothed loss in letters, with a mark below each suggestion.
pub(super) fn text(curve: &Curve, marks: &[Mark]) -> String {
    const WIDTH: usize = 72;
    const HEIGHT: usize = 14;
    let frame = Frame::of(curve);
    let column = |lr: f64| ((frame.place(lr, 0.0)[0] * (WIDTH - 1) as f64).round() as usize).min(WIDTH - 1);
    let mut rows = vec![vec![' '; WIDTH]; HEIGHT];
    for t in &curve.tried {
        let y = frame.place(t.lr, t.smoothed)[1];
        if (0.0..=1.0).contains(&y) {
            rows[HEIGHT - 1 - (y * (HEIGHT - 1) as f64).round() as usize][column(t.lr)] = '•';
        }
    }
    let [low, high] = frame.y;
    let label = |row: usize| match row {
        0 => format!("{high:.3}"),
        r if r + 1 == HEIGHT => format!("{low:.3}"),
        r if r == HEIGHT / 2 => "loss".into(),
        _ => String::new(),
    };
    let mut s: String = rows.iter().enumerate().fold(String::new(), |s, (i, row)| {
        s + &format!("{:>8} │{}\n", label(i), row.iter().collect::<String>().trim_end())
    });
    let mut axis = vec!['─'; WIDTH];
    let mut below = vec![' '; WIDTH + 8];
    for lr in frame.rates() {
        let x = column(lr);
        axis[x] = '┬';
        for (i, c) in format!("{lr:e}").chars().enumerate() {
            below[x + i] = c;
        }
    }
    // The first letter of each name; the table has the rest.
    let mut letters = vec![' '; WIDTH];
    marks.iter().rev().for_each(|m| letters[column(m.lr)] = m.name.chars().next().unwrap_or('?').to_ascii_uppercase());
    let text = |chars: &[char]| chars.iter().collect::<String>().trim_end().to_string();
    let names: Vec<&str> = marks.iter().map(|m| m.name).collect();
    _ = writeln!(s, "{:>8} └{}\n{:10}{}", "", text(&axis), "", text(&below));
    _ = writeln!(s, "{:10}{}\n{:10}learning rate; the letters are {}", "", text(&letters), "", names.join(", "));
    s
}
