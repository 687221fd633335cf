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
    /// The layers of a list, with keys that begin with `name`.
    pub fn list(name: &str, layers: Vec<LayerSpec>) -> Self {
        LayerSpec::unnamed(layers).named(name)
    }

    /// The layers of a list that is named by its place.
    pub fn unnamed(layers: Vec<LayerSpec>) -> Self {
        LayerSpec::Table(LayerTable { layers: Some(layers), ..LayerTable::default() })
    }

    /// A residual block: `after(shortcut(x) + main(x))`.
    pub fn residual(main: Vec<LayerSpec>, shortcut: Vec<LayerSpec>, after: Vec<LayerSpec>) -> Self {
        LayerSpec::Table(LayerTable { residual: Some(main), shortcut, after, ..LayerTable::default() })
    }

    /// The same layer under this name.
    pub fn named(self, name: &str) -> Self {
        match self {
            LayerSpec::Phrase(text) => {
                LayerSpec::Phrase(format!("{name}: {}", text.split_once(':').map_or(text.as_str(), |(_, p)| p.trim())))
            }
            LayerSpec::Table(table) => LayerSpec::Table(LayerTable { name: Some(name.into()), ..table }),
        }
    }

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
