//! Linear layers with few outputs and many images, on the CPU.
//!
//! Forward, the outputs lie in the lanes of vectors: the weights are transposed once, and every image is read as it lies in
//! memory. For the gradient of the weights the inputs lie in the lanes, and every image is copied once. A general matrix
//! product packs its operands more often, for very few multiply-adds with each of their elements.

use crate::device::cpu::{Cpu, Level, MACS, MatMut, for_pieces, has_fma, level, vectorised};
use crate::dtype::Real;

/// Outputs from which on they fill enough of the lanes, and up to which they are few.
const OUTPUTS: std::ops::RangeInclusive<usize> = 17..=MOST;
const MOST: usize = 48;
/// Images and inputs from which on there is enough to do.
const LEAST: [usize; 2] = [64, 256];

/// Rows of a register tile: images forward, outputs for the gradient of the weights.
const ROWS: usize = 4;
/// Lanes of a register tile on processors with AVX-512 (three vectors of f32), and on others (three shorter ones).
const LANES: [usize; 2] = [48, 24];
/// Inputs whose transposed weights stay in the L1 cache.
const INPUTS: usize = 128;
/// Images per piece of work.
const IMAGES: usize = 32;
/// Inputs per piece of work for the gradient of the weights: a whole number of tiles.
const WIDTH: usize = 4 * LANES[0];

/// A layer for this file.
#[derive(Clone, Copy)]
pub(super) struct Narrow {
    inputs: usize,
    outputs: usize,
    /// Whether the vectors are the wider ones.
    wide: bool,
}

impl Narrow {
    /// A layer of these sizes, if it is one for this file.
    pub(super) fn of([n, inputs, outputs]: [usize; 3]) -> Option<Self> {
        let suits = has_fma() && OUTPUTS.contains(&outputs) && n >= LEAST[0] && inputs >= LEAST[1];
        suits.then(|| Narrow { inputs, outputs, wide: level() == Level::Avx512 })
    }

    pub(super) fn forward<T: Real>(self, x: &[T], w: &[T], b: Option<&[T]>, y: &mut [T], cpu: &Cpu) {
        let Narrow { inputs, outputs, wide } = self;
        let lanes = LANES[usize::from(!wide)];
        // [blocks of outputs][inputs][lanes], zeros beyond the outputs.
        let mut transposed = cpu.scratch::<T>(outputs.div_ceil(lanes) * inputs * lanes);
        const SOME: usize = 64;
        for (block, wt) in transposed.chunks_mut(inputs * lanes).enumerate() {
            let w = &w[block * lanes * inputs..];
            for_pieces(wt.chunks_mut(SOME * lanes).collect(), SOME * lanes, |i, wt| {
                for l in 0..lanes {
                    let to = wt[l..].iter_mut().step_by(lanes);
                    match (l < outputs - block * lanes).then(|| &w[l * inputs + i * SOME..]) {
                        Some(w) => to.zip(w).for_each(|(to, &w)| *to = w),
                        None => to.for_each(|to| *to = T::zero()),
                    }
                }
            });
        }
        let pieces: Vec<_> = y.chunks_mut(IMAGES * outputs).zip(x.chunks(IMAGES * inputs)).collect();
        for_pieces(pieces, IMAGES * inputs * outputs / MACS, |_, (y, x)| {
            for (block, wt) in transposed.chunks(inputs * lanes).enumerate() {
                outputs_of(self, block * lanes, x, wt, b, y);
            }
        });
    }

    pub(super) fn backward_w<T: Real>(self, gy: &[T], x: &[T], gw: &mut [T], accumulate: bool) {
        let Narrow { inputs, outputs, .. } = self;
        for_pieces(MatMut::new(gw, outputs, inputs).split_cols(WIDTH), gy.len() * WIDTH / MACS, |i, mut gw| {
            for first in (0..outputs).step_by(MOST) {
                let mut sums = [[T::zero(); WIDTH]; MOST];
                strip(self, first, gw.width(), gy, &x[i * WIDTH..], &mut sums);
                for (o, sums) in (first..outputs).zip(&sums) {
                    let to = gw.row(o);
                    if accumulate {
                        to.iter_mut().zip(sums).for_each(|(to, &v)| *to += v);
                    } else {
                        to.copy_from_slice(&sums[..to.len()]);
                    }
                }
            }
        });
    }
}

vectorised! {
    /// A block of the outputs, from `first` on, of some images.
    fn outputs_of<T>(layer: Narrow, first: usize, x: &[T], wt: &[T], b: Option<&[T]>, y: &mut [T]) {
        if layer.wide {
            block::<T, { LANES[0] }>(layer, first, x, wt, b, y)
        } else {
            block::<T, { LANES[1] }>(layer, first, x, wt, b, y)
        }
    }

    /// A strip of the weights' gradient: `width` inputs, of which `x` begins with the first, for the outputs from `first` on.
    fn strip<T>(layer: Narrow, first: usize, width: usize, gy: &[T], x: &[T], sums: &mut [[T; WIDTH]; MOST]) {
        if layer.wide {
            columns::<T, { LANES[0] }>(layer, first, width, gy, x, sums)
        } else {
            columns::<T, { LANES[1] }>(layer, first, width, gy, x, sums)
        }
    }
}

