//! Linear (fully connected): `y = x·Wᵀ + b`, x `[n, in]`, W `[out, in]`, b `[out]`.
//!
//! `gx = gy·W`, `gW = gyᵀ·x`, `gb = sum over n of gy`.

pub(super) mod cpu;
mod narrow;

use super::activation::Activation;
use super::case::{Case, Draw, Fill};
use super::operands::Operands;
use crate::autograd::{Backward, Ctx, Grads, Var};
use crate::device::Device;
use crate::device::cuda::{Launch, with_kernel_type};
use crate::dtype::{DType, with_real};
use crate::error::{Error, Result};
use crate::kernels::params::{RoundDims, params_round};
use crate::params::Slot;
use crate::tensor::Tensor;

const OP: &str = "linear";

impl Var {
    /// `x·Wᵀ + b`: `[n, in]` to `[n, out]`, with `w` of `[out, in]` and `b` of `[out]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the sizes do not match.
    pub fn linear(&self, w: &Var, b: Option<&Var>, cx: &mut Ctx<'_>) -> Result<Var> {
        self.linear_then(None, w, b, cx)
    }

    /// [`Var::linear`], and an activation of the result. On a CUDA device ReLU takes no pass of its own, nor does its
    /// gradient where `b` has one; the numbers are those of the two apart.
    ///
    /// # Errors
    /// As [`Var::linear`].
    pub fn linear_then(&self, then: Option<Activation>, w: &Var, b: Option<&Var>, cx: &mut Ctx<'_>) -> Result<Var> {
        let y = forward(self.value(), w.value(), b.map(Var::value), then)?;
        Operands::record(y, then, [self, w], b, cx, Linear)
    }
}

/// `then` is applied where products [do so](Activation::is_stored).
fn forward(x: &Tensor, w: &Tensor, b: Option<&Tensor>, then: Option<Activation>) -> Result<Tensor> {
    let (xs, ws) = (x.shape().rank2(), w.shape().rank2());
    let bias_fits = b.is_none_or(|b| Some(b.len()) == ws.map(|s| s[0]));
    let (Some([n, inputs]), Some([outputs, w_inputs]), true) = (xs, ws, bias_fits) else {
        let got = format!("x {}, w {}, b {:?}", x.shape(), w.shape(), b.map(Tensor::shape));
        return Err(Error::shape(OP, "x [n, in], w [out, in], b [out]", got, "put `flatten` before the first `fc`"));
    };
    if inputs != w_inputs {
        return Err(Error::shape(
            OP,
            format!("x [n, {w_inputs}]"),
            x.shape(),
            "give the layer as many inputs as x has features",
        ));
    }
    let mut y = Tensor::empty(x.device(), x.dtype(), [n, outputs])?;
    match x.device() {
        Device::Cpu(cpu) => with_real!(OP, x.dtype(), T => {
            let b = b.map(|b| b.host::<T>()).transpose()?;
            cpu::forward(x.host::<T>()?, w.host::<T>()?, b, y.host_mut::<T>()?, [n, inputs, outputs], cpu);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let relu = Activation::is_stored(then, x.device());
            with_kernel_type!(OP, x.dtype(), T => cuda::forward::<T>(cuda, x, w, b, relu, &mut y, [n, inputs, outputs]))?
        }
    }
    Ok(y)
}

/// How two matrices are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Factors {
    /// `a·b`
    AsTheyAre,
    /// `aᵀ·b`
    FirstTransposed,
    /// `a·bᵀ`
    SecondTransposed,
}

