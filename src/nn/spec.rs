//! Networks as text: one short phrase a layer, sizes inferred where they are left out.
//!
//! | phrase | layer |
//! |---|---|
//! | `conv 5x5, 16 channels[, stride 2][, pad 1][, no bias]` | convolution; `3 -> 16 channels` also states the input's |
//! | `fc 120[, no bias]` | linear; `fc 400 -> 120` also states the input's features |
//! | `batch_norm[, eps 1e-5][, momentum 0.1]` | batch normalisation |
//! | `relu` | ReLU |
//! | `max_pool 2x2[, stride 2][, pad 1]` | max-pool; the stride is the kernel unless given |
//! | `adaptive_max_pool 1x1`, `adaptive_avg_pool 1x1` | pool to a given size |
//! | `dropout 0.5` | dropout |
//! | `flatten` | `[h, w, c]` to features, in PyTorch's order |
//! | `log_softmax` | log-softmax, for the loss `nll` |
//! | `{ residual = ["conv …", …] }` | `x + f(x)`, f being the layers in the list |
//!
//! A size is `N` or `HEIGHTxWIDTH`.
//!
//! ```
//! use tilework::nn::spec::LayerSpec;
//! let conv: LayerSpec = "conv 5x5, 16 channels, pad 2".parse()?;
//! assert_eq!(conv.to_string(), "conv 5x5, 16 channels, pad 2");
//! # Ok::<(), tilework::Error>(())
//! ```

use crate::error::{Error, Result};
use crate::ops::window::Window;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A layer as it is written in a recipe.
#[derive(Clone, Debug, PartialEq)]
pub enum LayerSpec {
    /// Convolution.
    Conv {
        /// Kernel, stride and padding.
        window: Window,
        /// Input channels, if stated.
        from: Option<usize>,
        /// Output channels.
        channels: usize,
        /// Whether there is a bias.
        bias: bool,
    },
    /// Linear.
    Fc {
        /// Input features, if stated.
        from: Option<usize>,
        /// Output features.
        features: usize,
        /// Whether there is a bias.
        bias: bool,
    },
    /// Batch normalisation.
    BatchNorm {
        /// Added to the variance.
        eps: f64,
        /// How far the running statistics move towards a batch's.
        momentum: f64,
    },
    /// ReLU.
    Relu,
    /// Max-pool.
    MaxPool(Window),
    /// Max-pool to a given height and width.
    AdaptiveMaxPool([usize; 2]),
    /// Average-pool to a given height and width.
    AdaptiveAvgPool([usize; 2]),
    /// Dropout with a probability.
    Dropout(f64),
    /// Activation to features.
    Flatten,
    /// Log-softmax.
    LogSoftmax,
    /// `x + f(x)`.
    Residual(Vec<LayerSpec>),
}

impl LayerSpec {
    /// A convolution with a bias, stride 1 and no padding.
    pub fn conv(kernel: usize, channels: usize) -> Self {
        LayerSpec::Conv { window: Window::square(kernel, 1, 0), from: None, channels, bias: true }
    }

    /// A linear layer with a bias.
    pub fn fc(features: usize) -> Self {
        LayerSpec::Fc { from: None, features, bias: true }
    }

    /// Batch normalisation with PyTorch's constants.
    pub fn batch_norm() -> Self {
        LayerSpec::BatchNorm { eps: 1e-5, momentum: 0.1 }
    }

    /// A square max-pool whose stride is its size.
    pub fn max_pool(size: usize) -> Self {
        LayerSpec::MaxPool(Window::square(size, size, 0))
    }

    /// The layer's name without its sizes.
    pub fn name(&self) -> &'static str {
        match self {
            LayerSpec::Conv { .. } => "conv",
            LayerSpec::Fc { .. } => "fc",
            LayerSpec::BatchNorm { .. } => "batch_norm",
            LayerSpec::Relu => "relu",
            LayerSpec::MaxPool(_) => "max_pool",
            LayerSpec::AdaptiveMaxPool(_) => "adaptive_max_pool",
            LayerSpec::AdaptiveAvgPool(_) => "adaptive_avg_pool",
            LayerSpec::Dropout(_) => "dropout",
            LayerSpec::Flatten => "flatten",
            LayerSpec::LogSoftmax => "log_softmax",
            LayerSpec::Residual(_) => "residual",
        }
    }
}

