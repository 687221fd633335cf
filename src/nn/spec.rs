//! Networks as text: one short phrase a layer, sizes inferred where they are left out.
//!
//! [`LAYERS`](super::LAYERS) lists the phrases. A name may come first (`stem: conv 3x3, 16 channels`);
//! else a layer's name is its place in the list. Names make the keys of the state dict. Layers that hold
//! others are tables: `{ residual = ["conv ...", ...] }`, `{ name = "head", layers = ["fc 10"] }`.
//!
//! ```
//! use tilework::nn::LayerSpec;
//! let conv: LayerSpec = "conv 5, 16 channels, pad 2".parse()?;
//! assert_eq!(conv.to_string(), "conv 5x5, 16 channels, pad 2");
//! # Ok::<(), tilework::Error>(())
//! ```

use super::layers::{Layer, Residual, Sequential, layer};
use crate::error::{Error, Result};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A layer as it is written in a recipe.
#[derive(Clone, Debug, PartialEq)]
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
    /// The name, and the phrase without it.
    fn split(text: &str) -> (Option<&str>, &str) {
        text.split_once(':').map_or((None, text), |(name, phrase)| (Some(name.trim()), phrase.trim()))
    }

    fn name(&self) -> Result<Option<&str>> {
        let name = match self {
            LayerSpec::Phrase(text) => LayerSpec::split(text).0,
            LayerSpec::Table(t) => t.name.as_deref(),
        };
        match name {
            Some(n) if n.is_empty() || !n.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') => {
                Err(Error::config("layers", format!("`{n}` is not a name"), "use letters, digits and _"))
            }
            name => Ok(name),
        }
    }

    /// Its name in the table of layers: `conv`.
    pub fn kind(&self) -> &str {
        match self {
            LayerSpec::Phrase(text) => LayerSpec::split(text).1.split([' ', ',']).next().unwrap_or_default(),
            LayerSpec::Table(LayerTable { residual: None, .. }) => "layers",
            LayerSpec::Table(_) => "residual",
        }
    }

    /// The layer, not yet part of a network.
    ///
    /// # Errors
    /// [`Error::Config`] for a phrase or a table that is not a layer's.
    pub fn layer(&self) -> Result<Box<dyn Layer>> {
        match self {
            LayerSpec::Phrase(text) => layer(LayerSpec::split(text).1),
            LayerSpec::Table(LayerTable { layers: Some(list), residual: None, shortcut, after, .. })
                if shortcut.is_empty() && after.is_empty() =>
            {
                Ok(Box::new(sequence(list, "")?))
            }
            LayerSpec::Table(LayerTable { layers: None, residual: Some(main), shortcut, after, .. }) => {
                let [shortcut, after] = [sequence(shortcut, "shortcut.")?, sequence(after, "after.")?];
                Ok(Box::new(Residual { main: sequence(main, "")?, shortcut, after }))
            }
            LayerSpec::Table(_) => Err(Error::config(
                "layers",
                "a table that is neither a list of layers nor a residual block",
                "write { residual = [...] }, with shortcut and after if need be, or { name = \"head\", layers = [...] }",
            )),
        }
    }
}

/// The layers of a list. Those without a name get `prefix` and their place.
pub(super) fn sequence(specs: &[LayerSpec], prefix: &str) -> Result<Sequential> {
    let named = |(i, spec): (usize, &LayerSpec)| {
        Ok((spec.name()?.map_or_else(|| format!("{prefix}{i}"), String::from), spec.layer()?))
    };
    Ok(Sequential::new(specs.iter().enumerate().map(named).collect::<Result<_>>()?))
}

impl FromStr for LayerSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, phrase) = LayerSpec::split(text);
        let name = name.map(|n| format!("{n}: ")).unwrap_or_default();
        let spec = LayerSpec::Phrase(format!("{name}{}", layer(phrase)?.phrase()));
        spec.name()?;
        Ok(spec)
    }
}

impl fmt::Display for LayerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayerSpec::Phrase(text) => f.write_str(text),
            LayerSpec::Table(_) => f.write_str(&self.layer().map_or("?".into(), |l| l.phrase())),
        }
    }
}

impl<'de> Deserialize<'de> for LayerSpec {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Written;
        impl<'de> Visitor<'de> for Written {
            type Value = LayerSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a layer such as \"conv 5x5, 16 channels\" or { residual = [\"relu\"] }")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<LayerSpec, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<LayerSpec, A::Error> {
                let spec = LayerSpec::Table(LayerTable::deserialize(MapAccessDeserializer::new(map))?);
                spec.name().and_then(|_| spec.layer()).map_err(A::Error::custom)?;
                Ok(spec)
            }
        }
        d.deserialize_any(Written)
    }
}

impl Serialize for LayerSpec {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            LayerSpec::Phrase(text) => s.serialize_str(text),
            LayerSpec::Table(table) => table.serialize(s),
        }
    }
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
            (r#"[{ residul = ["relu"] }]"#, "residul"),
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
