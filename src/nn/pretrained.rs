//! Transfer learning: weights of another network's training, all but a new head, and layers that stay as they are.
//!
//! Source: Yosinski et al., "How transferable are features in deep neural networks?", NIPS 2014.

use super::model::Model;
use super::state::StateDict;
use crate::error::{Error, Result};
use crate::params::matches;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// Weights to start from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pretrained {
    /// A state dict, `.pth` or safetensors.
    pub file: PathBuf,
    /// Patterns of the keys that may differ: they start anew where the file has them not, or in another shape.
    #[serde(default = "head")]
    pub head: Vec<String>,
}

fn head() -> Vec<String> {
    vec!["fc.*".into()]
}

impl Pretrained {
    /// The file.
    ///
    /// # Errors
    /// [`Error::File`] if it is not there, with where torchvision's weights come from.
    pub fn file(&self) -> Result<&Path> {
        if self.file.exists() {
            return Ok(&self.file);
        }
        let remedy = "for torchvision's ResNet-18: `curl -LO https://download.pytorch.org/models/resnet18-f37072fd.pth` \
                      in this folder, or --set pretrained.file=PATH";
        Err(Error::file(&self.file, "the weights to start from are not there", remedy))
    }
}

/// What became of the keys of a state dict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// How many tensors were taken over.
    pub loaded: usize,
    /// Keys of the file that were left out.
    pub skipped: Vec<String>,
    /// Keys of the network that the file could not fill.
    pub missing: Vec<String>,
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors loaded", self.loaded)?;
        for (list, what) in [(&self.skipped, "left out"), (&self.missing, "started anew")] {
            if !list.is_empty() {
                write!(f, ", {} {what} ({})", list.len(), list.join(", "))?;
            }
        }
        Ok(())
    }
}

impl Model {
    /// Takes over a state dict, but for keys that fit one of the patterns of `head`: these may be missing, unknown or
    /// of another shape, and the network then keeps what it has. Nothing changes on an error.
    ///
    /// # Errors
    /// As [`Model::load_state_dict`].
    pub fn load_pretrained(&mut self, mut state: StateDict, head: &[String], path: &Path) -> Result<Loaded> {
        let own = self.state_dict()?;
        let free = |key: &str| head.iter().any(|pattern| matches(pattern, key));
        let mut report = Loaded::default();
        state.retain(|key, array| {
            let fits = own.get(key).is_some_and(|o| o.shape() == array.shape());
            if !fits && free(key) {
                report.skipped.push(key.clone());
            }
            fits || !free(key)
        });
        report.loaded = state.len();
        for (key, array) in own.into_iter().filter(|(key, _)| free(key)) {
            state.entry(key).or_insert_with_key(|key| {
                report.missing.push(key.clone());
                array
            });
        }
        self.load_state_dict(&state, path)?;
        Ok(report)
    }

    /// Freezes parameters: they get no gradient and stay as they are, and what lies before the first trained one keeps
    /// no activation. A pattern names a parameter or what it is in (`conv1`, `layer1.*`, `*.bias`), or children of the
    /// network by number, from 1 (`3`, `1-5`), those without parameters counted.
    ///
    /// # Errors
    /// [`Error::Config`] for a pattern that fits nothing; [`Error::OutOfMemory`].
    pub fn freeze(&mut self, patterns: &[String]) -> Result<()> {
        let children: Vec<String> =
            self.layers.iter().filter(|l| !l.key.contains('.')).map(|l| l.key.clone()).collect();
        let mut chosen: Vec<String> = Vec::new();
        for pattern in patterns {
            let (first, last) = pattern.split_once('-').unwrap_or((pattern, pattern));
            let range = (first.trim().parse::<usize>(), last.trim().parse::<usize>());
            let numbers = matches!(range, (Ok(_), Ok(_)));
            let names = match range {
                (Ok(first), Ok(last)) if first >= 1 && first <= last && last <= children.len() => {
                    children[first - 1..last].to_vec()
                }
                (Ok(_), Ok(_)) => Vec::new(),
                _ => vec![pattern.clone()],
            };
            let found = names.iter().any(|n| self.params.list().iter().any(|p| within(n, &p.key)));
            if names.is_empty() || !(found || numbers) {
                let list = children.iter().enumerate().map(|(i, name)| format!("{} {name}", i + 1));
                return Err(Error::config(
                    "freeze",
                    format!("`{pattern}` fits no parameter"),
                    format!(
                        "name a parameter or what it is in (`conv1`, `layer1.*`), or children by number (`1-5`): {}",
                        list.collect::<Vec<_>>().join(", ")
                    ),
                ));
            }
            chosen.extend(names);
        }
        if chosen.is_empty() {
            return Ok(());
        }
        self.params.configure(|p| {
            if chosen.iter().any(|name| within(name, &p.key)) {
                p.trainable = false;
            }
        })?;
        if self.params.list().iter().all(|p| !p.trainable) {
            return Err(Error::config("freeze", "no parameter is left to train", "freeze less, such as all but `fc`"));
        }
        Ok(())
    }
}

