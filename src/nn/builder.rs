//! What builds a network: walks through its layers with the size of an input in hand, and collects
//! their parameters, their buffers, and a table of them.

use super::layers::Layer;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::params::{BufferId, Buffers, Init, Param, ParamId};
use crate::shape::Shape;
use crate::tensor::Tensor;
use std::fmt::Write;
use std::mem::{replace, take};

/// What a layer of a model costs, for one image.
#[derive(Clone, Debug)]
pub struct LayerInfo {
    /// Its key in the state dict: `3`, or `3.0` inside a block, or what names the layers have.
    pub key: String,
    /// The layer as it was written.
    pub spec: String,
    /// Its input without the batch dimension: `[h, w, c]` or `[features]`.
    pub input: Shape,
    /// Its output, likewise.
    pub output: Shape,
    /// Trainable numbers of its own, without those of layers inside it.
    pub params: usize,
    /// Multiply-adds of the forward pass, likewise.
    pub macs: usize,
    /// The key of the layer that computes it together with its own on a CUDA device, if one does. A max-pool of 2x2, or of 3x3 with
    /// a stride of 2 and a padding of 1, a batch-norm computes in training, of more than 2048 values a channel; one of 2x2 a
    /// convolution where the kernel of its size does.
    pub joined: Option<String>,
}

impl LayerInfo {
    /// Numbers that it computes for one image. A list passes on what its last layer computed.
    pub fn activations(&self) -> usize {
        if self.spec.starts_with("layers [") { 0 } else { self.output.len() }
    }
}

/// What [`Layer::infer`] declares parameters and buffers to.
#[derive(Debug)]
pub struct Builder<'a> {
    device: &'a Device,
    input: Shape,
    /// The key of the layer at hand, and what it has declared of its own.
    key: String,
    own: (usize, usize),
    /// The key of the layer that computes the one at hand.
    joined: Option<String>,
    /// Whether the next that looks at the features of an image takes them in any order.
    any_order: bool,
    /// The image whose features come as they lie in memory.
    as_stored: Option<[usize; 3]>,
    pub(super) params: Vec<Param>,
    pub(super) buffers: Buffers,
    pub(super) layers: Vec<LayerInfo>,
}

/// Numbers beyond which a network is taken for a slip of the pen rather than tried.
const TOO_MANY: usize = 1 << 32;

fn product(dims: &[usize]) -> usize {
    dims.iter().fold(1, |n: usize, &d| n.saturating_mul(d))
}

/// A layer that does not fit; the table is added where it is reported.
pub(super) fn misfit(problem: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::config("layer", problem, remedy)
}

/// Height, width and channels of an input that must be an image.
pub(super) fn image(x: Shape) -> Result<[usize; 3]> {
    let dims = x.dims().try_into();
    dims.map_err(|_| misfit(format!("it takes an image [h, w, c], but here comes {x}"), "put it before `flatten`"))
}

/// Checks the size of an input where the layer states it.
pub(super) fn stated(what: &str, from: Option<usize>, actual: usize) -> Result<()> {
    match from {
        Some(n) if n != actual => Err(misfit(
            format!("it states {n} input {what}, but the layer before it gives {actual}"),
            format!("write {actual}, or leave the number out: it is inferred"),
        )),
        _ => Ok(()),
    }
}

impl<'a> Builder<'a> {
    pub(super) fn new(device: &'a Device, input: Shape) -> Self {
        let (params, buffers, layers) = (Vec::new(), Buffers::default(), Vec::new());
        Builder {
            device,
            input,
            key: String::new(),
            own: (0, 0),
            joined: None,
            any_order: false,
            as_stored: None,
            params,
            buffers,
            layers,
        }
    }

    fn join(&self, name: &str) -> String {
        if self.key.is_empty() { name.into() } else { format!("{}.{name}", self.key) }
    }

