//! Average-pool: the mean under each window.
//!
//! `y[n, p, q, c] = sum over (r, s) of x[n, p·sh - ph + r, q·sw - pw + s, c] / area`, where what lies in the padding
//! is zero. The area is kh·kw or, without the padding, the number of pixels that the window covers (PyTorch's
//! `count_include_pad`). Backward: `gx[n, r, s, c] = sum over the windows that cover (r, s) of gy / area`.

use super::case::{Case, Draw, Fill};
use super::window::Window;
use crate::autograd::{Backward, Ctx, Grads, Var, VarId};
use crate::error::Result;
use crate::shape::Shape;
use crate::tensor::Tensor;

const OP: &str = "avg_pool2d";

impl Var {
    /// Average-pool of `[n, h, w, c]` to `[n, ho, wo, c]`; see [`Window::pooled`]. With `include_pad` the padding
    /// counts as zeros, else it does not count.
    ///
    /// # Errors
    /// As [`Window::pooled`].
    pub fn avg_pool2d(&self, window: Window, include_pad: bool, cx: &mut Ctx<'_>) -> Result<Var> {
        let pool = Pool { window, include_pad };
        let out = window.pooled(OP, self.shape())?;
        if window.is_pointwise() {
            return Ok(self.clone());
        }
        let y = forward(self.value(), pool, out)?;
        Ok(cx.record(y, &[self], || AvgPool2d { x: self.id(), shape: self.shape(), pool }))
    }
}

/// What is averaged.
#[derive(Clone, Copy)]
struct Pool {
    window: Window,
    include_pad: bool,
}

fn forward(x: &Tensor, pool: Pool, out: Shape) -> Result<Tensor> {
    let mut y = Tensor::empty(x.device(), x.dtype(), out)?;
    on_device!(OP, x, T,
        cpu => cpu::forward(x.host::<T>()?, y.host_mut::<T>()?, x.shape(), out, pool),
        cuda => cuda::forward::<T>(&cuda, x, &mut y, pool));
    Ok(y)
}

struct AvgPool2d {
    x: Option<VarId>,
    shape: Shape,
    pool: Pool,
}

impl Backward for AvgPool2d {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        let mut gx = Tensor::empty(gy.device(), gy.dtype(), self.shape)?;
        on_device!(OP, gy, T,
            cpu => cpu::backward(gy.host::<T>()?, gx.host_mut::<T>()?, self.shape, gy.shape(), self.pool),
            cuda => cuda::backward::<T>(&cuda, &gy, &mut gx, self.pool));
        grads.add(self.x, gx)
    }
}

mod cpu {
    use super::Pool;
    use crate::device::cpu::{for_pieces, vectorised};
    use crate::dtype::Real;
    use crate::shape::Shape;
    use std::ops::Range;

    pub(super) fn forward<T: Real>(x: &[T], y: &mut [T], xs: Shape, ys: Shape, pool: Pool) {
        let (size, outs) = (image(xs), image(ys));
        let [input, output] = [size, outs].map(|s| s.iter().product::<usize>());
        let images: Vec<_> = y.chunks_mut(output).zip(x.chunks(input)).collect();
        let [kh, kw] = pool.window.kernel;
        for_pieces(images, output * kh * kw, |_, (y, x)| sums(x, y, size, outs, pool));
    }

    pub(super) fn backward<T: Real>(gy: &[T], gx: &mut [T], xs: Shape, ys: Shape, pool: Pool) {
        let (size, outs) = (image(xs), image(ys));
        let [input, output] = [size, outs].map(|s| s.iter().product::<usize>());
        let images: Vec<_> = gx.chunks_mut(input).zip(gy.chunks(output)).collect();
        let [kh, kw] = pool.window.kernel;
        for_pieces(images, input + output * kh * kw, |_, (gx, gy)| spread(gy, gx, size, outs, pool));
    }

    fn image(s: Shape) -> [usize; 3] {
        let [_, h, w, c] = s.rank4().unwrap_or([1; 4]);
        [h, w, c]
    }

    /// The rows and columns of an image `[h, w]` that window (p, q) covers, and by what their sum is divided.
    #[inline]
    fn covered(pool: Pool, [p, q]: [usize; 2], [h, w, _]: [usize; 3]) -> (Range<usize>, Range<usize>, usize) {
        let along = |i, o, size| {
            let (start, part) = pool.window.clip(i, o, size);
            let at = |k: usize| (start + k as isize) as usize;
            at(part.start)..at(part.end)
        };
        let (rows, cols) = (along(0, p, h), along(1, q, w));
        let area = if pool.include_pad { pool.window.kernel.iter().product() } else { rows.len() * cols.len() };
        (rows, cols, area)
    }