/// The product of two matrices of one type, on their device: the products of a layer, for whoever needs them apart.
pub(crate) fn matrix_product(factors: Factors, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if factors == Factors::SecondTransposed {
        return forward(a, b, None, None);
    }
    let (first, m) = (factors == Factors::FirstTransposed, b.shape().last());
    let [rows, columns] = a.shape().rank2().unwrap_or_default();
    let inner = if first { rows } else { columns };
    if b.shape().rank2() != Some([inner, m]) || a.len() != rows * columns {
        let got = format!("{} and {}", a.shape(), b.shape());
        return Err(Error::shape(OP, "matrices that fit each other", got, "check the shapes"));
    }
    let dims = [rows, m, columns];
    let mut y = Tensor::empty(a.device(), a.dtype(), [if first { columns } else { rows }, m])?;
    match (a.device(), first) {
        (Device::Cpu(_), true) => cpu::backward_w(a.host::<f32>()?, b.host()?, y.host_mut()?, false, dims),
        (Device::Cpu(_), false) => cpu::backward_x(a.host::<f32>()?, b.host()?, y.host_mut()?, dims),
        (Device::Cuda(cuda), true) if a.dtype() == DType::F32 => {
            cuda::backward_w::<f32>(cuda, a, b, &mut Slot::of_tensor(&mut y, false)?, dims)?
        }
        (Device::Cuda(cuda), true) => with_kernel_type!(OP, a.dtype(), T => {
            // The gradient of weights is in f32, whatever they are stored in.
            let mut sums = Tensor::empty(a.device(), DType::F32, y.shape())?;
            cuda::backward_w::<T>(cuda, a, b, &mut Slot::of_tensor(&mut sums, false)?, dims)?;
            let (launch, d) = (Launch::each(y.len().div_ceil(8)), RoundDims { n: y.len() as i32 });
            params_round::<T>(cuda, launch, sums.input()?, y.output()?, &d)
        })?,
        (Device::Cuda(cuda), false) => with_kernel_type!(OP, a.dtype(), T => {
            cuda::backward_x::<T>(cuda, a, b, None, &mut Slot::of_tensor(&mut y, false)?, dims).map(drop)
        })?,
    }
    Ok(y)
}

struct Linear(Operands);

impl Backward for Linear {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        let Operands { x, w, .. } = &self.0;
        let dims = [gy.shape().dims()[0], x.shape().last(), gy.shape().last()];
        let (device, dtype) = (gy.device().clone(), gy.dtype());
        let weights = |gy: &Tensor, gw: &mut Slot<'_>| match &device {
            Device::Cpu(_) => with_real!(OP, dtype, T => {
                let accumulate = gw.accumulate;
                cpu::backward_w(gy.host::<T>()?, x.host::<T>()?, gw.host_mut::<T>()?, accumulate, dims);
                Ok(())
            }),
            Device::Cuda(cuda) => with_kernel_type!(OP, dtype, T => cuda::backward_w::<T>(cuda, gy, x, gw, dims)),
        };
        let input = |gy: &Tensor, gx: &mut Slot<'_>| match &device {
            Device::Cpu(_) => with_real!(OP, dtype, T => {
                cpu::backward_x(gy.host::<T>()?, w.host::<T>()?, gx.host_mut::<T>()?, dims);
                Ok(false)
            }),
            Device::Cuda(cuda) => {
                let masks = self.0.masks();
                with_kernel_type!(OP, dtype, T => cuda::backward_x::<T>(cuda, gy, w, masks, gx, dims))
            }
        };
        self.0.backward(gy, grads, None, weights, input)
    }
}

pub(super) mod cuda {
    use crate::device::cuda::{Cuda, KernelType};
    use crate::error::Result;
    use crate::kernels::linear::*;
    use crate::ops::product::{Plan, Product};
    use crate::params::Slot;
    use crate::tensor::Tensor;

    fn sizes([n, inputs, outputs]: [usize; 3], accumulate: bool, plan: &Plan) -> LinearDims {
        LinearDims {
            n: n as i32,
            inputs: inputs as i32,
            outputs: outputs as i32,
            accumulate: accumulate.into(),
            split_steps: plan.split_steps as i32,
            ..LinearDims::default()
        }
    }

    pub(in crate::ops) fn forward<T: KernelType>(
        cuda: &Cuda,
        x: &Tensor,
        w: &Tensor,
        b: Option<&Tensor>,
        relu: bool,
        y: &mut Tensor,
        dims: [usize; 3],
    ) -> Result<()> {
        let [n, inputs, outputs] = dims;
        let bias = b.map(Tensor::input).transpose()?;
        let product = Product { bias, relu, ..Product::of([n, outputs, inputs], [inputs; 2]) };
        product.run::<T, T>(cuda, [&LINEAR_FWD], y.output()?, |plan, y, partial| {
            let d = LinearDims { relu: relu.into(), ..sizes(dims, false, plan) };
            linear_fwd::<T>(cuda, plan.tile, plan.launch, x.input()?, w.input()?, bias, y, partial, &d)
        })?;
        Ok(())
    }

