//! Adaptive pooling: the output's size is given, and the windows follow from it.
//!
//! Output row p of P covers input rows floor(p·H/P) to ceil((p+1)·H/P), columns alike; neighbouring
//! windows may overlap. `max` takes the largest value (the first of equals, NaN over all), `avg` the mean.

use super::case::{Case, Draw, Fill};
use crate::autograd::{Backward, Ctx, Grads, Var, VarId};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::Shape;
use crate::tensor::Tensor;

const OP: &str = "adaptive_pool2d";

impl Var {
    /// Adaptive max-pool of `[n, h, w, c]` to `[n, size[0], size[1], c]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for another rank or an output size of zero.
    pub fn adaptive_max_pool2d(&self, size: [usize; 2], cx: &mut Ctx<'_>) -> Result<Var> {
        let out = output_shape(self.shape(), size)?;
        let x = self.value();
        let mut y = Tensor::empty(x.device(), x.dtype(), out)?;
        let mut arg = Tensor::empty(x.device(), DType::I32, out)?;
        on_device!(OP, x, T,
            cpu => cpu::max_forward(x.host::<T>()?, y.host_mut::<T>()?, arg.host_mut()?, x.shape(), out),
            cuda => cuda::max_forward::<T>(&cuda, x, &mut y, &mut arg));
        Ok(cx.record(y, &[self], || AdaptiveMaxPool2d { x: self.id(), shape: self.shape(), arg }))
    }

    /// Adaptive average-pool of `[n, h, w, c]` to `[n, size[0], size[1], c]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for another rank or an output size of zero.
    pub fn adaptive_avg_pool2d(&self, size: [usize; 2], cx: &mut Ctx<'_>) -> Result<Var> {
        let out = output_shape(self.shape(), size)?;
        let x = self.value();
        let mut y = Tensor::empty(x.device(), x.dtype(), out)?;
        on_device!(OP, x, T,
            cpu => cpu::avg_forward(x.host::<T>()?, y.host_mut::<T>()?, x.shape(), out),
            cuda => cuda::avg_forward::<T>(&cuda, x, &mut y));
        Ok(cx.record(y, &[self], || AdaptiveAvgPool2d { x: self.id(), shape: self.shape() }))
    }
}

/// The output's shape.
///
/// # Errors
/// [`Error::Shape`] for another rank or an output size of zero.
pub fn output_shape(x: Shape, size: [usize; 2]) -> Result<Shape> {
    let [n, _, _, c] =
        x.rank4().ok_or_else(|| Error::shape(OP, "an activation [n, h, w, c]", x, "put the pool before `flatten`"))?;
    if size.contains(&0) {
        return Err(Error::shape(
            OP,
            "an output of at least 1x1",
            format!("{}x{}", size[0], size[1]),
            "use positive sizes",
        ));
    }
    Ok([n, size[0], size[1], c].into())
}

struct AdaptiveMaxPool2d {
    x: Option<VarId>,
    shape: Shape,
    arg: Tensor,
}

impl Backward for AdaptiveMaxPool2d {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        let mut gx = Tensor::empty(gy.device(), gy.dtype(), self.shape)?;
        on_device!(OP, gy, T,
            cpu => cpu::max_backward(gy.host::<T>()?, self.arg.host()?, gx.host_mut::<T>()?, self.shape, gy.shape()),
            cuda => cuda::max_backward::<T>(&cuda, &gy, &self.arg, &mut gx));
        grads.add(self.x, gx)
    }
}

struct AdaptiveAvgPool2d {
    x: Option<VarId>,
    shape: Shape,
}

impl Backward for AdaptiveAvgPool2d {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        let mut gx = Tensor::empty(gy.device(), gy.dtype(), self.shape)?;
        on_device!(OP, gy, T,
            cpu => cpu::avg_backward(gy.host::<T>()?, gx.host_mut::<T>()?, self.shape, gy.shape()),
            cuda => cuda::avg_backward::<T>(&cuda, &gy, &mut gx));
        grads.add(self.x, gx)
    }
}

