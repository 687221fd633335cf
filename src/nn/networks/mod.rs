//! Networks by name: what a recipe's section `[model]` stands for. Each is a list of layers, such as a recipe
//! could write itself.
//!
//! ```
//! use tilework::nn::networks::{Stem, resnet18};
//! use tilework::{Device, nn::Model};
//! let net = resnet18(Stem::Cifar, &["dropout 0.2".into(), "fc 10".into()]);
//! let model = Model::build(&net, [32, 32, 3], &Device::cpu(), 0)?;
//! assert!(model.params.list().iter().any(|p| p.key == "layer4.0.downsample.0.weight"));
//! # Ok::<(), tilework::Error>(())
//! ```

mod resnet18;
mod resnet9;

pub use resnet9::resnet9;
pub use resnet18::{Stem, resnet18};

use super::spec::LayerSpec;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A recipe's network by name, and what is changed in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSpec {
    /// Which network; none for the recipe's own layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Network>,
    /// How it begins; the ImageNet stem unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stem: Option<Stem>,
    /// How it ends: the layers that take its features.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub head: Vec<LayerSpec>,
    /// The probability of every dropout layer, whatever is written there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
}

/// The networks that have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// See [`fn@resnet9`].
    Resnet9,
    /// See [`fn@resnet18`].
    Resnet18,
}

impl ModelSpec {
    /// The network's layers; `own` are those that the recipe lists.
    ///
    /// # Errors
    /// [`Error::Config`] if it says two things, or too little.
    pub fn layers(&self, own: &[LayerSpec]) -> Result<Vec<LayerSpec>> {
        let bad = |key: &str, problem: &str, remedy: &str| Err(Error::config(key, problem, remedy));
        let mut layers = match self.name {
            Some(_) if !own.is_empty() => {
                return bad("layers", "the network has a name and layers", "leave out `layers` or `model.name`");
            }
            Some(_) if self.head.is_empty() => {
                return bad("model.head", "the network has no head", "write head = [\"fc 10\"], for ten classes");
            }
            Some(Network::Resnet18) => resnet18(self.stem.unwrap_or_default(), &self.head),
            Some(Network::Resnet9) if self.stem.is_some() => {
                return bad("model.stem", "resnet9 has one stem only", "leave it out");
            }
            Some(Network::Resnet9) => resnet9(&self.head),
            None if self.stem.is_some() || !self.head.is_empty() => {
                return bad("model.name", "a stem or a head without a network", "add name = \"resnet18\"");
            }
            None => own.to_vec(),
        };
        if let Some(p) = self.dropout
            && rewrite(&mut layers, "dropout", &|_| format!("dropout {p}")) == 0
        {
            return bad("model.dropout", "the network has no dropout layer", "leave it out, or add one");
        }
        Ok(layers)
    }
}

/// Freezes the statistics of every batch-norm.
///
/// # Errors
/// [`Error::Config`] if there is none.
pub fn freeze_batch_norms(layers: &mut [LayerSpec]) -> Result<()> {
    let freeze = |text: &str| match text.split(',').any(|part| part.trim() == "frozen") {
        true => text.to_string(),
        false => format!("{text}, frozen"),
    };
    match rewrite(layers, "batch_norm", &freeze) {
        0 => Err(Error::config("frozen_batch_norm", "the network has no batch-norm", "leave it out, or add one")),
        _ => Ok(()),
    }
}

/// Replaces the phrase of every layer of this kind; how many there are.
fn rewrite(layers: &mut [LayerSpec], kind: &str, phrase: &dyn Fn(&str) -> String) -> usize {
    let one = |spec: &mut LayerSpec| match spec {
        LayerSpec::Phrase(text) => {
            let (name, old) = text.split_once(':').map_or(("", text.trim()), |(n, p)| (n, p.trim()));
            if old.split(|c: char| c == ',' || c.is_whitespace()).next() != Some(kind) {
                return 0;
            }
            *text = if name.is_empty() { phrase(old) } else { format!("{name}: {}", phrase(old)) };
            1
        }
        LayerSpec::Table(t) => {
            let lists = t.layers.iter_mut().chain(&mut t.residual).chain([&mut t.shortcut, &mut t.after]);
            lists.map(|list| rewrite(list, kind, phrase)).sum()
        }
    };
    layers.iter_mut().map(one).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_reaches_every_layer() {
        let spec = ModelSpec { dropout: Some(0.25), ..ModelSpec::default() };
        let inner: LayerSpec = toml::from_str::<toml::Table>("l = { residual = [\"dropout 0.5\"] }").unwrap()["l"]
            .clone()
            .try_into()
            .unwrap();
        let layers = spec.layers(&["drop: dropout 0.1".into(), "relu".into(), inner]).unwrap();
        assert_eq!(layers[0], "drop: dropout 0.25".into());
        assert_eq!(spec.layers(&[" dropout\t0.5".into()]).unwrap()[0], "dropout 0.25".into());
        assert_eq!(layers[2].read().unwrap().1.phrase(), "residual [dropout 0.25]");
        assert!(spec.layers(&["relu".into()]).unwrap_err().to_string().contains("no dropout layer"));
    }

    #[test]
    fn freezing_reaches_every_batch_norm() {
        let mut net = resnet18(Stem::Imagenet, &["fc 10".into()]);
        freeze_batch_norms(&mut net).unwrap();
        let once = net.clone();
        freeze_batch_norms(&mut net).unwrap();
        assert_eq!(net, once);
        let text = format!("{net:?}");
        assert_eq!((text.matches("batch_norm, frozen").count(), text.matches("batch_norm").count()), (20, 20));
        let mut own = ["n: batch_norm, eps 1e-3".into(), "batch_norm".into()];
        freeze_batch_norms(&mut own).unwrap();
        assert_eq!(own, ["n: batch_norm, eps 1e-3, frozen".into(), "batch_norm, frozen".into()]);
        assert!(freeze_batch_norms(&mut ["relu".into()]).unwrap_err().to_string().contains("no batch-norm"));
    }

    #[test]
    fn contradictions_are_refused() {
        let of = |text: &str, own: &[LayerSpec]| {
            toml::from_str::<ModelSpec>(text).unwrap().layers(own).unwrap_err().to_string()
        };
        let own = ["relu".into()];
        assert!(of("name = \"resnet9\"\nhead = [\"fc 10\"]", &own).contains("a name and layers"));
        assert!(of("name = \"resnet18\"", &[]).contains("no head"));
        assert!(of("name = \"resnet9\"\nstem = \"cifar\"\nhead = [\"fc 2\"]", &[]).contains("one stem"));
        assert!(of("stem = \"cifar\"", &own).contains("without a network"));
    }
}
