//! The rates as a function of the place in the run.

use super::curve::Curve;
use crate::error::{Error, Result};
use crate::step::Rate;
use serde::{Deserialize, Serialize};

/// An update's place in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// The epoch, counted from 0.
    pub epoch: u32,
    /// Epochs in the run.
    pub epochs: u32,
    /// The update within the epoch, counted from 0: the batch, where each batch is an update.
    pub batch: usize,
    /// Updates in an epoch.
    pub batches: usize,
}

impl Point {
    /// The place in a run of so many epochs; after them its end.
    pub fn within(self, epochs: u32) -> Self {
        match self.epoch < epochs {
            true => Point { epochs, ..self },
            false => Point { epoch: epochs, epochs, batch: 0, ..self },
        }
    }

    /// Updates before this one.
    fn step(&self) -> u64 {
        u64::from(self.epoch) * self.batches as u64 + self.batch as u64
    }

    /// Updates in the run.
    fn total(&self) -> u64 {
        u64::from(self.epochs) * self.batches as u64
    }
}

/// How the learning rate changes in the course of a run: a [`Curve`], after a warm-up if there is one.
///
/// ```
/// use tilework::optim::{Curve, Point, Schedule};
/// use tilework::step::Rate;
/// let schedule = Schedule { warmup: 1.0, curve: Curve::Linear { end_factor: 0.0, over: None } };
/// let first = Rate { lr: 0.1, momentum: 0.9, decay: 0.0 };
/// let lr = |epoch, batch| schedule.at(first, Point { epoch, epochs: 3, batch, batches: 4 }).lr;
/// assert_eq!([lr(0, 0), lr(1, 0), lr(2, 0)], [0.1 * 0.2, 0.1, 0.05]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Epochs, or a part of one, in which the rate rises along a line before the curve begins. Update i of the w in
    /// these epochs, counted from 0, has (i + 1) / (w + 1) of the rate that the curve begins with.
    #[serde(default)]
    pub warmup: f64,
    /// What comes then, over the epochs that are left.
    #[serde(flatten)]
    pub curve: Curve,
}

impl From<Curve> for Schedule {
    fn from(curve: Curve) -> Self {
        Schedule { warmup: 0.0, curve }
    }
}

impl Schedule {
    /// The rate at a place in a run, of parameters whose rate is `first`.
    pub fn at(&self, first: Rate, at: Point) -> Rate {
        let warm = (self.warmup * at.batches as f64).round() as u64;
        let (step, left) = (at.step(), at.total().saturating_sub(warm));
        if step >= warm {
            return self.curve.at(first, step - warm, left, at.batches as u64);
        }
        let begin = self.curve.at(first, 0, left, at.batches as u64);
        Rate { lr: begin.lr * ((step + 1) as f64 / (warm + 1) as f64), ..begin }
    }

    /// Checks the constants.
    ///
    /// # Errors
    /// [`Error::Config`] for a constant out of its range.
    pub fn check(&self) -> Result<()> {
        if !(self.warmup >= 0.0 && self.warmup.is_finite()) {
            let problem = format!("{} epochs", self.warmup);
            return Err(Error::config("schedule.warmup", problem, "use a number of epochs, such as 1 or 0.5"));
        }
        self.curve.check()
    }
}

/// Some epochs at one rate, or in cycles that each go down from it to 0. A run's phases follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Epochs that it takes.
    pub epochs: u32,
    /// Its rate: the optimizer's unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Epochs of a cycle, in which the rate of update i of n is `lr · (1 + cos(pi · i / n)) / 2` (fastai 0.7's
    /// `cycle_len`). Constant unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cycle: Option<u32>,
}

impl Phase {
    /// Epochs of all phases together.
    pub fn epochs(phases: &[Phase]) -> u32 {
        phases.iter().fold(0, |sum, p| sum.saturating_add(p.epochs))
    }

    /// The rate at a place in a run of these phases, of parameters whose rate is `first` where the optimizer's is `base`.
    pub fn at(phases: &[Phase], first: Rate, base: f64, at: Point) -> Rate {
        let mut begin = 0u32;
        let mut current = None;
        for phase in phases {
            current = Some((phase, begin));
            begin = begin.saturating_add(phase.epochs);
            if at.epoch < begin {
                break;
            }
        }
        let Some((phase, begin)) = current else { return first };
        let lr = match phase.lr {
            None => first.lr,
            // Other groups keep their distance.
            Some(lr) if first.lr != base => lr * first.lr / base,
            Some(lr) => lr,
        };
        let cosine = |cycle: u32| {
            let epoch = (at.epoch - begin) % cycle.max(1);
            let done = f64::from(epoch) * at.batches as f64 + at.batch as f64;
            (1.0 + (std::f64::consts::PI * done / (f64::from(cycle) * at.batches as f64)).cos()) / 2.0
        };
        Rate { lr: phase.cycle.map_or(lr, |cycle| lr * cosine(cycle)), ..first }
    }

    /// Checks the phases.
    ///
    /// # Errors
    /// [`Error::Config`] for a number out of its range.
    pub fn check(phases: &[Phase]) -> Result<()> {
        for (i, phase) in phases.iter().enumerate() {
            let bad = |key: &str, problem: String, remedy: &str| {
                Err(Error::config(format!("phases.{i}.{key}"), problem, remedy))
            };
            if phase.epochs == 0 {
                return bad("epochs", "0 epochs".into(), "use at least 1");
            }
            if let Some(lr) = phase.lr.filter(|lr| !(*lr >= 0.0 && lr.is_finite())) {
                return bad("lr", format!("{lr} is not a rate"), "use a finite rate of at least 0");
            }
            if let Some(cycle) = phase.cycle.filter(|c| *c == 0 || phase.epochs % c != 0) {
                let problem = format!("cycles of {cycle} epochs do not fill {} epochs", phase.epochs);
                return bad("cycle", problem, "use a divisor of the phase's epochs, such as 1");
            }
        }
        Ok(())
    }
}