    /// Whether gx is 0 where `masks` is not above 0.
    pub(in crate::ops) fn backward_x<T: KernelType>(
        cuda: &Cuda,
        gy: &Tensor,
        w: &Tensor,
        masks: Option<&Tensor>,
        gx: &mut Slot<'_>,
        dims: [usize; 3],
    ) -> Result<bool> {
        let ([n, inputs, outputs], accumulate) = (dims, gx.accumulate);
        let product = Product { accumulate, masks, ..Product::of([n, inputs, outputs], [outputs, inputs]) };
        product.run::<T, T>(cuda, [&LINEAR_BWD_X], gx.output()?, |plan, gx, partial| {
            let (d, masks) = (sizes(dims, accumulate, plan), masks.map(Tensor::input).transpose()?);
            linear_bwd_x::<T>(cuda, plan.tile, plan.launch, gy.input()?, w.input()?, masks, gx, partial, &d)
        })
    }

    pub(in crate::ops) fn backward_w<T: KernelType>(
        cuda: &Cuda,
        gy: &Tensor,
        x: &Tensor,
        gw: &mut Slot<'_>,
        dims: [usize; 3],
    ) -> Result<()> {
        let ([n, inputs, outputs], accumulate) = (dims, gw.accumulate);
        let product = Product { accumulate, ..Product::of([outputs, inputs, n], [outputs, inputs]) };
        product.run::<T, f32>(cuda, [&LINEAR_BWD_W], gw.output()?, |plan, gw, partial| {
            let d = sizes(dims, accumulate, plan);
            linear_bwd_w::<T>(cuda, plan.tile, plan.launch, gy.input()?, x.input()?, gw, partial, &d)
        })?;
        Ok(())
    }
}

fn case(n: usize, inputs: usize, outputs: usize, bias: bool) -> Case {
    then(None, n, inputs, outputs, bias)
}

fn then(activation: Option<Activation>, n: usize, inputs: usize, outputs: usize, bias: bool) -> Case {
    let name = Activation::in_a_name(activation);
    let name = format!("[{n}, {inputs}] to {outputs}{}{name}", if bias { "" } else { " no bias" });
    let case = Case::new(name, move |v, cx| v[0].linear_then(activation, &v[1], v.get(2), cx))
        .input("x", [n, inputs], Fill::Uniform)
        .input("w", [outputs, inputs], Fill::Uniform)
        .flops(2 * n * inputs * outputs);
    if bias { case.param("b", [outputs], Fill::Uniform) } else { case }
}

/// Shapes that tests and benches share.
pub fn cases() -> Vec<Case> {
    vec![
        case(1, 1, 1, true),
        case(3, 17, 5, true),
        case(9, 33, 70, false),
        case(4, 130, 260, true),
        case(5, 24, 36, true),
        case(36, 8, 20, true),
        case(70, 550, 3, true),
        case(66, 260, 20, true),
        then(Some(Activation::Relu), 9, 33, 70, false),
        then(Some(Activation::Relu), 5, 24, 36, true),
        case(4, 400, 120, true).timed(),
        case(16, 18_432, 1024, true).timed(),
    ]
}

/// A small case drawn at random.
pub fn random_case(d: &mut Draw) -> Case {
    case(d.int(1, 12), d.int(1, 20), d.int(1, 12), d.flip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    #[test]
    fn sizes_are_checked() {
        let device = Device::cpu();
        let zeros =
            |shape: &[usize]| Tensor::zeros(&device, DType::F32, crate::Shape::from_slice(shape).unwrap()).unwrap();
        for (x, w, b) in [(vec![2, 3], [4, 5], 4), (vec![2, 1, 1, 5], [4, 5], 4), (vec![2, 5], [4, 5], 5)] {
            let e = forward(&zeros(&x), &zeros(&w), Some(&zeros(&[b])), None).unwrap_err().to_string();
            assert!(e.contains("linear"), "{e}");
        }
    }
}
