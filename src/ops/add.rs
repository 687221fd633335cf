//! Addition of two tensors of one shape: `y = a + b`; `ga = gb = gy`.

use super::activation::Activation;
use super::case::{Case, Draw, Fill};
use super::relu;
use crate::autograd::{Backward, Ctx, Grads, Var, VarId};
use crate::error::Result;
use crate::shape::Shape;
use crate::tensor::Tensor;

const OP: &str = "add";

impl Var {
    /// `self + other`, element by element; the same shape for both, as in a residual block.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if the shapes, dtypes or devices differ.
    pub fn add(&self, other: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        self.add_then(None, other, cx)
    }

    /// [`Var::add`], and an activation of the sum. On a CUDA device ReLU takes no pass of its own; the numbers are those of
    /// the two apart.
    ///
    /// # Errors
    /// As [`Var::add`].
    pub fn add_then(&self, then: Option<Activation>, other: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        let relu = Activation::is_stored(then, self.value().device());
        let y = forward(self.value(), other.value(), relu)?;
        let masks = relu.then(|| y.clone());
        let y = cx.record(y, &[self, other], || Add { a: self.id(), b: other.id(), y: masks }).made_by_relu(relu);
        Activation::unless_stored(then, y, cx)
    }
}

/// With `relu`, which is for CUDA devices, of the sum its ReLU.
fn forward(a: &Tensor, b: &Tensor, relu: bool) -> Result<Tensor> {
    a.expect_like(OP, b)?;
    let mut y = Tensor::empty(a.device(), a.dtype(), a.shape())?;
    on_device!(OP, a, T,
        cpu => cpu::forward(a.host::<T>()?, b.host::<T>()?, y.host_mut::<T>()?),
        cuda => cuda::forward::<T>(&cuda, a, b, relu, &mut y));
    Ok(y)
}

struct Add {
    a: Option<VarId>,
    b: Option<VarId>,
    /// The result, if ReLU was applied to it.
    y: Option<Tensor>,
}

impl Backward for Add {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        let gy = match &self.y {
            Some(y) if !grads.is_masked() => relu::backward(y, gy)?,
            _ => gy,
        };
        grads.add(self.a, gy.clone())?;
        grads.add(self.b, gy)
    }
}

mod cpu {
    use crate::device::cpu::for_rows;
    use crate::dtype::Real;

    pub(super) fn forward<T: Real>(a: &[T], b: &[T], y: &mut [T]) {
        for_rows(y, 1, 1, |i, y| {
            y.iter_mut().zip(&a[i..]).zip(&b[i..]).for_each(|((y, &a), &b)| *y = a + b);
        });
    }
}

mod cuda {
    use crate::device::cuda::{Cuda, KernelType, Launch};
    use crate::error::Result;
    use crate::kernels::add::{AddDims, add_fwd};
    use crate::tensor::Tensor;

    pub(super) fn forward<T: KernelType>(
        cuda: &Cuda,
        a: &Tensor,
        b: &Tensor,
        relu: bool,
        y: &mut Tensor,
    ) -> Result<()> {
        let d = AddDims { n: a.len() as i32, relu: relu.into() };
        add_fwd::<T>(cuda, Launch::each(a.len().div_ceil(4)), a.input()?, b.input()?, y.output()?, &d)
    }
}

fn case(shape: Shape) -> Case {
    then(None, shape)
}

fn then(activation: Option<Activation>, shape: Shape) -> Case {
    let name = Activation::in_a_name(activation);
    Case::new(format!("{shape}{name}"), move |v, cx| v[0].add_then(activation, &v[1], cx))
        .input("a", shape, Fill::Uniform)
        .input("b", shape, Fill::Uniform)
        .flops(shape.len())
}

/// Shapes that tests and benches share.
pub fn cases() -> Vec<Case> {
    let twice = Case::new("x + x", |v, cx| v[0].add(&v[0], cx)).input("x", [33, 31], Fill::Uniform);
    vec![
        case([1].into()),
        case([4].into()),
        case([3, 15, 17, 11].into()),
        twice,
        then(Some(Activation::Relu), [3, 15, 17, 11].into()),
        case([64, 8, 8, 128].into()).timed(),
    ]
}

/// A small case drawn at random.
pub fn random_case(d: &mut Draw) -> Case {
    case([d.int(1, 4), d.int(1, 6), d.int(1, 6), d.int(1, 9)].into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn shapes_must_match() {
        let device = Device::cpu();
        let a = Tensor::zeros(&device, crate::DType::F32, [2, 3]).unwrap();
        let b = Tensor::zeros(&device, crate::DType::F32, [3, 2]).unwrap();
        let e = forward(&a, &b, false).unwrap_err().to_string();
        assert!(e.contains("add") && e.contains("[2, 3]") && e.contains("[3, 2]"), "{e}");
    }
}
