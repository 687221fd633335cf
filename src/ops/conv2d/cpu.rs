//! Convolution on the CPU: im2col GEMM over groups of images.
//!
//! Forward and the input's gradient work on groups of a few images, in parallel; the patches of a
//! group stay in the cache between im2col and the product. The weights' gradient is a sum over all
//! images: with few weights each group sums for itself and the sums are added in order; with many
//! weights the patches of a chunk of the batch are laid out once and the product is cut along the
//! weights. The sizes of groups and chunks come from the problem alone, so the bits do not depend
//! on the number of threads. Convolutions with few output channels go
//! the way of [`direct`], those of few padded pixels that of [`pixelwise`].

use super::Dims;
use super::direct;
use super::im2col::{col2im, im2col};
use super::pixelwise;
use crate::device::cpu::{Cpu, MACS, Mat, MatMut, for_pieces, gemm};
use crate::dtype::Real;

/// Rows of patches that a product should have to run at full speed.
const ROWS: usize = 256;
/// Images are summed in at most this many groups when the weights' gradient is small.
const SUMS: usize = 8;
/// Weights up to which each group of images has a gradient of its own.
const FEW_WEIGHTS: usize = 1 << 15;
/// Elements of patches laid out at once for the weights' gradient (16 MiB of f32).
const CHUNK: usize = 1 << 22;
/// Weights' gradient: weights of an output channel per piece of work, at least. Each piece packs
/// all of gy anew, so they are not small.
const COLUMNS: usize = 256;

/// Images per group.
fn group(d: &Dims) -> usize {
    ROWS.div_ceil(d.pixels()).min(d.n.div_ceil(2)).max(1)
}

/// The patches of whole images, in `cols` unless the images are their own patches: with a kernel of
/// one pixel that moves by one.
fn patches<'a, T: Real>(x: &'a [T], cols: &'a mut [T], d: &Dims) -> &'a [T] {
    if d.window.is_pointwise() {
        return x;
    }
    for (x, cols) in x.chunks_exact(d.image()).zip(cols.chunks_exact_mut(d.pixels() * d.patch())) {
        im2col(x, cols, d);
    }
    cols
}

/// Elements of scratch memory for the patches of `n` images.
fn patches_len(n: usize, d: &Dims) -> usize {
    if d.window.is_pointwise() { 0 } else { n * d.pixels() * d.patch() }
}

pub(super) fn forward<T: Real>(x: &[T], w: &[T], b: Option<&[T]>, y: &mut [T], d: &Dims, cpu: &Cpu) {
    if pixelwise::suits(d) {
        return pixelwise::forward(x, w, b, y, d);
    }
    let (k, pixels, g) = (d.patch(), d.pixels(), group(d));
    if direct::suits(d) {
        let packed = direct::pack(w, d);
        let len = direct::forward_scratch(d);
        cpu.reserve::<T>(len, d.n);
        let images = y.chunks_mut(pixels * d.o).zip(x.chunks(d.image())).collect();
        return for_pieces(images, pixels * k * d.o / MACS, |_, (y, x)| {
            direct::forward(x, &packed, b, y, &mut cpu.scratch(len), d);
        });
    }
    cpu.reserve::<T>(patches_len(g, d), d.n.div_ceil(g));
    let groups = y.chunks_mut(g * pixels * d.o).zip(x.chunks(g * d.image())).collect();
    for_pieces(groups, g * pixels * k * d.o / MACS, |_, (y, x)| {
        match b {
            Some(b) => y.chunks_exact_mut(d.o).for_each(|y| y.copy_from_slice(b)),
            None => y.fill(T::zero()),
        }
        let rows = y.len() / d.o;
        let mut cols = cpu.scratch(patches_len(g, d));
        let patches = Mat::new(patches(x, &mut cols, d), rows, k);
        gemm(MatMut::new(y, rows, d.o), true, patches, Mat::new(w, d.o, k).t());
    });
}

