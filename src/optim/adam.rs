//! Adam: `m = b1·m + (1 - b1)·g; v = b2·v + (1 - b2)·g²;
//! p -= lr / (1 - b1^t) · m / (sqrt(v / (1 - b2^t)) + eps)`, t counted from 1.
//!
//! Weight decay adds `wd·p` to g; AdamW instead first shrinks `p *= 1 - lr·wd`.
//! Sources: Kingma, Ba, "Adam", ICLR 2015; Loshchilov, Hutter, "Decoupled Weight Decay
//! Regularization", ICLR 2019.

use super::{Optimizer, PIECE, zeros_like};
use crate::autograd::StepState;
use crate::device::cpu::{for_pieces, vectorised};
use crate::device::cuda::{Cuda, Launch};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::kernels::adam::{AdamDims, adam_step};
use crate::nn::params::{ParamGrads, Params};

/// Adam and AdamW.
pub struct Adam {
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    decoupled: bool,
    mean: Buffer,
    square: Buffer,
}

impl Adam {
    /// With its moments at zero; `decoupled` makes it AdamW.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn new(params: &Params, betas: [f64; 2], eps: f64, weight_decay: f64, decoupled: bool) -> Result<Self> {
        Ok(Adam { betas, eps, weight_decay, decoupled, mean: zeros_like(params)?, square: zeros_like(params)? })
    }
}

impl Optimizer for Adam {
    fn step(&mut self, params: &mut Params, grads: &ParamGrads, state: &StepState) -> Result<()> {
        match params.values().device().clone() {
            Device::Cpu(_) => self.step_cpu(params.values_mut()?.host_mut()?, grads.buffer().host()?, state),
            Device::Cuda(cuda) => {
                cuda.set_step(state)?;
                self.step_cuda(&cuda, params.values_mut()?, grads.buffer())
            }
        }
    }

    fn state(&mut self) -> Vec<(&'static str, &mut Buffer)> {
        vec![("exp_avg", &mut self.mean), ("exp_avg_sq", &mut self.square)]
    }
}

impl Adam {
    fn step_cpu(&mut self, p: &mut [f32], g: &[f32], state: &StepState) -> Result<()> {
        let t = f64::from(state.step) + 1.0;
        let lr = f64::from(state.lr);
        let [b1, b2] = self.betas;
        // Folded so that the loop has one square root and one division.
        let rate = (lr / (1.0 - b1.powf(t))) as f32;
        let unbias = (1.0 / (1.0 - b2.powf(t)).sqrt()) as f32;
        let keep = if self.decoupled { (1.0 - lr * self.weight_decay) as f32 } else { 1.0 };
        let decay = if self.decoupled { 0.0 } else { self.weight_decay as f32 };
        let (b1, c1, b2, c2, eps) = (b1 as f32, (1.0 - b1) as f32, b2 as f32, (1.0 - b2) as f32, self.eps as f32);
        let (p, g) = (p.chunks_mut(PIECE), g.chunks(PIECE));
        let (m, v) = (self.mean.host_mut::<f32>()?.chunks_mut(PIECE), self.square.host_mut::<f32>()?.chunks_mut(PIECE));
        for_pieces(p.zip(g).zip(m).zip(v).collect(), PIECE, |_, (((p, g), m), v)| {
            update(p, g, m, v, [b1, c1, b2, c2], [decay, keep, rate, unbias, eps]);
        });
        Ok(())
    }

    /// The kernel computes the rates that depend on the step, so that a recorded step can be replayed.
    fn step_cuda(&mut self, cuda: &Cuda, p: &mut Buffer, g: &Buffer) -> Result<()> {
        let n = p.len();
        let [b1, b2] = self.betas;
        let d = AdamDims {
            fours: (n / 4) as i32,
            b1: b1 as f32,
            c1: (1.0 - b1) as f32,
            b2: b2 as f32,
            c2: (1.0 - b2) as f32,
            log_b1: b1.ln() as f32,
            log_b2: b2.ln() as f32,
            eps: self.eps as f32,
            decay: if self.decoupled { 0.0 } else { self.weight_decay as f32 },
            shrink: if self.decoupled { self.weight_decay as f32 } else { 0.0 },
        };
        let (m, v) = (self.mean.output(0..n)?, self.square.output(0..n)?);
        adam_step(cuda, Launch::each(n / 4), g.input(0..n)?, m, v, p.output(0..n)?, cuda.step(), &d)
    }
}

vectorised! {
    fn update<T>(p: &mut [T], g: &[T], m: &mut [T], v: &mut [T], betas: [T; 4], constants: [T; 5]) {
        let ([b1, c1, b2, c2], [decay, keep, rate, unbias, eps]) = (betas, constants);
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g + decay * *p;
            *m = b1 * *m + c1 * g;
            *v = b2 * *v + c2 * g * g;
            *p = *p * keep - rate * *m / (v.sqrt() * unbias + eps);
        }
    }
}
