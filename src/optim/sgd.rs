//! SGD: `g += wd·p; v = momentum·v + g; p -= lr·v` (Nesterov: `p -= lr·(g + momentum·v)`).
//!
//! Source: Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in
//! deep learning", ICML 2013, in PyTorch's form (the rate outside the momentum, no dampening).

use super::{Optimizer, PIECE, zeros_like};
use crate::autograd::StepState;
use crate::device::cpu::{for_pieces, vectorised};
use crate::device::cuda::{Cuda, Launch};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::kernels::sgd::{SgdDims, sgd_step};
use crate::nn::params::{ParamGrads, Params};

/// Stochastic gradient descent with momentum.
pub struct Sgd {
    momentum: f64,
    nesterov: bool,
    weight_decay: f64,
    velocity: Option<Buffer>,
}

impl Sgd {
    /// With its velocity at zero. Without momentum nothing is kept.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn new(params: &Params, momentum: f64, nesterov: bool, weight_decay: f64) -> Result<Self> {
        let velocity = (momentum > 0.0).then(|| zeros_like(params)).transpose()?;
        Ok(Sgd { momentum, nesterov, weight_decay, velocity })
    }
}

impl Optimizer for Sgd {
    fn step(&mut self, params: &mut Params, grads: &ParamGrads, state: &StepState) -> Result<()> {
        match params.values().device().clone() {
            Device::Cpu(_) => self.step_cpu(params.values_mut()?.host_mut()?, grads.buffer().host()?, state.lr),
            Device::Cuda(cuda) => {
                cuda.set_step(state)?;
                self.step_cuda(&cuda, params.values_mut()?, grads.buffer())
            }
        }
    }

    fn state(&mut self) -> Vec<(&'static str, &mut Buffer)> {
        self.velocity.iter_mut().map(|v| ("momentum", v)).collect()
    }
}

impl Sgd {
    fn step_cpu(&mut self, p: &mut [f32], g: &[f32], lr: f32) -> Result<()> {
        let (momentum, decay, nesterov) = (self.momentum as f32, self.weight_decay as f32, self.nesterov);
        let (p, g) = (p.chunks_mut(PIECE), g.chunks(PIECE));
        match &mut self.velocity {
            None => for_pieces(p.zip(g).collect(), PIECE, |_, (p, g)| {
                descend(p, g, lr, decay);
            }),
            Some(v) => {
                let v = v.host_mut::<f32>()?.chunks_mut(PIECE);
                for_pieces(p.zip(g).zip(v).collect(), PIECE, |_, ((p, g), v)| {
                    roll(p, g, v, [lr, momentum, decay], nesterov);
                });
            }
        }
        Ok(())
    }

    fn step_cuda(&mut self, cuda: &Cuda, p: &mut Buffer, g: &Buffer) -> Result<()> {
        let n = p.len();
        let d = SgdDims {
            fours: (n / 4) as i32,
            momentum: self.momentum as f32,
            decay: self.weight_decay as f32,
            nesterov: self.nesterov.into(),
        };
        let v = self.velocity.as_mut().map(|v| v.output(0..n)).transpose()?;
        sgd_step(cuda, Launch::each(n / 4), g.input(0..n)?, v, p.output(0..n)?, cuda.step(), &d)
    }
}

vectorised! {
    fn descend<T>(p: &mut [T], g: &[T], lr: T, decay: T) {
        p.iter_mut().zip(g).for_each(|(p, &g)| *p -= lr * (g + decay * *p));
    }

    fn roll<T>(p: &mut [T], g: &[T], v: &mut [T], constants: [T; 3], nesterov: bool) {
        let [lr, momentum, decay] = constants;
        for ((p, &g), v) in p.iter_mut().zip(g).zip(v) {
            let g = g + decay * *p;
            *v = momentum * *v + g;
            *p -= lr * if nesterov { g + momentum * *v } else { *v };
        }
    }
}
