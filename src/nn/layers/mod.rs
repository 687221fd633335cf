//! The layers: one room each, with its phrase, the sizes that follow from its input's, its forward
//! pass and its tests.
//!
//! [`LAYERS`] lists them: the parser of phrases, its errors, `tilework recipes --help` and the
//! README's table come from it. To read one, begin with `relu.rs`. A layer of your own need not be
//! in the list:
//!
//! ```
//! use tilework::nn::{Builder, Layer, Model, layer};
//! use tilework::params::{Init, ParamId};
//! use tilework::{Ctx, Device, Result, Shape, Tensor, Var};
//!
//! /// A sum with one trainable number for each feature.
//! #[derive(Debug, Default)]
//! struct Shift(ParamId);
//!
//! impl Layer for Shift {
//!     fn infer(&mut self, x: Shape, b: &mut Builder<'_>) -> Result<Shape> {
//!         self.0 = b.param("shift", [1, x.len()], Init::Constant(0.5))?;
//!         Ok(x)
//!     }
//!     fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
//!         x.add(&cx.param(self.0)?, cx)
//!     }
//!     fn phrase(&self) -> String {
//!         "shift".into()
//!     }
//! }
//!
//! let device = Device::cpu();
//! let model = Model::new(vec![layer("flatten")?, Box::new(Shift::default()), layer("relu")?], [1, 1, 2], &device, 0)?;
//! let x = Var::constant(Tensor::from_slice(&device, [1, 1, 1, 2], &[1f32, -1.0])?);
//! assert_eq!(model.forward(&x, &mut model.eval())?.value().to_vec::<f32>()?, [1.5, 0.0]);
//! assert_eq!(model.params.list()[0].key, "1.shift");
//! # Ok::<(), tilework::Error>(())
//! ```

mod adaptive_pool;
mod batch_norm;
mod conv;
mod dropout;
mod fc;
mod flatten;
mod log_softmax;
mod max_pool;
mod relu;
mod residual;
mod sequential;

pub use residual::Residual;
pub use sequential::Sequential;

use super::builder::{Builder, image, misfit, stated};
use super::phrase::{Phrase, arrow, by, part};
use crate::autograd::{Ctx, Var};
use crate::buffers::BufferId;
use crate::error::Result;
use crate::ops::{max_pool2d, window::Window};
use crate::params::{Init, ParamId};
use crate::shape::Shape;
#[cfg(test)]
use tests::{are_refused, survive_a_round_trip};

/// A layer of a network.
pub trait Layer: std::fmt::Debug + Send + Sync {
    /// Takes the size of an input and gives that of its output, both without the batch dimension:
    /// `[h, w, c]` or `[features]`. Here a layer declares its parameters and buffers. Unless it has
    /// some, or changes the size, there is nothing to do.
    ///
    /// # Errors
    /// Any, if the layer cannot take the input; the network's table of layers is added to it.
    fn infer(&mut self, x: Shape, b: &mut Builder<'_>) -> Result<Shape> {
        let _ = b;
        Ok(x)
    }

    /// Computes the outputs of a batch of inputs: `[n, h, w, c]` or `[n, features]`.
    ///
    /// # Errors
    /// Whatever its ops report.
    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var>;

    /// The layer as a recipe writes it, for tables and errors.
    fn phrase(&self) -> String;
}

/// A row of the table of layers.
pub struct LayerKind {
    /// The word that names it.
    pub name: &'static str,
    /// How it is written; what is in brackets may be left out.
    pub form: &'static str,
    /// What it is, in Markdown.
    pub help: &'static str,
    /// Makes the layer from its phrase; `None` if it holds other layers.
    read: Option<Reader>,
}

type Reader = fn(&mut Phrase<'_>) -> Result<Box<dyn Layer>>;

/// Every layer that a recipe can name.
#[rustfmt::skip]
pub const LAYERS: &[LayerKind] = &[
    row("conv", "conv 5x5, 16 channels[, stride 2][, pad 1][, no bias]", "convolution; `3 -> 16 channels` also states the input's channels", Some(conv::read)),
    row("fc", "fc 120[, no bias]", "linear; `fc 400 -> 120` also states the input's features", Some(fc::read)),
    row("batch_norm", "batch_norm[, eps 1e-5][, momentum 0.1]", "batch normalisation over n, h, w", Some(batch_norm::read)),
    row("relu", "relu", "ReLU", Some(|_| Ok(Box::new(relu::Relu)))),
    row("max_pool", "max_pool 2x2[, stride 2][, pad 1]", "max-pool; the stride is the kernel's size unless given", Some(max_pool::read)),
    row("adaptive_max_pool", "adaptive_max_pool 1x1", "max-pool to a given height and width", Some(adaptive_pool::read)),
    row("adaptive_avg_pool", "adaptive_avg_pool 1x1", "average-pool to a given height and width", Some(adaptive_pool::read)),
    row("dropout", "dropout 0.5", "zeroes with that probability in training", Some(dropout::read)),
    row("flatten", "flatten", "image to features, in PyTorch's order", Some(|_| Ok(Box::new(flatten::Flatten)))),
    row("log_softmax", "log_softmax", "log-softmax, for the loss `nll`", Some(|_| Ok(Box::new(log_softmax::LogSoftmax)))),
    row("residual", "{ residual = [\"conv ...\", ...] }", "`x + f(x)`, f being the layers in the list; or `after(shortcut(x) + f(x))`, with `shortcut = [...]` and `after = [...]`", None),
    row("layers", "{ name = \"head\", layers = [\"fc 120\", ...] }", "the layers in the list, with keys that begin with the name", None),
];

const fn row(name: &'static str, form: &'static str, help: &'static str, read: Option<Reader>) -> LayerKind {
    LayerKind { name, form, help, read }
}

/// The layer of a phrase such as `conv 5x5, 16 channels`.
///
/// # Errors
/// [`crate::Error::Config`] naming what is wrong in it.
pub fn layer(phrase: &str) -> Result<Box<dyn Layer>> {
    let mut p = Phrase::new(phrase);
    let Some(kind) = LAYERS.iter().find(|k| k.name == p.name) else {
        let names: Vec<_> = LAYERS.iter().map(|k| k.name).collect();
        return Err(p.bad(format!("there is no layer `{}`", p.name), format!("the layers are {}", names.join(", "))));
    };
    let Some(read) = kind.read else {
        let problem = format!("`{}` holds other layers, so it is not a phrase", kind.name);
        return Err(p.bad(problem, format!("write it as a table: {}", kind.form)));
    };
    let layer = read(&mut p)?;
    p.finish()?;
    Ok(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each phrase is what its layer writes.
    #[track_caller]
    pub(super) fn survive_a_round_trip(phrases: &[&str]) {
        for text in phrases {
            assert_eq!(layer(text).unwrap().phrase(), *text);
        }
    }

    /// Each phrase is refused with these words and a remedy.
    #[track_caller]
    pub(super) fn are_refused(phrases: &[(&str, &str)]) {
        for (text, words) in phrases {
            let e = layer(text).unwrap_err().to_string();
            assert!(e.contains(words) && e.contains("remedy"), "{text}: {e}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        are_refused(&[
            ("", "there is no layer"),
            ("convv 3x3", "there is no layer `convv`"),
            ("relu 3", "takes no size"),
            ("residual", "write it as a table: { residual"),
        ]);
    }

    #[test]
    fn the_readme_has_the_table() {
        let rows: String = LAYERS.iter().map(|k| format!("| `{}` | {} |\n", k.form, k.help)).collect();
        assert!(include_str!("../../../README.md").contains(&rows), "README.md lacks these rows:\n{rows}");
    }
}
