//! Dropout: in training each element is zeroed with probability p and the others are scaled by
//! 1/(1 - p); in evaluation nothing happens.
//!
//! Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting",
//! JMLR 2014. The mask is a function of (seed, epoch, step, layer, index), so it is recomputed in the
//! backward pass and never stored.

use super::case::{Case, Draw, Fill};
use crate::autograd::{Backward, Ctx, Grads, Mode, Var, VarId};
use crate::error::{Error, Result};
use crate::rng::stream;
use crate::step::Step;
use crate::tensor::Tensor;

const OP: &str = "dropout";

impl Var {
    /// Zeroes each element with probability `p` in training; any shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if `p` is not in [0, 1).
    pub fn dropout(&self, p: f64, cx: &mut Ctx<'_>) -> Result<Var> {
        if !(0.0..1.0).contains(&p) {
            return Err(Error::shape(OP, "a probability in [0, 1)", p, "choose a smaller probability"));
        }
        // The stream advances even where nothing is dropped, so that the other layers' masks do not
        // depend on this layer's p.
        let mask = Mask { p, id: cx.next_dropout(), step: *cx.step() };
        if cx.mode() == Mode::Eval || p == 0.0 {
            return Ok(self.clone());
        }
        let y = mask.apply(self.value())?;
        let y = cx.record(y, &[self], || Dropout { x: self.id(), mask });
        // What it zeroes has no gradient either way.
        Ok(y.made_by_relu(self.is_relu()))
    }
}

#[derive(Clone, Copy)]
struct Mask {
    p: f64,
    /// The layer's random stream.
    id: u32,
    step: Step,
}

impl Mask {
    /// An element stays where its random word is at least p · 2^32, the same comparison of integers
    /// on every device.
    fn threshold(&self) -> u32 {
        (self.p * 4_294_967_296.0) as u32
    }

    /// By which the elements that stay are multiplied.
    fn scale(&self) -> f64 {
        1.0 / (1.0 - self.p)
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = Tensor::empty(x.device(), x.dtype(), x.shape())?;
        on_device!(OP, x, T,
            cpu => cpu::apply(x.host::<T>()?, y.host_mut::<T>()?, self.threshold(), self.scale(), self.step.stream(self.id)),
            cuda => cuda::apply::<T>(&cuda, x, &mut y, self));
        Ok(y)
    }
}

struct Dropout {
    x: Option<VarId>,
    mask: Mask,
}

impl Backward for Dropout {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        let masked = grads.is_masked();
        grads.add_masked(self.x, self.mask.apply(&gy)?, masked)
    }
}

mod cpu {
    use crate::device::cpu::{for_rows, vectorised};
    use crate::dtype::Real;
    use crate::rng::Stream;

    /// Elements drawn together: a whole number of Philox blocks, and wide enough that the rounds of
    /// neighbouring blocks run side by side in vector registers.
    const GROUP: usize = 256;

    pub(super) fn apply<T: Real>(x: &[T], y: &mut [T], threshold: u32, scale: f64, s: Stream) {
        let scale = T::of(scale);
        for_rows(y, 1, 16, |first, y| mask(&x[first..], y, first, threshold, scale, s));
    }

    vectorised! {
        fn mask<T>(x: &[T], y: &mut [T], first: usize, threshold: u32, scale: T, s: Stream) {
            // Pieces begin at multiples of GROUP except when the whole is one piece, at 0.
            let mut words = [0u32; GROUP];
            let mut at = 0;
            let mut rest = y;
            while !rest.is_empty() {
                let skip = (first + at) % GROUP;
                let n = (GROUP - skip).min(rest.len());
                let block = ((first + at - skip) / 4) as u32;
                s.fill(block, &mut words);
                let (head, tail) = rest.split_at_mut(n);
                for ((y, &x), &word) in head.iter_mut().zip(&x[at..]).zip(&words[skip..]) {
                    *y = if word >= threshold { x * scale } else { T::zero() };
                }
                rest = tail;
                at += n;
            }
        }
    }
}

mod cuda {
    use super::Mask;
    use crate::device::cuda::{Cuda, KernelType, Launch};
    use crate::error::Result;
    use crate::kernels::dropout::{DropoutDims, dropout_apply};
    use crate::tensor::Tensor;

    /// Only the stream's id comes from the host: the rest of it is the step's, which the kernel reads
    /// from the device, so that a recorded step draws anew each time it is replayed.
    pub(super) fn apply<T: KernelType>(cuda: &Cuda, x: &Tensor, y: &mut Tensor, mask: &Mask) -> Result<()> {
        let d = DropoutDims { n: x.len() as i32, id: mask.id, threshold: mask.threshold(), scale: mask.scale() as f32 };
        dropout_apply::<T>(cuda, Launch::each(x.len().div_ceil(4)), x.input()?, y.output()?, cuda.step(&mask.step)?, &d)
    }
}

fn case(n: usize, len: usize, p: f64) -> Case {
    Case::new(format!("[{n}, {len}] p{p:.2}"), move |v, cx| v[0].dropout(p, cx))
        .input("x", [n, len], Fill::NonZero)
        .flops(n * len)
}

/// Shapes that tests and benches share.
pub fn cases() -> Vec<Case> {
    let twice = Case::new("twice", |v, cx| v[0].dropout(0.5, cx)?.dropout(0.25, cx)).input("x", [5, 7], Fill::NonZero);
    // An element stays whose word is the threshold itself.
    let stream = Case::step().stream(stream::DROPOUT);
    let at = |i| f64::from(stream.word(i)) / 4_294_967_296.0;
    vec![
        case(1, 1, 0.5),
        case(1, 5, at(1)),
        case(1, 6, at(4)),
        case(3, 77, 0.25),
        twice,
        case(2, 40_001, 0.9),
        case(2, 9, 0.0),
        case(16, 18_432, 0.5).timed(),
    ]
}

/// A small case drawn at random.
pub fn random_case(d: &mut Draw) -> Case {
    case(d.int(1, 4), d.int(1, 99), 0.9 * d.unit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn the_mask_has_the_stated_rate_and_scale() {
        let device = Device::cpu();
        let n = 100_000;
        let x = Tensor::from_slice(&device, [n], &vec![1f32; n]).unwrap();
        let step = Step { seed: 1, ..Step::default() };
        let stream = step.stream(0);
        let y = Mask { p: 0.3, id: 0, step }.apply(&x).unwrap().to_vec::<f32>().unwrap();
        let kept = y.iter().filter(|&&v| v != 0.0).count() as f64 / n as f64;
        assert!((kept - 0.7).abs() < 0.005, "{kept}");
        assert!(y.iter().all(|&v| v == 0.0 || (v - 1.0 / 0.7).abs() < 1e-6));
        // Element i depends on word i alone.
        assert!(y.iter().enumerate().all(|(i, &v)| (v != 0.0) == (f64::from(stream.word(i)) >= 0.3 * 4_294_967_296.0)));
    }

    #[test]
    fn evaluation_and_wrong_probabilities() {
        let device = Device::cpu();
        let x = Var::constant(Tensor::from_slice(&device, [2], &[1f32, 2.0]).unwrap());
        let y = x.dropout(0.5, &mut Ctx::eval(&device)).unwrap();
        assert_eq!(y.value().to_vec::<f32>().unwrap(), [1.0, 2.0]);
        for p in [-0.1, 1.0, f64::NAN] {
            assert!(x.dropout(p, &mut Ctx::train(&device)).is_err());
        }
    }
}
