//! Softmax cross-entropy with label smoothing, the mean over the batch.
//!
//! With p = softmax(x) and targets t = (1 - s)·onehot(label) + s/C:
//! `loss = -mean over n of sum over c of t·log p`; `gx = gloss · (p - t) / N`. On a CUDA device gx is computed in the forward
//! launch, where gloss is known before.
//! Smoothing: Szegedy et al., "Rethinking the Inception Architecture", 2016; PyTorch's convention.

use super::case::{Case, Draw, Fill};
use super::nll::{Early, check_labels};
use crate::autograd::{Backward, Ctx, Grads, Var, VarId};
use crate::error::{Error, Result};
use crate::shape::Shape;
use crate::tensor::Tensor;

const OP: &str = "cross_entropy";

impl Var {
    /// The mean cross-entropy of logits `[n, classes]` and `labels` (`[n]`, `i32`), with label
    /// smoothing in [0, 1].
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes do not match, a label is not a class, or the smoothing is out of range.
    pub fn cross_entropy(&self, labels: &Tensor, smoothing: f64, cx: &mut Ctx<'_>) -> Result<Var> {
        if !(0.0..=1.0).contains(&smoothing) {
            return Err(Error::shape(OP, "a label smoothing in [0, 1]", smoothing, "0 is none, 0.1 is usual"));
        }
        check_labels(OP, self.value(), labels)?;
        let x = self.value();
        let mut loss = Tensor::empty(x.device(), x.dtype().sums(), Shape::SCALAR)?;
        let mut logp = Tensor::empty(x.device(), x.dtype(), x.shape())?;
        let mut early = Early::new(self, cx)?;
        on_device!(OP, x, T,
            cpu => {
                let logp = logp.host_mut::<T>()?;
                super::log_softmax::cpu::forward(x.host::<T>()?, logp, x.shape().last());
                loss.host_mut::<T>()?[0] = cpu::loss(logp, labels.host()?, x.shape().last(), smoothing)
            },
            cuda => cuda::forward::<T>(&cuda, x, labels, [&mut logp, &mut loss], smoothing, early.as_mut()));
        Ok(cx.record(loss, &[self], || CrossEntropy { x: self.id(), logp, labels: labels.clone(), smoothing, early }))
    }
}

struct CrossEntropy {
    x: Option<VarId>,
    logp: Tensor,
    labels: Tensor,
    smoothing: f64,
    early: Option<Early>,
}

impl Backward for CrossEntropy {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        if let Some(gx) = self.early.and_then(|early| early.of(&gy)) {
            return grads.add(self.x, gx);
        }
        let (shape, dtype) = (self.logp.shape(), self.logp.dtype());
        let mut gx = Tensor::empty(gy.device(), dtype, shape)?;
        on_device!(OP, gx, T,
            cpu => {
                let logp = self.logp.host::<T>()?;
                let labels = self.labels.host()?;
                cpu::backward(gy.host::<T>()?[0], logp, labels, gx.host_mut::<T>()?, shape.last(), self.smoothing)
            },
            cuda => cuda::backward::<T>(&cuda, &gy, &self.logp, &self.labels, &mut gx, self.smoothing));
        grads.add(self.x, gx)
    }
}

mod cpu {
    use crate::device::cpu::for_rows;
    use crate::dtype::Real;

    /// Summed in f64: a batch may be a whole data set.
    pub(super) fn loss<T: Real>(logp: &[T], labels: &[i32], c: usize, smoothing: f64) -> T {
        let (one, spread) = (1.0 - smoothing, smoothing / c as f64);
        let mut sum = 0.0;
        for (&l, logp) in labels.iter().zip(logp.chunks(c)) {
            sum += one * logp[l as usize].f64();
            if smoothing > 0.0 {
                sum += spread * logp.iter().copied().sum::<T>().f64();
            }
        }
        T::of(-sum / labels.len() as f64)
    }

    pub(super) fn backward<T: Real>(gloss: T, logp: &[T], labels: &[i32], gx: &mut [T], c: usize, smoothing: f64) {
        let g = gloss / T::of(labels.len() as f64);
        let (one, spread) = (T::of(1.0 - smoothing), T::of(smoothing / c as f64));
        for_rows(gx, c, c * 16, |first, gx| {
            let rows = logp[first * c..].chunks(c).zip(&labels[first..]);
            for (gx, (logp, &l)) in gx.chunks_mut(c).zip(rows) {
                gx.iter_mut().zip(logp).for_each(|(gx, &lp)| *gx = (lp.exp() - spread) * g);
                gx[l as usize] -= one * g;
            }
        });
    }
}

