//! Multiplication by a constant: `y = a · x`; `gx = a · gy`.

use super::case::{Case, Draw, Fill};
use crate::autograd::{Backward, Ctx, Grads, Var, VarId};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::shape::Shape;
use crate::tensor::Tensor;

const OP: &str = "scale";

impl Var {
    /// `factor · x`, element by element; any shape.
    ///
    /// # Errors
    /// [`Error::Shape`] for a factor that is not finite, or a dtype that is not floating point.
    pub fn scale(&self, factor: f64, cx: &mut Ctx<'_>) -> Result<Var> {
        if !factor.is_finite() {
            return Err(Error::shape(OP, "a finite factor", factor, "use a plain number, such as 0.5"));
        }
        let y = forward(self.value(), factor)?;
        Ok(cx.record(y, &[self], || Scale { id: self.id(), factor }))
    }
}

fn forward(x: &Tensor, factor: f64) -> Result<Tensor> {
    let mut y = Tensor::empty(x.device(), x.dtype(), x.shape())?;
    on_device!(OP, x, T,
        cpu => cpu::scale(x.host::<T>()?, y.host_mut::<T>()?, T::of(factor)),
        cuda => cuda::scale::<T>(&cuda, x, &mut y, factor));
    Ok(y)
}

struct Scale {
    id: Option<VarId>,
    factor: f64,
}

impl Backward for Scale {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        grads.add(self.id, forward(&gy, self.factor)?)
    }
}

mod cpu {
    use crate::device::cpu::for_rows;
    use crate::dtype::Real;

    pub(super) fn scale<T: Real>(x: &[T], y: &mut [T], factor: T) {
        for_rows(y, 1, 1, |i, y| y.iter_mut().zip(&x[i..]).for_each(|(y, &x)| *y = factor * x));
    }
}

mod cuda {
    use crate::device::cuda::{Cuda, KernelType, Launch};
    use crate::error::Result;
    use crate::kernels::scale::{ScaleDims, scale_all};
    use crate::tensor::Tensor;

    pub(super) fn scale<T: KernelType>(cuda: &Cuda, x: &Tensor, y: &mut Tensor, factor: f64) -> Result<()> {
        let d = ScaleDims { n: x.len() as i32, factor: factor as f32 };
        scale_all::<T>(cuda, Launch::each(x.len().div_ceil(4)), x.input()?, y.output()?, &d)
    }
}

fn case(shape: Shape, factor: f64) -> Case {
    Case::new(format!("{shape} by {factor:.3}"), move |v, cx| v[0].scale(factor, cx))
        .input("x", shape, Fill::Uniform)
        .flops(shape.len())
}

/// Shapes that tests and benches share.
pub fn cases() -> Vec<Case> {
    vec![
        case([1].into(), 2.0),
        case([4].into(), -0.3),
        case([3, 15, 17, 11].into(), 1.0 / 256.0),
        case([2, 33].into(), 0.0),
        case([64, 8, 8, 128].into(), 0.5).timed(),
    ]
}

/// A small case drawn at random.
pub fn random_case(d: &mut Draw) -> Case {
    case([d.int(1, 4), d.int(1, 6), d.int(1, 6), d.int(1, 9)].into(), 4.0 * d.unit() - 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn factors_are_checked() {
        let x = Tensor::from_slice(&Device::cpu(), [2], &[3.0f32, -1.0]).unwrap();
        assert_eq!(forward(&x, -0.5).unwrap().to_vec::<f32>().unwrap(), [-1.5, 0.5]);
        let e = Var::constant(x).scale(f64::NAN, &mut Ctx::eval(&Device::cpu())).unwrap_err().to_string();
        assert!(e.contains("a finite factor") && e.contains("remedy"), "{e}");
    }
}
