//! The rates as a function of the place in the run.

use crate::error::{Error, Result};
use crate::step::Rate;
use serde::{Deserialize, Serialize};

/// A step's place in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// The epoch, counted from 0.
    pub epoch: u32,
    /// Epochs in the run.
    pub epochs: u32,
    /// The batch within the epoch, counted from 0.
    pub batch: usize,
    /// Batches in an epoch.
    pub batches: usize,
}

/// How the learning rate changes: it is asked for each batch, and these change it once an epoch (PyTorch's schedulers of the same names).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// The same rate throughout.
    #[default]
    Constant,
    /// `lr · gamma^floor(epoch / every)`.
    Step {
        /// Epochs between two changes.
        every: u32,
        /// What the rate is multiplied by.
        gamma: f64,
    },
    /// `min + (lr - min) · (1 + cos(pi · epoch / over)) / 2` (Loshchilov, Hutter, "SGDR", ICLR 2017).
    Cosine {
        /// Epochs to reach the minimum: the whole run unless given.
        #[serde(default)]
        over: Option<u32>,
        /// The minimum.
        #[serde(default)]
        min: f64,
    },
}

impl Schedule {
    /// The rate at a place in a run that starts from the rate `first`.
    pub fn at(&self, first: Rate, at: Point) -> Rate {
        let lr = match self {
            Schedule::Constant => first.lr,
            Schedule::Step { every, gamma } => first.lr * gamma.powi((at.epoch / (*every).max(1)) as i32),
            Schedule::Cosine { over, min } => {
                let over = f64::from(over.unwrap_or(at.epochs).max(1));
                min + (first.lr - min) * (1.0 + (std::f64::consts::PI * f64::from(at.epoch) / over).cos()) / 2.0
            }
        };
        Rate { lr, ..first }
    }

    /// Checks the constants.
    ///
    /// # Errors
    /// [`Error::Config`] for a constant out of its range.
    pub fn check(&self) -> Result<()> {
        let bad = |key: &str, problem: String| {
            Err(Error::config(format!("schedule.{key}"), problem, "choose a positive number"))
        };
        match *self {
            Schedule::Step { every: 0, .. } => bad("every", "0 epochs between two changes".into()),
            Schedule::Step { gamma, .. } if !(gamma > 0.0 && gamma.is_finite()) => {
                bad("gamma", format!("{gamma} is not a positive number"))
            }
            Schedule::Cosine { over: Some(0), .. } => bad("over", "0 epochs to the minimum".into()),
            Schedule::Cosine { min, .. } if !(min >= 0.0 && min.is_finite()) => {
                bad("min", format!("{min} is not a rate"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn rates() {
        let at = |s: &Schedule, lr, epoch, epochs| {
            let rate = |batch| s.at(Rate { lr, momentum: 0.9, decay: 0.1 }, Point { epoch, epochs, batch, batches: 5 });
            assert_eq!((rate(4), rate(0).momentum, rate(0).decay), (rate(0), 0.9, 0.1));
            rate(0).lr
        };
        assert_eq!(at(&Schedule::Constant, 0.1, 7, 10), 0.1);
        let step = Schedule::Step { every: 22, gamma: 0.1 };
        assert_relative_eq!(at(&step, 1e-3, 21, 47), 1e-3);
        assert_relative_eq!(at(&step, 1e-3, 22, 47), 1e-4);
        let cosine = Schedule::Cosine { over: None, min: 0.0 };
        assert_relative_eq!(at(&cosine, 0.1, 0, 8), 0.1);
        assert_relative_eq!(at(&cosine, 0.1, 4, 8), 0.05);
        assert_relative_eq!(at(&Schedule::Cosine { over: Some(200), min: 0.01 }, 0.1, 200, 20), 0.01);
        assert!(Schedule::Step { every: 0, gamma: 0.1 }.check().is_err());
    }
}
