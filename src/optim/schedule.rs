//! The learning rate as a function of the epoch.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How the learning rate changes, once an epoch (PyTorch's schedulers of the same names).
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
    /// The rate in an epoch, counted from 0, of a run of `epochs`, starting from `lr`.
    pub fn at(&self, lr: f64, epoch: u32, epochs: u32) -> f64 {
        match self {
            Schedule::Constant => lr,
            Schedule::Step { every, gamma } => lr * gamma.powi((epoch / (*every).max(1)) as i32),
            Schedule::Cosine { over, min } => {
                let over = f64::from(over.unwrap_or(epochs).max(1));
                min + (lr - min) * (1.0 + (std::f64::consts::PI * f64::from(epoch) / over).cos()) / 2.0
            }
        }
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
        assert_eq!(Schedule::Constant.at(0.1, 7, 10), 0.1);
        let step = Schedule::Step { every: 22, gamma: 0.1 };
        assert_relative_eq!(step.at(1e-3, 21, 47), 1e-3);
        assert_relative_eq!(step.at(1e-3, 22, 47), 1e-4);
        let cosine = Schedule::Cosine { over: None, min: 0.0 };
        assert_relative_eq!(cosine.at(0.1, 0, 8), 0.1);
        assert_relative_eq!(cosine.at(0.1, 4, 8), 0.05);
        assert_relative_eq!(Schedule::Cosine { over: Some(200), min: 0.01 }.at(0.1, 200, 20), 0.01);
        assert!(Schedule::Step { every: 0, gamma: 0.1 }.check().is_err());
    }
}
