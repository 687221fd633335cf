//! Convolution (cross-correlation, as everywhere in deep learning):
//! `y[n, p, q, o] = b[o] + sum over r, s, c of w[o, r, s, c] · x[n, p·sh - ph + r, q·sw - pw + s, c]`.
//!
//! As matrices, with cols = im2col(x) of `[n·p·q, r·s·c]`: `y = cols·Wᵀ`, `gW = gyᵀ·cols`,
//! `gx = col2im(gy·W)`, `gb = sum over n, p, q of gy`.
//!
//! Source: Chellapilla, Puri, Simard, "High Performance Convolutional Neural Networks for Document
//! Processing", 2006 (the im2col form).

mod cpu;
pub(super) mod cuda;
#[cfg(test)]
mod definition;
mod dims;
mod direct;
mod halo;
mod im2col;
#[cfg(target_arch = "x86_64")]
mod lanes;
mod maps;
mod pixelwise;
mod strip;

use super::activation::{Activation, Then};
use super::case::{Case, Draw, Fill};
use super::max_pool2d;
use super::operands::Operands;
use super::window::Window;
use crate::autograd::{Backward, Ctx, Grads, Var};
use crate::device::Device;
use crate::device::cuda::with_kernel_type;
use crate::dtype::with_real;
use crate::error::Result;
use crate::params::Slot;
use crate::tensor::Tensor;
use dims::Dims;
use strip::Strip;

const OP: &str = "conv2d";

impl Var {
    /// Convolution of `[n, h, w, c]` with weights `[o, kh, kw, c]` and biases `[o]` to `[n, ho, wo, o]`.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if the sizes do not match or the window is larger than the padded input.
    pub fn conv2d(
        &self,
        w: &Var,
        b: Option<&Var>,
        stride: [usize; 2],
        pad: [usize; 2],
        cx: &mut Ctx<'_>,
    ) -> Result<Var> {
        self.conv2d_then(None, w, b, stride, pad, cx)
    }

    /// [`Var::conv2d`], and an activation of the result, as in [`Var::linear_then`], and a max-pool of that. What one of 2x2 does
    /// not read, the last row or column, is not computed, and has no gradient. Behind ReLU, or no activation, some of the kernels
    /// pool what they are about to store; what is pooled is rounded first, as it would be stored.
    ///
    /// # Errors
    /// As [`Var::conv2d`] and [`Var::max_pool2d`].
    pub fn conv2d_then(
        &self,
        then: impl Into<Then>,
        w: &Var,
        b: Option<&Var>,
        stride: [usize; 2],
        pad: [usize; 2],
        cx: &mut Ctx<'_>,
    ) -> Result<Var> {
        let (then, inputs): (Then, _) = (then.into(), [self, w]);
        let d = Dims::new(self.shape(), w.shape(), b.map(Var::shape), stride, pad)?.cropped(then);
        if let Some([y, place]) = forward_pooled(self.value(), w.value(), b.map(Var::value), then, &d)? {
            let alone = if self.id().is_none() && b.is_none() { gathers_pooled(self.value(), &d)? } else { None };
            let pooled = Pooled { place: place.clone(), relu: then.activation.is_some(), alone };
            let node = |operands| Conv2d { operands, d, pooled: Some(pooled) };
            // Not all of its gradient is the bias's, where ReLU came before the max-pool.
            let y = Operands::record(y, None, inputs, b, cx, node)?.of_bias(None);
            return Ok(if alone.is_none() { y.won_at(place) } else { y });
        }
        let y = forward(self.value(), w.value(), b.map(Var::value), then.activation, &d)?;
        let node = |operands| Conv2d { operands, d, pooled: None };
        let y = Operands::record(y, then.activation, inputs, b, cx, node)?;
        Then { activation: None, ..then }.of(&y, cx)
    }
}

/// `then` is applied where products [do so](Activation::is_stored).
fn forward(x: &Tensor, w: &Tensor, b: Option<&Tensor>, then: Option<Activation>, d: &Dims) -> Result<Tensor> {
    let mut y = Tensor::empty(x.device(), x.dtype(), [d.n, d.y[0], d.y[1], d.o])?;
    match x.device() {
        Device::Cpu(cpu) => with_real!(OP, x.dtype(), T => {
            let b = b.map(|b| b.host::<T>()).transpose()?;
            cpu::forward(x.host::<T>()?, w.host::<T>()?, b, y.host_mut::<T>()?, d, cpu)
        })?,
        Device::Cuda(cuda) => {
            let relu = Activation::is_stored(then, x.device());
            with_kernel_type!(OP, x.dtype(), T => cuda::forward::<T>(cuda, x, w, b, relu, &mut y, d))?
        }
    }
    Ok(y)
}

