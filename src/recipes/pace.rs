//! What a recipe's keys say of its updates: rates, clipping, averages.

use super::Recipe;
use crate::error::{Error, Result};
use crate::optim::{Clip, EarlyStopping, Ema, Phase, Point};
use crate::step::{GROUPS, Rate, Step};

impl Recipe {
    /// With the epochs that its phases take, where it says none.
    pub(super) fn with_epochs(mut self) -> Self {
        if self.epochs == 0 {
            self.epochs = Phase::epochs(&self.phases);
        }
        self
    }

    /// The step with the rates, the clipping and the average's decay that it has at a place in the run.
    pub fn at(&self, step: Step, at: Point) -> Step {
        let mut step = step.rate(self.rate(self.optimizer.rate(), at));
        let over = [None].into_iter().chain(self.optimizer.groups.iter().map(|g| g.over));
        for ((rate, first), over) in step.rates.iter_mut().zip(self.optimizer.rates()).zip(over) {
            *rate = self.rate(first, over.map_or(at, |epochs| at.within(epochs)));
        }
        self.clip(&mut step);
        // The first update's weights are the first average.
        step.ema = self.ema.filter(|_| step.updates() > 0).map_or(0.0, |ema| ema.decay);
        step
    }

    /// The groups whose parameters move no more from this step on, by number as in [`Step::rates`]: their epochs are over,
    /// and ended at a rate of 0. None where gradients are clipped by their norm, to which each of them counts; nor a group
    /// whose weights are normalised in every step. (In f16 losses are scaled by what the gradients allow that there are:
    /// then by the others'.)
    pub fn at_rest(&self, step: &Step) -> [bool; GROUPS] {
        let counts = self.clip.is_some_and(|clip| clip.norm.is_some());
        let mut rest = [false; GROUPS];
        for (i, group) in self.optimizer.groups.iter().enumerate() {
            let over = group.over.is_some_and(|epochs| step.epoch >= epochs);
            let normalised = group.muon.is_some_and(|muon| muon.normalise);
            rest[i + 1] = over && step.rates[i + 1].lr == 0.0 && !normalised && !counts;
        }
        rest
    }

    /// The step with the recipe's first rates, each times `factor`, and its clipping: without schedule and average.
    pub fn with_rate(&self, step: Step, factor: f64) -> Step {
        let mut step = step.rate(self.optimizer.rate());
        for (rate, first) in step.rates.iter_mut().zip(self.optimizer.rates()) {
            *rate = Rate { lr: first.lr * factor, ..first };
        }
        self.clip(&mut step);
        step
    }

