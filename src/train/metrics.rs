//! Loss and accuracy of the steps, kept where the device put them until someone asks.
//!
//! On a CUDA device nothing is read back within a step: a kernel writes a step's numbers to a ring
//! in the device's memory, and one read fetches those of many steps.

use super::evaluate::hits;
use crate::device::cuda::{Launch, with_kernel_type};
use crate::device::{Buffer, Device};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::metrics::{MetricsDims, metrics_record};
use crate::step::Step;
use crate::tensor::Tensor;

/// Steps that the ring holds.
pub(super) const RING: usize = 64;

/// Where a recording has them: not on the line of the weights' gradients.
const LINE: usize = 1;

/// The numbers of the last [`RING`] steps.
pub(super) struct Metrics {
    device: Device,
    losses: Buffer,
    correct: Buffer,
}

impl Metrics {
    pub(super) fn new(device: &Device) -> Result<Self> {
        let (mut losses, mut correct) = (device.alloc(DType::F32, RING)?, device.alloc(DType::I32, RING)?);
        losses.zero()?;
        correct.zero()?;
        Ok(Metrics { device: device.clone(), losses, correct })
    }

    /// Notes a step's mean loss, and how many images have the largest score at their label. In a recording that is done beside
    /// what follows, until [`Cuda::join`](crate::device::cuda::Cuda::join).
    pub(super) fn record(&mut self, loss: &Tensor, scores: &Tensor, labels: &Tensor, step: &Step) -> Result<()> {
        let Device::Cuda(cuda) = self.device.clone() else {
            let correct = hits(scores, labels)?.iter().filter(|(_, hit)| *hit).count();
            let at = step.step as usize % RING;
            self.losses.write(at, loss.host::<f32>()?)?;
            return self.correct.write(at, &[correct as i32]);
        };
        let d = MetricsDims { n: labels.len() as i32, c: scores.shape().last() as i32, ring: RING as i32 };
        let (loss, labels, step) = (loss.input()?, labels.input()?, cuda.step(step)?);
        let (losses, correct) = (self.losses.output(0..RING)?, self.correct.output(0..RING)?);
        with_kernel_type!("metrics", scores.dtype(), T => cuda.beside(LINE, || {
            metrics_record::<T>(&cuda, Launch::new(1, 256), loss, scores.input()?, labels, step, losses, correct, &d)
        }))
    }

    /// Loss and correct images of `count` steps, at most [`RING`], from step `first` on.
    pub(super) fn read(&self, first: u64, count: usize) -> Result<Vec<(f64, usize)>> {
        let (losses, correct) = (self.losses.read::<f32>(0..RING)?, self.correct.read::<i32>(0..RING)?);
        let at = |i: usize| (first as usize + i) % RING;
        Ok((0..count).map(|i| (f64::from(losses[at(i)]), correct[at(i)] as usize)).collect())
    }

    /// A copy in host memory.
    pub(super) fn to_host(&self, host: &Device) -> Result<Self> {
        let (losses, correct) = (self.losses.to_host(host)?, self.correct.to_host(host)?);
        Ok(Metrics { device: host.clone(), losses, correct })
    }

    /// Takes over the numbers of such a copy.
    pub(super) fn take_over(&mut self, copy: &Metrics) -> Result<()> {
        self.losses.write(0, copy.losses.host::<f32>()?)?;
        self.correct.write(0, copy.correct.host::<i32>()?)
    }
}
