//! Convolution on the CPU: im2col GEMM over groups of images.
//!
//! Forward and the input's gradient work on groups of a few images, in parallel; the patches of a
//! group stay in the cache between im2col and the product. The weights' gradient is a sum over all
//! images: with few weights each group sums for itself and the sums are added in order; with many
//! weights the patches of a chunk of the batch are laid out once and the product is cut along the
//! weights. The sizes of groups and chunks come from the problem alone, so the bits do not depend
//! on the number of threads. Convolutions with few output channels go
//! the way of [`direct`], those of few padded pixels that of [`pixelwise`], and batches
//! with few channels that of `lanes`.

use super::Dims;
use super::direct;
use super::im2col::{col2im, im2col};
#[cfg(target_arch = "x86_64")]
use super::lanes;
use super::pixelwise;
use crate::device::cpu::{Cpu, MACS, Mat, MatMut, for_pieces, gemm};
use crate::dtype::Real;
use crate::error::Result;

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

/// Whether images are their own patches: with a kernel of one pixel that moves by one, over all of them.
fn is_pointwise(d: &Dims) -> bool {
    d.window.is_pointwise() && d.y == d.x
}

/// The patches of whole images, in `cols` unless the images are their own patches.
fn patches<'a, T: Real>(x: &'a [T], cols: &'a mut [T], d: &Dims) -> &'a [T] {
    if is_pointwise(d) {
        return x;
    }
    for (x, cols) in x.chunks_exact(d.image()).zip(cols.chunks_exact_mut(d.pixels() * d.patch())) {
        im2col(x, cols, d);
    }
    cols
}

/// Elements of scratch memory for the patches of `n` images.
fn patches_len(n: usize, d: &Dims) -> usize {
    if is_pointwise(d) { 0 } else { n * d.pixels() * d.patch() }
}

pub(super) fn forward<T: Real>(x: &[T], w: &[T], b: Option<&[T]>, y: &mut [T], d: &Dims, cpu: &Cpu) -> Result<()> {
    if pixelwise::suits(d) {
        pixelwise::forward(x, w, b, y, d, cpu);
        return Ok(());
    }
    #[cfg(target_arch = "x86_64")]
    if lanes::suits::<T>(d) {
        return lanes::forward(x, w, b, y, d, cpu);
    }
    let (k, pixels, g) = (d.patch(), d.pixels(), group(d));
    if direct::suits(d) {
        let packed = direct::pack(w, d);
        let len = direct::forward_scratch(d);
        cpu.reserve::<T>(len, d.n)?;
        let images = y.chunks_mut(pixels * d.o).zip(x.chunks(d.image())).collect();
        for_pieces(images, pixels * k * d.o / MACS, |_, (y, x)| {
            direct::forward(x, &packed, b, y, &mut cpu.scratch(len), d);
        });
        return Ok(());
    }
    cpu.reserve::<T>(patches_len(g, d), d.n.div_ceil(g))?;
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
    Ok(())
}

