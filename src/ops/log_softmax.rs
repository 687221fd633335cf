//! Log-softmax over the last dimension: `y = x - log(sum(exp(x)))`.
//!
//! The largest value is subtracted first, so nothing overflows. `gx = gy - exp(y) · sum(gy)`.

use super::case::{Case, Draw, Fill};
use crate::autograd::{Backward, Ctx, Grads, Var, VarId};
use crate::device::Device;
use crate::error::Result;
use crate::tensor::Tensor;

const OP: &str = "log_softmax";

impl Var {
    /// The logarithm of the softmax over the last dimension; any shape.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] for a dtype that is not floating point.
    pub fn log_softmax(&self, cx: &mut Ctx<'_>) -> Result<Var> {
        let y = forward(self.value())?;
        let joins = matches!(y.device(), Device::Cuda(_)) && cx.joins();
        let made = cx.record(y.clone(), &[self], || LogSoftmax { x: self.id(), y });
        Ok(if joins { made.log_softmax_of(self.id()) } else { made })
    }
}

fn forward(x: &Tensor) -> Result<Tensor> {
    let mut y = Tensor::empty(x.device(), x.dtype(), x.shape())?;
    on_device!(OP, x, T,
        cpu => cpu::forward(x.host::<T>()?, y.host_mut::<T>()?, x.shape().last()),
        cuda => cuda::forward::<T>(&cuda, x, &mut y));
    Ok(y)
}

struct LogSoftmax {
    x: Option<VarId>,
    y: Tensor,
}

impl Backward for LogSoftmax {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        let mut gx = Tensor::empty(gy.device(), gy.dtype(), gy.shape())?;
        on_device!(OP, gy, T,
            cpu => cpu::backward(gy.host::<T>()?, self.y.host::<T>()?, gx.host_mut::<T>()?, gy.shape().last()),
            cuda => cuda::backward::<T>(&cuda, &gy, &self.y, &mut gx));
        grads.add(self.x, gx)
    }
}

pub(super) mod cpu {
    use crate::device::cpu::for_rows;
    use crate::dtype::Real;

    /// An exponential costs about as much as this many multiplications.
    const EXP: usize = 16;

    /// Rows of `c` numbers to the logarithms of their softmax.
    pub(in crate::ops) fn forward<T: Real>(x: &[T], y: &mut [T], c: usize) {
        for_rows(y, c, c * EXP, |first, y| {
            for (y, x) in y.chunks_mut(c).zip(x[first * c..].chunks(c)) {
                let max = x.iter().copied().fold(T::neg_infinity(), T::max);
                let sum: T = x.iter().map(|&v| (v - max).exp()).sum();
                let log = sum.ln();
                // In this order, so that neither a large maximum nor a large sum loses the other's digits.
                y.iter_mut().zip(x).for_each(|(y, &v)| *y = (v - max) - log);
            }
        });
    }

    pub(super) fn backward<T: Real>(gy: &[T], y: &[T], gx: &mut [T], c: usize) {
        for_rows(gx, c, c * EXP, |first, gx| {
            let rows = gy[first * c..].chunks(c).zip(y[first * c..].chunks(c));
            for (gx, (gy, y)) in gx.chunks_mut(c).zip(rows) {
                let sum: T = gy.iter().copied().sum();
                gx.iter_mut().zip(gy).zip(y).for_each(|((gx, &g), &y)| *gx = g - y.exp() * sum);
            }
        });
    }
}

mod cuda {
    use crate::device::cuda::{BLOCK, Cuda, KernelType, Launch};
    use crate::error::Result;
    use crate::kernels::log_softmax::{LogSoftmaxDims, log_softmax_bwd, log_softmax_fwd};
    use crate::tensor::Tensor;

    /// A warp for each row.
    fn rows(x: &Tensor) -> (LogSoftmaxDims, Launch) {
        let c = x.shape().last();
        let n = x.len() / c.max(1);
        (LogSoftmaxDims { n: n as i32, c: c as i32 }, Launch::new(n.div_ceil(8), BLOCK))
    }

    pub(super) fn forward<T: KernelType>(cuda: &Cuda, x: &Tensor, y: &mut Tensor) -> Result<()> {
        let (d, launch) = rows(x);
        log_softmax_fwd::<T>(cuda, launch, x.input()?, y.output()?, &d)
    }

    pub(super) fn backward<T: KernelType>(cuda: &Cuda, gy: &Tensor, y: &Tensor, gx: &mut Tensor) -> Result<()> {
        let (d, launch) = rows(y);
        log_softmax_bwd::<T>(cuda, launch, gy.input()?, y.input()?, gx.output()?, &d)
    }
}

fn case(n: usize, c: usize) -> Case {
    Case::new(format!("[{n}, {c}]"), |v, cx| v[0].log_softmax(cx)).input("x", [n, c], Fill::Uniform).flops(n * c * 4)
}

/// In row i the element i + 31 is so far above the others that any other shift would overflow.
fn one_far_above(n: usize, c: usize) -> Case {
    let far = move |v: &[Var], cx: &mut Ctx<'_>| {
        let at = |i: usize| if i % c == i / c + 31 { 200f32 } else { 0.0 };
        let offset = Tensor::from_slice(cx.device(), [n, c], &(0..n * c).map(at).collect::<Vec<_>>())?;
        let offset = offset.to_dtype(v[0].value().dtype())?;
        v[0].add(&Var::constant(offset), cx)?.log_softmax(cx)
    };
    Case::new(format!("[{n}, {c}] one far above"), far).input("x", [n, c], Fill::Uniform)
}

/// With the loss of it, which on a device gives the gradient of what it is of. In two bytes it is rounded in between.
fn then_nll(n: usize, c: usize) -> Case {
    let labels = Draw::new(1).labels(n, c);
    let loss = move |v: &[Var], cx: &mut Ctx<'_>| {
        let labels = Tensor::from_slice(cx.device(), [n], &labels)?;
        v[0].log_softmax(cx)?.nll(&labels, cx)
    };
    let case = Case::new(format!("[{n}, {c}], nll"), loss).input("x", [n, c], Fill::Uniform);
    Case { half: false, ..case }
}

/// Shapes that tests and benches share.
pub fn cases() -> Vec<Case> {
    vec![
        case(1, 1),
        case(1, 10),
        case(7, 33),
        case(9, 32),
        case(17, 65),
        one_far_above(34, 65),
        then_nll(7, 5),
        then_nll(43, 10),
        case(256, 10).timed(),
        case(4096, 100).timed(),
    ]
}

/// A small case drawn at random.
pub fn random_case(d: &mut Draw) -> Case {
    case(d.int(1, 6), d.int(1, 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn huge_inputs_stay_finite() {
        let x = Tensor::from_slice(&Device::cpu(), [1, 3], &[1e4f32, 0.0, -1e4]).unwrap();
        assert_eq!(forward(&x).unwrap().to_vec::<f32>().unwrap(), [0.0, -1e4, -2e4]);
    }
}
