//! Networks for other programs: the layers of a trained one as the nodes of an ONNX model. What its file looks like is
//! known to `src/formats/onnx.rs`, which nodes compute a layer to the layer ([`Layer::onnx`]).

use super::layers::Layer;
use super::model::Model;
use super::state::StateDict;
use crate::error::{Error, Result};
use crate::formats::onnx::{Graph, Port};
use crate::ops::window::Window;
use crate::params::{BufferId, ParamId};
use std::mem::replace;

pub use crate::formats::onnx::Attribute;

/// What [`Layer::onnx`] adds nodes to. Images are `[n, c, h, w]` there, and a value is known by its name.
#[derive(Debug)]
pub struct Onnx<'a> {
    model: &'a Model,
    weights: StateDict,
    graph: Graph,
    /// The key of the layer at hand.
    key: String,
}

impl Onnx<'_> {
    /// Adds a node: an operator of ONNX (opset 17), the values that it takes, its attributes. Returns its output.
    pub fn node(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        self.graph.node(&format!("{}/{op}", self.key), op, inputs, attributes)
    }

    /// A parameter of the layer, in the layout of the state dict.
    ///
    /// # Errors
    /// [`Error::Internal`] for an id of another network.
    pub fn param(&mut self, id: ParamId) -> Result<String> {
        let param = self.model.params.list().get(id.0);
        let param = param.ok_or_else(|| Error::Internal(format!("no parameter {id:?}")))?;
        self.weight(&param.key)
    }

    /// Running statistics of the layer.
    ///
    /// # Errors
    /// [`Error::Internal`] for an id of another network.
    pub fn buffer(&mut self, id: BufferId) -> Result<String> {
        let key = self.model.buffers.key(id)?;
        self.weight(key)
    }

    fn weight(&mut self, key: &str) -> Result<String> {
        let array = self.weights.get(key).and_then(|a| Some((a.shape(), a.to_f32()?)));
        let (dims, values) = array.ok_or_else(|| Error::Internal(format!("no numbers for `{key}`")))?;
        Ok(self.graph.tensor(key, dims, &values))
    }

    /// A constant, row-major; the name must be the only one in its layer.
    pub fn constant(&mut self, name: &str, dims: &[usize], values: &[f32]) -> String {
        self.graph.tensor(&format!("{}/{name}", self.key), dims, values)
    }

    /// A layer inside the one at hand, by its whole key.
    ///
    /// # Errors
    /// As [`Layer::onnx`], with the layer named.
    pub(super) fn child(&mut self, key: &str, layer: &dyn Layer, x: &str) -> Result<String> {
        let outer = replace(&mut self.key, key.into());
        let y = layer.onnx(x, self);
        let key = replace(&mut self.key, outer);
        y.map_err(|e| match e {
            Error::Config { what, problem, remedy } if what == "layer" => {
                Error::config(format!("layer {key} (`{}`)", layer.phrase()), problem, remedy)
            }
            other => other,
        })
    }
}

/// The attributes of a convolution or a pool.
pub(super) fn window(w: &Window) -> [(&'static str, Attribute); 3] {
    let ints = |list: &[usize]| Attribute::Ints(list.iter().map(|&i| i as i64).collect());
    let [top, left] = w.pad;
    [("kernel_shape", ints(&w.kernel)), ("strides", ints(&w.stride)), ("pads", ints(&[top, left, top, left]))]
}

impl Model {
    /// The network in inference as the bytes of an ONNX file (IR version 8, opset 17). Its input `images` is
    /// `[n, c, h, w]` of f32, its output `logits` is `[n, classes]`; `n` is free.
    ///
    /// With `normalise`, each channel's mean and deviation, the first nodes normalise, so that pixels in [0, 1] go in.
    /// `about` are pairs of key and value for the file's `metadata_props`.
    ///
    /// # Errors
    /// [`Error::Config`] naming a layer that ONNX has no nodes for, or if the network is larger than 2 GiB.
    pub fn to_onnx(&self, normalise: Option<(&[f32], &[f32])>, about: &[(&str, String)]) -> Result<Vec<u8>> {
        let &[h, w, c] = self.input.dims() else {
            return Err(Error::Internal(format!("a network whose input is {}", self.input)));
        };
        let mut onnx =
            Onnx { model: self, weights: self.state_dict()?, graph: Graph::default(), key: "normalise".into() };
        let mut x = "images".to_string();
        if let Some((mean, std)) = normalise {
            let mean = onnx.constant("mean", &[1, c, 1, 1], mean);
            let std = onnx.constant("std", &[1, c, 1, 1], std);
            x = onnx.node("Sub", &[&x, &mean], &[]);
            x = onnx.node("Div", &[&x, &std], &[]);
        }
        let last = self.net.onnx(&x, &mut onnx)?;
        let (input, output) =
            (Port { name: "images", dims: &[c, h, w] }, Port { name: "logits", dims: self.output.dims() });
        onnx.graph.model("tilework", &input, &last, &output, about).map_err(|problem| {
            Error::config("ONNX", problem, "use the state dict, `model.safetensors`, or a smaller network")
        })
    }
}

#[cfg(test)]
#[path = "../../tests/unit/onnx.rs"]
mod tests;
