//! Counts of pairs as a heat map.

use super::canvas::{Anchor, Canvas, text_width};
use super::{GREY, INK, shortened};

/// A confusion matrix: a row for the true class, a column for the predicted one.
pub struct Matrix {
    /// What it says above.
    pub title: String,
    /// Names of the classes.
    pub names: Vec<String>,
    /// `counts[true][predicted]`.
    pub counts: Vec<Vec<usize>>,
}

/// From white to blue.
fn shade(share: f64) -> String {
    let mix = |from: f64, to: f64| (from + (to - from) * share.clamp(0.0, 1.0)).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mix(255.0, 0.0), mix(255.0, 68.0), mix(255.0, 136.0))
}

impl Matrix {
    /// The figure. A cell's colour is its share of its row.
    pub fn svg(&self) -> String {
        let n = self.names.len();
        let (cell, font) = match n {
            0..=12 => (44.0, 12.0),
            13..=24 => (30.0, 10.0),
            _ => (11.0, 8.0),
        };
        let names: Vec<String> = self.names.iter().map(|n| shortened(n, 28)).collect();
        let side = cell * n as f64;
        let label = 12.0 + names.iter().map(|t| text_width(t, font)).fold(20.0, f64::max);
        let (left, top) = (34.0 + label, 44.0);
        let mut canvas = Canvas::new(left + (side + 30.0).max(280.0), top + side + label + 84.0);
        canvas.heading(&self.title);
        for (i, row) in self.counts.iter().enumerate().take(n) {
            let all = row.iter().sum::<usize>().max(1) as f64;
            let y = top + cell * i as f64;
            canvas.text([left - 6.0, y + cell / 2.0 + font * 0.35], font, Anchor::End, INK, &names[i]);
            canvas.text_up(
                [left + cell * (i as f64 + 0.5) + font * 0.35, top + side + 6.0],
                font,
                Anchor::End,
                &names[i],
            );
            for (j, &count) in row.iter().enumerate().take(n) {
                let (x, share) = (left + cell * j as f64, count as f64 / all);
                let hint = format!("{} taken for {}: {count} ({:.1} %)", self.names[i], self.names[j], share * 100.0);
                canvas.rect([x, y], [cell - 1.0, cell - 1.0], &shade(share), &hint);
                if n <= 24 && count > 0 {
                    let ink = if share > 0.45 { "#ffffff" } else { INK };
                    let at = [x + cell / 2.0, y + cell / 2.0 + 4.0];
                    canvas.text(at, font - 1.0, Anchor::Middle, ink, &count.to_string());
                }
            }
        }
        canvas.text_up([20.0, top + side / 2.0], 13.0, Anchor::Middle, "true class");
        let y = top + side + label + 22.0;
        canvas.text([left + side / 2.0, y], 13.0, Anchor::Middle, INK, "predicted class");
        for i in 0..100 {
            canvas.rect([left + 2.0 * f64::from(i), y + 14.0], [2.5, 10.0], &shade(f64::from(i) / 99.0), "");
        }
        canvas.text([left, y + 40.0], 11.0, Anchor::Start, GREY, "0 %");
        canvas.text([left + 200.0, y + 40.0], 11.0, Anchor::Middle, GREY, "100 % of the true class");
        canvas.finish(&self.title)
    }

    /// The pairs of different classes that are confused most: true class, predicted class, count.
    pub fn confused(&self, most: usize) -> Vec<(usize, usize, usize)> {
        let pairs =
            self.counts.iter().enumerate().flat_map(|(i, row)| row.iter().enumerate().map(move |(j, &c)| (i, j, c)));
        let mut pairs: Vec<_> = pairs.filter(|(i, j, c)| i != j && *c > 0).collect();
        pairs.sort_by_key(|(_, _, c)| std::cmp::Reverse(*c));
        pairs.truncate(most);
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_confused_come_first() {
        let counts = vec![vec![9, 1, 0], vec![4, 5, 2], vec![0, 0, 0]];
        let m = Matrix { title: "t".into(), names: ["a", "b", "c"].map(String::from).to_vec(), counts };
        assert_eq!(m.confused(2), [(1, 0, 4), (1, 2, 2)]);
        let svg = m.svg();
        assert!(svg.contains("b taken for a: 4 (36.4 %)") && !svg.contains("NaN"));
        assert!(svg.contains(&shade(0.9)) && shade(0.0) == "#ffffff");
    }
}