    vectorised! {
        /// The means of an image's windows.
        fn sums<T>(x: &[T], y: &mut [T], size: [usize; 3], outs: [usize; 3], pool: Pool) {
            let ([_, w, c], wo) = (size, outs[1]);
            for (o, y) in y.chunks_exact_mut(c).enumerate() {
                let (rows, cols, area) = covered(pool, [o / wo, o % wo], size);
                y.fill(T::zero());
                for r in rows {
                    for x in x[(r * w + cols.start) * c..(r * w + cols.end) * c].chunks_exact(c) {
                        y.iter_mut().zip(x).for_each(|(y, &x)| *y += x);
                    }
                }
                let area = T::of(area as f64);
                y.iter_mut().for_each(|y| *y /= area);
            }
        }

        /// The gradients of an image's windows, on the pixels that they cover.
        fn spread<T>(gy: &[T], gx: &mut [T], size: [usize; 3], outs: [usize; 3], pool: Pool) {
            let ([_, w, c], wo) = (size, outs[1]);
            gx.fill(T::zero());
            for (o, gy) in gy.chunks_exact(c).enumerate() {
                let (rows, cols, area) = covered(pool, [o / wo, o % wo], size);
                let area = T::of(area as f64);
                for r in rows {
                    for gx in gx[(r * w + cols.start) * c..(r * w + cols.end) * c].chunks_exact_mut(c) {
                        gx.iter_mut().zip(gy).for_each(|(gx, &g)| *gx += g / area);
                    }
                }
            }
        }
    }
}

mod cuda {
    use super::super::window::Window;
    use super::Pool;
    use crate::device::cuda::{Cuda, KernelType, Launch};
    use crate::error::Result;
    use crate::kernels::avg_pool2d::{AvgPool2dDims, avg_pool2d_bwd, avg_pool2d_fwd};
    use crate::tensor::Tensor;

    fn dims(x: &Tensor, y: &Tensor, pool: Pool) -> AvgPool2dDims {
        let [[n, h, w, c], [_, ho, wo, _]] = [x, y].map(|t| t.shape().rank4().unwrap_or([1; 4]).map(|d| d as i32));
        let Window { kernel: [kh, kw], stride: [sh, sw], pad: [ph, pw] } = pool.window;
        let [kh, kw, sh, sw, ph, pw] = [kh, kw, sh, sw, ph, pw].map(|d| d as i32);
        AvgPool2dDims { n, h, w, c, ho, wo, kh, kw, sh, sw, ph, pw, include_pad: pool.include_pad.into() }
    }

    pub(super) fn forward<T: KernelType>(cuda: &Cuda, x: &Tensor, y: &mut Tensor, pool: Pool) -> Result<()> {
        let d = dims(x, y, pool);
        avg_pool2d_fwd::<T>(cuda, Launch::each(y.len()), x.input()?, y.output()?, &d)
    }

    pub(super) fn backward<T: KernelType>(cuda: &Cuda, gy: &Tensor, gx: &mut Tensor, pool: Pool) -> Result<()> {
        let d = dims(gx, gy, pool);
        avg_pool2d_bwd::<T>(cuda, Launch::each(gx.len()), gy.input()?, gx.output()?, &d)
    }
}

fn case(x: [usize; 4], win: Window, include_pad: bool) -> Case {
    let out = win.pooled(OP, x.into()).map_or(0, |s| s.len());
    let pad = if include_pad { "" } else { " exclude_pad" };
    Case::new(format!("{x:?} {win}{pad}"), move |v, cx| v[0].avg_pool2d(win, include_pad, cx))
        .input("x", x, Fill::Uniform)
        .flops(out * win.kernel[0] * win.kernel[1])
}

/// Shapes that tests and benches share.
pub fn cases() -> Vec<Case> {
    vec![
        case([1, 1, 1, 1], Window::square(1, 1, 0), true),
        case([2, 7, 5, 3], Window::square(2, 2, 0), true),
        case([2, 7, 5, 3], Window::square(3, 1, 1), true),
        case([2, 7, 5, 3], Window::square(3, 1, 1), false),
        case([1, 6, 9, 5], Window { kernel: [3, 2], stride: [2, 1], pad: [1, 0] }, false),
        case([2, 5, 11, 33], Window { kernel: [2, 5], stride: [3, 2], pad: [1, 2] }, true),
        case([2, 10, 4, 2], Window { kernel: [4, 1], stride: [1, 2], pad: [2, 0] }, false),
        case([3, 2, 1, 4], Window::square(2, 1, 1), false),
        case([16, 28, 28, 32], Window::square(2, 2, 0), true).timed(),
        case([16, 14, 14, 64], Window::square(3, 2, 1), false).timed(),
    ]
}

/// A small case drawn at random.
pub fn random_case(d: &mut Draw) -> Case {
    let kernel = [d.int(1, 4), d.int(1, 4)];
    let window =
        Window { kernel, stride: [d.int(1, 3), d.int(1, 3)], pad: [d.int(0, kernel[0] / 2), d.int(0, kernel[1] / 2)] };
    case([d.int(1, 3), d.int(4, 8), d.int(4, 8), d.int(1, 5)], window, d.flip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn padding_counts_as_zeros_or_not_at_all() {
        let x = Tensor::from_slice(&Device::cpu(), [1, 2, 2, 1], &[4f32, 8.0, 12.0, 16.0]).unwrap();
        let of = |include_pad| {
            let window = Window::square(2, 1, 1);
            let y = forward(&x, Pool { window, include_pad }, window.pooled(OP, x.shape()).unwrap()).unwrap();
            y.to_vec::<f32>().unwrap()
        };
        assert_eq!(of(true), [1.0, 3.0, 2.0, 4.0, 10.0, 6.0, 3.0, 7.0, 4.0]);
        assert_eq!(of(false), [4.0, 6.0, 8.0, 8.0, 10.0, 12.0, 12.0, 14.0, 16.0]);
    }
}
