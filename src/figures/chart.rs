//! Lines over numbers.

use super::canvas::{Anchor, Canvas, text_width};
use super::ticks::Scale;
use super::{GREY, GRID, INK, colour, shortened};

const WIDTH: f64 = 760.0;
/// Height of the part with the lines.
const PLOT: f64 = 320.0;
const SMALL: f64 = 12.0;
/// The most points of a line that are drawn; there are no more pixels than that.
const MOST: usize = 1200;
/// Dashes of the lines after the first seven.
const DASHES: [&str; 4] = ["", "7 4", "2 4", "9 4 2 4"];

/// A chart of lines.
pub struct Chart {
    title: String,
    x: String,
    y: String,
    log_x: bool,
    series: Vec<Series>,
    mark: Option<(f64, String)>,
}

struct Series {
    name: String,
    points: Vec<[f64; 2]>,
    /// Half the height of each point's error bar.
    spread: Vec<f64>,
    faint: bool,
}

impl Chart {
    /// An empty chart; `x` and `y` label its axes and say the units.
    pub fn new(title: impl Into<String>, x: impl Into<String>, y: impl Into<String>) -> Self {
        Chart { title: title.into(), x: x.into(), y: y.into(), log_x: false, series: Vec::new(), mark: None }
    }

    /// With a logarithmic horizontal axis.
    #[must_use]
    pub fn log_x(mut self) -> Self {
        self.log_x = true;
        self
    }

    /// Adds a line through points (without a name it is not in the legend), which breaks where one is not finite.
    #[must_use]
    pub fn line(self, name: impl Into<String>, points: Vec<[f64; 2]>) -> Self {
        self.add(name.into(), points, Vec::new(), false)
    }

    /// Adds a thin, pale line, for values that scatter.
    #[must_use]
    pub fn faint(self, name: impl Into<String>, points: Vec<[f64; 2]>) -> Self {
        self.add(name.into(), points, Vec::new(), true)
    }

    /// Adds a line with error bars: `spread` up and down from each point.
    #[must_use]
    pub fn spread(self, name: impl Into<String>, points: Vec<[f64; 2]>, spread: Vec<f64>) -> Self {
        self.add(name.into(), points, spread, false)
    }

    /// Marks a value of the vertical axis by a dashed line across.
    #[must_use]
    pub fn mark(mut self, y: f64, name: impl Into<String>) -> Self {
        self.mark = Some((y, name.into()));
        self
    }

    fn add(mut self, name: String, points: Vec<[f64; 2]>, spread: Vec<f64>, faint: bool) -> Self {
        self.series.push(Series { name, points, spread, faint });
        self
    }

    /// The figure.
    pub fn svg(&self) -> String {
        let legend = self.legend();
        let top = 40.0 + 20.0 * legend.last().map_or(0.0, |(_, row, _)| *row as f64 + 1.0);
        let bottom = top + PLOT;
        let mut canvas = Canvas::new(WIDTH, bottom + 56.0);
        canvas.heading(&self.title);
        let (xs, ys) = (self.values(0), self.values(1).chain(self.mark.iter().map(|m| m.0)));
        let y = Scale::new(ys, false, true, [bottom, top]);
        let y_ticks = y.ticks(6);
        let widest = y_ticks.iter().map(|(_, t)| text_width(t, SMALL)).fold(0.0, f64::max);
        let (left, right) = (40.0 + widest, WIDTH - 28.0);
        let x = Scale::new(xs, self.log_x, false, [left + 6.0, right - 6.0]);
        for (value, text) in y_ticks {
            canvas.line([left, y.at(value)], [right, y.at(value)], GRID);
            canvas.text([left - 8.0, y.at(value) + 4.0], SMALL, Anchor::End, GREY, &text);
        }
        for (value, text) in x.ticks(8) {
            canvas.line([x.at(value), bottom], [x.at(value), bottom + 5.0], GREY);
            canvas.text([x.at(value), bottom + 20.0], SMALL, Anchor::Middle, GREY, &text);
        }
        canvas.line([left, bottom], [right, bottom], GREY);
        canvas.text([(left + right) / 2.0, bottom + 42.0], 13.0, Anchor::Middle, INK, &self.x);
        canvas.text_up([20.0, (top + bottom) / 2.0], 13.0, Anchor::Middle, &self.y);
        if let Some((value, _)) = &self.mark {
            canvas.polyline(&[[left, y.at(*value)], [right, y.at(*value)]], GREY, 1.5, 1.0, "5 5");
        }
        for (i, series) in self.series.iter().enumerate() {
            series.draw(&mut canvas, i, &x, &y);
        }
        for (at, row, name) in &legend {
            let here = [*at, 44.0 + 20.0 * *row as f64];
            let series = self.series.get(*name);
            let (ink, width, opacity, dash) = match series {
                Some(s) if s.faint => (colour(*name), 1.0, 0.55, ""),
                Some(_) => (colour(*name), 2.5, 1.0, dash(*name)),
                None => (GREY, 1.5, 1.0, "5 5"),
            };
            canvas.polyline(&[here, [here[0] + 22.0, here[1]]], ink, width, opacity, dash);
            canvas.text([here[0] + 28.0, here[1] + 4.0], SMALL, Anchor::Start, INK, &self.name(*name));
        }
        if self.values(1).all(|v| !v.is_finite()) {
            canvas.text([(left + right) / 2.0, (top + bottom) / 2.0], 14.0, Anchor::Middle, GREY, "no data yet");
        }
        canvas.finish(&format!("{}: {} over {}", self.title, self.y, self.x))
    }

