//! A moving average of a network's numbers (Polyak, Juditsky, "Acceleration of stochastic approximation by averaging",
//! 1992): of the parameters, and of buffers such as running statistics, as PyTorch's `AveragedModel` with
//! `get_ema_multi_avg_fn` and `use_buffers=True` keeps it. Counters are the network's own.

use crate::device::cpu::for_pieces;
use crate::device::cuda::{Cuda, In, Launch, Out};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::kernels::params::{AverageDims, params_average};
use crate::nn::Model;
use crate::step::Step;
use crate::tensor::Tensor;

/// The averages, laid out like the network's numbers.
pub(super) struct Average {
    pub(super) values: Buffer,
    pub(super) buffers: Vec<Tensor>,
}

/// Elements per piece of work.
const PIECE: usize = 1 << 15;

impl Average {
    /// Zeros: the first update is to have a decay of 0.
    pub(super) fn new(model: &Model) -> Result<Self> {
        let like = model.params.values();
        let mut values = like.device().alloc(like.dtype(), like.len())?;
        values.zero()?;
        let buffers = model.buffers.tensors().map(|(_, t)| Tensor::zeros(t.device(), t.dtype(), t.shape()));
        Ok(Average { values, buffers: buffers.collect::<Result<_>>()? })
    }

    /// Moves the averages towards the network's numbers, at the decay of the step.
    pub(super) fn update(&mut self, model: &Model, step: &Step) -> Result<()> {
        let values = model.params.values();
        let (all, buffers) = (0..values.len(), self.buffers.iter_mut().zip(model.buffers.tensors()));
        match values.device().clone() {
            Device::Cpu(_) => {
                blend(values.host()?, self.values.host_mut()?, step);
                for (average, (_, tensor)) in buffers {
                    let (buffer, range) = average.buffer_mut()?;
                    blend(tensor.host()?, &mut buffer.host_mut()?[range], step);
                }
            }
            Device::Cuda(cuda) => {
                // Parts of the parameters move beside.
                cuda.join()?;
                blend_on(&cuda, values.input(all.clone())?, self.values.output(all)?, values.len(), step)?;
                for (average, (_, tensor)) in buffers {
                    let (buffer, range) = average.buffer_mut()?;
                    blend_on(&cuda, tensor.input()?, buffer.output(range)?, tensor.len(), step)?;
                }
            }
        }
        Ok(())
    }

    /// Exchanges the averages and the network's numbers: no number is copied.
    pub(super) fn swap(&mut self, model: &mut Model) -> Result<()> {
        std::mem::swap(&mut self.values, model.params.values_mut()?);
        for (average_of, (_, mut tensor)) in self.buffers.iter_mut().zip(model.buffers.tensors()) {
            std::mem::swap(average_of, &mut *tensor);
        }
        Ok(())
    }
}

/// `a = ema · a + (1 - ema) · x`.
fn blend(x: &[f32], a: &mut [f32], step: &Step) {
    let (keep, take) = (step.ema as f32, (1.0 - step.ema) as f32);
    // From the nearer of the two, so that at either end the result is exact.
    for_pieces(x.chunks(PIECE).zip(a.chunks_mut(PIECE)).collect(), PIECE, |_, (x, a)| match take < 0.5 {
        true => a.iter_mut().zip(x).for_each(|(a, x)| *a += take * (x - *a)),
        false => a.iter_mut().zip(x).for_each(|(a, x)| *a = x - keep * (x - *a)),
    });
}

fn blend_on(cuda: &Cuda, x: In<'_, f32>, a: Out<'_, f32>, n: usize, step: &Step) -> Result<()> {
    params_average(cuda, Launch::each(n).flops(3 * n), x, a, cuda.step(step)?, &AverageDims { n: n as i32 })
}