    /// Adds a trainable parameter, by a name such as `weight`.
    ///
    /// # Errors
    /// [`Error::Config`] if it is too large, or its key is taken.
    pub fn param(&mut self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<ParamId> {
        self.declare(Param::new(self.join(name), shape.into(), init))
    }

    /// Adds the matrix of weights of a layer that takes features. Its columns lie in the order of what it is given.
    ///
    /// # Errors
    /// As [`Builder::param`].
    pub fn param_of_features(&mut self, name: &str, shape: [usize; 2], init: Init) -> Result<ParamId> {
        let mut param = Param::new(self.join(name), shape.into(), init);
        param.image = self.as_stored.take();
        self.declare(param)
    }

    /// Notes whether the next layer that looks at the features of an image takes them in any order.
    pub(super) fn next_takes_any_order(&mut self, free: bool) {
        self.any_order = free;
    }

    /// Whether the features of this image are to stay as they lie in memory; the layer that takes them is told so.
    pub(super) fn flatten_as_stored(&mut self, x: Shape) -> bool {
        let any_order = take(&mut self.any_order);
        self.as_stored = x.dims().try_into().ok().filter(|_| any_order);
        self.as_stored.is_some()
    }

    fn declare(&mut self, param: Param) -> Result<ParamId> {
        let (key, shape) = (&param.key, param.shape);
        if product(shape.dims()) > TOO_MANY {
            let remedy = "use fewer channels or features, a smaller kernel, or pool before `flatten`";
            return Err(misfit("the layer would be larger than 16 GiB", remedy));
        }
        if self.params.iter().any(|p| p.key == *key) {
            return Err(misfit(format!("there is a `{key}` already"), "give one of the two layers another name"));
        }
        self.own.0 += shape.len();
        self.params.push(param);
        Ok(ParamId(self.params.len() - 1))
    }

    /// Keeps a parameter from being trained: it stays as it starts.
    pub fn fix(&mut self, id: ParamId) {
        if let Some(p) = self.params.get_mut(id.0) {
            p.trainable = false;
        }
    }

    /// The key of the layer at hand.
    pub(super) fn key(&self) -> String {
        self.key.clone()
    }

    /// Notes that the layer of a key computes another one too.
    pub(super) fn note_joined(&mut self, key: String, other: &str) {
        if let Some(layer) = self.layers.iter_mut().find(|l| l.key == other) {
            layer.joined = Some(key);
        }
    }

    /// Notes that the layer of a key, inside the one at hand, computes that one too.
    pub(super) fn note_computed_by(&mut self, key: &str) {
        self.joined = Some(key.into());
    }

    /// Whether the layer at hand is the first: the network's input is its own.
    pub fn is_first(&self) -> bool {
        self.layers.is_empty()
    }

    /// Adds a tensor that training changes and no gradient moves, at first all `value`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn buffer(&mut self, name: &str, shape: impl Into<Shape>, value: f64) -> Result<BufferId> {
        let mut tensor = Tensor::empty(self.device, DType::F32, shape)?;
        tensor.fill(value)?;
        Ok(self.buffers.add(self.join(name), tensor))
    }

    /// Adds a counter of training batches; a frozen one stays as it is.
    pub fn counter(&mut self, name: &str, frozen: bool) {
        self.buffers.add_counter(self.join(name), frozen);
    }

    /// Notes the multiply-adds of the layer for one image: the product of the factors.
    pub fn macs(&mut self, factors: &[usize]) {
        self.own.1 = self.own.1.saturating_add(product(factors));
    }

    /// Builds a layer inside the one at hand. Returns its key and the size of its output.
    ///
    /// # Errors
    /// [`Error::Model`] if it does not fit `x`; what else the layer reports.
    pub fn child(&mut self, name: &str, layer: &mut dyn Layer, x: Shape) -> Result<(String, Shape)> {
        let key = self.join(name);
        if self.layers.iter().any(|l| l.key == key) {
            let e = misfit(format!("there is a layer `{key}` already"), "give each layer a name of its own");
            return Err(self.with_table(&key, layer, x, e));
        }
        let outer = (replace(&mut self.key, key), take(&mut self.own), take(&mut self.joined));
        // Before the layers inside it.
        let at = self.layers.len();
        let output = layer.infer(x, self).and_then(|y| match product(y.dims()) > TOO_MANY {
            true => Err(misfit(format!("its output {y} would be larger than 16 GiB"), "use smaller sizes")),
            false => Ok(y),
        });
        let (key, (params, macs)) = (replace(&mut self.key, outer.0), replace(&mut self.own, outer.1));
        let joined = replace(&mut self.joined, outer.2);
        let output = output.map_err(|e| self.with_table(&key, layer, x, e))?;
        self.layers
            .insert(at, LayerInfo { key: key.clone(), spec: layer.phrase(), input: x, output, params, macs, joined });
        Ok((key, output))
    }

    /// A layer's error with the table of those before it.
    fn with_table(&self, key: &str, layer: &dyn Layer, input: Shape, e: Error) -> Error {
        let (problem, remedy) = match e {
            Error::Shape { expected, got, remedy, .. } => (format!("expected {expected}, got {got}"), remedy),
            Error::Config { problem, remedy, .. } => (problem, remedy),
            other => return other,
        };
        let mut table = format!("  {:>6}  {:<44} output\n  {:>6}  {:<44} {}\n", "layer", "", "", "input", self.input);
        for l in &self.layers {
            let _ = writeln!(table, "  {:>6}  {:<44} {}", l.key, l.spec, l.output);
        }
        let _ = write!(table, "> {key:>6}  {:<44} does not fit {input}", layer.phrase());
        Error::Model { layer: key.into(), spec: layer.phrase(), problem, table, remedy }
    }
}
