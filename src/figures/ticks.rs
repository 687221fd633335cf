//! Round numbers along an axis.

/// An axis: a range of numbers on a range of pixels.
pub(super) struct Scale {
    low: f64,
    high: f64,
    log: bool,
    /// Whether all values are whole numbers, such as epochs: then so are the ticks.
    whole: bool,
    pixels: [f64; 2],
}

impl Scale {
    /// For the finite ones of `values`, with a margin of a twentieth where `margin` says so. No values give 0 to 1.
    pub(super) fn new(values: impl Iterator<Item = f64> + Clone, log: bool, margin: bool, pixels: [f64; 2]) -> Self {
        let whole = values.clone().all(|v| v.fract() == 0.0 || v.is_nan());
        let inside = |v: &f64| v.is_finite() && (!log || *v > 0.0);
        let to = |v: f64| if log { v.log10() } else { v };
        let bounds = values.filter(inside).map(to).fold(None, |b: Option<(f64, f64)>, v| match b {
            None => Some((v, v)),
            Some((low, high)) => Some((low.min(v), high.max(v))),
        });
        let (low, high) = bounds.unwrap_or((0.0, 1.0));
        let (low, high) = match high - low {
            d if d <= 1e-12 * high.abs().max(1e-300) => {
                let pad = if low == 0.0 || log { 0.5 } else { low.abs() * 0.1 };
                (low - pad, high + pad)
            }
            d if margin => (low - 0.05 * d, high + 0.05 * d),
            _ => (low, high),
        };
        Scale { low, high, log, whole, pixels }
    }

    /// Where a number lies, in pixels; NaN where a logarithm has no place for it.
    pub(super) fn at(&self, v: f64) -> f64 {
        let v = if self.log { v.log10() } else { v };
        let share = (v - self.low) / (self.high - self.low);
        self.pixels[0] + share * (self.pixels[1] - self.pixels[0])
    }

    /// About `n` round numbers and how they are written.
    pub(super) fn ticks(&self, n: usize) -> Vec<(f64, String)> {
        if self.log && self.high - self.low >= 1.0 {
            let every = (((self.high - self.low) / n as f64).ceil() as i32).max(1);
            let powers = (self.low.ceil() as i32..=self.high.floor() as i32).filter(|p| p % every == 0);
            return powers.map(|p| (10f64.powi(p), power(p))).collect();
        }
        let bounds = [self.low, self.high].map(|v| if self.log { 10f64.powf(v) } else { v });
        let step = round_step((bounds[1] - bounds[0]) / n as f64).max(if self.whole { 1.0 } else { 0.0 });
        let (first, last) = ((bounds[0] / step - 1e-9).ceil() as i64, (bounds[1] / step + 1e-9).floor() as i64);
        (first..=last).take(100).map(|k| (k as f64 * step, number(k as f64 * step, step))).collect()
    }
}

/// The smallest of 1, 2, 5 times a power of ten that is not below `step`.
fn round_step(step: f64) -> f64 {
    let ten = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * ten >= step * 0.999).unwrap_or(10.0);
    factor * ten
}

fn power(p: i32) -> String {
    if (-3..=4).contains(&p) { number(10f64.powi(p), 10f64.powi(p)) } else { format!("1e{p}") }
}

/// A multiple of `step`, with as many digits as that takes.
fn number(v: f64, step: f64) -> String {
    let exponent = step.log10().floor();
    if v == 0.0 {
        return "0".into();
    }
    if exponent < -4.0 || v.abs() >= 1e7 {
        let digits = (v.abs().log10().floor() - exponent).max(0.0) as usize;
        return format!("{v:.digits$e}");
    }
    let digits = (-exponent).max(0.0) as usize;
    let text = format!("{v:.digits$}");
    match text.strip_prefix('-') {
        _ if digits > 0 => text,
        Some(positive) => format!("-{}", crate::data::grouped(positive.parse().unwrap_or(0))),
        None => crate::data::grouped(text.parse().unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[f64], log: bool) -> Vec<String> {
        let scale = Scale::new(values.iter().copied(), log, false, [0.0, 100.0]);
        scale.ticks(5).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(labels(&[0.0, 0.5, 1.0], false), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&[1.0, 2.0, 3.0], false), ["1", "2", "3"]);
        assert_eq!(labels(&[1.0, 25_000.0], false), ["5,000", "10,000", "15,000", "20,000", "25,000"]);
        assert_eq!(labels(&[-0.03, 0.05], false), ["-0.02", "0", "0.02", "0.04"]);
        assert_eq!(labels(&[0.0, 4e-6], false), ["0", "1e-6", "2e-6", "3e-6", "4e-6"]);
        assert_eq!(labels(&[1e-6, 1.0], true), ["1e-6", "1e-4", "0.01", "1"]);
    }

    #[test]
    fn odd_values_have_a_scale() {
        for values in [&[][..], &[f64::NAN], &[3.0], &[0.0, 0.0], &[f64::INFINITY, 1.0], &[1e300, -1e300]] {
            let scale = Scale::new(values.iter().copied(), false, true, [0.0, 100.0]);
            assert!(scale.low < scale.high && !scale.ticks(5).is_empty() && scale.ticks(5).len() < 20, "{values:?}");
        }
        assert!(Scale::new([1.0, 10.0].into_iter(), true, false, [0.0, 1.0]).at(0.0).is_infinite());
    }
}
