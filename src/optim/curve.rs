//! The curves that a learning rate follows: PyTorch's schedulers, most of them under their names.

use crate::error::{Error, Result};
use crate::step::Rate;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The shape of a schedule. Some change the rate once an epoch, the others with each update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Curve {
    /// The same rate throughout.
    Constant {},
    /// `lr · gamma^floor(epoch / every)`, once an epoch.
    Step {
        /// Epochs between two changes.
        every: u32,
        /// What the rate is multiplied by.
        gamma: f64,
    },
    /// `lr · gamma^(milestones reached)`, once an epoch.
    Steps {
        /// Epochs that are over when the rate changes, in order.
        milestones: Vec<u32>,
        /// What the rate is multiplied by.
        #[serde(default = "tenth")]
        gamma: f64,
    },
    /// `min + (lr - min) · (1 + cos(pi · epoch / over)) / 2`, once an epoch (Loshchilov, Hutter, "SGDR", ICLR 2017).
    Cosine {
        /// Epochs to reach the minimum: all that there are unless given.
        #[serde(default)]
        over: Option<u32>,
        /// The minimum.
        #[serde(default)]
        min: f64,
    },
    /// The same with each update, in cycles of t_0, t_0 · t_mult, t_0 · t_mult² … epochs; each begins at `lr` again.
    WarmRestarts {
        /// Epochs of the first cycle.
        t_0: u32,
        /// How many times as long each cycle is as the one before.
        #[serde(default = "one")]
        t_mult: u32,
        /// The minimum.
        #[serde(default)]
        min: f64,
    },
    /// From `lr` along a line to `lr · end_factor`, with each update; then that.
    Linear {
        /// What is left of the rate at the end.
        #[serde(default)]
        end_factor: f64,
        /// Epochs to get there: all that there are unless given.
        #[serde(default)]
        over: Option<u32>,
    },
    /// Up by a cosine from `lr / div_factor` to `lr`, then down to `lr / div_factor / final_div_factor`, with each
    /// update, while the momentum goes down and up (Smith, Topin, "Super-Convergence", 2018, in PyTorch's two phases).
    OneCycle {
        /// Share of the updates in which the rate rises.
        #[serde(default = "pct_start")]
        pct_start: f64,
        /// The peak over the first rate.
        #[serde(default = "div_factor")]
        div_factor: f64,
        /// The first rate over the last.
        #[serde(default = "final_div_factor")]
        final_div_factor: f64,
        /// Whether the momentum (Adam's first beta) changes too.
        #[serde(default = "yes")]
        cycle_momentum: bool,
        /// The momentum at the peak.
        #[serde(default = "base_momentum")]
        base_momentum: f64,
        /// The momentum at both ends.
        #[serde(default = "max_momentum")]
        max_momentum: f64,
    },
}

impl Default for Curve {
    fn default() -> Self {
        Curve::Constant {}
    }
}

fn tenth() -> f64 {
    0.1
}
fn one() -> u32 {
    1
}
fn yes() -> bool {
    true
}
fn pct_start() -> f64 {
    0.3
}
fn div_factor() -> f64 {
    25.0
}
fn final_div_factor() -> f64 {
    1e4
}
fn base_momentum() -> f64 {
    0.85
}
fn max_momentum() -> f64 {
    0.95
}

/// From `from` at 0 to `to` at 1, by half a cosine.
fn anneal(from: f64, to: f64, at: f64) -> f64 {
    to + (from - to) * (1.0 + (PI * at).cos()) / 2.0
}

