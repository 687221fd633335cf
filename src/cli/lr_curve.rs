//! The learning-rate finder's curve, as SVG and in letters.

use super::lr_find::rounded;
use crate::figures::Chart;
use crate::train::lr_find::Curve;
use std::fmt::Write;

/// A rate to be marked.
pub(super) struct Mark {
    pub(super) name: &'static str,
    pub(super) lr: f64,
}

/// What of a curve is drawn: the logarithms of the rates, and losses from the least to a little above what three of four
/// are under, so that a loss that runs away at the end does not flatten the rest; nor do the first means, of few losses.
struct Frame {
    x: [f64; 2],
    y: [f64; 2],
}

impl Frame {
    fn of(curve: &Curve) -> Self {
        let settled = &curve.tried[curve.tried.len() / 10..];
        let (logs, losses) = (|| curve.tried.iter().map(|t| t.lr.log10()), || settled.iter().map(|t| t.smoothed));
        let (low, high) = losses().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        let mut sorted: Vec<f64> = losses().collect();
        sorted.sort_by(f64::total_cmp);
        let usual = sorted.get(sorted.len() * 3 / 4).copied().unwrap_or(high);
        let high = high.min(usual + 0.5 * (usual - low)).max(low + 1e-3);
        let (left, right) = (logs().next().unwrap_or(0.0), logs().next_back().unwrap_or(1.0));
        let room = 0.05 * (high - low);
        Frame { x: [left, right.max(left + 0.1)], y: [low - room, high + room] }
    }

    /// A point's place, 0 to 1 from left to right and from bottom to top.
    fn place(&self, lr: f64, loss: f64) -> [f64; 2] {
        let part = |[a, b]: [f64; 2], v: f64| (v - a) / (b - a);
        [part(self.x, lr.log10()), part(self.y, loss)]
    }

    /// The powers of ten among the rates.
    fn rates(&self) -> Vec<f64> {
        let powers = (self.x[0] - 1e-9).ceil() as i32..=(self.x[1] + 1e-9).floor() as i32;
        powers.map(|p| 10f64.powi(p)).collect()
    }
}

/// A picture of its own.
pub(super) fn svg(curve: &Curve, marks: &[Mark], title: &str) -> String {
    let [low, high] = Frame::of(curve).y;
    let shown = |loss: f64| if (low..=high).contains(&loss) { loss } else { f64::NAN };
    let points = curve.tried.iter().map(|t| [t.lr, shown(t.smoothed)]).collect();
    let chart = Chart::new(format!("Learning-rate finder: {title}"), "learning rate (logarithmic)", "loss, smoothed");
    let chart = chart.log_x().line("", points);
    let mark = |chart: Chart, mark: &Mark| {
        let far = |lr: f64| (lr / mark.lr).ln().abs();
        let nearest = curve.tried.iter().min_by(|a, b| far(a.lr).total_cmp(&far(b.lr)));
        let loss = nearest.map_or(f64::NAN, |t| t.smoothed);
        chart.point(format!("{}: {}", mark.name, rounded(mark.lr)), [mark.lr, loss])
    };
    marks.iter().fold(chart, mark).svg()
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
        for (place, c) in below[x..].iter_mut().zip(format!("1e{:.0}", lr.log10()).chars()) {
            *place = c;
        }
    }
    // The first letter of each name; the table has the rest.
    let mut letters = vec![' '; WIDTH];
    for mark in marks {
        // Beside one that is in its place.
        let free = (column(mark.lr)..WIDTH).find(|&x| letters[x] == ' ').unwrap_or(WIDTH - 1);
        letters[free] = mark.name.chars().next().unwrap_or('?').to_ascii_uppercase();
    }
    let text = |chars: &[char]| chars.iter().collect::<String>().trim_end().to_string();
    let names: Vec<&str> = marks.iter().map(|m| m.name).collect();
    _ = writeln!(s, "{:>8} └{}\n{:10}{}", "", text(&axis), "", text(&below));
    _ = writeln!(s, "{:10}{}\n{:10}learning rate; the letters are {}", "", text(&letters), "", names.join(", "));
    s
}
