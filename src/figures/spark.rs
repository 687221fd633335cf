//! A curve in a line of text.

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A curve as at most `width` block characters, each the mean of its stretch; a gap where nothing is finite.
pub fn sparkline(values: &[f64], width: usize) -> String {
    if values.is_empty() || width == 0 {
        return String::new();
    }
    let n = width.min(values.len());
    let mean = |i: usize| {
        let stretch = &values[i * values.len() / n..(i + 1) * values.len() / n];
        let finite: Vec<f64> = stretch.iter().copied().filter(|v| v.is_finite()).collect();
        finite.iter().sum::<f64>() / finite.len() as f64
    };
    let means: Vec<f64> = (0..n).map(mean).collect();
    let finite = means.iter().copied().filter(|m| m.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), m| (l.min(m), h.max(m)));
    let block = |m: &f64| match (m.is_finite(), high - low) {
        (false, _) => ' ',
        (true, range) if range <= 0.0 => BLOCKS[0],
        (true, range) => BLOCKS[((m - low) / range * 7.0).round() as usize],
    };
    means.iter().map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_fit_the_width() {
        assert_eq!(sparkline(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8), "▁▂▃▄▅▆▇█");
        assert_eq!(sparkline(&[1.0, f64::NAN, 1.0], 10), "▁ ▁");
        assert_eq!(sparkline(&(0..1000).map(f64::from).collect::<Vec<_>>(), 4), "▁▃▆█");
        assert_eq!(sparkline(&[], 4), "");
    }
}
