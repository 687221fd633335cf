//! What is in a data set, in words: counts and statistics.

use std::fmt::Write;

use super::{Dataset, Splits, grouped};

impl Dataset {
    /// How many images each class has.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        for &label in &self.labels {
            if let Some(n) = usize::try_from(label).ok().and_then(|label| counts.get_mut(label)) {
                *n += 1;
            }
        }
        counts
    }

    /// Mean and standard deviation of each channel over all pixels, in units of 0 to 1. Exact sums,
    /// so the result does not depend on any order. Zeros when there is no image.
    pub fn mean_std(&self) -> (Vec<f64>, Vec<f64>) {
        let channels = self.channels.max(1);
        let mut sums = vec![(0u64, 0u64); channels];
        for pixel in self.images.chunks_exact(channels) {
            for ((sum, squares), &v) in sums.iter_mut().zip(pixel) {
                *sum += u64::from(v);
                *squares += u64::from(v) * u64::from(v);
            }
        }
        let n = (self.images.len() / channels).max(1) as f64;
        sums.iter()
            .map(|&(sum, squares)| {
                let mean = sum as f64 / n;
                let variance = (squares as f64 / n - mean * mean).max(0.0);
                (mean / 255.0, variance.sqrt() / 255.0)
            })
            .unzip()
    }
}

/// A description of both splits: size of the images, images per class, mean and standard deviation
/// per channel.
pub fn describe(splits: &Splits) -> String {
    let Splits { train, test, .. } = splits;
    let column = |names: &[String], least: usize| names.iter().map(|n| n.chars().count()).max().unwrap_or(0).max(least);
    let first = column(&train.classes, 7);
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "images   {} × {} pixels, {} channels, {} classes\n",
        train.height,
        train.width,
        train.channels,
        train.classes.len()
    );
    let mut row = |name: &str, a: String, b: String| {
        let _ = writeln!(out, "{name:first$}  {a:>22}  {b:>22}");
    };
    row("class", "train".into(), "test".into());
    for ((name, a), b) in train.classes.iter().zip(train.counts()).zip(test.counts()) {
        row(name, grouped(a as u64), grouped(b as u64));
    }
    row("all", grouped(train.len() as u64), grouped(test.len() as u64));
    let ((mean_a, std_a), (mean_b, std_b)) = (train.mean_std(), test.mean_std());
    let list = |v: &[f64]| v.iter().map(|x| format!("{x:.4}")).collect::<Vec<_>>().join("  ");
    row("mean", list(&mean_a), list(&mean_b));
    row("std", list(&std_a), list(&std_b));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny(images: Vec<u8>, labels: Vec<i32>) -> Dataset {
        let classes = vec!["left".to_string(), "right".to_string()];
        Dataset { name: "tiny".into(), classes, height: 1, width: 2, channels: 2, images, labels }
    }

    #[test]
    fn statistics() {
        let d = tiny(vec![0, 255, 255, 255, 0, 255, 255, 255], vec![1, 1]);
        let (mean, std) = d.mean_std();
        assert_eq!((mean, std), (vec![0.5, 1.0], vec![0.5, 0.0]));
        assert_eq!(d.counts(), [0, 2]);
        assert_eq!(tiny(vec![], vec![]).mean_std(), (vec![0.0; 2], vec![0.0; 2]));
    }

    #[test]
    fn the_description_has_every_class_and_sum() {
        let splits = Splits { train: tiny(vec![0; 8], vec![0, 1]), validation: None, test: tiny(vec![51; 4], vec![1]) };
        let text = describe(&splits);
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["images", "1", "×", "2", "pixels,", "2", "channels,", "2", "classes"]);
        assert_eq!(lines[3], ["left", "1", "0"]);
        assert_eq!(lines[5], ["all", "2", "1"]);
        assert_eq!(lines[6], ["mean", "0.0000", "0.0000", "0.2000", "0.2000"]);
    }
}