const NAMES: &str =
    "conv, fc, batch_norm, relu, max_pool, adaptive_max_pool, adaptive_avg_pool, dropout, flatten, log_softmax";

/// The phrase of one layer while it is being read.
struct Phrase<'a> {
    text: &'a str,
    parts: Vec<&'a str>,
}

impl<'a> Phrase<'a> {
    fn bad(&self, problem: impl Into<String>, remedy: impl Into<String>) -> Error {
        Error::config(format!("layer `{}`", self.text), problem, remedy)
    }

    /// Takes the part `key VALUE` out, if it is there; the value is empty if it is missing.
    fn take(&mut self, key: &str) -> Option<&'a str> {
        let at = self.parts.iter().position(|p| p.split_whitespace().next() == Some(key))?;
        Some(self.parts.remove(at).split_once(char::is_whitespace).map_or("", |(_, v)| v.trim()))
    }

    /// Takes the exact part out, if it is there.
    fn flag(&mut self, words: &str) -> bool {
        let at = self.parts.iter().position(|p| p.split_whitespace().eq(words.split_whitespace()));
        at.map(|at| self.parts.remove(at)).is_some()
    }

    fn number<T: FromStr>(&self, text: &str, what: &str) -> Result<T> {
        text.trim().parse().map_err(|_| self.bad(format!("`{text}` is not {what}"), "write a plain number"))
    }

    /// `3` or `3x5`, each below a million.
    fn pair(&self, text: &str, what: &str, least: usize) -> Result<[usize; 2]> {
        let (a, b) = text.split_once('x').unwrap_or((text, text));
        let size = [self.number(a, what)?, self.number(b, what)?];
        if size.iter().any(|s| !(least..1_000_000).contains(s)) {
            return Err(self.bad(format!("`{text}` is not {what}"), format!("use sizes from {least} to 999999")));
        }
        Ok(size)
    }

    /// `16` or `3 -> 16`.
    fn arrow(&self, text: &str, what: &str) -> Result<(Option<usize>, usize)> {
        let (from, to) = match text.split_once("->") {
            Some((from, to)) => (Some(self.pair(from, what, 1)?[0]), to),
            None => (None, text),
        };
        Ok((from, self.pair(to, what, 1)?[0]))
    }

    fn finish(self, layer: LayerSpec) -> Result<LayerSpec> {
        match self.parts.first() {
            None => Ok(layer),
            Some(rest) => Err(self.bad(
                format!("`{rest}` is not something a `{}` has", layer.name()),
                "see the table of layers in the README; parts are separated by commas",
            )),
        }
    }
}