mod cpu {
    use super::super::window::{max_pixel, scatter_to_pixels};
    use crate::device::cpu::{for_rows, vectorised};
    use crate::dtype::Real;
    use crate::shape::Shape;
    use std::ops::Range;

    /// The input positions that output position `o` of `outs` covers.
    fn span(o: usize, outs: usize, size: usize) -> Range<usize> {
        o * size / outs..((o + 1) * size).div_ceil(outs)
    }

    /// Calls `f(output pixel, input pixel)` for every pixel of every window of one item.
    fn windows(xs: Shape, ys: Shape, mut f: impl FnMut(usize, usize, usize)) {
        let ([_, h, w, _], [_, ho, wo, _]) = (xs.rank4().unwrap_or([1; 4]), ys.rank4().unwrap_or([1; 4]));
        for p in 0..ho {
            for q in 0..wo {
                let (rows, cols) = (span(p, ho, h), span(q, wo, w));
                let area = rows.len() * cols.len();
                for r in rows {
                    for s in cols.clone() {
                        f(p * wo + q, r * w + s, area);
                    }
                }
            }
        }
    }

    fn item(s: Shape) -> usize {
        s.dims()[1..].iter().product()
    }

    pub(super) fn max_forward<T: Real>(x: &[T], y: &mut [T], arg: &mut [i32], xs: Shape, ys: Shape) {
        let (xi, yi) = (item(xs), item(ys));
        let mut pairs: Vec<_> = y.chunks_mut(yi).zip(arg.chunks_mut(yi)).collect();
        for_rows(&mut pairs, 1, xi, |first, pairs| {
            for ((y, arg), x) in pairs.iter_mut().zip(x[first * xi..].chunks(xi)) {
                max_image(x, y, arg, xs, ys);
            }
        });
    }

    vectorised! {
        fn max_image<T>(x: &[T], y: &mut [T], arg: &mut [i32], xs: Shape, ys: Shape) {
                let ([_, h, w, c], [_, ho, wo, _]) = (xs.rank4().unwrap_or([1; 4]), ys.rank4().unwrap_or([1; 4]));
                for (o, (y, arg)) in y.chunks_mut(c).zip(arg.chunks_mut(c)).enumerate() {
                    let (rows, cols) = (span(o / wo, ho, h), span(o % wo, wo, w));
                    max_pixel(x, c, rows.flat_map(|r| cols.clone().map(move |s| r * w + s)), y, arg);
                }
        }
    }

    pub(super) fn max_backward<T: Real>(gy: &[T], arg: &[i32], gx: &mut [T], xs: Shape, ys: Shape) {
        scatter_to_pixels(gy, arg, gx, xs.last(), [item(xs), item(ys)]);
    }

    pub(super) fn avg_forward<T: Real>(x: &[T], y: &mut [T], xs: Shape, ys: Shape) {
        let (c, xi, yi) = (xs.last(), item(xs), item(ys));
        for_rows(y, yi, xi, |first, y| {
            y.fill(T::zero());
            for (y, x) in y.chunks_mut(yi).zip(x[first * xi..].chunks(xi)) {
                windows(xs, ys, |o, i, area| {
                    let scale = T::of(1.0 / area as f64);
                    let y = &mut y[o * c..(o + 1) * c];
                    y.iter_mut().zip(&x[i * c..]).for_each(|(y, &x)| *y += x * scale);
                });
            }
        });
    }

    pub(super) fn avg_backward<T: Real>(gy: &[T], gx: &mut [T], xs: Shape, ys: Shape) {
        let (c, xi, yi) = (xs.last(), item(xs), item(ys));
        for_rows(gx, xi, xi, |first, gx| {
            gx.fill(T::zero());
            for (gx, gy) in gx.chunks_mut(xi).zip(gy[first * yi..].chunks(yi)) {
                windows(xs, ys, |o, i, area| {
                    let scale = T::of(1.0 / area as f64);
                    let gx = &mut gx[i * c..(i + 1) * c];
                    gx.iter_mut().zip(&gy[o * c..]).for_each(|(gx, &g)| *gx += g * scale);
                });
            }
        });
    }
}

