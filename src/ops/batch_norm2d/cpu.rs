//! Batch normalisation on the CPU: loops over rows of channels.

use crate::device::cpu::{add_rows, for_rows, map_reduce, vectorised};
use crate::dtype::Real;

/// Mean and biased variance per channel. Two passes: the second sums squares about the mean, so
/// a large mean costs no digits.
pub(super) fn statistics<T: Real>(x: &[T], mean: &mut [T], var: &mut [T]) {
    let c = mean.len();
    let rows = x.len() / c;
    let scale = T::of(1.0 / rows as f64);
    mean.fill(T::zero());
    map_reduce(rows, c, mean, |range, sum| add_rows(&x[range.start * c..range.end * c], sum));
    mean.iter_mut().for_each(|m| *m *= scale);
    var.fill(T::zero());
    map_reduce(rows, c, var, |range, sum| add_squares(&x[range.start * c..range.end * c], mean, sum));
    var.iter_mut().for_each(|v| *v *= scale);
}

pub(super) fn update<T: Real>(rm: &mut [T], rv: &mut [T], mean: &[T], var: &[T], rows: usize, momentum: f64) {
    let (keep, take) = (T::of(1.0 - momentum), T::of(momentum));
    let unbias = T::of(rows as f64 / (rows as f64 - 1.0));
    rm.iter_mut().zip(mean).for_each(|(r, &m)| *r = keep * *r + take * m);
    rv.iter_mut().zip(var).for_each(|(r, &v)| *r = keep * *r + take * v * unbias);
}

/// Variances to 1/sqrt(var + eps).
pub(super) fn invert<T: Real>(var: &mut [T], eps: f64) {
    var.iter_mut().for_each(|v| *v = T::one() / (*v + T::of(eps)).sqrt());
}

pub(super) fn normalise<T: Real>(x: &[T], y: &mut [T], mean: &[T], inv_std: &[T], gamma: &[T], beta: &[T]) {
    let c = mean.len();
    let scale: Vec<T> = gamma.iter().zip(inv_std).map(|(&g, &s)| g * s).collect();
    for_rows(y, c, c, |first, y| scale_rows(&x[first * c..], y, mean, &scale, beta));
}

/// `ggamma = sum gy·xhat` and `gbeta = sum gy`.
pub(super) fn reduce<T: Real>(x: &[T], gy: &[T], mean: &[T], inv_std: &[T], ggamma: &mut [T], gbeta: &mut [T]) {
    let c = mean.len();
    let mut sums = vec![T::zero(); 2 * c];
    map_reduce(x.len() / c, 2 * c, &mut sums, |range, sums| {
        let (gg, gb) = sums.split_at_mut(c);
        let range = range.start * c..range.end * c;
        add_products(&x[range.clone()], &gy[range], mean, gg, gb);
    });
    ggamma.iter_mut().zip(&sums).zip(inv_std).for_each(|((o, &s), &i)| *o = s * i);
    gbeta.copy_from_slice(&sums[c..]);
}

/// Turns `g` from gy into gx.
pub(super) fn backward<T: Real>(
    x: &[T],
    g: &mut [T],
    mean: &[T],
    inv_std: &[T],
    gamma: &[T],
    ggamma: &[T],
    gbeta: &[T],
) {
    let c = mean.len();
    let m = T::of(1.0 / (g.len() / c) as f64);
    // gx = a·gy + b·(x - mean) + d, per channel.
    let a: Vec<T> = gamma.iter().zip(inv_std).map(|(&g, &i)| g * i).collect();
    let b: Vec<T> = a.iter().zip(inv_std).zip(ggamma).map(|((&a, &i), &gg)| -a * i * gg * m).collect();
    let d: Vec<T> = a.iter().zip(gbeta).map(|(&a, &gb)| -a * gb * m).collect();
    for_rows(g, c, c, |first, g| combine(&x[first * c..], g, mean, &a, &b, &d));
}

pub(super) fn backward_eval<T: Real>(g: &mut [T], inv_std: &[T], gamma: &[T]) {
    let c = gamma.len();
    let scale: Vec<T> = gamma.iter().zip(inv_std).map(|(&g, &s)| g * s).collect();
    for_rows(g, c, c, |_, g| {
        for g in g.chunks_exact_mut(c) {
            g.iter_mut().zip(&scale).for_each(|(g, &s)| *g *= s);
        }
    });
}

// The loops over rows of channels.
vectorised! {
    fn add_squares<T>(x: &[T], mean: &[T], sum: &mut [T]) {
        let c = mean.len();
        let sum = &mut sum[..c];
        for x in x.chunks_exact(c) {
            for i in 0..c {
                sum[i] += (x[i] - mean[i]) * (x[i] - mean[i]);
            }
        }
    }

    fn scale_rows<T>(x: &[T], y: &mut [T], mean: &[T], scale: &[T], beta: &[T]) {
        let c = mean.len();
        let (scale, beta) = (&scale[..c], &beta[..c]);
        for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            for i in 0..c {
                y[i] = (x[i] - mean[i]) * scale[i] + beta[i];
            }
        }
    }

    fn add_products<T>(x: &[T], gy: &[T], mean: &[T], gg: &mut [T], gb: &mut [T]) {
        let c = mean.len();
        let (gg, gb) = (&mut gg[..c], &mut gb[..c]);
        for (x, gy) in x.chunks_exact(c).zip(gy.chunks_exact(c)) {
            for i in 0..c {
                gg[i] += gy[i] * (x[i] - mean[i]);
                gb[i] += gy[i];
            }
        }
    }

    fn combine<T>(x: &[T], g: &mut [T], mean: &[T], a: &[T], b: &[T], d: &[T]) {
        let c = mean.len();
        let (a, b, d) = (&a[..c], &b[..c], &d[..c]);
        for (g, x) in g.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            for i in 0..c {
                g[i] = a[i] * g[i] + b[i] * (x[i] - mean[i]) + d[i];
            }
        }
    }
}