    /// All coordinates of one axis, with the ends of the error bars.
    fn values(&self, axis: usize) -> impl Iterator<Item = f64> + Clone {
        self.series.iter().flat_map(move |s| {
            let spread = s.spread.iter().copied().chain(std::iter::repeat(0.0));
            s.points.iter().zip(spread).flat_map(move |(p, d)| match axis {
                // A point without a value does not stretch the other axis.
                0 => [if p[1].is_finite() { p[0] } else { f64::NAN }; 2],
                _ => [p[1] - d, p[1] + d],
            })
        })
    }

    fn name(&self, i: usize) -> String {
        let name = self.series.get(i).map(|s| &s.name).or(self.mark.as_ref().map(|m| &m.1));
        shortened(name.map_or("", String::as_str), 60)
    }

    /// For each entry its place along the row, its row and which series it is; the last may be the mark.
    fn legend(&self) -> Vec<(f64, usize, usize)> {
        let (mut x, mut row) = (48.0, 0);
        let entries = (0..self.series.len() + usize::from(self.mark.is_some())).filter(|&i| !self.name(i).is_empty());
        let place = |i: usize| {
            let width = 28.0 + text_width(&self.name(i), SMALL) + 20.0;
            if x + width > WIDTH && x > 48.0 {
                (x, row) = (48.0, row + 1);
            }
            let at = x;
            x += width;
            (at, row, i)
        };
        entries.map(place).collect()
    }
}

fn dash(i: usize) -> &'static str {
    DASHES[i / super::COLOURS.len() % DASHES.len()]
}

impl Series {
    fn draw(&self, canvas: &mut Canvas, i: usize, x: &Scale, y: &Scale) {
        let place = |[a, b]: [f64; 2]| [x.at(a), y.at(b)];
        let points: Vec<[f64; 2]> = thinned(&self.points).into_iter().map(place).collect();
        if self.faint {
            return canvas.polyline(&points, colour(i), 1.0, 0.45, "");
        }
        canvas.polyline(&points, colour(i), 2.0, 1.0, dash(i));
        if points.len() <= 40 {
            points.iter().filter(|p| p[0].is_finite() && p[1].is_finite()).for_each(|&p| canvas.dot(p, 3.0, colour(i)));
        }
        for (&[a, b], d) in self.points.iter().zip(&self.spread).filter(|(p, d)| p[1].is_finite() && d.is_finite()) {
            let (at, ends) = (x.at(a), [y.at(b - d), y.at(b + d)]);
            canvas.line([at, ends[0]], [at, ends[1]], colour(i));
            ends.iter().for_each(|&e| canvas.line([at - 4.0, e], [at + 4.0, e], colour(i)));
        }
    }
}

/// At most [`MOST`] points: of each stretch the lowest and the highest, in their order, so that no peak is lost.
fn thinned(points: &[[f64; 2]]) -> Vec<[f64; 2]> {
    if points.len() <= MOST {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(MOST / 2);
    let ends = |part: &[[f64; 2]]| {
        let by = |a: &usize, b: &usize| part[*a][1].total_cmp(&part[*b][1]);
        let low = (0..part.len()).min_by(by).unwrap_or(0);
        let high = (0..part.len()).max_by(by).unwrap_or(0);
        [part[low.min(high)], part[low.max(high)]]
    };
    points.chunks(stretch).flat_map(ends).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_survive_thinning() {
        let mut points: Vec<[f64; 2]> = (0..100_000).map(|i| [f64::from(i), 1.0]).collect();
        points[54_321][1] = 9.0;
        points[7][1] = -9.0;
        let thin = thinned(&points);
        assert!(thin.len() <= MOST && thin.windows(2).all(|w| w[0][0] <= w[1][0]));
        assert!(thin.contains(&[54_321.0, 9.0]) && thin.contains(&[7.0, -9.0]));
    }

    #[test]
    fn odd_data_draws_finite_numbers() {
        let nan = f64::NAN;
        for points in [vec![], vec![[1.0, 2.0]], vec![[1.0, nan], [2.0, nan]], vec![[1.0, 3.0], [2.0, nan], [3.0, 3.0]]]
        {
            let svg = Chart::new("t", "x", "y").line("a", points.clone()).log_x().svg();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{points:?}: {svg}");
            assert_eq!(svg.contains("no data yet"), points.iter().all(|p| p[1].is_nan()), "{points:?}");
        }
    }

    #[test]
    fn texts_are_escaped_and_legends_wrap() {
        let mut chart = Chart::new("a < b & \"c\"", "x", "y").mark(1.0, "source");
        for i in 0..9 {
            chart = chart.line(format!("<run {i}> with a rather long name"), vec![[0.0, f64::from(i)]]);
        }
        let svg = chart.svg();
        assert!(svg.contains("a &lt; b &amp; &quot;c&quot;") && svg.contains("&lt;run 8&gt;") && !svg.contains("<run"));
        assert!(chart.legend().iter().all(|(x, _, _)| *x < 560.0) && chart.legend().len() == 10);
    }
}
