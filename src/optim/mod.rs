//! Optimizers: one pass over the flat arena of parameters each; Muon takes matrix after matrix.

mod adam;
mod curve;
mod muon;
mod schedule;
mod sgd;
mod spec;

pub use adam::Adam;
pub use curve::Curve;
pub use muon::{Muon, MuonSpec};
pub use schedule::{Phase, Point, Schedule};
pub use sgd::Sgd;
pub use spec::{Algorithm, Clip, EarlyStopping, Ema, Group, OptimizerSpec};

use crate::device::Buffer;
use crate::device::cuda::{Cuda, Launch};
use crate::dtype::Real;
use crate::error::Result;
use crate::params::{ParamGrads, Params, Part};
use std::ops::Range;

/// What an optimizer does each step.
pub trait Optimizer: Send {
    /// Moves the parameters by one step, at the rates of the [`Step`](crate::step::Step) whose pass wrote the gradients.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] while a forward pass holds views of the parameters.
    fn step(&mut self, params: &mut Params, grads: &ParamGrads) -> Result<()>;

    /// What it remembers between steps, by name: arenas laid out like the parameters.
    fn state(&mut self) -> Vec<(&'static str, &mut Buffer)>;
}

/// A gradient as it is used: unscaled, and clipped if `clip` is above 0.
#[inline(always)]
fn used<T: Real>(g: T, unscale: T, clip: T) -> T {
    let g = g * unscale;
    // Comparisons, so that NaN stays NaN.
    match clip > T::zero() {
        true if g > clip => clip,
        true if g < -clip => -clip,
        _ => g,
    }
}

/// What gradients are multiplied by on the CPU: unscaled, and shrunk where their norm is larger than what it is clipped
/// to (Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", ICML 2013, in PyTorch's form).
fn gradient_scale(grads: &ParamGrads) -> Result<f32> {
    let step = grads.step();
    let unscale = 1.0 / step.loss_scale;
    if step.clip_norm == 0.0 {
        return Ok(unscale);
    }
    let shrink = f64::from(step.clip_norm) / (grads.norm()? * f64::from(unscale) + 1e-6);
    Ok(if shrink < 1.0 { (f64::from(unscale) * shrink) as f32 } else { unscale })
}

/// Calls `update` with the parts of the arena that may move at once, and a launch for four elements a thread: in a recorded step
/// the last layers' parameters move while the backward pass goes on, which goes first.
fn by_parts(cuda: &Cuda, grads: &ParamGrads, mut update: impl FnMut(Range<usize>, Launch) -> Result<()>) -> Result<()> {
    grads.parts().into_iter().try_for_each(|Part { range, point }| {
        let fours = range.len() / 4;
        match point {
            Some(point) => cuda.behind(point, || update(range, Launch::briefly(fours))),
            None => update(range, Launch::each(fours)),
        }
    })
}

/// The gradients' norm for a kernel, where the step clips it.
fn norm_for_clipping(cuda: &Cuda, grads: &ParamGrads) -> Result<Option<Buffer>> {
    (grads.step().clip_norm > 0.0).then(|| grads.norm_on(cuda)).transpose()
}

/// Elements per piece of work: a piece's parameters, gradients and state fit the L2 cache.
const PIECE: usize = 1 << 15;

/// An arena of zeros, laid out like the parameters.
fn zeros_like(params: &Params) -> Result<Buffer> {
    let values = params.values();
    let mut b = values.device().alloc(values.dtype(), values.len())?;
    b.zero()?;
    Ok(b)
}

#[cfg(test)]
#[path = "../../tests/unit/schedules.rs"]
mod schedule_tests;
