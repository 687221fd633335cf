//! What a recipe's keys say of its pace: the rates at each update.

use super::Recipe;
use crate::error::{Error, Result};
use crate::optim::{Phase, Point};
use crate::step::{Rate, Step};

impl Recipe {
    /// With the epochs that its phases take, where it says none.
    pub(super) fn with_epochs(mut self) -> Self {
        if self.epochs == 0 {
            self.epochs = Phase::epochs(&self.phases);
        }
        self
    }

    /// The step with the rates that it has at a place in the run.
    pub fn at(&self, step: Step, at: Point) -> Step {
        step.rate(self.rate(self.optimizer.rate(), at))
    }

    /// The rate at a place in the run of parameters that start from the rate `first`.
    fn rate(&self, first: Rate, at: Point) -> Rate {
        match &self.phases[..] {
            [] => self.schedule.at(first, at),
            phases => Phase::at(phases, first, self.optimizer.lr(), at),
        }
    }

    /// Checks the keys of optimizer and schedule.
    pub(super) fn check_pace(&self) -> Result<()> {
        let must = |ok: bool, key: &str, problem: &str, remedy: &str| {
            if ok { Ok(()) } else { Err(Error::config(key, problem, remedy)) }
        };
        self.optimizer.check()?;
        self.schedule.check()?;
        Phase::check(&self.phases)?;
        must(
            !self.schedule.curve.moves_momentum() || self.optimizer.rate().momentum > 0.0,
            "schedule.kind",
            "one-cycle changes the momentum, and the optimizer has none",
            "set optimizer.momentum = 0.9, or schedule.cycle_momentum = false",
        )?;
        if self.phases.is_empty() {
            return Ok(());
        }
        let all = Phase::epochs(&self.phases);
        must(
            self.epochs <= all,
            "epochs",
            &format!("{} epochs, and the phases take {all}", self.epochs),
            "lengthen a phase or add one; with phases, `epochs` may be left out",
        )?;
        must(
            self.schedule == Default::default(),
            "schedule",
            "there are phases too, and each of both says what the rate is",
            "leave out [schedule] or [[phases]]",
        )
    }
}