#[inline(always)]
fn block<T: Real, const L: usize>(layer: Narrow, first: usize, x: &[T], wt: &[T], b: Option<&[T]>, y: &mut [T]) {
    let Narrow { inputs, outputs, .. } = layer;
    let (wt, _) = wt.as_chunks::<L>();
    let n = x.len() / inputs;
    let mut sums = [[T::zero(); L]; IMAGES];
    for (i, wt) in wt.chunks(INPUTS).enumerate() {
        let x = &x[i * INPUTS..];
        let (fours, rest) = sums[..n].as_chunks_mut::<ROWS>();
        let images = fours.len() * ROWS;
        for (i, sums) in fours.iter_mut().enumerate() {
            tile(&x[ROWS * i * inputs..], wt, sums, inputs);
        }
        for (i, sums) in rest.iter_mut().enumerate() {
            tile(&x[(images + i) * inputs..], wt, std::array::from_mut(sums), inputs);
        }
    }
    let last = outputs.min(first + L);
    for (y, sums) in y.chunks_exact_mut(outputs).zip(&sums) {
        for (l, y) in y[first..last].iter_mut().enumerate() {
            *y = sums[l] + b.map_or(T::zero(), |b| b[first + l]);
        }
    }
}

/// Adds the products of R images, a stride apart, with some inputs' weights.
#[inline(always)]
fn tile<T: Real, const R: usize, const L: usize>(x: &[T], wt: &[[T; L]], sums: &mut [[T; L]; R], stride: usize) {
    let rows: [&[T]; R] = std::array::from_fn(|r| &x[r * stride..r * stride + wt.len()]);
    let mut acc = *sums;
    for (k, w) in wt.iter().enumerate() {
        for r in 0..R {
            let x = rows[r][k];
            for l in 0..L {
                acc[r][l] = x.mul_add(w[l], acc[r][l]);
            }
        }
    }
    *sums = acc;
}

/// Adds up the products of all images, which lie too far apart in memory to be read again and again: some are copied side
/// by side, with zeros where a tile has more outputs or inputs than there are.
#[inline(always)]
fn columns<T: Real, const L: usize>(
    layer: Narrow,
    first: usize,
    width: usize,
    gy: &[T],
    x: &[T],
    sums: &mut [[T; WIDTH]; MOST],
) {
    let Narrow { inputs, outputs, .. } = layer;
    let (mut gs, mut xs) = ([[T::zero(); MOST]; IMAGES], [[T::zero(); WIDTH]; IMAGES]);
    let some = MOST.min(outputs - first);
    for (gy, x) in gy.chunks(IMAGES * outputs).zip(x.chunks(IMAGES * inputs)) {
        let n = gy.len() / outputs;
        for ((gy, x), (g, to)) in gy.chunks(outputs).zip(x.chunks(inputs)).zip(gs.iter_mut().zip(&mut xs)) {
            g[..some].copy_from_slice(&gy[first..first + some]);
            to[..width].copy_from_slice(&x[..width]);
        }
        for o in (0..some).step_by(ROWS) {
            for c in (0..width).step_by(L) {
                outer::<T, L>(&gs[..n], &xs[..n], sums, o, c);
            }
        }
    }
}

/// A tile of outputs and L inputs.
#[inline(always)]
fn outer<T: Real, const L: usize>(
    gs: &[[T; MOST]],
    xs: &[[T; WIDTH]],
    sums: &mut [[T; WIDTH]; MOST],
    o: usize,
    c: usize,
) {
    let mut acc = [[T::zero(); L]; ROWS];
    for r in 0..ROWS {
        acc[r].copy_from_slice(&sums[o + r][c..c + L]);
    }
    for (g, x) in gs.iter().zip(xs) {
        let (Some(g), Some(x)) = (g[o..].first_chunk::<ROWS>(), x[c..].first_chunk::<L>()) else { return };
        for r in 0..ROWS {
            let g = g[r];
            for l in 0..L {
                acc[r][l] = g.mul_add(x[l], acc[r][l]);
            }
        }
    }
    for r in 0..ROWS {
        sums[o + r][c..c + L].copy_from_slice(&acc[r]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::case::Draw;

    /// Both passes with lanes of both widths against the definition, on whole numbers, which add up exactly.
    #[test]
    fn agrees_with_the_definition() {
        for seed in 0..40 {
            let mut draw = Draw::new(seed);
            let [n, inputs, outputs] = [draw.int(1, 70), draw.int(1, 300), draw.int(1, 60)];
            let mut whole = |len: usize| (0..len).map(|_| draw.int(0, 8) as f64 - 4.0).collect::<Vec<f64>>();
            let (x, w, b, gy) = (whole(n * inputs), whole(outputs * inputs), whole(outputs), whole(n * outputs));
            for wide in [true, false] {
                let layer = Narrow { inputs, outputs, wide };
                for b in [Some(&b[..]), None] {
                    let mut y = vec![f64::NAN; n * outputs];
                    layer.forward(&x, &w, b, &mut y, &Cpu::default());
                    for (i, &y) in y.iter().enumerate() {
                        let (x, w) = (&x[i / outputs * inputs..], &w[i % outputs * inputs..]);
                        let sum: f64 = x.iter().zip(w).take(inputs).map(|(x, w)| x * w).sum();
                        assert_eq!(y, sum + b.map_or(0.0, |b| b[i % outputs]), "{n} {inputs} {outputs} {wide}");
                    }
                }
                let mut gw = vec![1.0; outputs * inputs];
                for times in [1.0, 2.0] {
                    layer.backward_w(&gy, &x, &mut gw, times > 1.0);
                    for (i, &gw) in gw.iter().enumerate() {
                        let (o, k) = (i / inputs, i % inputs);
                        let sum: f64 = (0..n).map(|n| gy[n * outputs + o] * x[n * inputs + k]).sum();
                        assert_eq!(gw, times * sum, "{n} {inputs} {outputs} {wide}");
                    }
                }
            }
        }
    }
}
