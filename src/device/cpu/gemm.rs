//! The matrix product on the CPU, by the kernels of the `gemm` crates, behind bounds-checked views.

use crate::dtype::Real;
use gemm_common::Parallelism;
use std::any::TypeId;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// A read-only matrix: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub struct Mat<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> Mat<'a, T> {
    /// A row-major matrix that fills `data`.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        Mat::strided(data, rows, cols, cols)
    }

    /// A row-major matrix whose rows begin every `row_stride` elements. Rows may overlap.
    pub fn strided(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= data.len(), "matrix view out of bounds");
        Mat { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The rows in `range`.
    pub fn rows(self, range: std::ops::Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows, "rows out of range");
        Mat { data: &self.data[range.start.min(self.rows - 1) * self.row_stride..], rows: range.len(), ..self }
    }

    /// The columns in `range`.
    pub fn cols(self, range: std::ops::Range<usize>) -> Self {
        self.t().rows(range).t()
    }

    /// The transpose; nothing is moved.
    pub fn t(self) -> Self {
        Mat { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// A matrix to be written. No two of its elements share an address.
pub struct MatMut<'a, T> {
    data: NonNull<T>,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: a `MatMut` is an exclusive borrow of its elements, like `&mut [T]`.
unsafe impl<T: Send> Send for MatMut<'_, T> {}

impl<'a, T> MatMut<'a, T> {
    /// A row-major matrix at the start of `data`.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        assert!(rows * cols <= data.len(), "matrix view out of bounds");
        let data = NonNull::from(data).cast();
        MatMut { data, rows, cols, row_stride: cols, col_stride: 1, borrow: PhantomData }
    }

    /// The same matrix, borrowed for a shorter time.
    pub fn again(&mut self) -> MatMut<'_, T> {
        MatMut { ..*self }
    }

    /// The transpose; nothing is moved.
    pub fn t(self) -> Self {
        MatMut { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Its columns.
    pub fn width(&self) -> usize {
        self.cols
    }

    /// A row, whose elements lie side by side.
    pub fn row(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows && self.col_stride == 1, "row out of range, or not in one piece");
        // SAFETY: row `i` is within the matrix, its `cols` elements are neighbours, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr().add(i * self.row_stride), self.cols) }
    }

    /// Pieces of at most `width` columns, side by side.
    pub fn split_cols(self, width: usize) -> Vec<Self> {
        (0..self.cols)
            .step_by(width.max(1))
            .map(|first| MatMut {
                // SAFETY: column `first` is within the matrix.
                data: unsafe { self.data.add(first * self.col_stride) },
                cols: width.min(self.cols - first),
                ..self
            })
            .collect()
    }

    /// Pieces of at most `height` rows, one below the other.
    pub fn split_rows(self, height: usize) -> Vec<Self> {
        self.t().split_cols(height).into_iter().map(MatMut::t).collect()
    }
}

/// `c = a b`, or `c += a b` with `accumulate`, on the calling thread.
///
/// One thread on purpose: the caller cuts the problem into pieces that do not depend on the number
/// of threads, so the order of every sum is fixed.
pub fn gemm<T: Real>(c: MatMut<'_, T>, accumulate: bool, a: Mat<'_, T>, b: Mat<'_, T>) {
    assert!(c.rows == a.rows && c.cols == b.cols && a.cols == b.rows, "matrix product of mismatched sizes");
    // The kernels write columns: they like a result whose columns are the closer together in memory transposed.
    let (c, a, b) = if c.col_stride < c.row_stride { (c.t(), b.t(), a.t()) } else { (c, a, b) };
    let (alpha, beta) = (if accumulate { T::one() } else { T::zero() }, T::one());
    macro_rules! run {
        ($t:ty, $kernel:expr) => {
            // SAFETY: `Mat` and `MatMut` checked at construction that every (row, column) lies within their slice,
            // and `c` is an exclusive borrow, so it overlaps neither `a` nor `b`. The pointers' type `T` is `$t`.
            unsafe {
                $kernel(
                    c.rows,
                    c.cols,
                    a.cols,
                    c.data.as_ptr().cast::<$t>(),
                    c.col_stride as isize,
                    c.row_stride as isize,
                    accumulate,
                    a.data.as_ptr().cast::<$t>(),
                    a.col_stride as isize,
                    a.row_stride as isize,
                    b.data.as_ptr().cast::<$t>(),
                    b.col_stride as isize,
                    b.row_stride as isize,
                    std::mem::transmute_copy::<T, $t>(&alpha),
                    std::mem::transmute_copy::<T, $t>(&beta),
                    false,
                    false,
                    false,
                    Parallelism::None,
                )
            }
        };
    }
    if TypeId::of::<T>() == TypeId::of::<f64>() {
        run!(f64, gemm_f64::gemm::f64::get_gemm_fn());
    } else {
        assert!(TypeId::of::<T>() == TypeId::of::<f32>(), "a matrix product of f32 or f64");
        run!(f32, gemm_f32::gemm::f32::get_gemm_fn());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transpose_case_agrees_with_the_definition() {
        let (m, n, k) = (7, 5, 9);
        let a: Vec<f64> = (0..m * k).map(|i| (i * 37 % 11) as f64 - 5.0).collect();
        let b: Vec<f64> = (0..k * n).map(|i| (i * 17 % 13) as f64 - 6.0).collect();
        let transposed =
            |x: &[f64], r: usize, c: usize| -> Vec<f64> { (0..r * c).map(|i| x[(i % r) * c + i / r]).collect() };
        let (at, bt) = (transposed(&a, m, k), transposed(&b, k, n));
        let want: Vec<f64> = (0..m * n).map(|i| (0..k).map(|p| a[i / n * k + p] * b[p * n + i % n]).sum()).collect();
        for a in [Mat::new(&a, m, k), Mat::new(&at, k, m).t()] {
            for b in [Mat::new(&b, k, n), Mat::new(&bt, n, k).t()] {
                let mut c = vec![f64::NAN; m * n];
                gemm(MatMut::new(&mut c, m, n), false, a, b);
                assert_eq!(c, want);
                gemm(MatMut::new(&mut c, m, n), true, a, b);
                assert!(c.iter().zip(&want).all(|(c, w)| *c == 2.0 * w));
                for (i, piece) in MatMut::new(&mut c, m, n).split_cols(2).into_iter().enumerate() {
                    gemm(piece, false, a, b.cols(2 * i..n.min(2 * i + 2)));
                }
                assert_eq!(c, want);
                c.fill(0.0);
                for (i, piece) in MatMut::new(&mut c, m, n).split_rows(3).into_iter().enumerate() {
                    gemm(piece, false, a.rows(3 * i..m.min(3 * i + 3)), b);
                }
                assert_eq!(c, want);
            }
        }
    }
}
