//! Optimizers: one pass over the flat arena of parameters each.

mod adam;
mod curve;
mod schedule;
mod sgd;

pub use adam::Adam;
pub use curve::Curve;
pub use schedule::{Phase, Point, Schedule};
pub use sgd::Sgd;

use crate::device::Buffer;
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::params::{ParamGrads, Params};
use crate::step::Rate;
use serde::{Deserialize, Serialize};

/// The optimizer of a recipe: its kind and constants. The learning rate of a step comes from the
/// [`Schedule`], which starts from `lr`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OptimizerSpec {
    /// Stochastic gradient descent; see [`Sgd`].
    Sgd {
        /// Learning rate.
        lr: f64,
        /// Momentum.
        #[serde(default)]
        momentum: f64,
        /// Whether the momentum is Nesterov's.
        #[serde(default)]
        nesterov: bool,
        /// L2 penalty.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adam; see [`Adam`].
    Adam {
        /// Learning rate.
        #[serde(default = "adam_lr")]
        lr: f64,
        /// Decay of the running means of the gradient and its square.
        #[serde(default = "adam_betas")]
        betas: [f64; 2],
        /// Added to the denominator.
        #[serde(default = "adam_eps")]
        eps: f64,
        /// L2 penalty.
        #[serde(default)]
        weight_decay: f64,
    },
    /// AdamW: Adam with decoupled weight decay.
    Adamw {
        /// Learning rate.
        #[serde(default = "adam_lr")]
        lr: f64,
        /// Decay of the running means of the gradient and its square.
        #[serde(default = "adam_betas")]
        betas: [f64; 2],
        /// Added to the denominator.
        #[serde(default = "adam_eps")]
        eps: f64,
        /// Decoupled weight decay; 0.01 unless given, as in PyTorch.
        #[serde(default = "adamw_decay")]
        weight_decay: f64,
    },
}

fn adam_lr() -> f64 {
    1e-3
}
fn adam_betas() -> [f64; 2] {
    [0.9, 0.999]
}
fn adam_eps() -> f64 {
    1e-8
}
fn adamw_decay() -> f64 {
    0.01
}

impl OptimizerSpec {
    /// The learning rate that the schedule starts from.
    pub fn lr(&self) -> f64 {
        match self {
            OptimizerSpec::Sgd { lr, .. } | OptimizerSpec::Adam { lr, .. } | OptimizerSpec::Adamw { lr, .. } => *lr,
        }
    }

    /// Checks the constants.
    ///
    /// # Errors
    /// [`Error::Config`] for a constant out of its range.
    pub fn check(&self) -> Result<()> {
        let within = |key: &str, value: f64, ok: bool, range: &str| {
            if ok {
                Ok(())
            } else {
                Err(Error::config(
                    format!("optimizer.{key}"),
                    format!("{value} is not {range}"),
                    "choose a value in that range",
                ))
            }
        };
        within("lr", self.lr(), self.lr() >= 0.0 && self.lr().is_finite(), "a finite rate of at least 0")?;
        let decay = match self {
            OptimizerSpec::Sgd { momentum, nesterov, weight_decay, .. } => {
                within("momentum", *momentum, (0.0..1.0).contains(momentum), "in [0, 1)")?;
                within("momentum", *momentum, !nesterov || *momentum > 0.0, "above 0, which nesterov needs")?;
                *weight_decay
            }
            OptimizerSpec::Adam { betas, eps, weight_decay, .. }
            | OptimizerSpec::Adamw { betas, eps, weight_decay, .. } => {
                for b in betas {
                    within("betas", *b, (0.0..1.0).contains(b), "in [0, 1)")?;
                }
                within("eps", *eps, *eps > 0.0 && eps.is_finite(), "a finite number above 0")?;
                *weight_decay
            }
        };
        within("weight_decay", decay, decay >= 0.0 && decay.is_finite(), "a finite number of at least 0")
    }

    /// The rate that a run starts from.
    pub fn rate(&self) -> Rate {
        match *self {
            OptimizerSpec::Sgd { lr, momentum, weight_decay, .. } => Rate { lr, momentum, decay: weight_decay },
            OptimizerSpec::Adam { lr, betas, weight_decay, .. }
            | OptimizerSpec::Adamw { lr, betas, weight_decay, .. } => {
                Rate { lr, momentum: betas[0], decay: weight_decay }
            }
        }
    }

    /// The optimizer with its state, at zero.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn build(&self, params: &Params) -> Result<Box<dyn Optimizer>> {
        Ok(match *self {
            OptimizerSpec::Sgd { momentum, nesterov, .. } => Box::new(Sgd::new(params, momentum > 0.0, nesterov)?),
            OptimizerSpec::Adam { betas, eps, .. } => Box::new(Adam::new(params, betas[1], eps, false)?),
            OptimizerSpec::Adamw { betas, eps, .. } => Box::new(Adam::new(params, betas[1], eps, true)?),
        })
    }
}

/// What an optimizer does each step.
pub trait Optimizer: Send {
    /// Moves the parameters by one step, at the rates of the [`Step`](crate::step::Step) whose pass wrote the gradients.
    ///
    /// # Errors
    /// [`Error::Internal`] while a forward pass holds views of the parameters.
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
