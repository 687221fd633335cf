//! The learning-rate finder (Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017): the rate rises
//! with each update, and the loss shows which rates train and which are too large. End, valley and minimum are those of
//! fastai 2; the smoothing too, for a hundred updates.

use super::engine::Engine;
use super::state::Kept;
use super::trainer::Trainer;
use crate::error::{Error, Result};
use crate::step::{GROUPS, Step};

/// How the rate rises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ramp {
    /// The first rate.
    pub start: f64,
    /// The last rate.
    pub end: f64,
    /// Updates from the first to the last, each by the same factor.
    pub steps: usize,
}

impl Default for Ramp {
    /// From 1e-7 to 10 in 100 updates.
    fn default() -> Self {
        Ramp { start: 1e-7, end: 10.0, steps: 100 }
    }
}

impl Ramp {
    /// As many updates of so many images as smooth the noise of small batches away: 12,800 images, at least 100 updates.
    /// With a hundred updates of four images the loss scatters more than it falls.
    pub fn steps_for(images: usize) -> usize {
        (12_800 / images.max(1)).max(LEAST_SMOOTHED)
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Config`] for rates that do not rise, or too few steps.
    pub fn check(&self) -> Result<()> {
        let Ramp { start, end, steps } = *self;
        if !(start > 0.0 && end > start && end.is_finite()) {
            let problem = format!("from {start} to {end}");
            return Err(Error::config("learning rates", problem, "use a first rate above 0 and a larger last one"));
        }
        if steps < 10 {
            return Err(Error::config(
                "steps",
                format!("{steps} updates make no curve"),
                "use at least 10; 100 is usual",
            ));
        }
        Ok(())
    }

    /// The rate of an update, counted from 0.
    pub fn rate(&self, update: usize) -> f64 {
        self.start * (self.end / self.start).powf(update as f64 / (self.steps - 1) as f64)
    }
}

/// An update of the finder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tried {
    /// Its rate.
    pub lr: f64,
    /// The mean loss of its images, before it.
    pub loss: f64,
    /// The mean of the losses so far, in which each counts 0.98 times as much as the one after the next hundredth of the
    /// ramp (for fewer than a hundred updates: as the next).
    pub smoothed: f64,
}

/// What the finder saw.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// The updates, up to the one at which the smoothed loss was above four times its least.
    pub tried: Vec<Tried>,
    /// Whether there was such an update, or a loss that is no number.
    pub diverged: bool,
    /// Weight of the losses before, in the smoothed loss.
    beta: f64,
    /// The least smoothed loss so far.
    least: f64,
}

/// Weight of the losses before a hundredth of the ramp, in the smoothed loss.
const BETA: f64 = 0.98;
/// Updates of a ramp in which the smoothed loss takes in the same part of it, however many there are.
const LEAST_SMOOTHED: usize = 100;
/// How many times its least the smoothed loss may be.
const DIVERGED: f64 = 4.0;

impl Curve {
    fn new(steps: usize) -> Self {
        let beta = BETA.powf(LEAST_SMOOTHED as f64 / steps.max(LEAST_SMOOTHED) as f64);
        Curve { tried: Vec::with_capacity(steps), diverged: false, beta, least: f64::INFINITY }
    }

    /// Adds an update; false if it is the last that makes sense.
    fn add(&mut self, lr: f64, loss: f64) -> bool {
        if !loss.is_finite() {
            self.diverged = true;
            return false;
        }
        let n = self.tried.len() as i32;
        // Without the correction for the mean's start at 0.
        let beta = self.beta;
        let before = self.tried.last().map_or(0.0, |t| t.smoothed * (1.0 - beta.powi(n)));
        let smoothed = (beta * before + (1.0 - beta) * loss) / (1.0 - beta.powi(n + 1));
        self.tried.push(Tried { lr, loss, smoothed });
        self.least = self.least.min(smoothed);
        self.diverged = smoothed > DIVERGED * self.least;
        !self.diverged
    }

    /// The updates that suggestions look at: without the first tenth, whose mean is of few losses, and the last five (of few
    /// updates, the last tenth).
    fn middle(&self) -> &[Tried] {
        let n = self.tried.len();
        self.tried.get(n / 10..n - (n / 10).min(5)).filter(|m| m.len() > 2).unwrap_or(&self.tried)
    }

    /// Whether the least smoothed loss is among the last that are looked at: it may fall still.
    pub fn falls_still(&self) -> bool {
        let (n, middle) = (self.tried.len(), self.middle());
        let last = (n * 9 / 10).saturating_sub(n / 10).min(middle.len().saturating_sub(2));
        let least = middle.iter().enumerate().min_by(|(_, a), (_, b)| a.smoothed.total_cmp(&b.smoothed));
        !self.diverged && least.is_some_and(|(i, _)| i >= last)
    }

    /// The rate at which the smoothed loss falls fastest on its way to the least, against the rate's logarithm: over a
    /// tenth of the updates each time, so that no single batch decides.
    pub fn steepest(&self) -> Option<f64> {
        let all = self.middle();
        let least = all.iter().enumerate().min_by(|(_, a), (_, b)| a.smoothed.total_cmp(&b.smoothed))?.0;
        let side = (all.len() / 20).max(1);
        let fall = |w: &[Tried]| w[2 * side].smoothed - w[0].smoothed;
        let steepest = all[..=least].windows(2 * side + 1).min_by(|a, b| fall(a).total_cmp(&fall(b)));
        steepest.map_or(self.minimum(), |w| Some(w[side].lr))
    }

    /// A tenth of the rate at which the smoothed loss is least.
    pub fn minimum(&self) -> Option<f64> {
        let least = self.middle().iter().min_by(|a, b| a.smoothed.total_cmp(&b.smoothed));
        least.map(|t| t.lr / 10.0)
    }

    /// A rate in the longest valley: about half along the longest sequence of losses that fall.
    pub fn valley(&self) -> Option<f64> {
        let at = self.middle();
        let mut longest = vec![1usize; at.len()];
        let (mut begin, mut end) = (0i64, 0);
        for i in 1..at.len() {
            for j in 0..i {
                if at[i].smoothed < at[j].smoothed && longest[i] < longest[j] + 1 {
                    longest[i] = longest[j] + 1;
                }
                if longest[end] < longest[i] {
                    (begin, end) = (i as i64 - longest[i] as i64, i);
                }
            }
        }
        let third = (end as i64 - begin) as f64 / 3.0;
        at.get((begin + third as i64 + (third / 2.0) as i64).max(0) as usize).map(|t| t.lr)
    }

    /// The lesser of [`Curve::valley`] and [`Curve::minimum`]. With batches of four images the valley lies where a run
    /// diverges, and with Adam the minimum does, as it trains on for a while at rates that are far too large. Of eleven
    /// networks and optimizers, two or three seeds each, two epochs at this rate gave from 67 to 100 % (88 in the mean) of
    /// the accuracy at the best of seven or nine rates.
    pub fn careful(&self) -> Option<f64> {
        [self.valley(), self.minimum()].into_iter().flatten().min_by(f64::total_cmp)
    }

    /// Whether the smoothed loss falls by more than it scatters: three times its standard error at the first update that is
    /// looked at, where it is the mean of the fewest losses. The differences of neighbouring losses in the first half tell
    /// their deviation: there the rates are still too small to train.
    pub fn is_clear(&self) -> bool {
        let (all, middle) = (&self.tried, self.middle());
        let differences = all[..all.len().div_ceil(2)].windows(2).map(|w| (w[1].loss - w[0].loss).powi(2) / 2.0);
        let variance = differences.clone().sum::<f64>() / differences.count().max(1) as f64;
        // Of a mean of n losses with weights that fall by beta each, corrected for its start at 0.
        let b = self.beta.powi((all.len() / 10 + 1) as i32);
        let error = (variance * (1.0 - self.beta) / (1.0 + self.beta) * (1.0 + b) / (1.0 - b)).sqrt();
        let least = middle.iter().map(|t| t.smoothed).fold(f64::INFINITY, f64::min);
        middle.first().is_some_and(|first| first.smoothed - least > 3.0 * error)
    }
}

impl Engine {
    /// Trains at rising rates and then puts everything back: weights, statistics, averages and the optimizer's state
    /// have the same bits as before. `at` gives the steps of an update of the ramp, counted from 0, at its rate: one, or
    /// several whose gradients are added up.
    ///
    /// # Errors
    /// [`Error::Config`] for a ramp that does not rise; else as [`Engine::step`].
    pub fn find_rate(&mut self, ramp: Ramp, mut at: impl FnMut(usize, f64) -> Vec<Step>) -> Result<Curve> {
        ramp.check()?;
        let kept = Kept::of(self)?;
        let mut curve = Curve::new(ramp.steps);
        let tried = (0..ramp.steps).try_for_each(|update| {
            let lr = ramp.rate(update);
            let steps = at(update, lr);
            let loss = match self.update(&steps) {
                Err(Error::NonFinite { loss, .. }) => loss,
                loss => loss?,
            };
            // Not an error, but it ends the loop.
            if curve.add(lr, loss) { Ok(()) } else { Err(Error::Internal("the finder is at its end".into())) }
        });
        kept.restore(self)?;
        match tried {
            Err(e) if !curve.diverged => Err(e),
            _ => Ok(curve),
        }
    }

    /// An update by several steps; the mean of their losses.
    fn update(&mut self, steps: &[Step]) -> Result<f64> {
        let mut sum = 0.0;
        for (i, step) in steps.iter().enumerate() {
            if i + 1 < steps.len() {
                self.accumulate(step)?
            } else {
                self.step(step)?
            }
            sum += self.results(step.step, 1)?[0].0;
        }
        Ok(sum / steps.len() as f64)
    }
}

impl Trainer {
    /// Images of an update.
    pub fn images_of_update(&self) -> usize {
        let (batches, data) = (self.train.batches(), self.train.data().len());
        (self.recipe.batch_size.min(data)).saturating_mul(self.recipe.accumulate.min(batches)).min(data)
    }

    /// Looks for a learning rate from here on, with the recipe's first momentum and decay: see [`Engine::find_rate`].
    ///
    /// # Errors
    /// As [`Engine::find_rate`].
    pub fn find_rate(&mut self, ramp: Ramp) -> Result<Curve> {
        // Its rates follow no schedule: all parameters move.
        self.engine.rest([false; GROUPS])?;
        let (recipe, batches, first) = (&self.recipe, self.train.batches(), self.position.step);
        let group = recipe.accumulate.min(batches);
        let groups = batches / group;
        let base = recipe.optimizer.lr();
        self.engine.find_rate(ramp, |update, lr| {
            let epoch = (update / groups) as u32;
            let at = |i: usize| {
                let number = update * group + i;
                let batch = (update % groups) * group + i;
                let (step, held) = (first + number as u64, (number - update) as u64);
                let batch_offset = (batch * recipe.batch_size) as u32;
                let step = Step { seed: recipe.seed, epoch, step, held, batch_offset, ..Step::default() };
                recipe.with_rate(step, if base > 0.0 { lr / base } else { 1.0 })
            };
            (0..group).map(at).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    /// What fastai 2's `valley` and `minimum` give for these losses, trimmed as its `lr_find` trims them.
    #[test]
    fn suggestions_are_fastai_s() {
        let ramp = Ramp { start: 1e-6, end: 1.0, steps: 50 };
        let mut curve = Curve::new(50);
        for i in 0..50 {
            let x = i as f64 / 49.0;
            let wave = 0.02 * (7.0 * x).sin();
            let loss = 2.3 - 1.2 * (x / 0.8).powi(3) + wave + if x > 0.8 { 60.0 * (x - 0.8).powi(2) } else { 0.0 };
            curve.tried.push(Tried { lr: ramp.rate(i), loss, smoothed: loss });
        }
        let near = |got: Option<f64>, want: f64| assert!((got.unwrap() / want - 1.0).abs() < 1e-9, "{got:?} {want}");
        near(curve.valley(), 6.551_285_568_595_51e-4);
        near(curve.steepest(), 4.498_432_668_969_444e-2);
        near(curve.minimum(), 1.048_113_134_154_686_2e-2);
        assert!(!curve.falls_still());
        assert_eq!(curve.careful(), curve.valley());
    }

    /// A loss of 2.3 that scatters by 0.2 a batch, and falls by so much a decade from a rate of 1e-3 on.
    fn scattered(steps: usize, fall: f64, seed: u64) -> Curve {
        let ramp = Ramp { steps, ..Ramp::default() };
        let mut curve = Curve::new(steps);
        let noise = Stream { seed, epoch: 0, step: 0, id: 0 };
        for i in 0..steps {
            let lr = ramp.rate(i);
            let noise = 0.2 * 12f64.sqrt() * (f64::from(noise.uniform(i)) - 0.5);
            curve.add(lr, 2.3 + noise - fall * (lr * 1e3).log10().max(0.0));
        }
        curve
    }

    #[test]
    fn small_batches_need_more_updates() {
        assert_eq!([4, 64, 256].map(Ramp::steps_for), [3200, 200, 100]);
        let clear = |steps, fall| (0..20).filter(|&seed| scattered(steps, fall, seed).is_clear()).count();
        assert_eq!([clear(3200, 0.1), clear(100, 1.0)], [20, 20]);
        assert!([clear(10, 0.0), clear(100, 0.0), clear(3200, 0.0)].iter().all(|&n| n <= 1));
        // The same part of the ramp, and of the fall, is in the mean.
        let at = |steps: usize| scattered(steps, 1.0, 0).tried[steps * 3 / 4].smoothed;
        assert!(scattered(100, 1.0, 0).falls_still());
        assert!((at(3200) - at(100)).abs() < 0.1, "{} {}", at(3200), at(100));
    }

    #[test]
    fn the_smoothed_loss_is_unbiased_and_its_explosion_ends_the_curve() {
        let mut curve = Curve::new(9);
        for _ in 0..5 {
            assert!(curve.add(0.1, 2.0));
        }
        assert!(curve.tried.iter().all(|t| (t.smoothed - 2.0).abs() < 1e-12));
        assert!(!curve.add(0.2, 1e3) && curve.diverged);
        assert!(!Curve::new(1).add(0.1, f64::NAN));
        assert!(Ramp { start: 1.0, end: 0.1, steps: 50 }.check().is_err());
    }
}