pub(super) fn backward_x<T: Real>(gy: &[T], w: &[T], gx: &mut [T], d: &Dims, cpu: &Cpu) {
    if pixelwise::suits(d) {
        return pixelwise::backward_x(gy, w, gx, d);
    }
    let (k, pixels, g) = (d.patch(), d.pixels(), group(d));
    cpu.reserve::<T>(patches_len(g, d), d.n.div_ceil(g));
    let groups = gx.chunks_mut(g * d.image()).zip(gy.chunks(g * pixels * d.o)).collect();
    for_pieces(groups, g * pixels * k * d.o / MACS, |_, (gx, gy)| {
        let rows = gy.len() / d.o;
        let (gy, w) = (Mat::new(gy, rows, d.o), Mat::new(w, d.o, k));
        if d.window.is_pointwise() {
            return gemm(MatMut::new(gx, rows, k), false, gy, w);
        }
        let mut cols = cpu.scratch(patches_len(g, d));
        gemm(MatMut::new(&mut cols, rows, k), false, gy, w);
        for (cols, gx) in cols.chunks(pixels * k).zip(gx.chunks_mut(d.image())) {
            col2im(cols, gx, d);
        }
    });
}

pub(super) fn backward_w<T: Real>(gy: &[T], x: &[T], gw: &mut [T], accumulate: bool, d: &Dims, cpu: &Cpu) {
    if pixelwise::suits(d) {
        pixelwise::backward_w(gy, x, gw, accumulate, d);
    } else if gw.len() <= FEW_WEIGHTS {
        sum_groups(gy, x, gw, accumulate, d, cpu);
    } else {
        cut_weights(gy, x, gw, accumulate, d, cpu);
    }
}

/// Each group of images sums for itself; the sums are added in order.
fn sum_groups<T: Real>(gy: &[T], x: &[T], gw: &mut [T], accumulate: bool, d: &Dims, cpu: &Cpu) {
    let (k, pixels) = (d.patch(), d.pixels());
    let g = d.n.div_ceil(SUMS);
    let direct = direct::suits(d);
    let len = if direct { direct::backward_scratch(d) } else { patches_len(1, d) };
    // Before the reservation, of which it might take a piece if it happens to have that size.
    let mut sums = cpu.scratch::<T>(d.n.div_ceil(g) * gw.len());
    cpu.reserve::<T>(len, d.n.div_ceil(g));
    let groups = sums.chunks_mut(gw.len()).zip(x.chunks(g * d.image())).zip(gy.chunks(g * pixels * d.o)).collect();
    for_pieces(groups, g * pixels * k * d.o / MACS, |_, ((sum, x), gy)| {
        let mut scratch = cpu.scratch(len);
        for (i, (x, gy)) in x.chunks(d.image()).zip(gy.chunks(pixels * d.o)).enumerate() {
            if direct {
                direct::backward_w(gy, x, sum, i > 0, &mut scratch, d);
            } else {
                let patches = Mat::new(patches(x, &mut scratch, d), pixels, k);
                gemm(MatMut::new(sum, d.o, k), i > 0, Mat::new(gy, pixels, d.o).t(), patches);
            }
        }
    });
    if !accumulate {
        gw.fill(T::zero());
    }
    for sum in sums.chunks(gw.len()) {
        gw.iter_mut().zip(sum).for_each(|(w, &s)| *w += s);
    }
}

/// The patches of a chunk of images are laid out, then the product is cut along the weights.
fn cut_weights<T: Real>(gy: &[T], x: &[T], gw: &mut [T], accumulate: bool, d: &Dims, cpu: &Cpu) {
    let (k, pixels) = (d.patch(), d.pixels());
    let chunk = (CHUNK / (pixels * k)).clamp(1, d.n);
    let mut cols = cpu.scratch::<T>(patches_len(chunk, d));
    let chunks = x.chunks(chunk * d.image()).zip(gy.chunks(chunk * pixels * d.o));
    for (first, (x, gy)) in chunks.enumerate() {
        let rows = gy.len() / d.o;
        if !d.window.is_pointwise() {
            let images = x.chunks(d.image()).zip(cols.chunks_mut(pixels * k)).collect();
            for_pieces(images, pixels * k, |_, (x, cols)| im2col(x, cols, d));
        }
        let patches = Mat::new(if d.window.is_pointwise() { x } else { &cols }, rows, k);
        let gy = Mat::new(gy, rows, d.o);
        let width = k.div_ceil(4).max(COLUMNS);
        for_pieces(MatMut::new(gw, d.o, k).split_cols(width), rows * d.o * width / MACS, |i, gw| {
            let columns = i * width..k.min((i + 1) * width);
            gemm(gw, accumulate || first > 0, gy.t(), patches.cols(columns));
        });
    }
}
