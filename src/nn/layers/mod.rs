//! The layers: one room each, with its phrase, the sizes that follow from its input's, its forward
//! pass, its nodes in an ONNX model and its tests.
//!
//! [`LAYERS`] lists them: the parser of phrases, its errors, `tilework recipes --help` and the
//! table of `src/recipes/README.md` come from it. To read one, begin with `relu.rs`. A layer of your own implements
//! [`Layer`] and goes to [`Model::new`](super::Model::new) like these; it need not be in the list.

mod adaptive_pool;
mod avg_pool;
mod batch_norm;
mod conv;
mod dropout;
mod fc;
mod flatten;
mod gelu;
mod log_softmax;
mod max_pool;
mod relu;
mod residual;
mod scale;
mod sequential;
mod silu;

pub use residual::Residual;
pub use sequential::Sequential;

use super::builder::{Builder, image, misfit, stated};
use super::onnx::{Attribute, Onnx, window};
use super::phrase::{Phrase, arrow, by, part};
use crate::autograd::{Ctx, Var};
use crate::error::Result;
use crate::ops::activation::{Activation, Sum, Then};
use crate::ops::window::Window;
use crate::params::{BufferId, Init, ParamId};
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

    /// The activation that the layer is, if it is one and nothing else.
    fn activation(&self) -> Option<Activation> {
        None
    }

    /// The window of the max-pool that the layer is, if it is one and nothing else.
    fn max_pool(&self) -> Option<Window> {
        None
    }

    /// What the layer makes of the order of features.
    fn features(&self) -> Features {
        match self.activation() {
            Some(_) => Features::Kept,
            None => Features::Told,
        }
    }

    /// Whether [`Layer::forward_then`] saves something on a CUDA device, with all of this.
    fn takes(&self, then: Then) -> bool {
        let _ = then;
        false
    }

    /// [`Layer::forward`], and an activation of what it computes, and a max-pool of that.
    ///
    /// # Errors
    /// Whatever its ops report.
    fn forward_then(&self, then: Then, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        then.of(&self.forward(x, cx)?, cx)
    }

    /// The key of the layer that computes the sum in [`Layer::forward_plus`], with this activation of it, where that saves
    /// something on a CUDA device: `key`, which is this layer's, or that of one inside it.
    fn summing<'a>(&'a self, after: Option<Activation>, key: &'a str) -> Option<&'a str> {
        let _ = (after, key);
        None
    }

    /// [`Layer::forward`], and a sum of what it computes and another tensor.
    ///
    /// # Errors
    /// Whatever its ops report.
    fn forward_plus(&self, sum: Sum<'_>, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        sum.of(&self.forward(x, cx)?, cx)
    }

    /// Adds the nodes that compute the same in inference to an ONNX model; `x` is the input's name. Returns the output's.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if ONNX has no nodes for it.
    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        let _ = (x, graph);
        Err(misfit("it cannot be written as ONNX", "implement `Layer::onnx` for it"))
    }

    /// The layer as a recipe writes it, for tables and errors.
    fn phrase(&self) -> String;
}

/// What a layer makes of the order of the features in its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Features {
    /// It makes features of an image, in either order.
    Made,
    /// It treats each number by itself, so that its output has the order of its input.
    Kept,
    /// It takes either order, if the builder tells it, and its output has its own.
    Free,
    /// It takes PyTorch's order alone.
    Told,
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
    LayerKind { name: "conv", form: "conv 5x5, 16 channels[, stride 2][, pad 1][, no bias][, init kaiming_normal]", help: "convolution; `3 -> 16 channels` also states the input's channels; starts uniform as in PyTorch, or as `init` says, see below", read: Some(conv::read) },
    LayerKind { name: "fc", form: "fc 120[, no bias][, init unit_std]", help: "linear; `fc 400 -> 120` also states the input's features; starts uniform as in PyTorch, with `unit_std` its weights divided by their standard deviation", read: Some(fc::read) },
    LayerKind { name: "batch_norm", form: "batch_norm[, no scale][, eps 1e-5][, momentum 0.1][, frozen]", help: "batch normalisation over n, h, w; without scale its weight stays 1; a frozen one keeps its running statistics and normalises with them in training too", read: Some(batch_norm::read) },
    LayerKind { name: "relu", form: "relu", help: "ReLU", read: Some(|_| Ok(Box::new(relu::Relu))) },
    LayerKind { name: "gelu", form: "gelu", help: "GELU, the exact one", read: Some(|_| Ok(Box::new(gelu::Gelu))) },
    LayerKind { name: "silu", form: "silu", help: "SiLU, `x · sigmoid(x)`", read: Some(|_| Ok(Box::new(silu::Silu))) },
    LayerKind { name: "scale", form: "scale 1/256", help: "multiplies by a constant, written as a number or a fraction", read: Some(scale::read) },
    LayerKind { name: "max_pool", form: "max_pool 2x2[, stride 2][, pad 1]", help: "max-pool; the stride is the kernel's size unless given", read: Some(max_pool::read) },
    LayerKind { name: "avg_pool", form: "avg_pool 2x2[, stride 2][, pad 1][, exclude_pad]", help: "average-pool; the padding counts as zeros unless excluded", read: Some(avg_pool::read) },
    LayerKind { name: "adaptive_max_pool", form: "adaptive_max_pool 1x1", help: "max-pool to a given height and width", read: Some(adaptive_pool::read) },
    LayerKind { name: "adaptive_avg_pool", form: "adaptive_avg_pool 1x1", help: "average-pool to a given height and width", read: Some(adaptive_pool::read) },
    LayerKind { name: "dropout", form: "dropout 0.5", help: "zeroes with that probability in training", read: Some(dropout::read) },
    LayerKind { name: "flatten", form: "flatten", help: "image to features, in PyTorch's order", read: Some(|_| Ok(Box::new(flatten::Flatten::default()))) },
    LayerKind { name: "log_softmax", form: "log_softmax", help: "log-softmax, for the loss `nll`", read: Some(|_| Ok(Box::new(log_softmax::LogSoftmax))) },
    LayerKind { name: "residual", form: "{ residual = [\"conv ...\", ...] }", help: "`x + f(x)`, f being the layers in the list; or `after(shortcut(x) + f(x))`, with `shortcut = [...]` and `after = [...]`", read: None },
    LayerKind { name: "layers", form: "{ name = \"head\", layers = [\"fc 120\", ...] }", help: "the layers in the list, with keys that begin with the name", read: None },
];

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

/// The size that a pool makes of `[h, w, c]`.
fn pooled(name: &'static str, x: Shape, window: Window) -> Result<Shape> {
    let [h, w, c] = image(x)?;
    let [_, h, w, c] = window.pooled(name, [1, h, w, c].into())?.rank4().unwrap_or([0; 4]);
    Ok([h, w, c].into())
}

/// A pool's window as a phrase has it.
fn windowed(Window { kernel, stride, pad }: Window) -> String {
    format!("{}{}{}", by(kernel), part("stride", stride, kernel), part("pad", pad, [0; 2]))
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
    fn what_all_phrases_share() {
        survive_a_round_trip(&["relu", "gelu", "silu", "flatten", "log_softmax"]);
        are_refused(&[
            ("", "there is no layer"),
            ("convv 3x3", "there is no layer `convv`"),
            ("relu 3", "takes no size"),
            ("residual", "write it as a table: { residual"),
        ]);
    }
}