mod cuda {
    use super::Early;
    use crate::device::cuda::{BLOCK, Cuda, KernelType, Launch};
    use crate::dtype::DType;
    use crate::error::Result;
    use crate::kernels::cross_entropy::*;
    use crate::tensor::Tensor;

    /// Rows of which one block finds the loss, at most: two for each of its warps.
    const FEW: i32 = 64;

    fn dims(x: &Tensor, smoothing: f64) -> CrossEntropyDims {
        let c = x.shape().last();
        let (one, spread) = ((1.0 - smoothing) as f32, (smoothing / c as f64) as f32);
        CrossEntropyDims { n: (x.len() / c) as i32, c: c as i32, one, spread }
    }

    pub(super) fn forward<T: KernelType>(
        cuda: &Cuda,
        x: &Tensor,
        labels: &Tensor,
        [logp, loss]: [&mut Tensor; 2],
        smoothing: f64,
        early: Option<&mut Early>,
    ) -> Result<()> {
        let d = dims(x, smoothing);
        let (gloss, gx) = Early::split(early)?;
        let (x, labels, logp) = (x.input()?, labels.input()?, logp.output()?);
        if d.n <= FEW {
            let block = Launch::new(1, 32 * d.n.clamp(1, 32) as u32);
            return cross_entropy_few::<T>(cuda, block, x, labels, logp, loss.output()?, gloss, gx, &d);
        }
        let mut rows = Tensor::empty(loss.device(), DType::F32, [d.n as usize])?;
        let warps = Launch::new(rows.len().div_ceil(8), BLOCK);
        cross_entropy_fwd::<T>(cuda, warps, x, labels, logp, rows.output()?, gloss, gx, &d)?;
        cross_entropy_mean(cuda, Launch::new(1, BLOCK), rows.input()?, loss.output()?, &d)
    }

    pub(super) fn backward<T: KernelType>(
        cuda: &Cuda,
        gloss: &Tensor,
        logp: &Tensor,
        labels: &Tensor,
        gx: &mut Tensor,
        smoothing: f64,
    ) -> Result<()> {
        let (d, launch) = (dims(logp, smoothing), Launch::each(logp.len()));
        cross_entropy_bwd::<T>(cuda, launch, gloss.input()?, logp.input()?, labels.input()?, gx.output()?, &d)
    }
}

fn case(labels: Vec<i32>, c: usize, smoothing: f64) -> Case {
    let n = labels.len();
    Case::new(format!("[{n}, {c}] s{smoothing:.2}"), move |v, cx| {
        let labels = Tensor::from_slice(cx.device(), [n], &labels)?;
        v[0].cross_entropy(&labels, smoothing, cx)
    })
    .input("x", [n, c], Fill::Uniform)
    .flops(n * c * 5)
}

/// Shapes that tests and benches share.
pub fn cases() -> Vec<Case> {
    let mut d = Draw::new(1);
    vec![
        case(vec![0], 1, 0.0),
        case(d.labels(5, 10), 10, 0.0),
        case(d.labels(7, 33), 33, 0.1),
        case(d.labels(3, 4), 4, 1.0),
        case(d.labels(17, 65), 65, 0.3),
        case(d.labels(300, 3), 3, 0.0),
        // As many rows as one block has, and more.
        case(d.labels(64, 5), 5, 0.1),
        case(d.labels(65, 10), 10, 0.1),
        case(d.labels(256, 10), 10, 0.0).timed(),
    ]
}

/// A small case drawn at random.
pub fn random_case(d: &mut Draw) -> Case {
    let (n, c) = (d.int(1, 6), d.int(1, 12));
    let smoothing = if d.flip() { 0.0 } else { d.unit() };
    case(d.labels(n, c), c, smoothing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn equal_logits_give_log_of_the_classes() {
        let device = Device::cpu();
        let x = Var::constant(Tensor::zeros(&device, crate::DType::F64, [2, 10]).unwrap());
        let labels = Tensor::from_slice(&device, [2], &[3, 9]).unwrap();
        for smoothing in [0.0, 0.1] {
            let loss = x.cross_entropy(&labels, smoothing, &mut Ctx::eval(&device)).unwrap();
            approx::assert_relative_eq!(loss.value().item().unwrap(), 10f64.ln(), max_relative = 1e-12);
        }
        let many = Var::constant(Tensor::zeros(&device, crate::DType::F32, [50_000, 10]).unwrap());
        let zeros = Tensor::from_slice(&device, [50_000], &[0i32; 50_000]).unwrap();
        let loss = many.cross_entropy(&zeros, 0.0, &mut Ctx::eval(&device)).unwrap();
        approx::assert_relative_eq!(loss.value().item().unwrap(), 10f64.ln(), max_relative = 2e-7);
        assert!(x.cross_entropy(&labels, 1.5, &mut Ctx::eval(&device)).is_err());
    }
}
