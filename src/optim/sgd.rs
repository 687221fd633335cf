//! SGD: `g += wd·p; v = momentum·v + g; p -= lr·v` (Nesterov: `p -= lr·(g + momentum·v)`).
//!
//! With decoupled weight decay g stays as it is, and first `p *= 1 - lr·wd` (Loshchilov, Hutter, "Decoupled Weight Decay
//! Regularization", ICLR 2019: SGDW).
//!
//! Source: Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in
//! deep learning", ICML 2013, in PyTorch's form (the rate outside the momentum, no dampening).

use super::{Optimizer, PIECE, by_parts, gradient_scale, norm_for_clipping, used, zeros_like};
use crate::device::cpu::{for_pieces, vectorised};
use crate::device::cuda::{Cuda, with_kernel_type};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::kernels::sgd::{SgdDims, sgd_step};
use crate::params::{Moved, ParamGrads, Params, Scaling};
use crate::step::Rate;

/// Stochastic gradient descent with momentum.
pub struct Sgd {
    nesterov: bool,
    decoupled: bool,
    velocity: Option<Buffer>,
}

impl Sgd {
    /// With its velocity at zero; without momentum nothing is kept. Learning rate, momentum and weight
    /// decay are those of each [`Step`](crate::step::Step).
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn new(params: &Params, momentum: bool, nesterov: bool) -> Result<Self> {
        Ok(Sgd { nesterov, decoupled: false, velocity: momentum.then(|| zeros_like(params)).transpose()? })
    }

    /// With weight decay that shrinks the parameters themselves, or not.
    pub fn decoupled(self, decoupled: bool) -> Self {
        Sgd { decoupled, ..self }
    }
}

impl Optimizer for Sgd {
    fn step(&mut self, params: &mut Params, grads: &ParamGrads) -> Result<()> {
        match params.values().device().clone() {
            Device::Cpu(_) => self.step_cpu(params, grads),
            Device::Cuda(cuda) => self.step_cuda(&cuda, params, grads),
        }
    }

    fn state(&mut self) -> Vec<(&'static str, &mut Buffer)> {
        self.velocity.iter_mut().map(|v| ("momentum", v)).collect()
    }
}

impl Sgd {
    fn step_cpu(&mut self, params: &mut Params, grads: &ParamGrads) -> Result<()> {
        let (spans, step, scale) = (params.spans(), grads.step(), gradient_scale(grads)?);
        let (p, g) = (params.values_mut()?.host_mut::<f32>()?, grads.buffer().host::<f32>()?);
        let mut velocity = self.velocity.as_mut().map(Buffer::host_mut::<f32>).transpose()?;
        for (span, group) in spans {
            let Rate { lr, momentum, decay } = step.rates[usize::from(group)];
            let (decay, keep) = if self.decoupled { (0.0, 1.0 - lr * decay) } else { (decay, 1.0) };
            let constants = [lr as f32, momentum as f32, decay as f32, keep as f32, scale, step.clip];
            let (p, g) = (p[span.clone()].chunks_mut(PIECE), g[span.clone()].chunks(PIECE));
            match &mut velocity {
                None => for_pieces(p.zip(g).collect(), PIECE, |_, (p, g)| descend(p, g, constants)),
                Some(v) => {
                    let pieces = p.zip(g).zip(v[span].chunks_mut(PIECE)).collect();
                    for_pieces(pieces, PIECE, |_, ((p, g), v)| roll(p, g, v, constants, self.nesterov));
                }
            }
        }
        Ok(())
    }

    fn step_cuda(&mut self, cuda: &Cuda, params: &mut Params, grads: &ParamGrads) -> Result<()> {
        let (mut update, norm) = (params.update()?, norm_for_clipping(cuda, grads)?);
        let dtype = update.dtype();
        by_parts(cuda, grads, |part, launch| {
            let fours = part.len() as i32 / 4;
            let d = SgdDims { fours, nesterov: self.nesterov.into(), decoupled: self.decoupled.into() };
            let (g, step) = (grads.buffer().input(part.clone())?, cuda.step(grads.step())?);
            let v = self.velocity.as_mut().map(|v| v.output(part.clone())).transpose()?;
            let norm = norm.as_ref().map(|b| b.input(0..1)).transpose()?;
            let scaling = grads.scaling().map(Scaling::input).transpose()?;
            with_kernel_type!("sgd", dtype, T => {
                let Moved { p, copy, groups } = update.part(part)?;
                sgd_step::<T>(cuda, launch, g, v, p, copy, groups, norm, scaling, step, &d)
            })
        })
    }
}

vectorised! {
    fn descend<T>(p: &mut [T], g: &[T], constants: [T; 6]) {
        let [lr, _, decay, keep, unscale, clip] = constants;
        p.iter_mut().zip(g).for_each(|(p, &g)| *p = *p * keep - lr * (used(g, unscale, clip) + decay * *p));
    }

    fn roll<T>(p: &mut [T], g: &[T], v: &mut [T], constants: [T; 6], nesterov: bool) {
        let [lr, momentum, decay, keep, unscale, clip] = constants;
        for ((p, &g), v) in p.iter_mut().zip(g).zip(v) {
            let g = used(g, unscale, clip) + decay * *p;
            *v = momentum * *v + g;
            *p = *p * keep - lr * if nesterov { g + momentum * *v } else { *v };
        }
    }
}
