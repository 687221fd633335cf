//! Models: layers and an input size become a network with parameters.

use super::builder::{Builder, LayerInfo};
use super::layers::{Layer, Sequential};
use super::spec::{LayerSpec, sequence};
use crate::autograd::{Ctx, Mode, Var};
use crate::buffers::Buffers;
use crate::device::Device;
use crate::error::Result;
use crate::params::Params;
use crate::shape::Shape;
use crate::step::Step;

/// A network with its parameters.
#[derive(Debug)]
pub struct Model {
    net: Sequential,
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
        let y = self.net.forward(x, cx)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Tensor};

    fn build(layers: &[&str]) -> Result<Model> {
        let specs: Vec<LayerSpec> = layers.iter().map(|&l| l.into()).collect();
        Model::build(&specs, [32, 32, 3], &Device::cpu(), 0)
    }

    #[test]
    fn sizes_are_inferred() {
        let lenet = ["conv 5x5, 6 channels", "relu", "max_pool 2", "conv 5x5, 16 channels", "relu", "max_pool 2"];
        let head = ["flatten", "fc 120", "relu", "fc 84", "relu", "fc 10"];
        let model = build(&[&lenet[..], &head[..]].concat()).unwrap();
        assert_eq!(model.params.count(), 62_006);
        assert_eq!(model.layers[6].output, Shape::from([400]));
        assert_eq!(model.params.list()[2].key, "3.weight");
        assert_eq!(model.output, Shape::from([10]));
    }

    #[test]
    fn nothing_is_recorded_below_what_is_trained() {
        let device = Device::cpu();
        let net = ["conv 3x3, 2 channels", "batch_norm", "relu", "dropout 0.5", "flatten", "fc 10"];
        let mut model = build(&net).unwrap();
        model.params.configure(|p| p.trainable = p.key.starts_with("5.")).unwrap();
        let mut tracked = Vec::new();
        let mut cx = model.train(Step::default()).watched(|key, y| {
            tracked.push((key.to_string(), y.id().is_some()));
            Ok(())
        });
        let x = Var::constant(Tensor::zeros(&device, DType::F32, [2, 32, 32, 3]).unwrap());
        let y = model.forward(&x, &mut cx).unwrap();
        let mut grads = model.params.grads().unwrap();
        cx.backward(&y, y.value().clone(), Some(&mut grads)).unwrap();
        drop(y);
        assert_eq!(tracked, [0, 1, 2, 3, 4, 5].map(|i| (i.to_string(), i == 5)));
        let of = |key| grads.of(model.params.list().iter().position(|p| p.key == key).unwrap()).unwrap();
        assert!(of("5.bias").iter().any(|&g| g != 0.0) && of("0.weight").iter().all(|&g| g == 0.0));
    }

    #[test]
    fn mistakes_show_the_table() {
        for (layers, words) in [
            (
                &["conv 5x5, 6 channels", "flatten", "fc 100 -> 10"][..],
                "states 100 input features, but the layer before it gives 4704",
            ),
            (&["conv 5x5, 4 -> 6 channels"][..], "states 4 input channels, but the layer before it gives 3"),
            (&["max_pool 16", "conv 3x3, 8 channels"][..], "fits its input of 2x2"),
            (&["fc 10"][..], "put `flatten` before it"),
            (&["flatten", "batch_norm"][..], "put it before `flatten`"),
            (&["flatten", "fc 999999", "fc 999999"][..], "larger than 16 GiB"),
            (&["adaptive_max_pool 999999x999999", "adaptive_max_pool 1x1"][..], "larger than 16 GiB"),
            (&["a: conv 1x1, 3 channels", "a: conv 1x1, 3 channels"][..], "there is a `a.weight` already"),
        ] {
            let e = build(layers).unwrap_err().to_string();
            assert!(e.contains(words) && e.contains("input") && e.contains("\n> ") && e.contains("remedy"), "{e}");
        }
    }
}
