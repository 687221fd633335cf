//! The keys of a recipe that say how parameters move.

use super::{Adam, Muon, MuonSpec, Optimizer, Sgd};
use crate::error::{Error, Result};
use crate::params::{Param, Params, matches};
use crate::step::{GROUPS, Rate};
use serde::{Deserialize, Serialize};

/// The optimizer of a recipe: its algorithm and constants, and groups of parameters with constants of their own. The
/// learning rate of a step comes from the [`Schedule`](super::Schedule), which starts from `lr`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerSpec {
    /// The algorithm, with the constants of the parameters that are in no group.
    #[serde(flatten)]
    pub algorithm: Algorithm,
    /// A parameter belongs to the first that its key matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
}

/// Parameters with constants of their own; what is not given is the optimizer's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Their keys, where `*` stands for any characters: `*.bias`.
    #[serde(rename = "match")]
    pub pattern: String,
    /// Learning rate. A schedule acts on it as it does on the optimizer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Weight decay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Momentum, or Adam's first beta.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// Epochs in which its rate goes through the schedule, if not those of the run; then it stays as it is at the end. If
    /// that is 0 they are frozen: [`Recipe::at_rest`](crate::recipes::Recipe::at_rest).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<u32>,
    /// They are moved by [`Muon`], as matrices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub muon: Option<MuonSpec>,
}

/// An optimizer and its constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Algorithm {
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
        /// L2 penalty, or what [`Algorithm::Sgd::decoupled`] makes of it.
        #[serde(default)]
        weight_decay: f64,
        /// Whether the weight decay shrinks the parameters themselves, as AdamW's does.
        #[serde(default)]
        decoupled: bool,
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

impl From<Algorithm> for OptimizerSpec {
    fn from(algorithm: Algorithm) -> Self {
        OptimizerSpec { algorithm, groups: Vec::new() }
    }
}

/// Refuses a value that is not in its range.
fn within(key: impl Into<String>, value: f64, ok: bool, range: &str) -> Result<()> {
    match ok {
        true => Ok(()),
        false => Err(Error::config(key, format!("{value} is not {range}"), "choose a value in that range")),
    }
}

fn check_rate(prefix: &str, rate: Rate) -> Result<()> {
    let Rate { lr, momentum, decay } = rate;
    within(format!("{prefix}.lr"), lr, lr >= 0.0 && lr.is_finite(), "a finite rate of at least 0")?;
    within(format!("{prefix}.momentum"), momentum, (0.0..1.0).contains(&momentum), "in [0, 1)")?;
    let range = "a finite number of at least 0";
    within(format!("{prefix}.weight_decay"), decay, decay >= 0.0 && decay.is_finite(), range)
}

impl OptimizerSpec {
    /// The learning rate that the schedule starts from.
    pub fn lr(&self) -> f64 {
        self.rate().lr
    }

    /// Checks the constants.
    ///
    /// # Errors
    /// [`Error::Config`] for a constant out of its range.
    pub fn check(&self) -> Result<()> {
        match &self.algorithm {
            Algorithm::Sgd { momentum, nesterov, .. } => {
                let ok = !nesterov || *momentum > 0.0;
                within("optimizer.momentum", *momentum, ok, "above 0, which nesterov needs")?;
            }
            Algorithm::Adam { betas, eps, .. } | Algorithm::Adamw { betas, eps, .. } => {
                for b in betas {
                    within("optimizer.betas", *b, (0.0..1.0).contains(b), "in [0, 1)")?;
                }
                within("optimizer.eps", *eps, *eps > 0.0 && eps.is_finite(), "a finite number above 0")?;
            }
        }
        check_rate("optimizer", self.rate())?;
        for (i, rate) in self.rates().into_iter().skip(1).enumerate() {
            check_rate(&format!("optimizer.groups.{i}"), rate)?;
        }
        for (i, group) in self.groups.iter().enumerate() {
            let key = format!("optimizer.groups.{i}");
            within(format!("{key}.over"), group.over.unwrap_or(1).into(), group.over != Some(0), "at least 1 epoch")?;
            group.muon.map_or(Ok(()), |muon| muon.check(&format!("{key}.muon")))?;
        }
        match self.groups.len() {
            n if n >= GROUPS => {
                let problem = format!("{n} groups, and there may be {}", GROUPS - 1);
                Err(Error::config("optimizer.groups", problem, "make one of several, with a `*` in its match"))
            }
            _ => Ok(()),
        }
    }

    /// The rate that a run starts from, of parameters in no group.
    pub fn rate(&self) -> Rate {
        match self.algorithm {
            Algorithm::Sgd { lr, momentum, weight_decay, .. } => Rate { lr, momentum, decay: weight_decay },
            Algorithm::Adam { lr, betas, weight_decay, .. } | Algorithm::Adamw { lr, betas, weight_decay, .. } => {
                Rate { lr, momentum: betas[0], decay: weight_decay }
            }
        }
    }

    /// [`OptimizerSpec::rate`], then each group's.
    pub fn rates(&self) -> Vec<Rate> {
        let base = self.rate();
        let groups = self.groups.iter().map(|g| Rate {
            lr: g.lr.unwrap_or(base.lr),
            momentum: g.momentum.unwrap_or(base.momentum),
            decay: g.weight_decay.unwrap_or(base.decay),
        });
        [base].into_iter().chain(groups).collect()
    }

