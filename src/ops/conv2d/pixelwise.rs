//! Convolution of small padded images: a product for each pixel of the batch, without im2col.
//!
//! A pixel of all images is a matrix `[n, channels]` whose rows lie an image apart. An output pixel
//! is the sum of the products of the input pixels under the window with their part of the weights;
//! parts of the window that lie in the padding are left out, where im2col would multiply zeros: with
//! 3x3 windows on 2x2 images that is more than half of the work.

use super::Dims;
use crate::device::cpu::{Cpu, MACS, Mat, MatMut, for_pieces, gemm};
use crate::dtype::Real;

/// Output pixels up to which the padding weighs more than the many small products.
const PIXELS: usize = 16;
/// Images from which on a pixel's matrix has rows enough.
const IMAGES: usize = 32;
/// Channels from which on a pixel's matrix has columns enough.
const CHANNELS: usize = 32;

/// Channels per piece of work.
const BLOCK: usize = 128;

/// Whether a convolution is one for this file.
pub(super) fn suits(d: &Dims) -> bool {
    d.window.pad != [0, 0] && d.pixels() <= PIXELS && d.n >= IMAGES && d.c.min(d.o) >= CHANNELS
}

/// A result `[rows, places · channels]` cut into blocks of the channels of a place, to be computed by
/// `f(place, channels of the block, block)`.
fn for_blocks<T: Real>(
    result: MatMut<'_, T>,
    channels: usize,
    d: &Dims,
    f: impl Fn(usize, std::ops::Range<usize>, MatMut<'_, T>) + Sync,
) {
    let places = result.split_cols(channels).into_iter();
    let pieces: Vec<_> = places.flat_map(|place| place.split_cols(BLOCK)).collect();
    let (blocks, cost) = (channels.div_ceil(BLOCK), d.n * d.pixels() * d.patch() * d.o / MACS / pieces.len());
    for_pieces(pieces, cost, |i, piece| {
        let first = i % blocks * BLOCK;
        f(i / blocks, first..channels.min(first + BLOCK), piece);
    });
}

/// `count` columns from the first of a pixel of `channels` on.
fn columns(pixel: usize, channels: usize, count: usize) -> std::ops::Range<usize> {
    pixel * channels..pixel * channels + count
}

pub(super) fn forward<T: Real>(x: &[T], weights: &[T], b: Option<&[T]>, y: &mut [T], d: &Dims, cpu: &Cpu) {
    match b {
        Some(b) => y.chunks_exact_mut(d.o).for_each(|y| y.copy_from_slice(b)),
        None => y.fill(T::zero()),
    }
    let (x, mut w) = (Mat::new(x, d.n, d.image()), Mat::new(weights, d.o, d.patch()).t());
    // Each product packs its weights anew, which is quicker in another order; with a single pixel there is one for each
    // weight at most.
    let mut by_outputs = cpu.scratch(if d.pixels() > 1 { d.o * d.patch() } else { 0 });
    if d.pixels() > 1 {
        transpose(weights, &mut by_outputs, d);
        w = Mat::new(&by_outputs, d.patch(), d.o);
    }
    for_blocks(MatMut::new(y, d.n, d.pixels() * d.o), d.o, d, |pixel, outputs, mut y| {
        let (h0, rows) = d.window.clip(0, pixel / d.y[1], d.x[0]);
        let (w0, cols) = d.window.clip(1, pixel % d.y[1], d.x[1]);
        for r in rows.filter(|_| !cols.is_empty()) {
            // The pixels of a row of the window lie side by side, in the image and in the weights.
            let from = (h0 + r as isize) as usize * d.x[1] + (w0 + cols.start as isize) as usize;
            let (tap, run) = (r * d.window.kernel[1] + cols.start, cols.len() * d.c);
            let w = w.rows(columns(tap, d.c, run)).cols(outputs.clone());
            gemm(y.again(), true, x.cols(columns(from, d.c, run)), w);
        }
    });
}

/// Weights `[o, kh·kw·c]` to `[kh·kw·c, o]`.
fn transpose<T: Real>(w: &[T], to: &mut [T], d: &Dims) {
    // As many rows as elements of a cache line, all of which are used then.
    const ROWS: usize = 16;
    let blocks = to.chunks_mut(ROWS * d.o).collect();
    for_pieces(blocks, ROWS * d.o, |block, to| {
        for (o, w) in w.chunks_exact(d.patch()).enumerate() {
            to.iter_mut().skip(o).step_by(d.o).zip(&w[block * ROWS..]).for_each(|(to, &w)| *to = w);
        }
    });
}

pub(super) fn backward_x<T: Real>(gy: &[T], w: &[T], gx: &mut [T], d: &Dims) {
    gx.fill(T::zero());
    let (gy, w) = (Mat::new(gy, d.n, d.pixels() * d.o), Mat::new(w, d.o, d.patch()));
    for_blocks(MatMut::new(gx, d.n, d.image()), d.c, d, |pixel, inputs, mut gx| {
        for (p, r) in d.window.covers(0, pixel / d.x[1], d.y[0]) {
            for (q, s) in d.window.covers(1, pixel % d.x[1], d.y[1]) {
                let gy = gy.cols(columns(p * d.y[1] + q, d.o, d.o));
                let w = w.cols(columns(r * d.window.kernel[1] + s, d.c, d.c)).cols(inputs.clone());
                gemm(gx.again(), true, gy, w);
            }
        }
    });
}

pub(super) fn backward_w<T: Real>(gy: &[T], x: &[T], gw: &mut [T], accumulate: bool, d: &Dims) {
    if !accumulate {
        gw.fill(T::zero());
    }
    let (gy, x) = (Mat::new(gy, d.n, d.pixels() * d.o), Mat::new(x, d.n, d.image()));
    let ([sh, sw], [ph, pw], kw) = (d.window.stride, d.window.pad, d.window.kernel[1]);
    for_blocks(MatMut::new(gw, d.o, d.patch()), d.c, d, |tap, inputs, mut gw| {
        for p in d.window.within(0, tap / kw, d.x[0], d.y[0]) {
            for q in d.window.within(1, tap % kw, d.x[1], d.y[1]) {
                let from = (p * sh + tap / kw - ph) * d.x[1] + q * sw + tap % kw - pw;
                let gy = gy.cols(columns(p * d.y[1] + q, d.o, d.o));
                gemm(gw.again(), true, gy.t(), x.cols(columns(from, d.c, d.c)).cols(inputs.clone()));
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::definition::Example;
    use super::*;
    use crate::ops::case::Draw;

    /// All passes against the definition, for random geometries.
    #[test]
    fn agree_with_the_definition() {
        for seed in 0..60 {
            let mut draw = Draw::new(seed);
            let x = [draw.int(1, 7), draw.int(1, 7)];
            let n = draw.int(1, 5);
            let channels = [draw.int(1, 5), draw.int(1, 5)];
            let e = Example::draw(&mut draw, n, x, channels, [3, 3]);
            let d = e.d;
            let (mut y, mut gx, mut gw) =
                (vec![f64::NAN; e.y.len()], vec![f64::NAN; e.x.len()], vec![f64::NAN; e.w.len()]);
            for b in [Some(&e.b[..]), None] {
                forward(&e.x, &e.w, b, &mut y, &d, &Cpu::default());
                let bias = |i: usize| b.map_or(e.b[i % d.o], |_| 0.0);
                assert!(y.iter().zip(&e.y).enumerate().all(|(i, (y, want))| *y == want - bias(i)), "{d:?}");
            }
            backward_x(&e.gy, &e.w, &mut gx, &d);
            assert_eq!(gx, e.gx, "{d:?}");
            backward_w(&e.gy, &e.x, &mut gw, false, &d);
            assert_eq!(gw, e.gw, "{d:?}");
            backward_w(&e.gy, &e.x, &mut gw, true, &d);
            assert!(gw.iter().zip(&e.gw).all(|(a, b)| *a == 2.0 * b));
        }
    }
}