/// With all that follows, and where the values of a max-pool are from, if a kernel does that as well.
fn forward_pooled(x: &Tensor, w: &Tensor, b: Option<&Tensor>, then: Then, d: &Dims) -> Result<Option<[Tensor; 2]>> {
    let relu = Activation::is_stored(then.activation, x.device());
    match x.device() {
        Device::Cuda(cuda) if then.pool == Some(Then::POOL) && (relu || then.activation.is_none()) => {
            with_kernel_type!(OP, x.dtype(), T => cuda::forward_pooled::<T>(cuda, x, w, b, relu, d))
        }
        _ => Ok(None),
    }
}

/// How a kernel computes the weight gradient before a max-pool without the gradient of what was pooled, if one does.
fn gathers_pooled(x: &Tensor, d: &Dims) -> Result<Option<Strip>> {
    match x.device() {
        Device::Cuda(cuda) => with_kernel_type!(OP, x.dtype(), T => Ok(Strip::backward_w_pooled::<T>(cuda, d))),
        Device::Cpu(_) => Ok(None),
    }
}

struct Conv2d {
    operands: Operands,
    d: Dims,
    pooled: Option<Pooled>,
}

/// A max-pool of 2x2 of the result, in the same op.
struct Pooled {
    /// Where in their windows the values are from.
    place: Tensor,
    /// Whether ReLU came before it.
    relu: bool,
    /// What takes the gradient [as it is](gathers_pooled), where the weights alone want one.
    alone: Option<Strip>,
}

impl Backward for Conv2d {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        let (Operands { x, w, .. }, d) = (&self.operands, &self.d);
        let alone = match &self.pooled {
            Some(Pooled { alone: Some(strip), place, .. }) if Strip::reads_pooled(&gy)? => Some((strip, place)),
            _ => None,
        };
        let gy = match &self.pooled {
            Some(Pooled { place, relu, .. }) => {
                if *relu {
                    grads.forget_sums();
                }
                match grads.is_spread() || alone.is_some() {
                    true => gy,
                    false => max_pool2d::backward(&gy, place, [d.n, d.y[0], d.y[1], d.o].into(), Then::POOL)?,
                }
            }
            None => gy,
        };
        let (device, dtype) = (gy.device().clone(), gy.dtype());
        let weights = |gy: &Tensor, gw: &mut Slot<'_>| match &device {
            Device::Cpu(cpu) => with_real!(OP, dtype, T => {
                let accumulate = gw.accumulate;
                cpu::backward_w(gy.host::<T>()?, x.host::<T>()?, gw.host_mut::<T>()?, accumulate, d, cpu)
            }),
            Device::Cuda(cuda) => with_kernel_type!(OP, dtype, T => match alone {
                Some((strip, place)) => strip.gather_pooled::<T>(cuda, [gy, place], x, gw, d),
                None => cuda::backward_w::<T>(cuda, gy, x, gw, d),
            }),
        };
        let input = |gy: &Tensor, gx: &mut Slot<'_>| match &device {
            Device::Cpu(cpu) => with_real!(OP, dtype, T => {
                cpu::backward_x(gy.host::<T>()?, w.host::<T>()?, gx.host_mut::<T>()?, d, cpu).map(|()| false)
            }),
            Device::Cuda(cuda) => {
                let masks = self.operands.masks();
                with_kernel_type!(OP, dtype, T => cuda::backward_x::<T>(cuda, gy, w, masks, gx, d))
            }
        };
        self.operands.backward(gy, grads, alone.map(|(_, place)| place), weights, input)
    }
}

fn case(x: [usize; 4], o: usize, win: Window, bias: bool) -> Case {
    then(Then::default(), x, o, win, bias)
}

/// A max-pool of the result. In two bytes values are equal that are not, and another one wins; finite differences end where
/// another does.
fn pooled(activation: Option<Activation>, x: [usize; 4], o: usize, win: Window, bias: bool) -> Case {
    let case = then(Then { activation, pool: Some(Then::POOL) }, x, o, win, bias);
    Case { half: false, smooth: false, ..case }
}

