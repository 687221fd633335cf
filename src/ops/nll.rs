//! Negative log-likelihood: `loss = -mean over n of x[n, label[n]]`, x holding log-probabilities.
//!
//! `gx[n, label[n]] = -gloss / N`, else 0. On a CUDA device, where x is the log-softmax of logits, theirs is computed at once:
//! `gloss / N · (exp(x) - onehot(label))`.

use super::case::{Case, Draw, Fill};
use crate::autograd::{Backward, Ctx, Grads, Var, VarId};
use crate::device::Device;
use crate::device::cuda::{In, KernelType, Out};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::Shape;
use crate::tensor::Tensor;

const OP: &str = "nll";

/// Scores whose gradient one block computes beside the loss, at most.
const EARLY: usize = 4096;

impl Var {
    /// The mean negative log-likelihood of `labels` (`[n]`, `i32`) under log-probabilities `[n, classes]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes do not match or a label is not a class.
    pub fn nll(&self, labels: &Tensor, cx: &mut Ctx<'_>) -> Result<Var> {
        check_labels(OP, self.value(), labels)?;
        let x = self.value();
        let mut loss = Tensor::empty(x.device(), x.dtype().sums(), Shape::SCALAR)?;
        let is_small = self.logits().is_some() && x.len() <= EARLY;
        let mut early = if is_small { Early::new(self, cx)? } else { None };
        on_device!(OP, x, T,
            cpu => loss.host_mut::<T>()?[0] = cpu::forward(x.host::<T>()?, labels.host()?, x.shape().last()),
            cuda => cuda::forward::<T>(&cuda, x, labels, &mut loss, early.as_mut()));
        let (x, logp) = (self.logits().or(self.id()), self.logits().map(|_| x.clone()));
        let (shape, dtype, labels) = (self.shape(), self.value().dtype(), labels.clone());
        Ok(cx.record(loss, &[self], || Nll { x, logp, shape, dtype, labels, early }))
    }
}

/// The gradient of a loss's scores, computed in the forward pass, and the gradient of the loss that it was computed with.
pub(super) struct Early {
    pub(super) seed: Tensor,
    pub(super) gx: Tensor,
}

/// What a kernel takes of it.
type Split<'a, T> = (Option<In<'a, f32>>, Option<Out<'a, T>>);

impl Early {
    /// Room for it, where scores on a CUDA device have a gradient and it is known how the backward pass begins.
    pub(super) fn new(scores: &Var, cx: &Ctx<'_>) -> Result<Option<Self>> {
        let (Device::Cuda(_), Some(seed), Some(_)) = (scores.value().device(), cx.seed(), scores.id()) else {
            return Ok(None);
        };
        let x = scores.value();
        Ok(Some(Early { seed: seed.clone(), gx: Tensor::empty(x.device(), x.dtype(), x.shape())? }))
    }

    /// For a kernel: the loss's gradient, and the place of its own.
    pub(super) fn split<T: KernelType>(this: Option<&mut Self>) -> Result<Split<'_, T>> {
        let Some(Early { seed, gx }) = this else { return Ok((None, None)) };
        Ok((Some(seed.input()?), Some(gx.output()?)))
    }

    /// The gradient, if the loss's is the one that it was computed with.
    pub(super) fn of(self, gy: &Tensor) -> Option<Tensor> {
        self.seed.is(gy).then_some(self.gx)
    }
}

/// Checks that there is one label per row and that every label is a class.
pub(super) fn check_labels(op: &'static str, x: &Tensor, labels: &Tensor) -> Result<()> {
    let [n, classes] = x.shape().rank2().ok_or_else(|| {
        Error::shape(op, "scores [n, classes]", x.shape(), "end the network with `flatten` and `fc CLASSES`")
    })?;
    if n == 0 || labels.shape() != Shape::from([n]) || labels.dtype() != DType::I32 {
        let got = format!("{} {}", labels.dtype(), labels.shape());
        return Err(Error::shape(
            op,
            format!("labels i32 [{n}], one per row, at least one"),
            got,
            "pass one class index per image",
        ));
    }
    match x.device() {
        Device::Cpu(_) => match labels.host::<i32>()?.iter().position(|&l| l < 0 || l as usize >= classes) {
            None => Ok(()),
            Some(i) => Err(Error::shape(
                op,
                format!("labels in 0..{classes}, the outputs of the last layer"),
                format!("label {} at row {i}", labels.host::<i32>()?[i]),
                "give the last layer as many outputs as there are classes",
            )),
        },
        // The host does not read the device within a step: there such a label makes the loss NaN.
        Device::Cuda(_) => Ok(()),
    }
}

