//! The linear layer on the CPU: matrix products, cut along the outputs, or along the batch and the inputs.

use super::narrow::Narrow;
use crate::device::cpu::{Cpu, MACS, Mat, MatMut, for_pieces, gemm, vectorised};
use crate::dtype::Real;

/// Rows or columns of a large matrix per piece of work.
const BLOCK: usize = 128;
/// From this batch size on, y is computed transposed: then the weights stream through once, in
/// the order they lie in memory.
const TRANSPOSE: usize = 8;

pub(super) fn forward<T: Real>(
    x: &[T],
    w: &[T],
    b: Option<&[T]>,
    y: &mut [T],
    [n, inputs, outputs]: [usize; 3],
    cpu: &Cpu,
) {
    if n < TRANSPOSE {
        return few_rows(x, w, b, y, inputs, outputs);
    }
    if let Some(narrow) = Narrow::of([n, inputs, outputs]) {
        return narrow.forward(x, w, b, y, cpu);
    }
    if outputs < n {
        return few_outputs(x, w, b, y, inputs, outputs);
    }
    let mut yt = cpu.scratch::<T>(n * outputs);
    let block = BLOCK / 2;
    for_pieces(yt.chunks_mut(block * n).collect(), n * inputs * block / MACS, |i, yt| {
        let rows = i * block..outputs.min((i + 1) * block);
        let w = Mat::new(w, outputs, inputs).rows(rows.clone());
        gemm(MatMut::new(yt, rows.len(), n), false, w, Mat::new(x, n, inputs).t());
    });
    for (i, y) in y.chunks_mut(outputs).enumerate() {
        let column = yt[i..].iter().step_by(n);
        match b {
            Some(b) => y.iter_mut().zip(column).zip(b).for_each(|((y, &v), &b)| *y = v + b),
            None => y.iter_mut().zip(column).for_each(|(y, &v)| *y = v),
        }
    }
}

/// For fewer outputs than images: the product packs the weights, and reads the images as they lie in memory.
fn few_outputs<T: Real>(x: &[T], w: &[T], b: Option<&[T]>, y: &mut [T], inputs: usize, outputs: usize) {
    let pieces: Vec<_> = y.chunks_mut(BLOCK * outputs).zip(x.chunks(BLOCK * inputs)).collect();
    for_pieces(pieces, BLOCK * inputs * outputs / MACS, |_, (y, x)| {
        let n = x.len() / inputs;
        gemm(MatMut::new(y, n, outputs), false, Mat::new(x, n, inputs), Mat::new(w, outputs, inputs).t());
        if let Some(b) = b {
            y.chunks_mut(outputs).for_each(|y| y.iter_mut().zip(b).for_each(|(y, &b)| *y += b));
        }
    });
}

/// For small batches: dot products of rows of x and rows of w, both read as they lie in memory.
fn few_rows<T: Real>(x: &[T], w: &[T], b: Option<&[T]>, y: &mut [T], inputs: usize, outputs: usize) {
    let block = BLOCK / 4;
    let mut rows: Vec<_> = y.chunks_mut(outputs).map(|y| y.chunks_mut(block)).collect();
    let pieces = (0..outputs.div_ceil(block)).map(|_| rows.iter_mut().filter_map(Iterator::next).collect::<Vec<_>>());
    for_pieces(pieces.collect(), x.len() * block / MACS, |i, mut y| {
        let first = i * block;
        for (y, x) in y.iter_mut().zip(x.chunks_exact(inputs)) {
            one_row(x, &w[first * inputs..], y);
            if let Some(b) = b {
                y.iter_mut().zip(&b[first..]).for_each(|(y, &b)| *y += b);
            }
        }
    });
}

vectorised! {
    fn one_row<T>(x: &[T], w: &[T], y: &mut [T]) {
        let (fours, rest) = y.as_chunks_mut::<4>();
        let mut w = w;
        for y in fours {
            *y = dots::<T, 4>(x, w);
            w = &w[4 * x.len()..];
        }
        for y in rest {
            [*y] = dots::<T, 1>(x, w);
            w = &w[x.len()..];
        }
    }
}

/// The dot products of x with N rows of w, summed in 32 lanes.
#[inline(always)]
fn dots<T: Real, const N: usize>(x: &[T], w: &[T]) -> [T; N] {
    const L: usize = 32;
    let k = x.len();
    let mut acc = [[T::zero(); L]; N];
    let (chunks, rest) = x.as_chunks::<L>();
    let rows: [&[[T; L]]; N] = std::array::from_fn(|n| w[n * k..(n + 1) * k].as_chunks::<L>().0);
    for (i, x) in chunks.iter().enumerate() {
        for n in 0..N {
            let w = &rows[n][i];
            for l in 0..L {
                acc[n][l] += x[l] * w[l];
            }
        }
    }
    let mut out = [T::zero(); N];
    for ((out, acc), w) in out.iter_mut().zip(acc).zip(w.chunks_exact(k)) {
        let tail: T = rest.iter().zip(&w[k - rest.len()..]).map(|(&x, &w)| x * w).sum();
        let mut half = acc;
        for width in [16, 8, 4, 2, 1] {
            for l in 0..width {
                half[l] += half[l + width];
            }
        }
        *out = half[0] + tail;
    }
    out
}

pub(super) fn backward_x<T: Real>(gy: &[T], w: &[T], gx: &mut [T], [n, inputs, outputs]: [usize; 3]) {
    let block = inputs.div_ceil(8).clamp(BLOCK, 2048);
    for_pieces(MatMut::new(gx, n, inputs).split_cols(block), n * outputs * block / MACS, |i, gx| {
        let cols = i * block..inputs.min((i + 1) * block);
        gemm(gx, false, Mat::new(gy, n, outputs), Mat::new(w, outputs, inputs).cols(cols));
    });
}

pub(super) fn backward_w<T: Real>(gy: &[T], x: &[T], gw: &mut [T], accumulate: bool, [n, inputs, outputs]: [usize; 3]) {
    if let Some(narrow) = Narrow::of([n, inputs, outputs]) {
        return narrow.backward_w(gy, x, gw, accumulate);
    }
    // Cut along the outputs, and where they are one block along the inputs.
    let width = if outputs > BLOCK { inputs } else { inputs.div_ceil(4).max(4 * BLOCK) };
    let blocks = MatMut::new(gw, outputs, inputs).split_rows(BLOCK).into_iter();
    let pieces = blocks.flat_map(|rows| rows.split_cols(width)).collect();
    for_pieces(pieces, n * width * BLOCK / MACS, |i, gw| {
        let (o, first) = (i / inputs.div_ceil(width) * BLOCK, i % inputs.div_ceil(width) * width);
        let gy = Mat::new(gy, n, outputs).cols(o..outputs.min(o + BLOCK));
        gemm(gw, accumulate, gy.t(), Mat::new(x, n, inputs).cols(first..inputs.min(first + width)));
    });
}