impl FromStr for LayerSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let first = parts.remove(0);
        let (name, size) = first.split_once(char::is_whitespace).map_or((first, ""), |(n, s)| (n, s.trim()));
        let mut p = Phrase { text, parts };
        let need = |p: &Phrase<'_>, example: &str| match size {
            "" => Err(p.bad(format!("`{name}` needs a size"), format!("write it as `{example}`"))),
            size => Ok(size),
        };
        if !size.is_empty() && ["batch_norm", "relu", "flatten", "log_softmax"].contains(&name) {
            return Err(p.bad(format!("`{name}` takes no size"), "leave the size out: it is inferred"));
        }
        let layer = match name {
            "conv" => {
                let kernel = p.pair(need(&p, "conv 5x5, 16 channels")?, "a kernel size", 1)?;
                let at = p.parts.iter().position(|part| part.ends_with("channels") || part.ends_with("channel"));
                let Some(at) = at else {
                    return Err(p.bad("the number of channels is missing", "write it as `conv 5x5, 16 channels`"));
                };
                let text = p.parts.remove(at).trim_end_matches(['s']).trim_end_matches("channel").trim();
                let (from, channels) = p.arrow(text, "a number of channels")?;
                let stride = p.take("stride").map_or(Ok([1; 2]), |t| p.pair(t, "a stride", 1))?;
                let pad = p.take("pad").map_or(Ok([0; 2]), |t| p.pair(t, "a padding", 0))?;
                let bias = !p.flag("no bias");
                LayerSpec::Conv { window: Window { kernel, stride, pad }, from, channels, bias }
            }
            "fc" => {
                let (from, features) = p.arrow(need(&p, "fc 120")?, "a number of features")?;
                LayerSpec::Fc { from, features, bias: !p.flag("no bias") }
            }
            "batch_norm" => {
                let eps = p.take("eps").map_or(Ok(1e-5), |t| p.number(t, "a number"))?;
                let momentum = p.take("momentum").map_or(Ok(0.1), |t| p.number(t, "a number"))?;
                if !(eps > 0.0 && eps < f64::INFINITY && (0.0..=1.0).contains(&momentum)) {
                    return Err(p.bad(
                        "eps must be positive and finite, momentum in [0, 1]",
                        "the usual ones are 1e-5 and 0.1",
                    ));
                }
                LayerSpec::BatchNorm { eps, momentum }
            }
            "relu" => LayerSpec::Relu,
            "max_pool" => {
                let kernel = p.pair(need(&p, "max_pool 2x2")?, "a kernel size", 1)?;
                let stride = p.take("stride").map_or(Ok(kernel), |t| p.pair(t, "a stride", 1))?;
                let pad = p.take("pad").map_or(Ok([0; 2]), |t| p.pair(t, "a padding", 0))?;
                LayerSpec::MaxPool(Window { kernel, stride, pad })
            }
            "adaptive_max_pool" => {
                LayerSpec::AdaptiveMaxPool(p.pair(need(&p, "adaptive_max_pool 1x1")?, "a size", 1)?)
            }
            "adaptive_avg_pool" => {
                LayerSpec::AdaptiveAvgPool(p.pair(need(&p, "adaptive_avg_pool 1x1")?, "a size", 1)?)
            }
            "dropout" => {
                let rate: f64 = p.number(need(&p, "dropout 0.5")?, "a probability")?;
                if !(0.0..1.0).contains(&rate) {
                    return Err(p.bad(format!("{rate} is not a probability in [0, 1)"), "write it as `dropout 0.5`"));
                }
                LayerSpec::Dropout(rate)
            }
            "flatten" => LayerSpec::Flatten,
            "log_softmax" => LayerSpec::LogSoftmax,
            other => return Err(p.bad(format!("there is no layer `{other}`"), format!("the layers are {NAMES}"))),
        };
        p.finish(layer)
    }
}

/// `3x5`.
fn by([a, b]: [usize; 2]) -> String {
    format!("{a}x{b}")
}

/// `, stride 2x1`, or nothing for the default.
fn part(f: &mut fmt::Formatter<'_>, key: &str, value: [usize; 2], default: [usize; 2]) -> fmt::Result {
    match value {
        v if v == default => Ok(()),
        [a, b] if a == b => write!(f, ", {key} {a}"),
        v => write!(f, ", {key} {}", by(v)),
    }
}

impl fmt::Display for LayerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = |from: &Option<usize>| from.map(|n| format!("{n} -> ")).unwrap_or_default();
        let bias_part = |bias: &bool| if *bias { "" } else { ", no bias" };
        match self {
            LayerSpec::Conv { window, from, channels, bias } => {
                write!(f, "conv {}, {}{channels} channels", by(window.kernel), arrow(from))?;
                part(f, "stride", window.stride, [1; 2])?;
                part(f, "pad", window.pad, [0; 2])?;
                f.write_str(bias_part(bias))
            }
            LayerSpec::Fc { from, features, bias } => write!(f, "fc {}{features}{}", arrow(from), bias_part(bias)),
            LayerSpec::BatchNorm { eps, momentum } => {
                f.write_str("batch_norm")?;
                if *eps != 1e-5 {
                    write!(f, ", eps {eps:e}")?;
                }
                if *momentum != 0.1 {
                    write!(f, ", momentum {momentum}")?;
                }
                Ok(())
            }
            LayerSpec::MaxPool(w) => {
                write!(f, "max_pool {}", by(w.kernel))?;
                part(f, "stride", w.stride, w.kernel)?;
                part(f, "pad", w.pad, [0; 2])
            }
            LayerSpec::AdaptiveMaxPool(s) | LayerSpec::AdaptiveAvgPool(s) => write!(f, "{} {}", self.name(), by(*s)),
            LayerSpec::Dropout(p) => write!(f, "dropout {p}"),
            LayerSpec::Residual(layers) => {
                let inner: Vec<_> = layers.iter().map(ToString::to_string).collect();
                write!(f, "residual [{}]", inner.join(" | "))
            }
            LayerSpec::Relu | LayerSpec::Flatten | LayerSpec::LogSoftmax => f.write_str(self.name()),
        }
    }
}

