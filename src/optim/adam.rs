//! Adam: `m = b1·m + (1 - b1)·g; v = b2·v + (1 - b2)·g²;
//! p -= lr / (1 - b1^t) · m / (sqrt(v / (1 - b2^t)) + eps)`, t counted from 1.
//!
//! Weight decay adds `wd·p` to g; AdamW instead first shrinks `p *= 1 - lr·wd`.
//! Sources: Kingma, Ba, "Adam", ICLR 2015; Loshchilov, Hutter, "Decoupled Weight Decay
//! Regularization", ICLR 2019.

use super::{Optimizer, PIECE, by_parts, gradient_scale, norm_for_clipping, used, zeros_like};
use crate::device::cpu::{for_pieces, vectorised};
use crate::device::cuda::{Cuda, with_kernel_type};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::kernels::adam::{AdamDims, adam_step};
use crate::params::{Moved, ParamGrads, Params, Scaling};
use crate::step::Rate;

/// Adam and AdamW.
pub struct Adam {
    beta2: f64,
    eps: f64,
    decoupled: bool,
    mean: Buffer,
    square: Buffer,
}

impl Adam {
    /// With its moments at zero; `decoupled` makes it AdamW. Learning rate, first beta (as the momentum)
    /// and weight decay are those of each [`Step`](crate::step::Step).
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn new(params: &Params, beta2: f64, eps: f64, decoupled: bool) -> Result<Self> {
        Ok(Adam { beta2, eps, decoupled, mean: zeros_like(params)?, square: zeros_like(params)? })
    }
}

impl Optimizer for Adam {
    fn step(&mut self, params: &mut Params, grads: &ParamGrads) -> Result<()> {
        match params.values().device().clone() {
            Device::Cpu(_) => self.step_cpu(params, grads),
            Device::Cuda(cuda) => self.step_cuda(&cuda, params, grads),
        }
    }

    fn state(&mut self) -> Vec<(&'static str, &mut Buffer)> {
        vec![("exp_avg", &mut self.mean), ("exp_avg_sq", &mut self.square)]
    }
}

impl Adam {
    fn step_cpu(&mut self, params: &mut Params, grads: &ParamGrads) -> Result<()> {
        let (spans, step, scale) = (params.spans(), grads.step(), gradient_scale(grads)?);
        let (p, g) = (params.values_mut()?.host_mut::<f32>()?, grads.buffer().host::<f32>()?);
        let (m, v) = (self.mean.host_mut::<f32>()?, self.square.host_mut::<f32>()?);
        let (t, b2) = (step.updates() as f64 + 1.0, self.beta2);
        for (span, group) in spans {
            let Rate { lr, momentum: b1, decay } = step.rates[usize::from(group)];
            // The kernel has it as a float too.
            let lr = f64::from(lr as f32);
            // Folded so that the loop has one square root and one division.
            let rate = (lr / (1.0 - b1.powf(t))) as f32;
            let unbias = (1.0 / (1.0 - b2.powf(t)).sqrt()) as f32;
            let keep = if self.decoupled { (1.0 - lr * decay) as f32 } else { 1.0 };
            let decay = if self.decoupled { 0.0 } else { decay as f32 };
            let betas = [b1 as f32, (1.0 - b1) as f32, b2 as f32, (1.0 - b2) as f32];
            let constants = [decay, keep, rate, unbias, self.eps as f32, scale, step.clip];
            let (p, g) = (p[span.clone()].chunks_mut(PIECE), g[span.clone()].chunks(PIECE));
            let (m, v) = (m[span.clone()].chunks_mut(PIECE), v[span].chunks_mut(PIECE));
            for_pieces(p.zip(g).zip(m).zip(v).collect(), PIECE, |_, (((p, g), m), v)| {
                update(p, g, m, v, betas, constants);
            });
        }
        Ok(())
    }

    /// The kernel computes the rates that depend on the step, so that a recorded step can be replayed.
    fn step_cuda(&mut self, cuda: &Cuda, params: &mut Params, grads: &ParamGrads) -> Result<()> {
        let b2 = self.beta2;
        let dims = AdamDims {
            b2: b2 as f32,
            c2: (1.0 - b2) as f32,
            log_b2: b2.ln() as f32,
            eps: self.eps as f32,
            decoupled: self.decoupled.into(),
            ..Default::default()
        };
        let (mut update, norm) = (params.update()?, norm_for_clipping(cuda, grads)?);
        let dtype = update.dtype();
        by_parts(cuda, grads, |part, launch| {
            let d = AdamDims { fours: part.len() as i32 / 4, ..dims };
            let (g, step) = (grads.buffer().input(part.clone())?, cuda.step(grads.step())?);
            let (m, v) = (self.mean.output(part.clone())?, self.square.output(part.clone())?);
            let norm = norm.as_ref().map(|b| b.input(0..1)).transpose()?;
            let scaling = grads.scaling().map(Scaling::input).transpose()?;
            with_kernel_type!("adam", dtype, T => {
                let Moved { p, copy, groups } = update.part(part)?;
                adam_step::<T>(cuda, launch, g, m, v, p, copy, groups, norm, scaling, step, &d)
            })
        })
    }
}

vectorised! {
    fn update<T>(p: &mut [T], g: &[T], m: &mut [T], v: &mut [T], betas: [T; 4], constants: [T; 7]) {
        let ([b1, c1, b2, c2], [decay, keep, rate, unbias, eps, unscale, clip]) = (betas, constants);
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = used(g, unscale, clip) + decay * *p;
            *m = b1 * *m + c1 * g;
            *v = b2 * *v + c2 * g * g;
            *p = *p * keep - rate * *m / (v.sqrt() * unbias + eps);
        }
    }
}
