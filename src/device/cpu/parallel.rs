//! Parallel loops whose results do not depend on the number of threads.
//!
//! Work is cut into pieces whose sizes come from the problem alone, never from the thread count;
//! sums over pieces are added in the order of the pieces. So 1, 2 and 4 threads give equal bits.

use super::simd::vectorised;
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

/// Below this many element operations a loop runs on the calling thread: they take about ten
/// microseconds, and handing work to another thread costs several.
const SERIAL: usize = 1 << 17;
/// Multiply-adds of a matrix product that take as long as one element operation.
pub const MACS: usize = 4;

/// How many rows of `cost` element operations make a piece worth sending to another thread.
fn rows_per_piece(rows: usize, cost: usize) -> usize {
    // At least 16 Ki operations a piece, and at most 64 pieces.
    ((1 << 14) / cost.max(1)).max(rows.div_ceil(64)).max(1)
}

/// Calls `f(first_row, rows)` for pieces of `data`, which holds rows of `width` elements.
///
/// `cost` is the work for one row in element operations; it decides the sizes of the pieces and
/// whether other threads are asked at all.
pub fn for_rows<T: Send>(data: &mut [T], width: usize, cost: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if data.is_empty() || width == 0 {
        return;
    }
    let rows = data.len() / width;
    if rows * cost <= SERIAL {
        return f(0, data);
    }
    let piece = rows_per_piece(rows, cost);
    hand_out(data.chunks_mut(piece * width), |i, chunk| f(i * piece, chunk));
}

/// Calls `f(i, item)` for each item: in parallel when `cost`, the work of one item in element
/// operations, makes it worth while.
pub fn for_pieces<I: Send>(items: Vec<I>, cost: usize, f: impl Fn(usize, I) + Sync) {
    if items.len() < 2 || items.len() * cost <= SERIAL {
        items.into_iter().enumerate().for_each(|(i, item)| f(i, item));
    } else {
        hand_out(items.into_iter(), f);
    }
}

/// Calls `f(i, item)` for each item, in parallel.
fn hand_out<I: Send>(items: impl Iterator<Item = I>, f: impl Fn(usize, I) + Sync) {
    let items: Vec<_> = items.map(|item| Mutex::new(Some(item))).collect();
    in_parallel(items.len(), &|i| {
        let item = items[i].lock().unwrap_or_else(PoisonError::into_inner).take();
        item.into_iter().for_each(|item| f(i, item));
    });
}

/// Calls `work` for each number below `count`, in parallel. Of one type, so that what rayon does for it is compiled once and not
/// for each loop: that was a tenth of this crate.
fn in_parallel(count: usize, work: &(dyn Fn(usize) + Sync)) {
    (0..count).into_par_iter().for_each(work);
}

/// Sums over rows: `f(rows, partial)` adds its rows into `partial` (zeros at first), and the
/// partial sums are added into `out` in the order of the pieces.
pub fn map_reduce<T: crate::dtype::Real>(
    rows: usize,
    cost: usize,
    out: &mut [T],
    f: impl Fn(std::ops::Range<usize>, &mut [T]) + Sync,
) {
    let piece = rows_per_piece(rows, cost);
    let pieces = rows.div_ceil(piece);
    if pieces <= 1 {
        return f(0..rows, out);
    }
    let width = out.len();
    let mut partial = vec![T::zero(); pieces * width];
    let work = |i: usize, p: &mut [T]| f(i * piece..rows.min((i + 1) * piece), p);
    if rows * cost <= SERIAL {
        partial.chunks_mut(width).enumerate().for_each(|(i, p)| work(i, p));
    } else {
        hand_out(partial.chunks_mut(width), work);
    }
    for p in partial.chunks(width) {
        for (o, &v) in out.iter_mut().zip(p) {
            *o += v;
        }
    }
}

vectorised! {
/// `sums[c] += sum over rows of x[row, c]`, for rows of `sums.len()` elements.
///
/// Narrow rows are added several at a time, so that the vector registers are full.
pub fn add_rows<T>(x: &[T], sums: &mut [T]) {
    const WIDE: usize = 64;
    let c = sums.len();
    let together = WIDE / c;
    let mut rows = x;
    if together > 1 {
        let width = together * c;
        let mut wide = [T::zero(); WIDE];
        let chunks = x.chunks_exact(width);
        rows = chunks.remainder();
        for chunk in chunks {
            wide[..width].iter_mut().zip(chunk).for_each(|(s, &x)| *s += x);
        }
        for part in wide[..width].chunks_exact(c) {
            sums.iter_mut().zip(part).for_each(|(s, &x)| *s += x);
        }
    }
    for x in rows.chunks_exact(c) {
        sums.iter_mut().zip(x).for_each(|(s, &x)| *s += x);
    }
}
}
