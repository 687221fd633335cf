//! Dynamic loss scaling: what losses are multiplied by so that small gradients of f16 do not become zero.
//!
//! Its state stays on the device and nothing of it is read in a step: `kernels/loss_scale.cu` says how it moves.

use crate::device::cuda::{Cuda, In, Launch};
use crate::device::{Buffer, Device};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::loss_scale::{LossScaleDims, loss_scale_adapt, loss_scale_begin, loss_scale_check};
use crate::tensor::Tensor;

/// The state of loss scaling.
#[derive(Debug)]
pub struct Scaling {
    /// `Scaling` of `kernels/common.cuh`: the scale, steps since it changed, steps skipped, whether this one is.
    state: Buffer,
}

/// PyTorch's `GradScaler`: what it starts at, and the steps without an overflow after which it is doubled.
const START: f32 = 65536.0;
const PATIENCE: i32 = 2000;

impl Scaling {
    /// As it starts.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn new(cuda: &Cuda) -> Result<Self> {
        let mut state = Device::Cuda(cuda.clone()).alloc(DType::F32, 4)?;
        state.write(0, &[START, 0.0, 0.0, 0.0])?;
        Ok(Scaling { state })
    }

    fn cuda(&self) -> Result<Cuda> {
        match self.state.device() {
            Device::Cuda(cuda) => Ok(cuda.clone()),
            Device::Cpu(_) => Err(Error::Internal("losses are scaled on a CUDA device alone".into())),
        }
    }

    fn sizes(n: usize, share: f64) -> LossScaleDims {
        LossScaleDims { n: n as i32, share: share as f32, patience: PATIENCE }
    }

    /// Writes the gradient of a loss that counts for `share`, scaled.
    pub(crate) fn begin(&self, gradient: &mut Tensor, share: f64) -> Result<()> {
        let launch = Launch::new(1, 32);
        loss_scale_begin(&self.cuda()?, launch, self.input()?, gradient.output()?, &Self::sizes(1, share))
    }

    /// Notes whether all gradients are finite.
    pub(crate) fn check(&mut self, gradients: &Buffer) -> Result<()> {
        let (n, cuda) = (gradients.len(), self.cuda()?);
        let (g, state) = (gradients.input(0..n)?, self.state.output(0..4)?);
        loss_scale_check(&cuda, Launch::each(n / 4), g, state, &Self::sizes(n, 1.0))
    }

    /// Adapts the scale, after the optimizer has moved the parameters, or has not.
    pub(crate) fn adapt(&mut self) -> Result<()> {
        let cuda = self.cuda()?;
        loss_scale_adapt(&cuda, Launch::new(1, 32), self.state.output(0..4)?, &Self::sizes(1, 1.0))
    }

    /// For an optimizer's kernel.
    pub(crate) fn input(&self) -> Result<In<'_, f32>> {
        self.state.input(0..4)
    }

    /// The scale, and how many steps have been skipped. On a CUDA device this waits for the steps.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    pub fn read(&self) -> Result<(f32, u64)> {
        let state = self.state.read::<f32>(0..4)?;
        Ok((state[0], state[2] as u64))
    }

    /// The state, to be saved and taken over.
    pub(crate) fn state(&mut self) -> &mut Buffer {
        &mut self.state
    }
}
