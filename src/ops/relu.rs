//! ReLU: `y = max(x, 0)`.
//!
//! `gx = gy` where `y > 0`, else 0; the derivative at 0 is 0, as in PyTorch.

use super::case::{Case, Draw, Fill};
use crate::autograd::{Backward, Ctx, Grads, Var, VarId};
use crate::error::Result;
use crate::shape::Shape;
use crate::tensor::Tensor;

const OP: &str = "relu";

impl Var {
    /// `max(x, 0)`, element by element; any shape.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] for a dtype that is not floating point.
    pub fn relu(&self, cx: &mut Ctx<'_>) -> Result<Var> {
        let y = forward(self.value())?;
        Ok(cx.record(y.clone(), &[self], || Relu { x: self.id(), y }))
    }
}

fn forward(x: &Tensor) -> Result<Tensor> {
    let mut y = Tensor::empty(x.device(), x.dtype(), x.shape())?;
    on_device!(OP, x, T,
        cpu => cpu::forward(x.host::<T>()?, y.host_mut::<T>()?),
        cuda => cuda::forward::<T>(&cuda, x, &mut y));
    Ok(y)
}

struct Relu {
    x: Option<VarId>,
    y: Tensor,
}

impl Backward for Relu {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        grads.add(self.x, backward(&self.y, gy)?)
    }
}

/// The gradient of what ReLU made `y` of.
pub(super) fn backward(y: &Tensor, gy: Tensor) -> Result<Tensor> {
    let mut g = gy.into_unique()?;
    on_device!(OP, g, T,
        cpu => cpu::backward_in_place(y.host::<T>()?, g.host_mut::<T>()?),
        cuda => cuda::backward_in_place::<T>(&cuda, y, &mut g));
    Ok(g)
}

mod cpu {
    use crate::device::cpu::{for_rows, vectorised};
    use crate::dtype::Real;

    pub(super) fn forward<T: Real>(x: &[T], y: &mut [T]) {
        for_rows(y, 1, 1, |i, y| clamp(&x[i..], y));
    }

    pub(super) fn backward_in_place<T: Real>(y: &[T], g: &mut [T]) {
        for_rows(g, 1, 1, |i, g| mask(&y[i..], g));
    }

    vectorised! {
        fn clamp<T>(x: &[T], y: &mut [T]) {
            // A comparison and not `max`, so that NaN stays NaN.
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = if x < T::zero() { T::zero() } else { x });
        }

        fn mask<T>(y: &[T], g: &mut [T]) {
            g.iter_mut().zip(y).for_each(|(g, &y)| *g = if y > T::zero() { *g } else { T::zero() });
        }
    }
}

mod cuda {
    use crate::device::cuda::{Cuda, KernelType, Launch};
    use crate::error::Result;
    use crate::kernels::relu::{ReluDims, relu_bwd, relu_fwd};
    use crate::tensor::Tensor;

    pub(super) fn forward<T: KernelType>(cuda: &Cuda, x: &Tensor, y: &mut Tensor) -> Result<()> {
        let d = ReluDims { n: x.len() as i32 };
        relu_fwd::<T>(cuda, Launch::each(x.len().div_ceil(4)), x.input()?, y.output()?, &d)
    }

    pub(super) fn backward_in_place<T: KernelType>(cuda: &Cuda, y: &Tensor, g: &mut Tensor) -> Result<()> {
        let d = ReluDims { n: y.len() as i32 };
        relu_bwd::<T>(cuda, Launch::each(y.len().div_ceil(4)), y.input()?, g.output()?, &d)
    }
}

fn case(shape: Shape, fill: Fill) -> Case {
    Case::new(format!("{shape} {fill:?}"), |v, cx| v[0].relu(cx)).input("x", shape, fill).flops(shape.len())
}

/// Shapes that tests and benches share.
pub fn cases() -> Vec<Case> {
    vec![
        case([1].into(), Fill::NonZero),
        case([3, 15, 17, 11].into(), Fill::NonZero),
        case([2, 33].into(), Fill::Ties),
        case([4, 28, 28, 6].into(), Fill::NonZero).timed(),
        case([16, 28, 28, 32].into(), Fill::NonZero).timed(),
    ]
}

/// A small case drawn at random.
pub fn random_case(d: &mut Draw) -> Case {
    case([d.int(1, 4), d.int(1, 6), d.int(1, 6), d.int(1, 9)].into(), Fill::NonZero)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn nan_passes_through() {
        let x = Tensor::from_slice(&Device::cpu(), [2], &[f32::NAN, -1.0]).unwrap();
        let y = forward(&x).unwrap().to_vec::<f32>().unwrap();
        assert!(y[0].is_nan() && y[1] == 0.0);
    }
}
