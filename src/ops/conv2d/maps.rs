//! Tensor maps of a convolution's operands: what TMA must know to bring them (`kernels/conv2d_tma.cuh`).
//!
//! Boxes are 64 channels wide, 128 bytes, or in runs 32. An image is walked by the window: its map says from which corner to
//! which, and how many pixels a box has.

use super::Dims;
use crate::device::cuda::{Cuda, KernelType, MappedTensor, Swizzle, TensorMapBox, TensorMapSpec, Tile};
use crate::error::Result;
use crate::tensor::Tensor;

/// Channels of a box.
const WIDE: usize = 64;
/// Sides of a window, at most: what a box is moved by has 8 bits.
const MOST_TAPS: usize = 128;

/// The two operands of a product, first A's.
pub(super) type Operands = [TensorMapSpec; 2];

/// The forward pass: patches of x, and rows of the weights.
pub(super) fn forward<T: KernelType>(x: &Tensor, w: &Tensor, d: &Dims, tile: &Tile) -> Result<Operands> {
    Ok([patches::<T>(x, d, tile.m)?, weights::<T>(w, d, [WIDE, tile.n])?])
}

/// The same where the result is pooled by windows, whose sizes `d` has (`kernels/conv2d_pool.cu`): patches of the windows' upper rows
/// of pixels, a quarter of a tile's rows a box.
pub(super) fn pooled<T: KernelType>(x: &Tensor, w: &Tensor, d: &Dims, tile: &Tile) -> Result<Operands> {
    let ([down, across], [h, wide]) = (d.window.stride, d.y);
    let walk = ([h, 2 * wide], [down, across / 2]);
    Ok([walked::<T>(x, d, walk, tile.m / 4)?, weights::<T>(w, d, [WIDE, tile.n])?])
}

/// The input gradient, with a stride of 1: patches of gy under the window turned round, whose padding is what is left of it, and
/// weights.
pub(super) fn backward_x<T: KernelType>(gy: &Tensor, w: &Tensor, d: &Dims, tile: &Tile) -> Result<Operands> {
    let corner = [0, 1].map(|i| d.window.pad[i] as i32 - (d.window.kernel[i] as i32 - 1));
    let gy = images::<T>(gy, [d.y[0], d.y[1], d.o], corner, d.x, [1; 2], [tile.m, WIDE])?;
    Ok([gy, weights::<T>(w, d, [WIDE; 2])?])
}

/// The weight gradient: gy as a matrix `[n·ho·wo, o]`, and patches of x.
pub(super) fn backward_w<T: KernelType>(gy: &Tensor, x: &Tensor, d: &Dims) -> Result<Operands> {
    let sizes = [d.o as u32, (d.n * d.pixels()) as u32];
    let rows = TensorMapSpec::tiled(size_of::<T>() as u32, gy.input::<T>()?.address(), &sizes, &[64; 2], Swizzle::B128);
    Ok([rows, patches::<T>(x, d, WIDE)?])
}

/// Runs of images `[h, w, c]` (`kernels/conv2d_halo.cu`) from a corner beside theirs on, of so many rows of places, so many places
/// and channels a box; and the weights, so many inputs and outputs a box.
pub(super) fn runs<T: KernelType>(
    [x, w]: [&Tensor; 2],
    d: &Dims,
    image: [usize; 3],
    corner: [i32; 2],
    places: [usize; 2],
    run: [usize; 2],
    part: [usize; 2],
) -> Result<Operands> {
    let runs = images::<T>(x, image, corner, places, [1; 2], run)?;
    Ok([runs, weights::<T>(w, d, part)?])
}

/// Whether there can be such maps, for images that are walked along `channels` of them; `operands` is asked only if it matters.
pub(super) fn possible(channels: usize, d: &Dims, operands: impl FnOnce() -> Result<Operands>) -> Result<bool> {
    let small = d.window.kernel.iter().all(|&side| side <= MOST_TAPS);
    Ok(channels.is_multiple_of(WIDE) && small && operands()?.iter().all(|spec| spec.check().is_ok()))
}

/// The operands by their maps.
pub(super) fn make(cuda: &Cuda, operands: &Operands) -> Result<[MappedTensor; 2]> {
    Ok([cuda.tensor_map(&operands[0])?, cuda.tensor_map(&operands[1])?])
}

fn patches<T: KernelType>(x: &Tensor, d: &Dims, pixels: usize) -> Result<TensorMapSpec> {
    walked::<T>(x, d, (d.y, d.window.stride), pixels)
}

/// Patches on a walk of so many rows and columns in such steps.
fn walked<T: KernelType>(
    x: &Tensor,
    d: &Dims,
    (walk, steps): ([usize; 2], [usize; 2]),
    pixels: usize,
) -> Result<TensorMapSpec> {
    let corner = d.window.pad.map(|pad| -(pad as i32));
    images::<T>(x, [d.x[0], d.x[1], d.c], corner, walk, steps, [pixels, WIDE])
}

/// Images of `[h, w, c]` and boxes of so many pixels and channels, on a walk of so many rows and columns from a corner on.
fn images<T: KernelType>(
    x: &Tensor,
    [h, w, c]: [usize; 3],
    corner: [i32; 2],
    walk: [usize; 2],
    steps: [usize; 2],
    [pixels, channels]: [usize; 2],
) -> Result<TensorMapSpec> {
    // From the image's own corners to the first place of the walk, and to the last.
    let last = |i: usize| ((walk[i] - 1) * steps[i]) as i32 + corner[i] + 1 - [h, w][i] as i32;
    let (lower, upper) = (vec![corner[1], corner[0]], vec![last(1), last(0)]);
    let steps = vec![steps[1] as u32, steps[0] as u32];
    let column = TensorMapBox::Im2col { lower, upper, channels: channels as u32, pixels: pixels as u32, steps };
    let n = x.len() / (h * w * c);
    let sizes = [n, h, w, c].map(|size| size as u32);
    Ok(TensorMapSpec::im2col(size_of::<T>() as u32, x.input::<T>()?.address(), sizes, column, swizzle(channels)))
}

/// Weights `[o, taps, c]`, and boxes of so many inputs and outputs at one tap.
fn weights<T: KernelType>(w: &Tensor, d: &Dims, [inputs, outputs]: [usize; 2]) -> Result<TensorMapSpec> {
    let sizes = [d.c, d.patch() / d.c, d.o].map(|size| size as u32);
    let part = [inputs as u32, 1, outputs as u32];
    Ok(TensorMapSpec::tiled(size_of::<T>() as u32, w.input::<T>()?.address(), &sizes, &part, swizzle(inputs)))
}

/// That of rows of so many channels.
fn swizzle(channels: usize) -> Swizzle {
    if channels == WIDE { Swizzle::B128 } else { Swizzle::B64 }
}
