//! Layers: what a spec becomes when its sizes are known.

use super::spec::LayerSpec;
use crate::autograd::{Ctx, Var};
use crate::error::Result;
use crate::ops::batch_norm2d::Running;
use crate::ops::window::Window;
use crate::params::ParamId;

/// A layer of a network: which parameters it uses, and what it keeps of its own.
#[derive(Debug)]
pub(super) enum Layer {
    Conv { w: ParamId, b: Option<ParamId>, window: Window },
    Fc { w: ParamId, b: Option<ParamId> },
    BatchNorm { gamma: ParamId, beta: ParamId, running: Running, momentum: f64, eps: f64 },
    Relu,
    MaxPool(Window),
    AdaptiveMaxPool([usize; 2]),
    AdaptiveAvgPool([usize; 2]),
    Dropout(f64),
    Flatten,
    LogSoftmax,
    Residual(Sequential),
}

/// Called with each layer's key, its spec and its output as the forward pass goes.
pub type Observer<'o> = &'o mut dyn FnMut(&str, &LayerSpec, &Var) -> Result<()>;

/// Layers, one after the other.
#[derive(Debug, Default)]
pub struct Sequential {
    pub(super) layers: Vec<(String, LayerSpec, Layer)>,
}

impl Sequential {
    /// Runs the layers. `x` is `[n, h, w, c]`, or `[n, features]` if the first layer takes that.
    ///
    /// # Errors
    /// Whatever the ops report.
    pub fn forward(&mut self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        self.forward_observed(x, cx, &mut |_, _, _| Ok(()))
    }

    /// Runs the layers and shows each one's output to `observer`.
    ///
    /// # Errors
    /// Whatever the ops or the observer report.
    pub fn forward_observed(&mut self, x: &Var, cx: &mut Ctx<'_>, observer: Observer<'_>) -> Result<Var> {
        let mut x = x.clone();
        for (key, spec, layer) in &mut self.layers {
            x = layer.forward(&x, cx, observer)?;
            observer(key, spec, &x)?;
        }
        Ok(x)
    }
}

impl Layer {
    fn forward(&mut self, x: &Var, cx: &mut Ctx<'_>, observer: Observer<'_>) -> Result<Var> {
        match self {
            Layer::Conv { w, b, window } => {
                let (w, b) = (cx.param(*w)?, b.map(|b| cx.param(b)).transpose()?);
                x.conv2d(&w, b.as_ref(), window.stride, window.pad, cx)
            }
            Layer::Fc { w, b } => {
                let (w, b) = (cx.param(*w)?, b.map(|b| cx.param(b)).transpose()?);
                x.linear(&w, b.as_ref(), cx)
            }
            Layer::BatchNorm { gamma, beta, running, momentum, eps } => {
                let (gamma, beta) = (cx.param(*gamma)?, cx.param(*beta)?);
                x.batch_norm2d(&gamma, &beta, running, *momentum, *eps, cx)
            }
            Layer::Relu => x.relu(cx),
            Layer::MaxPool(window) => x.max_pool2d(*window, cx),
            Layer::AdaptiveMaxPool(size) => x.adaptive_max_pool2d(*size, cx),
            Layer::AdaptiveAvgPool(size) => x.adaptive_avg_pool2d(*size, cx),
            Layer::Dropout(p) => x.dropout(*p, cx),
            Layer::Flatten => x.flatten(cx),
            Layer::LogSoftmax => x.log_softmax(cx),
            Layer::Residual(inner) => {
                let y = inner.forward_observed(x, cx, observer)?;
                x.add(&y, cx)
            }
        }
    }
}