struct Nll {
    /// The variable that the gradient is of: the input, or the logits whose log-softmax it is.
    x: Option<VarId>,
    logp: Option<Tensor>,
    shape: Shape,
    dtype: DType,
    labels: Tensor,
    early: Option<Early>,
}

impl Backward for Nll {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        if let Some(gx) = self.early.and_then(|early| early.of(&gy)) {
            return grads.add(self.x, gx);
        }
        let mut gx = Tensor::empty(gy.device(), self.dtype, self.shape)?;
        on_device!(OP, gx, T,
            cpu => cpu::backward(gy.host::<T>()?[0], self.labels.host()?, gx.host_mut::<T>()?, self.shape.last()),
            cuda => cuda::backward::<T>(&cuda, &gy, &self.labels, self.logp.as_ref(), &mut gx));
        grads.add(self.x, gx)
    }
}

mod cpu {
    use crate::dtype::Real;

    /// Summed in f64: a batch may be a whole data set.
    pub(super) fn forward<T: Real>(x: &[T], labels: &[i32], c: usize) -> T {
        let sum: f64 = labels.iter().zip(x.chunks(c)).map(|(&l, x)| x[l as usize].f64()).sum();
        T::of(-sum / labels.len() as f64)
    }

    pub(super) fn backward<T: Real>(gloss: T, labels: &[i32], gx: &mut [T], c: usize) {
        gx.fill(T::zero());
        let g = -gloss / T::of(labels.len() as f64);
        gx.chunks_mut(c).zip(labels).for_each(|(gx, &l)| gx[l as usize] = g);
    }
}

mod cuda {
    use super::Early;
    use crate::device::cuda::{BLOCK, Cuda, KernelType, Launch};
    use crate::error::Result;
    use crate::kernels::nll::{NllDims, nll_bwd, nll_fwd};
    use crate::tensor::Tensor;

    fn dims(x: &Tensor) -> NllDims {
        let c = x.shape().last();
        NllDims { n: (x.len() / c) as i32, c: c as i32 }
    }

    pub(super) fn forward<T: KernelType>(
        cuda: &Cuda,
        x: &Tensor,
        labels: &Tensor,
        loss: &mut Tensor,
        early: Option<&mut Early>,
    ) -> Result<()> {
        let (gloss, gx) = Early::split(early)?;
        nll_fwd::<T>(cuda, Launch::new(1, BLOCK), x.input()?, labels.input()?, loss.output()?, gloss, gx, &dims(x))
    }

    pub(super) fn backward<T: KernelType>(
        cuda: &Cuda,
        gloss: &Tensor,
        labels: &Tensor,
        logp: Option<&Tensor>,
        gx: &mut Tensor,
    ) -> Result<()> {
        let (d, launch) = (dims(gx), Launch::each(gx.len()));
        let logp = logp.map(Tensor::input).transpose()?;
        nll_bwd::<T>(cuda, launch, gloss.input()?, labels.input()?, logp, gx.output()?, &d)
    }
}

fn case(labels: Vec<i32>, c: usize) -> Case {
    let n = labels.len();
    Case::new(format!("[{n}, {c}]"), move |v, cx| {
        let labels = Tensor::from_slice(cx.device(), [n], &labels)?;
        v[0].nll(&labels, cx)
    })
    .input("x", [n, c], Fill::Uniform)
}

/// Shapes that tests and benches share.
pub fn cases() -> Vec<Case> {
    let mut d = Draw::new(1);
    vec![case(vec![0], 1), case(d.labels(5, 10), 10), case(d.labels(300, 3), 3), case(d.labels(256, 10), 10).timed()]
}

/// A small case drawn at random.
pub fn random_case(d: &mut Draw) -> Case {
    let (n, c) = (d.int(1, 6), d.int(1, 12));
    case(d.labels(n, c), c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_checked() {
        let device = Device::cpu();
        let x = Var::constant(Tensor::zeros(&device, DType::F32, [2, 3]).unwrap());
        for (labels, text) in [(vec![0, 3], "label 3 at row 1"), (vec![-1, 0], "label -1 at row 0"), (vec![0], "[1]")] {
            let labels = Tensor::from_slice(&device, [labels.len()], &labels).unwrap();
            let e = x.nll(&labels, &mut Ctx::eval(&device)).unwrap_err().to_string();
            assert!(e.contains(text), "{e}");
        }
    }
}