impl Curve {
    /// The rate after `step` of `total` updates, `epoch` of them an epoch, of parameters whose rate is `first`.
    pub(super) fn at(&self, first: Rate, step: u64, total: u64, epoch: u64) -> Rate {
        let Rate { lr, momentum, .. } = first;
        let epoch = epoch.max(1);
        let (epochs, part) = (step / epoch, step as f64 / epoch as f64);
        let updates = |over: Option<u32>| over.map_or(total, |epochs| u64::from(epochs) * epoch).max(1);
        let (lr, momentum) = match *self {
            Curve::Constant {} => (lr, momentum),
            Curve::Step { every, gamma } => (lr * gamma.powi((epochs / u64::from(every.max(1))) as i32), momentum),
            Curve::Steps { ref milestones, gamma } => {
                let reached = milestones.iter().filter(|m| u64::from(**m) <= epochs).count();
                (lr * gamma.powi(reached as i32), momentum)
            }
            Curve::Cosine { over, min } => {
                let over = over.map_or(total as f64 / epoch as f64, f64::from).max(1.0);
                (min + (lr - min) * (1.0 + (PI * epochs as f64 / over).cos()) / 2.0, momentum)
            }
            Curve::WarmRestarts { t_0, t_mult, min } => {
                let (mut done, mut cycle) = (0.0, f64::from(t_0.max(1)));
                // Behind the last update the last cycle is at its end, and no other begins.
                while part > done + cycle || part == done + cycle && step < total {
                    done += cycle;
                    cycle *= f64::from(t_mult.max(1));
                }
                (anneal(lr, min, (part - done) / cycle), momentum)
            }
            Curve::Linear { end_factor, over } => {
                let over = updates(over);
                (lr * (1.0 + (end_factor - 1.0) * step.min(over) as f64 / over as f64), momentum)
            }
            Curve::OneCycle {
                pct_start,
                div_factor,
                final_div_factor,
                cycle_momentum,
                base_momentum,
                max_momentum,
            } => {
                let (start, peak, end) = (0.0, pct_start * total as f64 - 1.0, total as f64 - 1.0);
                let (step, first) = (step as f64, lr / div_factor);
                // Where the phase is shorter than an update it is over.
                let at = |from: f64, to: f64| if to > from { ((step - from) / (to - from)).min(1.0) } else { 1.0 };
                let (rates, momenta, at) = match step <= peak {
                    true => ([first, lr], [max_momentum, base_momentum], at(start, peak)),
                    false => ([lr, first / final_div_factor], [base_momentum, max_momentum], at(peak, end)),
                };
                let between = |[from, to]: [f64; 2]| anneal(from, to, at);
                (between(rates), if cycle_momentum { between(momenta) } else { momentum })
            }
        };
        Rate { lr, momentum, ..first }
    }

    /// Whether it changes the momentum.
    pub fn moves_momentum(&self) -> bool {
        matches!(self, Curve::OneCycle { cycle_momentum: true, .. })
    }

    /// Checks the constants.
    ///
    /// # Errors
    /// [`Error::Config`] for a constant out of its range.
    pub fn check(&self) -> Result<()> {
        let must = |ok: bool, key: &str, value: &dyn std::fmt::Debug, range: &str| {
            let problem = format!("{value:?} is not {range}");
            if ok {
                Ok(())
            } else {
                Err(Error::config(format!("schedule.{key}"), problem, "choose a value in that range"))
            }
        };
        let positive = |key: &str, x: f64| must(x > 0.0 && x.is_finite(), key, &x, "a positive number");
        let rate = |key: &str, x: f64| must(x >= 0.0 && x.is_finite(), key, &x, "a finite number of at least 0");
        let epochs = |key: &str, n: Option<u32>| must(n != Some(0), key, &0, "a number of epochs of at least 1");
        match *self {
            Curve::Constant {} => Ok(()),
            Curve::Step { every, gamma } => epochs("every", Some(every)).and_then(|()| positive("gamma", gamma)),
            Curve::Steps { ref milestones, gamma } => {
                let rising = milestones.windows(2).all(|w| w[0] < w[1]);
                must(rising, "milestones", milestones, "a list of epochs in rising order")?;
                positive("gamma", gamma)
            }
            Curve::Cosine { over, min } => epochs("over", over).and_then(|()| rate("min", min)),
            Curve::WarmRestarts { t_0, t_mult, min } => {
                epochs("t_0", Some(t_0))?;
                must(t_mult > 0, "t_mult", &t_mult, "a number of at least 1")?;
                rate("min", min)
            }
            Curve::Linear { end_factor, over } => epochs("over", over).and_then(|()| rate("end_factor", end_factor)),
            Curve::OneCycle { pct_start, div_factor, final_div_factor, base_momentum, max_momentum, .. } => {
                must((0.0..=1.0).contains(&pct_start), "pct_start", &pct_start, "in [0, 1]")?;
                positive("div_factor", div_factor)?;
                positive("final_div_factor", final_div_factor)?;
                must((0.0..1.0).contains(&base_momentum), "base_momentum", &base_momentum, "in [0, 1)")?;
                must((0.0..1.0).contains(&max_momentum), "max_momentum", &max_momentum, "in [0, 1)")
            }
        }
    }
}