/// In a file a layer is a phrase, or `{ residual = [...] }`.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a layer such as \"conv 5x5, 16 channels\" or { residual = [\"relu\"] }")]
enum Written {
    Phrase(String),
    Block(Block),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Block {
    residual: Vec<LayerSpec>,
}

impl<'de> Deserialize<'de> for LayerSpec {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        match Written::deserialize(d)? {
            Written::Phrase(text) => text.parse().map_err(serde::de::Error::custom),
            Written::Block(block) => Ok(LayerSpec::Residual(block.residual)),
        }
    }
}

impl Serialize for LayerSpec {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            LayerSpec::Residual(layers) => Written::Block(Block { residual: layers.clone() }),
            other => Written::Phrase(other.to_string()),
        }
        .serialize(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_survive_a_round_trip() {
        for text in [
            "conv 5x5, 16 channels",
            "conv 3x1, 3 -> 16 channels, stride 2x1, pad 1x0, no bias",
            "conv 3x3, 1 channels, stride 2, pad 1",
            "fc 120",
            "fc 400 -> 120, no bias",
            "batch_norm",
            "batch_norm, eps 1e-3, momentum 0.2",
            "relu",
            "max_pool 2x2",
            "max_pool 3x2, stride 1, pad 1x0",
            "adaptive_max_pool 1x1",
            "adaptive_avg_pool 2x3",
            "dropout 0.25",
            "flatten",
            "log_softmax",
        ] {
            let spec: LayerSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
        }
        assert_eq!("conv 5, 6 channels".parse::<LayerSpec>().unwrap(), LayerSpec::conv(5, 6));
        assert_eq!("max_pool 2".parse::<LayerSpec>().unwrap(), LayerSpec::max_pool(2));
        assert_eq!("conv 5x5, 1 channel".parse::<LayerSpec>().unwrap(), LayerSpec::conv(5, 1));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("", "there is no layer"),
            ("convv 3x3", "there is no layer `convv`"),
            ("conv", "needs a size"),
            ("conv 3x3", "number of channels is missing"),
            ("conv 0x3, 4 channels", "not a kernel size"),
            ("conv 3x3, 4 channels, stride 0", "not a stride"),
            ("conv 3x3, 4 channels, padding 1", "`padding 1` is not something"),
            ("conv 3x3, -4 channels", "not a number of channels"),
            ("conv 3x3, 99999999999999999999 channels", "not a number of channels"),
            ("fc", "needs a size"),
            ("fc 0", "not a number of features"),
            ("fc 10 channels", "not a number of features"),
            ("dropout 1", "not a probability"),
            ("dropout nan", "not a probability"),
            ("batch_norm, eps -1", "eps must be positive"),
            ("batch_norm, eps inf", "eps must be positive and finite"),
            ("batch_norm, eps", "`` is not a number"),
            ("conv 3x3, 4 channels, stride", "`` is not a stride"),
            ("conv 3x3, 4 channels, pad", "`` is not a padding"),
            ("relu 3", "takes no size"),
        ] {
            let e = text.parse::<LayerSpec>().unwrap_err().to_string();
            assert!(e.contains(word) && e.contains("remedy"), "{text}: {e}");
        }
    }
}