    /// The keys of rates beside the optimizer's own, and how many times the rate that training starts with each is: a group's
    /// is a part of the optimizer's, a phase's of the first phase's.
    pub fn other_rates(&self) -> impl Iterator<Item = (String, f64)> + '_ {
        let own = self.optimizer.lr();
        let first = self.phases.first().and_then(|p| p.lr).unwrap_or(own);
        let groups = self.optimizer.groups.iter().map(move |g| g.lr.map(|lr| lr / own));
        let phases = self.phases.iter().map(move |p| p.lr.map(|lr| lr / first));
        let groups = groups.enumerate().map(|(i, part)| (format!("optimizer.groups.{i}.lr"), part));
        let phases = phases.enumerate().map(|(i, part)| (format!("phases.{i}.lr"), part));
        groups.chain(phases).filter_map(|(key, part)| Some((key, part?)))
    }

    /// Checks that the warm-up ends before the run does.
    ///
    /// # Errors
    /// [`Error::Config`] if it does not.
    pub fn check_warmup(&self) -> Result<()> {
        let warm = self.schedule.warmup;
        if warm == 0.0 || warm < f64::from(self.epochs) {
            return Ok(());
        }
        let problem = format!("it takes {warm} epochs, and the run has {}", self.epochs);
        Err(Error::config(
            "schedule.warmup",
            problem,
            "use fewer, such as --set schedule.warmup=0.5, or train for longer",
        ))
    }

    fn clip(&self, step: &mut Step) {
        if let Some(clip) = self.clip {
            (step.clip, step.clip_norm) = (clip.value.unwrap_or(0.0), clip.norm.unwrap_or(0.0));
        }
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
        must(self.accumulate > 0, "accumulate", "0 batches for each update", "use at least 1")?;
        self.clip.as_ref().map_or(Ok(()), Clip::check)?;
        self.ema.as_ref().map_or(Ok(()), Ema::check)?;
        self.early_stopping.as_ref().map_or(Ok(()), EarlyStopping::check)?;
        must(
            !self.schedule.curve.moves_momentum() || self.optimizer.rate().momentum > 0.0,
            "schedule.kind",
            "one-cycle changes the momentum, and the optimizer has none",
            "set optimizer.momentum = 0.9, or schedule.cycle_momentum = false",
        )?;
        if self.phases.is_empty() {
            return Ok(());
        }
        must(
            self.optimizer.groups.iter().all(|g| g.over.is_none()),
            "optimizer.groups",
            "a group has a schedule over epochs of its own, and the run has phases",
            "leave out `over`, or use [schedule] in place of the phases",
        )?;
        must(
            self.optimizer.lr() > 0.0
                || self.phases.iter().all(|p| p.lr.is_none())
                || self.optimizer.groups.iter().all(|g| g.lr.is_none_or(|lr| lr == 0.0)),
            "optimizer.lr",
            "a rate of 0, of which a group's rate is no multiple in phases with rates of their own",
            "set it to the first phase's rate",
        )?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_may_take_fewer_epochs_and_then_rests() {
        let recipe = Recipe::load("airbench94", &[]).unwrap();
        let at = |step: u64| {
            let (epoch, batch) = ((step / 25) as u32, (step % 25) as usize);
            let step = recipe.at(Step { step, ..Step::default() }, Point { epoch, epochs: 8, batch, batches: 25 });
            step.rates.map(|r| r.lr)
        };
        let shares = |step: f64| [0.053, 0.24, 0.67].map(|lr| lr * (1.0 - step / 200.0));
        for step in [0, 30, 74, 75, 76, 199] {
            let (got, want) = (at(step), shares(step as f64));
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-15), "{step}: {got:?}");
            let whiten = 0.053 * (1.0 - step as f64 / 75.0).max(0.0);
            assert!((got[3] - whiten).abs() < 1e-15, "{step}: {got:?}");
        }
        let rest = |epoch: u32, set: &[&str]| {
            let recipe = Recipe::load("airbench94", &set.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
            let step = Step { epoch, ..Step::default() };
            let rest = recipe.at_rest(&recipe.at(step, Point { epoch, epochs: 8, batch: 0, batches: 25 }));
            (0..GROUPS).filter(|i| rest[*i]).collect::<Vec<_>>()
        };
        assert_eq!([2, 3, 7].map(|epoch| rest(epoch, &[])), [vec![], vec![3], vec![3]]);
        assert_eq!(rest(3, &["clip.value=1.0"]), [3]);
        assert_eq!(rest(3, &["schedule={kind = \"warm-restarts\", t_0 = 1}"]), [3]);
        let muon = "optimizer.groups=[{match = \"*conv*\", over = 1, muon = {normalise = true}}, {match = \"head.*\", over = 1}]";
        assert_eq!(rest(3, &[muon]), [2]);
        for moving in ["clip.norm=1.0", "schedule.end_factor=0.1", "schedule={kind = \"cosine\", min = 1e-3}"] {
            assert_eq!(rest(3, &[moving]), [0; 0], "{moving}");
        }
        let group = "optimizer={kind = \"sgd\", lr = 0.0, groups = [{match = \"*\", lr = 0.1}]}";
        let zero = [group, "phases=[{epochs = 1, lr = 0.1}]", "schedule={kind = \"constant\"}", "epochs=1"];
        let e = Recipe::load("quickstart", &zero.map(String::from)).unwrap_err().to_string();
        assert!(e.contains("optimizer.lr: a rate of 0"), "{e}");
        let phases = ["phases=[{epochs = 8}]", "schedule.kind=constant"].map(String::from);
        let e = Recipe::load("airbench94", &phases).unwrap_err().to_string();
        assert!(e.contains("optimizer.groups") && e.contains("leave out `over`"), "{e}");
    }
}
