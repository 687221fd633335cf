//! Convolution of small padded images: a product for each pixel of the batch, without im2col.
//!
//! A pixel of all images is a matrix `[n, channels]` whose rows lie an image apart. An output pixel
//! is the sum of the products of the input pixels under the window with their part of the weights;
//! parts of the window that lie in the padding are left out, where im2col would multiply zeros: with
//! 3x3 windows on 2x2 images that is more than half of the work.

use super::Dims;
use crate::device::cpu::{MACS, Mat, MatMut, for_pieces, gemm};
use crate::dtype::Real;

/// Output pixels up to which the padding weighs more than the many small products.
const PIXELS: usize = 16;
/// Images from which on a pixel's matrix has rows enough.
const IMAGES: usize = 32;
/// Channels from which on a pixel's matrix has columns enough.
const CHANNELS: usize = 32;

/// Whether a convolution is one for this file.
pub(super) fn suits(d: &Dims) -> bool {
    d.window.pad != [0, 0] && d.pixels() <= PIXELS && d.n >= IMAGES && d.c.min(d.o) >= CHANNELS
}

/// Work of one of `pieces` equal pieces of the whole convolution.
fn cost(d: &Dims, pieces: usize) -> usize {
    d.n * d.pixels() * d.patch() * d.o / MACS / pieces
}

/// The columns of channels of a pixel.
fn channels(pixel: usize, channels: usize) -> std::ops::Range<usize> {
    pixel * channels..(pixel + 1) * channels
}

pub(super) fn forward<T: Real>(x: &[T], w: &[T], b: Option<&[T]>, y: &mut [T], d: &Dims) {
    match b {
        Some(b) => y.chunks_exact_mut(d.o).for_each(|y| y.copy_from_slice(b)),
        None => y.fill(T::zero()),
    }
    let (x, w) = (Mat::new(x, d.n, d.image()), Mat::new(w, d.o, d.patch()));
    let pixels = MatMut::new(y, d.n, d.pixels() * d.o).split_cols(d.o);
    for_pieces(pixels, cost(d, d.pixels()), |pixel, mut y| {
        let (h0, rows) = d.window.clip(0, pixel / d.y[1], d.x[0]);
        let (w0, columns) = d.window.clip(1, pixel % d.y[1], d.x[1]);
        for r in rows.filter(|_| !columns.is_empty()) {
            // The pixels of a row of the window lie side by side, in the image and in the weights.
            let from = (h0 + r as isize) as usize * d.x[1] + (w0 + columns.start as isize) as usize;
            let tap = r * d.window.kernel[1] + columns.start;
            let run = columns.len() * d.c;
            let (x, w) = (x.cols(from * d.c..from * d.c + run), w.cols(tap * d.c..tap * d.c + run));
            gemm(y.again(), true, x, w.t());
        }
    });
}

pub(super) fn backward_x<T: Real>(gy: &[T], w: &[T], gx: &mut [T], d: &Dims) {
    gx.fill(T::zero());
    let (gy, w) = (Mat::new(gy, d.n, d.pixels() * d.o), Mat::new(w, d.o, d.patch()));
    let pixels = MatMut::new(gx, d.n, d.image()).split_cols(d.c);
    let count = pixels.len();
    for_pieces(pixels, cost(d, count), |pixel, mut gx| {
        for (p, r) in covers(d, 0, pixel / d.x[1]) {
            for (q, s) in covers(d, 1, pixel % d.x[1]) {
                let (gy, w) =
                    (gy.cols(channels(p * d.y[1] + q, d.o)), w.cols(channels(r * d.window.kernel[1] + s, d.c)));
                gemm(gx.again(), true, gy, w);
            }
        }
    });
}

/// Along dimension `i`, the outputs whose window covers input position `at`, and its place in the window.
fn covers(d: &Dims, i: usize, at: usize) -> impl Iterator<Item = (usize, usize)> {
    let (pad, stride, kernel) = (d.window.pad[i], d.window.stride[i], d.window.kernel[i]);
    (0..d.y[i]).filter_map(move |o| Some((o, (at + pad).checked_sub(o * stride)?))).filter(move |&(_, k)| k < kernel)
}

pub(super) fn backward_w<T: Real>(gy: &[T], x: &[T], gw: &mut [T], accumulate: bool, d: &Dims) {
    if !accumulate {
        gw.fill(T::zero());
    }
    let (gy, x) = (Mat::new(gy, d.n, d.pixels() * d.o), Mat::new(x, d.n, d.image()));
    let [kh, kw] = d.window.kernel;
    let taps = MatMut::new(gw, d.o, d.patch()).split_cols(d.c);
    for_pieces(taps, cost(d, kh * kw), |tap, mut gw| {
        for pixel in 0..d.pixels() {
            let (h0, rows) = d.window.clip(0, pixel / d.y[1], d.x[0]);
            let (w0, columns) = d.window.clip(1, pixel % d.y[1], d.x[1]);
            if rows.contains(&(tap / kw)) && columns.contains(&(tap % kw)) {
                let (row, column) = (h0 + (tap / kw) as isize, w0 + (tap % kw) as isize);
                let from = row as usize * d.x[1] + column as usize;
                gemm(gw.again(), true, gy.cols(channels(pixel, d.o)).t(), x.cols(channels(from, d.c)));
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
            let x = [draw.int(5, 7), draw.int(5, 7)];
            let n = draw.int(1, 5);
            let e = Example::draw(&mut draw, n, x, 5, [3, 3]);
            let d = e.d;
            let (mut y, mut gx, mut gw) =
                (vec![f64::NAN; e.y.len()], vec![f64::NAN; e.x.len()], vec![f64::NAN; e.w.len()]);
            for b in [Some(&e.b[..]), None] {
                forward(&e.x, &e.w, b, &mut y, &d);
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
