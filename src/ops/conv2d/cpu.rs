//! Convolution on the CPU: im2col GEMM over groups of images.
//!
//! Forward and the input's gradient work on groups of a few images, in parallel; the patches of a
//! group stay in the cache between im2col and the product. The weights' gradient is a sum over all
//! images: with few weights each group sums for itself and the sums are added in order; with many
//! weights the patches of a chunk of the batch are laid out once and the product is cut along the
//! weights. The sizes of groups and chunks come from the problem alone, so the bits do not depend
//! on the number of threads.

use super::Dims;
use super::direct;
use super::im2col::{col2im, im2col};
use crate::device::Device;
use crate::device::cpu::{Mat, MatMut, for_pieces, gemm};
use crate::dtype::Real;
use crate::error::Result;
use crate::tensor::Tensor;

/// Rows of patches that a product should have to run at full speed.
const ROWS: usize = 256;
/// Images are summed in at most this many groups when the weights' gradient is small.
const SUMS: usize = 8;
/// Weights up to which each group of images has a gradient of its own.
const FEW_WEIGHTS: usize = 1 << 15;
/// Elements of patches laid out at once for the weights' gradient (16 MiB of f32).
const CHUNK: usize = 1 << 22;
/// Weights' gradient: output channels per piece of work.
const CHANNELS: usize = 64;

/// A kernel of one pixel, one step at a time: the image is its own patches.
fn is_pointwise(d: &Dims) -> bool {
    d.window.is_pointwise()
}

/// Images per group.
fn group(d: &Dims) -> usize {
    ROWS.div_ceil(d.pixels()).min(d.n.div_ceil(2)).max(1)
}

/// Scratch memory for `groups` groups' patches of `each` elements.
fn scratch<T: Real>(device: &Device, groups: usize, each: usize) -> Tensor {
    Tensor::empty(device, T::DTYPE, [groups, each])
}

pub(super) fn forward<T: Real>(
    x: &[T],
    w: &[T],
    b: Option<&[T]>,
    y: &mut [T],
    d: &Dims,
    device: &Device,
) -> Result<()> {
    let (k, pixels, g) = (d.patch(), d.pixels(), group(d));
    if direct::suits(d) {
        let packed = direct::pack(w, d);
        let size = direct::forward_scratch(d);
        let mut planes = scratch::<T>(device, d.n, size);
        let images = y.chunks_mut(pixels * d.o).zip(planes.host_mut::<T>()?.chunks_mut(size)).zip(x.chunks(d.image()));
        for_pieces(images.collect(), pixels * k * d.o, |_, ((y, planes), x)| {
            direct::forward(x, &packed, b, y, planes, d)
        });
        return Ok(());
    }
    let mut cols = scratch::<T>(device, if is_pointwise(d) { 0 } else { d.n.div_ceil(g) }, g * pixels * k);
    let mut cols = cols.host_mut::<T>()?.chunks_mut(g * pixels * k);
    let pieces: Vec<_> = y.chunks_mut(g * pixels * d.o).map(|y| (y, cols.next().unwrap_or_default())).collect();
    for_pieces(pieces, g * pixels * k * d.o, |i, (y, cols)| {
        let x = &x[i * g * d.image()..];
        let rows = y.len() / d.o;
        match b {
            Some(b) => y.chunks_exact_mut(d.o).for_each(|y| y.copy_from_slice(b)),
            None => y.fill(T::zero()),
        }
        let patches = patches(x, cols, rows / pixels, d);
        gemm(MatMut::new(y, rows, d.o), true, Mat::new(patches, rows, k), Mat::new(w, d.o, k).t());
    });
    Ok(())
}

/// The patches of `n` images, in `cols` unless the images are their own patches.
fn patches<'a, T: Real>(x: &'a [T], cols: &'a mut [T], n: usize, d: &Dims) -> &'a [T] {
    if is_pointwise(d) {
        return x;
    }
    let each = d.pixels() * d.patch();
    for (x, cols) in x.chunks(d.image()).zip(cols.chunks_exact_mut(each)).take(n) {
        im2col(x, cols, d);
    }
    cols
}