pub(super) fn backward_x<T: Real>(gy: &[T], w: &[T], gx: &mut [T], d: &Dims, cpu: &Cpu) -> Result<()> {
    if pixelwise::suits(d) {
        pixelwise::backward_x(gy, w, gx, d);
        return Ok(());
    }
    #[cfg(target_arch = "x86_64")]
    if lanes::suits::<T>(d) {
        return lanes::backward_x(gy, w, gx, d, cpu);
    }
    let (k, pixels, g) = (d.patch(), d.pixels(), group(d));
    cpu.reserve::<T>(patches_len(g, d), d.n.div_ceil(g))?;
    let groups = gx.chunks_mut(g * d.image()).zip(gy.chunks(g * pixels * d.o)).collect();
    for_pieces(groups, g * pixels * k * d.o / MACS, |_, (gx, gy)| {
        let rows = gy.len() / d.o;
        let (gy, w) = (Mat::new(gy, rows, d.o), Mat::new(w, d.o, k));
        if is_pointwise(d) {
            return gemm(MatMut::new(gx, rows, k), false, gy, w);
        }
        let mut cols = cpu.scratch(patches_len(g, d));
        gemm(MatMut::new(&mut cols, rows, k), false, gy, w);
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
    cpu: &Cpu,
) -> Result<()> {
    if pixelwise::suits(d) {
        pixelwise::backward_w(gy, x, gw, accumulate, d);
        return Ok(());
    }
    #[cfg(target_arch = "x86_64")]
    if lanes::suits::<T>(d) {
        return lanes::backward_w(gy, x, gw, accumulate, d, cpu);
    }
    if gw.len() > FEW_WEIGHTS {
        return cut_weights(gy, x, gw, accumulate, d, cpu);
    }
    let (k, pixels) = (d.patch(), d.pixels());
    let direct = direct::suits(d);
    let len = if direct { direct::backward_scratch(d) } else { patches_len(1, d) };
    sum_groups(gy, x, gw, accumulate, [1, len], d, cpu, |gy, x, sum, scratch| {
        for (i, (x, gy)) in x.chunks(d.image()).zip(gy.chunks(pixels * d.o)).enumerate() {
            if direct {
                direct::backward_w(gy, x, sum, i > 0, scratch, d);
            } else {
                let patches = Mat::new(patches(x, scratch, d), pixels, k);
                gemm(MatMut::new(sum, d.o, k), i > 0, Mat::new(gy, pixels, d.o).t(), patches);
            }
        }
    })
}

/// Each group of images sums for itself; the sums are added in order.
///
/// `share(gy, x, sum, scratch)` writes a group's sum. Groups are multiples of `together` images, and
/// each has `len` elements of scratch memory.
#[expect(clippy::too_many_arguments, reason = "the backward pass's own, and how it is cut")]
pub(super) fn sum_groups<T: Real>(
    gy: &[T],
    x: &[T],
    gw: &mut [T],
    accumulate: bool,
    [together, len]: [usize; 2],
    d: &Dims,
    cpu: &Cpu,
    share: impl Fn(&[T], &[T], &mut [T], &mut [T]) + Sync,
) -> Result<()> {
    let g = d.n.div_ceil(SUMS).next_multiple_of(together);
    // Before the reservation, of which it might take a piece if it happens to have that size.
    let mut sums = cpu.scratch::<T>(d.n.div_ceil(g) * gw.len());
    cpu.reserve::<T>(len, d.n.div_ceil(g))?;
    let groups = sums.chunks_mut(gw.len()).zip(x.chunks(g * d.image())).zip(gy.chunks(g * d.pixels() * d.o));
    for_pieces(groups.collect(), g * d.pixels() * d.patch() * d.o / MACS, |_, ((sum, x), gy)| {
        share(gy, x, sum, &mut cpu.scratch(len));
    });
    if !accumulate {
        gw.fill(T::zero());
    }
    for sum in sums.chunks(gw.len()) {
        gw.iter_mut().zip(sum).for_each(|(w, &s)| *w += s);
    }
    Ok(())
}

/// The patches of a chunk of images are laid out, then the product is cut along the weights.
fn cut_weights<T: Real>(gy: &[T], x: &[T], gw: &mut [T], accumulate: bool, d: &Dims, cpu: &Cpu) -> Result<()> {
    let (k, pixels) = (d.patch(), d.pixels());
    let chunk = (CHUNK / (pixels * k)).clamp(1, d.n);
    cpu.reserve::<T>(patches_len(chunk, d), 1)?;
    let mut cols = cpu.scratch::<T>(patches_len(chunk, d));
    let chunks = x.chunks(chunk * d.image()).zip(gy.chunks(chunk * pixels * d.o));
    for (first, (x, gy)) in chunks.enumerate() {
        let rows = gy.len() / d.o;
        if !is_pointwise(d) {
            let images = x.chunks(d.image()).zip(cols.chunks_mut(pixels * k)).collect();
            for_pieces(images, pixels * k, |_, (x, cols)| im2col(x, cols, d));
        }
        let patches = Mat::new(if is_pointwise(d) { x } else { &cols }, rows, k);
        let gy = Mat::new(gy, rows, d.o);
        let width = k.div_ceil(4).max(COLUMNS);
        for_pieces(MatMut::new(gw, d.o, k).split_cols(width), rows * d.o * width / MACS, |i, gw| {
            let columns = i * width..k.min((i + 1) * width);
            gemm(gw, accumulate || first > 0, gy.t(), patches.cols(columns));
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::definition::Example;
    use super::*;
    use crate::ops::case::Draw;
    use crate::ops::window::Window;

    /// All passes against the definition, for random geometries, and for one that would be pointwise if it did not lack a row.
    #[test]
    fn agree_with_the_definition() {
        let lacks = Dims { n: 5, x: [4, 3], c: 3, y: [3, 3], o: 2, window: Window::square(1, 1, 0) };
        let whole = Dims { y: [4, 3], ..lacks };
        for seed in 0..60 {
            let mut draw = Draw::new(seed);
            let (x, n) = ([draw.int(3, 9), draw.int(3, 9)], draw.int(1, 6));
            let e = match seed {
                0 => Example::new(lacks),
                1 => Example::new(whole),
                _ => Example::draw(&mut draw, n, x, [3, 14], [3, 3]),
            };
            let (d, cpu) = (e.d, Cpu::default());
            let (mut y, mut gx, mut gw) =
                (vec![f64::NAN; e.y.len()], vec![f64::NAN; e.x.len()], vec![f64::NAN; e.w.len()]);
            forward(&e.x, &e.w, Some(&e.b), &mut y, &d, &cpu).unwrap();
            assert_eq!(y, e.y, "{d:?}");
            backward_x(&e.gy, &e.w, &mut gx, &d, &cpu).unwrap();
            assert_eq!(gx, e.gx, "{d:?}");
            backward_w(&e.gy, &e.x, &mut gw, false, &d, &cpu).unwrap();
            assert_eq!(gw, e.gw, "{d:?}");
            // As with more weights.
            cut_weights(&e.gy, &e.x, &mut gw, true, &d, &cpu).unwrap();
            assert!(gw.iter().zip(&e.gw).all(|(a, b)| *a == 2.0 * b), "{d:?}");
        }
    }
}