fn then(then: impl Into<Then>, x: [usize; 4], o: usize, win: Window, bias: bool) -> Case {
    let then: Then = then.into();
    let [kh, kw] = win.kernel;
    let pixels = win.output(OP, [x[1], x[2]]).map_or(0, |s| s[0] * s[1]);
    let name = Activation::in_a_name(then.activation) + if then.pool.is_some() { " pooled" } else { "" };
    let name = format!("{x:?} to {o} {win}{}{name}", if bias { "" } else { " no bias" });
    let case = Case::new(name, move |v, cx| v[0].conv2d_then(then, &v[1], v.get(2), win.stride, win.pad, cx))
        .input("x", x, Fill::Uniform)
        .input("w", [o, kh, kw, x[3]], Fill::Uniform)
        .flops(2 * x[0] * pixels * o * kh * kw * x[3]);
    if bias { case.param("b", [o], Fill::Uniform) } else { case }
}

/// Shapes that tests and benches share.
pub fn cases() -> Vec<Case> {
    let plain = |k| Window::square(k, 1, 0);
    let odd = Window { kernel: [3, 2], stride: [2, 3], pad: [0, 2] };
    vec![
        case([1, 1, 1, 1], 1, plain(1), true),
        case([1, 5, 7, 3], 2, plain(3), true),
        case([3, 7, 5, 2], 5, Window::square(3, 2, 1), false),
        case([2, 6, 8, 3], 4, odd, true),
        case([5, 4, 4, 9], 17, plain(1), true),
        case([2, 5, 6, 4], 8, Window::square(3, 2, 1), true),
        case([2, 3, 3, 4], 3, Window::square(1, 2, 1), true),
        case([17, 6, 6, 5], 20, plain(5), true),
        case([3, 5, 20, 3], 7, Window { kernel: [3, 4], stride: [2, 1], pad: [1, 1] }, true),
        case([17, 5, 5, 9], 10, Window::square(3, 2, 1), true),
        case([32, 2, 1, 32], 33, Window::square(3, 1, 1), true),
        case([9, 1, 1, 8], 5, Window::square(3, 1, 1), true),
        case([40, 1, 1, 64], 20, Window::square(5, 1, 2), false),
        case([3, 2, 2, 80], 9, Window::square(3, 2, 1), true),
        case([4, 1, 5, 24], 24, Window::square(3, 1, 1), true),
        case([1, 3, 21, 8], 8, Window { kernel: [1, 18], stride: [1, 2], pad: [0, 3] }, true),
        case([3, 9, 7, 8], 16, Window { kernel: [4, 3], stride: [3, 2], pad: [2, 1] }, true),
        then(Some(Activation::Relu), [5, 4, 4, 9], 17, plain(1), true),
        then(Some(Activation::Relu), [17, 5, 5, 9], 10, Window::square(3, 2, 1), false),
        pooled(None, [2, 6, 7, 3], 5, plain(2), true),
        pooled(Some(Activation::Relu), [3, 9, 8, 4], 8, Window::square(3, 2, 1), false),
        pooled(Some(Activation::Silu), [2, 5, 4, 3], 4, plain(1), true),
        case([4, 32, 32, 3], 6, plain(5), true).timed(),
        case([4, 14, 14, 6], 16, plain(5), true).timed(),
        case([16, 30, 30, 16], 32, plain(3), true).timed(),
        case([16, 10, 10, 128], 256, plain(3), true).timed(),
        case([16, 8, 8, 256], 512, plain(3), true).timed(),
        case([16, 16, 16, 64], 64, Window::square(3, 1, 1), false).timed(),
        case([64, 16, 16, 20], 20, Window::square(3, 1, 1), false).timed(),
        case([64, 2, 2, 160], 160, Window::square(3, 1, 1), false).timed(),
    ]
}

/// A small case drawn at random.
pub fn random_case(d: &mut Draw) -> Case {
    let window = Window {
        kernel: [d.int(1, 4), d.int(1, 4)],
        stride: [d.int(1, 3), d.int(1, 3)],
        pad: [d.int(0, 3), d.int(0, 3)],
    };
    // Some rows are long enough for the direct form.
    let width = if d.int(0, 2) == 0 { d.int(17, 24) } else { d.int(4, 8) };
    case([d.int(1, 5), d.int(4, 8), width, d.int(1, 4)], d.int(1, 5), window, d.flip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Shape;

    #[test]
    fn sizes_are_checked() {
        let s = |d: [usize; 4]| Shape::from(d);
        let bad =
            |x, w, b: Option<usize>| Dims::new(x, w, b.map(|b| [b].into()), [1, 1], [0, 0]).unwrap_err().to_string();
        assert!(bad(s([1, 8, 8, 3]), s([4, 3, 3, 2]), None).contains("2 input channels"));
        assert!(bad(s([1, 8, 8, 3]), s([4, 3, 3, 3]), Some(3)).contains("4 biases"));
        assert!(bad(s([1, 2, 2, 3]), s([4, 3, 3, 3]), None).contains("smaller kernel"));
    }
}