/// Whether a key fits a pattern, or lies in what does.
fn within(pattern: &str, key: &str) -> bool {
    matches(pattern, key) || matches(&format!("{pattern}.*"), key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Var;
    use crate::device::Device;
    use crate::step::Step;
    use crate::tensor::Tensor;

    fn model(classes: usize, seed: u64) -> Model {
        on(&Device::cpu(), classes, seed)
    }

    fn on(device: &Device, classes: usize, seed: u64) -> Model {
        let net = ["conv1: conv 3x3, 4 channels", "bn1: batch_norm", "relu: relu", "flatten"].map(Into::into);
        let fc = format!("fc: fc {classes}");
        let net: Vec<_> = net.into_iter().chain([fc.as_str().into()]).collect();
        Model::build(&net, [8, 8, 3], device, seed).unwrap()
    }

    #[test]
    fn a_head_of_another_size_starts_anew() {
        let path = Path::new("net.pth");
        let (old, mut new) = (model(7, 1).state_dict().unwrap(), model(3, 2));
        let before = new.state_dict().unwrap();
        assert!(new.load_pretrained(old.clone(), &[], path).is_err());
        let report = new.load_pretrained(old.clone(), &head(), path).unwrap();
        let fc = vec!["fc.bias".to_string(), "fc.weight".to_string()];
        assert_eq!(report, Loaded { loaded: 7, skipped: fc.clone(), missing: fc });
        let text = "7 tensors loaded, 2 left out (fc.bias, fc.weight), 2 started anew (fc.bias, fc.weight)";
        assert_eq!(report.to_string(), text);
        let after = new.state_dict().unwrap();
        assert_eq!((&after["conv1.weight"], &after["fc.weight"]), (&old["conv1.weight"], &before["fc.weight"]));
        // Anything else that differs is an error, and changes nothing.
        let mut other = old.clone();
        other.remove("conv1.bias");
        let e = new.load_pretrained(other, &head(), path).unwrap_err().to_string();
        assert!(e.contains("`conv1.bias` is missing"), "{e}");
        assert_eq!(new.state_dict().unwrap(), after);
        // A head that fits is taken over.
        assert_eq!(model(7, 3).load_pretrained(old, &head(), path).unwrap().loaded, 9);
    }

    /// Which parameters are trained.
    fn trained(patterns: &[&str]) -> Result<String> {
        let mut m = model(3, 0);
        m.freeze(&patterns.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let keys: Vec<_> = m.params.list().iter().filter(|p| p.trainable).map(|p| p.key.clone()).collect();
        Ok(keys.join(" "))
    }

    #[test]
    fn patterns_and_numbers_freeze() {
        assert_eq!(trained(&[]).unwrap(), "conv1.weight conv1.bias bn1.weight bn1.bias fc.weight fc.bias");
        assert_eq!(trained(&["1-4"]).unwrap(), "fc.weight fc.bias");
        assert_eq!(trained(&["2", "fc"]).unwrap(), "conv1.weight conv1.bias");
        assert_eq!(trained(&["*.bias", "conv1.*"]).unwrap(), "bn1.weight fc.weight");
        for (patterns, words) in [
            (&["convv1"][..], "1 conv1, 2 bn1"),
            (&["0-2"], "fits no"),
            (&["3-9"], "fits no"),
            (&["*"], "no parameter"),
        ] {
            let e = trained(patterns).unwrap_err().to_string();
            assert!(e.contains(words) && e.contains("remedy"), "{e}");
        }
    }

    #[test]
    fn what_is_frozen_keeps_no_activation() {
        let kept = |patterns: &[String]| {
            let device = Device::cpu();
            let mut m = on(&device, 3, 0);
            m.freeze(patterns).unwrap();
            let x = Tensor::from_slice(&device, [64, 8, 8, 3], &[0.5f32; 64 * 192]).unwrap();
            let x = Var::constant(x);
            let mut cx = m.train(Step::default());
            let before = device.memory().in_use;
            let y = m.forward(&x, &mut cx).unwrap();
            assert!(y.id().is_some());
            device.memory().in_use - before
        };
        // At the least what the norm takes, 6x6x4 numbers of each of the 64 images.
        let saved = kept(&[]) - kept(&["1-3".to_string()]);
        assert!(saved >= 4 * 64 * 6 * 6 * 4, "{saved}");
    }
}
