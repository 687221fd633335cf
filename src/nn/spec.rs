//! Networks as text: one short phrase a layer, sizes inferred where they are left out.
//!
//! [`LAYERS`](super::LAYERS) lists the phrases. A name may come first (`stem: conv 3x3, 16 channels`);
//! else a layer's name is its place in the list. Names make the keys of the state dict. Layers that hold
//! others are tables: `{ residual = ["conv ...", ...] }`, `{ name = "head", layers = ["fc 10"] }`.

use super::layers::{Layer, Residual, Sequential, layer};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A layer as it is written in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a layer such as \"conv 5x5, 16 channels\" or { residual = [\"relu\"] }")]
pub enum LayerSpec {
    /// One layer: `conv 5x5, 16 channels` or `stem: conv 5x5, 16 channels`.
    Phrase(String),
    /// One that holds others.
    Table(LayerTable),
}

/// A layer that holds others: a [`Residual`] block if `residual` is there, else a [`Sequential`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LayerTable {
    /// Its name, if it is not its place in the list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The layers of a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<LayerSpec>>,
    /// The layers whose output is added to the input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub residual: Option<Vec<LayerSpec>>,
    /// The layers that the input goes through before it is added. Their places begin with `shortcut.`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shortcut: Vec<LayerSpec>,
    /// The layers that take the sum. Their places begin with `after.`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<LayerSpec>,
}

impl LayerSpec {
    /// Its name, if it has one, and the layer, not yet part of a network.
    ///
    /// # Errors
    /// [`Error::Config`] for what is not a layer or not a name.
    pub fn read(&self) -> Result<(Option<&str>, Box<dyn Layer>)> {
        let (name, layer): (_, Box<dyn Layer>) = match self {
            LayerSpec::Phrase(text) => match text.split_once(':') {
                Some((name, phrase)) => (Some(name.trim()), layer(phrase.trim())?),
                None => (None, layer(text)?),
            },
            LayerSpec::Table(LayerTable { name, layers: Some(list), residual: None, shortcut, after })
                if shortcut.is_empty() && after.is_empty() =>
            {
                (name.as_deref(), Box::new(sequence(list, "")?))
            }
            LayerSpec::Table(LayerTable { name, layers: None, residual: Some(main), shortcut, after }) => {
                let [shortcut, after] = [sequence(shortcut, "shortcut.")?, sequence(after, "after.")?];
                (name.as_deref(), Box::new(Residual { main: sequence(main, "")?, shortcut, after }))
            }
            LayerSpec::Table(_) => {
                let remedy = "write { residual = [...] }, with shortcut and after if need be, or { layers = [...] }";
                return Err(Error::config("layers", "a table that is neither a list nor a residual block", remedy));
            }
        };
        match name {
            Some(n) if n.is_empty() || !n.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') => {
                Err(Error::config("layers", format!("`{n}` is not a name"), "use letters, digits and _"))
            }
            name => Ok((name, layer)),
        }
    }
}

impl From<&str> for LayerSpec {
    fn from(phrase: &str) -> Self {
        LayerSpec::Phrase(phrase.into())
    }
}

/// The layers of a list. Those without a name get `prefix` and their place.
pub(super) fn sequence(specs: &[LayerSpec], prefix: &str) -> Result<Sequential> {
    let named = |(i, spec): (usize, &LayerSpec)| {
        let (name, layer) = spec.read()?;
        Ok((name.map_or_else(|| format!("{prefix}{i}"), String::from), layer))
    };
    Ok(Sequential::new(specs.iter().enumerate().map(named).collect::<Result<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::nn::Model;

    /// `layers`, as a recipe has them, on images of 8x8x3.
    fn build(layers: &str) -> Result<Model, String> {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Recipe {
            layers: Vec<LayerSpec>,
        }
        let recipe: Recipe = toml::from_str(&format!("layers = {layers}")).map_err(|e| e.to_string())?;
        assert_eq!(toml::from_str::<Recipe>(&toml::to_string(&recipe).unwrap()).unwrap(), recipe);
        Model::build(&recipe.layers, [8, 8, 3], &Device::cpu(), 0).map_err(|e| e.to_string())
    }

    #[test]
    fn blocks_of_torchvision_have_its_keys() {
        let model = build(
            r#"["conv 1x1, 64 channels", { name = "layer2", layers = [{
                residual = [
                    "conv1: conv 3x3, 128 channels, stride 2, pad 1, no bias", "bn1: batch_norm", "relu",
                    "conv2: conv 3x3, 128 channels, pad 1, no bias", "bn2: batch_norm",
                ],
                shortcut = [
                    { name = "downsample", layers = ["conv 1x1, 128 channels, stride 2, no bias", "batch_norm"] },
                ],
                after = ["relu"],
            }] }]"#,
        );
        let model = model.unwrap();
        let keys: Vec<_> = model.params.list().iter().map(|p| p.key.as_str()).skip(2).collect();
        let of = |names: &[&str]| names.iter().map(|n| format!("layer2.0.{n}")).collect::<Vec<_>>();
        let wanted = ["conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias"];
        let downsample = ["downsample.0.weight", "downsample.1.weight", "downsample.1.bias"];
        assert_eq!(keys, of(&[&wanted[..], &downsample[..]].concat()));
        let state = model.state_dict().unwrap();
        for key in of(&["bn1.running_mean", "bn2.running_var", "downsample.1.num_batches_tracked"]) {
            assert!(state.contains_key(&key), "{key}");
        }
        assert_eq!(model.output.dims(), [4, 4, 128]);
        let keys: Vec<_> = model.layers.iter().map(|l| l.key.trim_start_matches("layer2.0.")).collect();
        let inner = ["conv1", "bn1", "2", "conv2", "bn2", "downsample", "downsample.0", "downsample.1", "after.0"];
        assert_eq!(keys, [&["0", "layer2", "layer2.0"][..], &inner[..]].concat());
    }

    #[test]
    fn mistakes_are_named() {
        for (layers, words) in [
            (r#"[{ residual = ["conv 3x3, 3 channels"] }]"#, "its input cannot be added"),
            (r#"[{ residual = ["conv 3x3, 3 channels"], shortcut = ["relu"] }]"#, "its shortcut into [8, 8, 3]"),
            (r#"[{ residual = ["cnov 3x3"] }]"#, "there is no layer `cnov`"),
            (r#"[{ residul = ["relu"] }]"#, "a layer such as"),
            (r#"[{ name = "a b", layers = ["relu"] }]"#, "`a b` is not a name"),
            (r#"[{ layers = ["relu"], after = ["relu"] }]"#, "neither a list"),
            (r#"[": relu"]"#, "`` is not a name"),
            ("[3]", "a layer such as"),
        ] {
            let e = build(layers).unwrap_err();
            assert!(e.contains(words), "{layers}: {e}");
        }
    }
}
