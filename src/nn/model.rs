//! Models: layers and an input size become a network with parameters.

use super::builder::{Builder, LayerInfo};
use super::layers::{Layer, Sequential};
use super::spec::{LayerSpec, sequence};
use crate::autograd::{Ctx, Mode, Var};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::params::{Buffers, Params};
use crate::shape::Shape;
use crate::step::Step;

/// A network with its parameters.
#[derive(Debug)]
pub struct Model {
    pub(super) net: Sequential,
    /// The trainable parameters.
    pub params: Params,
    /// The running statistics.
    pub buffers: Buffers,
    /// One entry a layer; a block comes before the layers inside it.
    pub layers: Vec<LayerInfo>,
    /// The input without the batch dimension: `[h, w, c]`.
    pub input: Shape,
    /// The output without the batch dimension.
    pub output: Shape,
}

impl Model {
    /// Builds a network for inputs of `[h, w, c]`, and initialises it from a seed.
    ///
    /// ```
    /// use tilework::{Device, nn::{Model, layer}};
    /// let net = vec![layer("conv 5x5, 6 channels")?, layer("max_pool 2")?, layer("flatten")?, layer("fc 10")?];
    /// let model = Model::new(net, [32, 32, 3], &Device::cpu(), 0)?;
    /// assert_eq!(model.params.count(), 6 * 75 + 6 + 10 * 1176 + 10);
    /// # Ok::<(), tilework::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) if a layer does not fit what comes before it; the error
    /// shows every layer's output so far. [`Error::Device`](crate::Error::Device) if the parameters do
    /// not fit the memory that is free.
    pub fn new(net: impl Into<Sequential>, input: [usize; 3], device: &Device, seed: u64) -> Result<Self> {
        let (mut net, input) = (net.into(), input.into());
        let mut b = Builder::new(device, input);
        let output = net.infer(input, &mut b)?;
        device.check_fits(b.params.iter().map(|p| 4 * p.shape.len()).sum(), "the network")?;
        let params = Params::new(b.params, device, seed)?;
        Ok(Model { net, params, buffers: b.buffers, layers: b.layers, input, output })
    }

    /// Builds the network of a recipe.
    ///
    /// # Errors
    /// As [`Model::new`].
    pub fn build(specs: &[LayerSpec], input: [usize; 3], device: &Device, seed: u64) -> Result<Self> {
        Model::new(sequence(specs, "")?, input, device, seed)
    }

    /// What a training pass at a step of a run carries along. Its ops are recorded.
    pub fn train(&self, step: Step) -> Ctx<'_> {
        Ctx::train(self.params.values().device()).of(&self.params, &self.buffers).at(step)
    }

    /// What a pass of inference carries along.
    pub fn eval(&self) -> Ctx<'_> {
        Ctx::eval(self.params.values().device()).of(&self.params, &self.buffers)
    }

    /// Runs the network on `[n, h, w, c]`.
    ///
    /// # Errors
    /// Whatever the ops report.
    pub fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        let dtype = self.params.precision().dtype();
        // Batches for training are made in the precision of activations.
        let y = match x.value().dtype() {
            DType::F32 if dtype != DType::F32 => self.net.forward(&Var::constant(x.value().to_dtype(dtype)?), cx)?,
            _ => self.net.forward(x, cx)?,
        };
        if cx.mode() == Mode::Train {
            self.buffers.count_batch();
        }
        Ok(y)
    }

    /// The layer that a parameter belongs to, as `3 (conv 5x5, 6 channels)`.
    pub fn describe(&self, key: &str) -> String {
        match self.layers.iter().find(|l| l.key == key) {
            Some(l) => format!("{key} ({})", l.spec),
            None => key.to_string(),
        }
    }
}
