//! Values by name.

use super::canvas::{Anchor, Canvas, text_width};
use super::{GREY, GRID, INK, colour, shortened};

const PLOT: f64 = 480.0;
const SMALL: f64 = 12.0;

/// Horizontal bars of percentages, 0 to 100: a row a name, a bar a group.
pub struct Bars {
    title: String,
    names: Vec<String>,
    groups: Vec<(String, Vec<f64>)>,
}

impl Bars {
    /// Rows with these names.
    pub fn new(title: impl Into<String>, names: Vec<String>) -> Self {
        Bars { title: title.into(), names, groups: Vec::new() }
    }

    /// Adds a bar to each row; a value that is not finite has none.
    #[must_use]
    pub fn group(mut self, name: impl Into<String>, percent: Vec<f64>) -> Self {
        self.groups.push((name.into(), percent));
        self
    }

    /// The figure.
    pub fn svg(&self) -> String {
        let many = self.groups.len() > 1;
        let bar = if many { 11.0 } else { 15.0 };
        let row = bar * self.groups.len().max(1) as f64 + 9.0;
        let top = if many { 44.0 + 18.0 * self.groups.len() as f64 + 8.0 } else { 44.0 };
        let bottom = top + row * self.names.len() as f64;
        let name = |n: &str| shortened(n, 32);
        let left = 24.0 + self.names.iter().map(|n| text_width(&name(n), SMALL)).fold(40.0, f64::max);
        let width = left + PLOT + 64.0;
        let mut canvas = Canvas::new(width, bottom + 50.0);
        canvas.heading(&self.title);
        let x = |percent: f64| left + PLOT * percent.clamp(0.0, 100.0) / 100.0;
        for percent in (0..=100).step_by(20) {
            let at = x(f64::from(percent));
            canvas.line([at, top], [at, bottom], GRID);
            canvas.text([at, bottom + 18.0], SMALL, Anchor::Middle, GREY, &percent.to_string());
        }
        canvas.text([x(50.0), bottom + 38.0], 13.0, Anchor::Middle, INK, "percent");
        for (i, n) in self.names.iter().enumerate() {
            let y = top + row * i as f64 + 4.0;
            canvas.text([left - 8.0, y + row / 2.0], SMALL, Anchor::End, INK, &name(n));
            for (g, (group, values)) in self.groups.iter().enumerate() {
                let Some(&v) = values.get(i).filter(|v| v.is_finite()) else { continue };
                let at = y + bar * g as f64;
                let hint = format!("{n}, {group}: {v:.2} %");
                canvas.rect([left, at], [x(v) - left, bar - 1.0], colour(g), &hint);
                canvas.text([x(v) + 5.0, at + bar / 2.0 + 3.5], 10.0, Anchor::Start, GREY, &format!("{v:.1}"));
            }
        }
        canvas.line([left, top], [left, bottom], GREY);
        for (g, (group, _)) in self.groups.iter().enumerate().filter(|_| many) {
            let y = 40.0 + 18.0 * g as f64;
            canvas.rect([left, y], [14.0, 11.0], colour(g), "");
            canvas.text([left + 20.0, y + 10.0], SMALL, Anchor::Start, INK, &shortened(group, 60));
        }
        canvas.finish(&self.title)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_for_each_value_that_is_one() {
        let names = vec!["a&b".to_string(), "c".into()];
        let svg = Bars::new("t", names).group("one", vec![50.0, f64::NAN]).group("two", vec![120.0]).svg();
        assert!(svg.contains("a&amp;b, one: 50.00 %") && !svg.contains("NaN") && !svg.contains("c, "));
        assert!(Bars::new("t", Vec::new()).svg().starts_with("<svg"));
    }
}
