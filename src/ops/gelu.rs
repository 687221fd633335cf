//! GELU: `y = x · P(x)` with the normal distribution `P(x) = erfc(-x / sqrt 2) / 2`: PyTorch's default, not its tanh.
//!
//! `gx = gy · (P(x) + x · exp(-x² / 2) / sqrt(2 pi))`. Source: Hendrycks, Gimpel, "Gaussian Error Linear Units", 2016.

use super::activation::Activation;
use super::case::{Case, Draw, Fill};
use super::operands::only_bias;
use crate::autograd::{Backward, Ctx, Grads, Var, VarId};
use crate::error::Result;
use crate::shape::Shape;
use crate::tensor::Tensor;

const OP: &str = "gelu";

impl Var {
    /// `x` times the share of a normal distribution that lies below `x`, element by element; any shape.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] for a dtype that is not floating point.
    pub fn gelu(&self, cx: &mut Ctx<'_>) -> Result<Var> {
        let y = forward(self.value())?;
        Ok(cx.record(y, &[self], || Gelu { ids: [self.id(), self.bias()], x: self.value().clone() }))
    }
}

fn forward(x: &Tensor) -> Result<Tensor> {
    let mut y = Tensor::empty(x.device(), x.dtype(), x.shape())?;
    on_device!(OP, x, T,
        cpu => cpu::forward(x.host::<T>()?, y.host_mut::<T>()?),
        cuda => cuda::forward::<T>(&cuda, x, &mut y));
    Ok(y)
}

struct Gelu {
    /// Of x, and of the bias that alone is trained of the product that made it.
    ids: [Option<VarId>; 2],
    x: Tensor,
}

impl Backward for Gelu {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        if only_bias(Activation::Gelu, &self.x, self.ids, &gy, grads)? {
            return Ok(());
        }
        let mut g = gy.into_unique()?;
        on_device!(OP, g, T,
            cpu => cpu::backward_in_place(self.x.host::<T>()?, g.host_mut::<T>()?),
            cuda => cuda::backward_in_place::<T>(&cuda, &self.x, &mut g));
        grads.add(self.ids[0], g)
    }
}

mod cpu {
    use crate::device::cpu::for_rows;
    use crate::dtype::Real;
    use std::f64::consts::{FRAC_1_SQRT_2, PI};

    /// Elements worth a piece of work of their own, in multiply-adds: the error function is some thirty.
    const COST: usize = 30;

    pub(super) fn forward<T: Real>(x: &[T], y: &mut [T]) {
        for_rows(y, 1, COST, |i, y| y.iter_mut().zip(&x[i..]).for_each(|(y, &x)| *y = x * below(x)));
    }

    pub(super) fn backward_in_place<T: Real>(x: &[T], g: &mut [T]) {
        let (half, root) = (T::of(-0.5), T::of(1.0 / (2.0 * PI).sqrt()));
        for_rows(g, 1, COST, |i, g| {
            g.iter_mut().zip(&x[i..]).for_each(|(g, &x)| *g *= below(x) + x * root * (half * x * x).exp());
        });
    }

    /// The share of a normal distribution that lies below `x`.
    fn below<T: Real>(x: T) -> T {
        T::of(0.5 * libm::erfc(-x.f64() * FRAC_1_SQRT_2))
    }
}

mod cuda {
    use crate::device::cuda::{Cuda, KernelType, Launch};
    use crate::error::Result;
    use crate::kernels::gelu::{GeluDims, gelu_bwd, gelu_fwd};
    use crate::tensor::Tensor;

    pub(super) fn forward<T: KernelType>(cuda: &Cuda, x: &Tensor, y: &mut Tensor) -> Result<()> {
        let d = GeluDims { n: x.len() as i32 };
        gelu_fwd::<T>(cuda, Launch::each(x.len().div_ceil(4)), x.input()?, y.output()?, &d)
    }

    pub(super) fn backward_in_place<T: KernelType>(cuda: &Cuda, x: &Tensor, g: &mut Tensor) -> Result<()> {
        let d = GeluDims { n: x.len() as i32 };
        gelu_bwd::<T>(cuda, Launch::each(x.len().div_ceil(4)), x.input()?, g.output()?, &d)
    }
}

fn case(shape: Shape, fill: Fill) -> Case {
    Case::new(format!("{shape} {fill:?}"), |v, cx| v[0].gelu(cx)).input("x", shape, fill).flops(30 * shape.len())
}

/// Shapes that tests and benches share.
pub fn cases() -> Vec<Case> {
    vec![
        case([1].into(), Fill::Uniform),
        case([3, 5, 7, 11].into(), Fill::Uniform),
        case([2, 33].into(), Fill::Ties),
        case([16, 28, 28, 32].into(), Fill::Uniform).timed(),
    ]
}

/// A small case drawn at random.
pub fn random_case(d: &mut Draw) -> Case {
    case([d.int(1, 4), d.int(1, 6), d.int(1, 6), d.int(1, 9)].into(), Fill::Uniform)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn far_from_zero_it_is_x_or_nothing() {
        let x = Tensor::from_slice(&Device::cpu(), [4], &[-200.0f32, 0.0, 200.0, f32::NAN]).unwrap();
        let y = forward(&x).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(y[..3], [0.0, 0.0, 200.0]);
        assert!(y[3].is_nan());
    }
}