pub(super) fn backward_x<T: Real>(gy: &[T], w: &[T], gx: &mut [T], d: &Dims, device: &Device) -> Result<()> {
    let (k, pixels, g) = (d.patch(), d.pixels(), group(d));
    let mut cols = scratch::<T>(device, if is_pointwise(d) { 0 } else { d.n.div_ceil(g) }, g * pixels * k);
    let mut cols = cols.host_mut::<T>()?.chunks_mut(g * pixels * k);
    let pieces: Vec<_> = gx.chunks_mut(g * d.image()).map(|gx| (gx, cols.next().unwrap_or_default())).collect();
    for_pieces(pieces, g * pixels * k * d.o, |i, (gx, cols)| {
        let rows = gx.len() / d.image() * pixels;
        let gy = Mat::new(&gy[i * g * pixels * d.o..], rows, d.o);
        if is_pointwise(d) {
            return gemm(MatMut::new(gx, rows, k), false, gy, Mat::new(w, d.o, k));
        }
        gemm(MatMut::new(cols, rows, k), false, gy, Mat::new(w, d.o, k));
        for (cols, gx) in cols.chunks(pixels * k).zip(gx.chunks_mut(d.image())) {
            col2im(cols, gx, d);
        }
    });
    Ok(())
}

pub(super) fn backward_w<T: Real>(
    gy: &[T],
    x: &[T],
    gw: &mut [T],
    accumulate: bool,
    d: &Dims,
    device: &Device,
) -> Result<()> {
    if gw.len() <= FEW_WEIGHTS {
        sum_groups(gy, x, gw, accumulate, d, device)
    } else {
        cut_weights(gy, x, gw, accumulate, d, device)
    }
}

/// Each group of images sums for itself; the sums are added in order.
fn sum_groups<T: Real>(gy: &[T], x: &[T], gw: &mut [T], accumulate: bool, d: &Dims, device: &Device) -> Result<()> {
    let (k, pixels) = (d.patch(), d.pixels());
    let g = d.n.div_ceil(SUMS);
    let groups = d.n.div_ceil(g);
    let mut sums = scratch::<T>(device, groups, gw.len());
    let sums = sums.host_mut::<T>()?;
    let direct = direct::suits(d);
    let size = if direct { direct::backward_scratch(d) } else { pixels * k };
    let mut cols = scratch::<T>(device, if is_pointwise(d) && !direct { 0 } else { groups }, size);
    let mut cols = cols.host_mut::<T>()?.chunks_mut(size);
    let pieces: Vec<_> = sums.chunks_mut(gw.len()).map(|s| (s, cols.next().unwrap_or_default())).collect();
    for_pieces(pieces, g * pixels * k * d.o, |i, (sum, cols)| {
        for image in i * g..d.n.min((i + 1) * g) {
            let x = &x[image * d.image()..(image + 1) * d.image()];
            let gy = &gy[image * pixels * d.o..(image + 1) * pixels * d.o];
            if direct {
                direct::backward_w(gy, x, sum, image > i * g, cols, d);
            } else {
                let patches = Mat::new(patches(x, cols, 1, d), pixels, k);
                gemm(MatMut::new(sum, d.o, k), image > i * g, Mat::new(gy, pixels, d.o).t(), patches);
            }
        }
    });
    if !accumulate {
        gw.fill(T::zero());
    }
    for sum in sums.chunks(gw.len()) {
        gw.iter_mut().zip(sum).for_each(|(w, &s)| *w += s);
    }
    Ok(())
}

/// The patches of a chunk of images are laid out, then the product is cut along the output channels.
fn cut_weights<T: Real>(gy: &[T], x: &[T], gw: &mut [T], accumulate: bool, d: &Dims, device: &Device) -> Result<()> {
    let (k, pixels) = (d.patch(), d.pixels());
    let chunk = (CHUNK / (pixels * k)).clamp(1, d.n);
    let mut cols = scratch::<T>(device, if is_pointwise(d) { 0 } else { chunk }, pixels * k);
    let cols = cols.host_mut::<T>()?;
    for first in (0..d.n).step_by(chunk) {
        let n = chunk.min(d.n - first);
        let x = &x[first * d.image()..(first + n) * d.image()];
        let patches = if is_pointwise(d) {
            x
        } else {
            for_pieces(cols.chunks_mut(pixels * k).take(n).collect(), pixels * k, |i, cols| {
                im2col(&x[i * d.image()..(i + 1) * d.image()], cols, d);
            });
            &*cols
        };
        let rows = n * pixels;
        let (gy, patches) = (Mat::new(&gy[first * pixels * d.o..], rows, d.o), Mat::new(patches, rows, k));
        for_pieces(MatMut::new(gw, d.o, k).split_rows(CHANNELS), rows * k * CHANNELS, |i, gw| {
            let channels = i * CHANNELS..d.o.min((i + 1) * CHANNELS);
            gemm(gw, accumulate || first > 0, gy.cols(channels).t(), patches);
        });
    }
    Ok(())
}