mod cuda {
    use crate::device::cuda::{Cuda, KernelType, Launch};
    use crate::error::Result;
    use crate::kernels::adaptive_pool2d::{
        AdaptivePool2dDims, adaptive_pool2d_bwd_avg, adaptive_pool2d_bwd_max, adaptive_pool2d_fwd_avg,
        adaptive_pool2d_fwd_max,
    };
    use crate::tensor::Tensor;

    fn dims(x: &Tensor, y: &Tensor) -> AdaptivePool2dDims {
        let [[n, h, w, c], [_, ho, wo, _]] = [x, y].map(|t| t.shape().rank4().unwrap_or([1; 4]).map(|d| d as i32));
        AdaptivePool2dDims { n, h, w, c, ho, wo }
    }

    pub(super) fn max_forward<T: KernelType>(cuda: &Cuda, x: &Tensor, y: &mut Tensor, arg: &mut Tensor) -> Result<()> {
        let (d, launch) = (dims(x, y), Launch::each(y.len()));
        adaptive_pool2d_fwd_max::<T>(cuda, launch, x.input()?, y.output()?, arg.output()?, &d)
    }

    pub(super) fn max_backward<T: KernelType>(cuda: &Cuda, gy: &Tensor, arg: &Tensor, gx: &mut Tensor) -> Result<()> {
        let (d, launch) = (dims(gx, gy), Launch::each(gx.len()));
        adaptive_pool2d_bwd_max::<T>(cuda, launch, gy.input()?, arg.input()?, gx.output()?, &d)
    }

    pub(super) fn avg_forward<T: KernelType>(cuda: &Cuda, x: &Tensor, y: &mut Tensor) -> Result<()> {
        let (d, launch) = (dims(x, y), Launch::each(y.len()));
        adaptive_pool2d_fwd_avg::<T>(cuda, launch, x.input()?, y.output()?, &d)
    }

    pub(super) fn avg_backward<T: KernelType>(cuda: &Cuda, gy: &Tensor, gx: &mut Tensor) -> Result<()> {
        let (d, launch) = (dims(gx, gy), Launch::each(gx.len()));
        adaptive_pool2d_bwd_avg::<T>(cuda, launch, gy.input()?, gx.output()?, &d)
    }
}

fn case(x: [usize; 4], size: [usize; 2], max: bool) -> Case {
    let kind = if max { "max" } else { "avg" };
    Case::new(format!("{kind} {x:?} to {size:?}"), move |v, cx| {
        if max { v[0].adaptive_max_pool2d(size, cx) } else { v[0].adaptive_avg_pool2d(size, cx) }
    })
    .input("x", x, Fill::Distinct)
    .flops(x.iter().product())
}

/// Shapes that tests and benches share.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for max in [true, false] {
        all.push(case([1, 1, 1, 1], [1, 1], max));
        all.push(case([3, 7, 5, 3], [3, 2], max));
        all.push(case([2, 2, 3, 4], [5, 4], max));
        all.push(case([2, 4, 4, 19], [1, 1], max));
        all.push(case([2, 9, 7, 33], [4, 5], max));
        all.push(case([256, 4, 4, 80], [1, 1], max).timed());
    }
    // The first of equal values wins.
    let mut ties = case([2, 7, 5, 3], [3, 2], true);
    ties.name += " with ties";
    ties.inputs.clear();
    all.push(ties.input("x", [2, 7, 5, 3], Fill::Ties));
    all
}

/// A small case drawn at random.
pub fn random_case(d: &mut Draw) -> Case {
    case([d.int(1, 3), d.int(1, 7), d.int(1, 7), d.int(1, 5)], [d.int(1, 4), d.int(1, 4)], d.flip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn global_average_is_the_mean() {
        let device = Device::cpu();
        let x = Var::constant(Tensor::from_slice(&device, [1, 2, 2, 1], &[1f64, 2., 3., 6.]).unwrap());
        let y = x.adaptive_avg_pool2d([1, 1], &mut Ctx::eval(&device)).unwrap();
        assert_eq!(y.value().item().unwrap(), 3.0);
        assert!(x.adaptive_avg_pool2d([0, 1], &mut Ctx::eval(&device)).is_err());
    }
}