    /// Gives each parameter its group: 0 for those in none, i + 1 for those of `groups[i]`.
    ///
    /// # Errors
    /// [`Error::Config`] for a group without parameters; [`Error::OutOfMemory`].
    pub fn group(&self, params: &mut Params) -> Result<()> {
        if self.groups.is_empty() {
            return Ok(());
        }
        let of = |key: &str| self.groups.iter().position(|g| matches(&g.pattern, key));
        for (i, group) in self.groups.iter().enumerate() {
            if !params.list().iter().any(|p| of(&p.key) == Some(i)) {
                let keys: Vec<&str> = params.list().iter().map(|p| p.key.as_str()).collect();
                return Err(Error::config(
                    format!("optimizer.groups.{i}.match"),
                    format!("`{}` matches no parameter that is in no earlier group", group.pattern),
                    format!("the parameters are {}", keys.join(", ")),
                ));
            }
        }
        let muon = |p: &Param| of(&p.key).is_some_and(|i| self.groups[i].muon.is_some());
        if let Some(vector) = params.list().iter().find(|p| muon(p) && p.shape.rank() < 2) {
            return Err(Error::config(
                "optimizer.groups",
                format!("muon moves matrices and filters, and `{}` is a vector", vector.key),
                "match the weights of layers alone, such as `*conv*.weight`",
            ));
        }
        params.configure(|p| {
            p.by_matrix = muon(p);
            p.group = of(&p.key).map_or(0, |i| i as u8 + 1);
        })
    }

    /// The optimizer with its state, at zero.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn build(&self, params: &Params) -> Result<Box<dyn Optimizer>> {
        let muon: Vec<Option<MuonSpec>> = [None].into_iter().chain(self.groups.iter().map(|g| g.muon)).collect();
        let optimizer: Box<dyn Optimizer> = match self.algorithm {
            Algorithm::Sgd { nesterov, decoupled, .. } => {
                let momentum = self.rates().iter().zip(&muon).any(|(r, muon)| muon.is_none() && r.momentum > 0.0);
                Box::new(Sgd::new(params, momentum, nesterov)?.decoupled(decoupled))
            }
            Algorithm::Adam { betas, eps, .. } => Box::new(Adam::new(params, betas[1], eps, false)?),
            Algorithm::Adamw { betas, eps, .. } => Box::new(Adam::new(params, betas[1], eps, true)?),
        };
        if muon.iter().all(Option::is_none) {
            return Ok(optimizer);
        }
        let specs: Vec<MuonSpec> = muon.into_iter().map(Option::unwrap_or_default).collect();
        Ok(Box::new(Muon::new(params, optimizer, &specs)?))
    }
}

/// How gradients are clipped before they are used: each to ± `value`, or all together to `norm`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clip {
    /// The largest magnitude of a gradient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f32>,
    /// The largest Euclidean norm of all gradients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm: Option<f32>,
}

impl Clip {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Config`] unless there is one, above 0.
    pub fn check(&self) -> Result<()> {
        let (key, limit) = match (self.value, self.norm) {
            (Some(value), None) => ("clip.value", value),
            (None, Some(norm)) => ("clip.norm", norm),
            _ => {
                return Err(Error::config("clip", "it takes a value or a norm", "set one of clip.value and clip.norm"));
            }
        };
        within(key, f64::from(limit), limit > 0.0 && limit.is_finite(), "a finite number above 0")
    }
}

/// A moving average of the weights, which is what is evaluated and kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ema {
    /// What is kept of the average with each update.
    pub decay: f64,
}

impl Ema {
    /// Checks the decay.
    ///
    /// # Errors
    /// [`Error::Config`] for a decay out of its range.
    pub fn check(&self) -> Result<()> {
        within("ema.decay", self.decay, (0.0..1.0).contains(&self.decay), "in [0, 1)")
    }
}

/// When a run ends before its last epoch: after `patience` epochs without a better accuracy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// Epochs without a better accuracy after which the run ends.
    pub patience: u32,
    /// Percentage points by which an accuracy must be better than the best to count.
    #[serde(default)]
    pub min_delta: f64,
}

impl EarlyStopping {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Config`] for a number out of its range.
    pub fn check(&self) -> Result<()> {
        let EarlyStopping { patience, min_delta } = *self;
        within("early_stopping.patience", patience.into(), patience > 0, "at least 1")?;
        let range = "percentage points from 0 to 100";
        within("early_stopping.min_delta", min_delta, (0.0..=100.0).contains(&min_delta), range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::nn::Model;

    #[test]
    fn muon_takes_matrices_and_leaves_the_others() {
        let of = |groups: &str| {
            let text = format!("kind = \"sgd\"\nlr = 0.1\ngroups = [{groups}]");
            let spec: OptimizerSpec = toml::from_str(&text).unwrap();
            spec.check().unwrap();
            let net = ["conv 3x3, 4 channels", "flatten", "fc 2"].map(Into::into);
            let mut model = Model::build(&net, [4, 4, 1], &Device::cpu(), 0).unwrap();
            let grouped = spec.group(&mut model.params);
            grouped.map(|()| (spec.build(&model.params).unwrap().state().len(), model.params))
        };
        let (states, params) = of("{ match = \"*.weight\", momentum = 0.6, muon = { steps = 3 } }").ok().unwrap();
        // Plain descent keeps nothing of the others.
        assert_eq!(states, 1);
        assert_eq!(params.list().iter().map(|p| p.by_matrix).collect::<Vec<_>>(), [true, false, true, false]);
        let others: usize = params.spans().iter().map(|(range, _)| range.len()).sum();
        assert_eq!(others, 2 * 16);
        let e = of("{ match = \"0.*\", muon = {} }").err().unwrap().to_string();
        assert!(e.contains("`0.bias` is a vector") && e.contains("remedy"), "{e}");
    }
}
