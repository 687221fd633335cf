//! Models: a list of layer specs and an input size become layers with parameters.

use super::layers::{Layer, Sequential};
use super::spec::LayerSpec;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::batch_norm2d::Running;
use crate::ops::{adaptive_pool2d, max_pool2d};
use crate::params::{Init, Layout, Params};
use crate::shape::Shape;
use std::fmt::Write;

/// What a layer of a model costs, for one image.
#[derive(Clone, Debug)]
pub struct LayerInfo {
    /// Its key in the state dict: `3`, or `3.0` inside a residual block.
    pub key: String,
    /// The layer as it was written.
    pub spec: String,
    /// Its output without the batch dimension: `[h, w, c]` or `[features]`.
    pub output: Shape,
    /// Trainable numbers.
    pub params: usize,
    /// Multiply-adds of the forward pass.
    pub macs: usize,
}

/// A network with its parameters.
#[derive(Debug)]
pub struct Model {
    /// The layers.
    pub net: Sequential,
    /// The trainable parameters.
    pub params: Params,
    /// One entry a layer, inner layers of a residual block included.
    pub layers: Vec<LayerInfo>,
    /// The input without the batch dimension: `[h, w, c]`.
    pub input: Shape,
}

impl Model {
    /// Builds a network for inputs of `[h, w, c]`, and initialises it from a seed.
    ///
    /// ```
    /// use tilework::{Device, nn::model::Model, nn::spec::LayerSpec};
    /// let specs = [LayerSpec::conv(5, 6), LayerSpec::Relu, LayerSpec::max_pool(2), LayerSpec::Flatten, LayerSpec::fc(10)];
    /// let model = Model::build(&specs, [32, 32, 3], &Device::cpu(), 0)?;
    /// assert_eq!(model.params.count(), 6 * 75 + 6 + 10 * 1176 + 10);
    /// # Ok::<(), tilework::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Model`] if a layer does not fit what comes before it; the error shows every layer's
    /// output so far. [`Error::Device`] if the parameters do not fit the memory that is free.
    pub fn build(specs: &[LayerSpec], input: [usize; 3], device: &Device, seed: u64) -> Result<Self> {
        let mut b = Builder { device, layout: Layout::default(), layers: Vec::new(), input: input.into() };
        let (net, _) = b.sequence(specs, "", input.into())?;
        device.check_fits(b.layout.params().iter().map(|p| 4 * p.shape.len()).sum(), "the network")?;
        let params = Params::new(b.layout, device, seed)?;
        Ok(Model { net, params, layers: b.layers, input: input.into() })
    }

    /// The output without the batch dimension.
    pub fn output(&self) -> Shape {
        self.layers.last().map_or(self.input, |l| l.output)
    }

    /// The layer that a parameter belongs to, as `3 (conv 5x5, 6 channels)`.
    pub fn describe(&self, key: &str) -> String {
        match self.layers.iter().find(|l| l.key == key) {
            Some(l) => format!("{key} ({})", l.spec),
            None => key.to_string(),
        }
    }
}

struct Builder<'a> {
    device: &'a Device,
    layout: Layout,
    layers: Vec<LayerInfo>,
    input: Shape,
}

/// A mistake in one layer, before the table is added.
struct Mistake {
    problem: String,
    remedy: String,
}

impl From<Error> for Mistake {
    fn from(e: Error) -> Self {
        match e {
            Error::Shape { expected, got, remedy, .. } => {
                Mistake { problem: format!("expected {expected}, got {got}"), remedy }
            }
            other => Mistake { problem: other.to_string(), remedy: String::new() },
        }
    }
}

fn mistake<T>(problem: impl Into<String>, remedy: impl Into<String>) -> std::result::Result<T, Mistake> {
    Err(Mistake { problem: problem.into(), remedy: remedy.into() })
}

/// Numbers beyond which a network is taken for a slip of the pen rather than tried.
const TOO_MANY: usize = 1 << 32;

impl Builder<'_> {
    fn sequence(&mut self, specs: &[LayerSpec], prefix: &str, mut shape: Shape) -> Result<(Sequential, Shape)> {
        let mut net = Sequential::default();
        for (i, spec) in specs.iter().enumerate() {
            let key = format!("{prefix}{i}");
            let built = match spec {
                LayerSpec::Residual(inner) => {
                    let (inner, out) = self.sequence(inner, &format!("{key}."), shape)?;
                    if out == shape {
                        Ok((Layer::Residual(inner), shape, 0, 0))
                    } else {
                        mistake(
                            format!("the block turns {shape} into {out}, so its input cannot be added to its output"),
                            "make the block keep height, width and channels (pad its convolutions)",
                        )
                    }
                }
                spec => self.layer(spec, &key, shape),
            };
            let built = built.and_then(|layer| match layer.1.len() > TOO_MANY {
                true => mistake(format!("its output {} would be larger than 16 GiB", layer.1), "use smaller sizes"),
                false => Ok(layer),
            });
            let (layer, output, params, macs) = built.map_err(|m| self.error(&key, spec, shape, m))?;
            self.layers.push(LayerInfo { key: key.clone(), spec: spec.to_string(), output, params, macs });
            net.layers.push((key, spec.clone(), layer));
            shape = output;
        }
        Ok((net, shape))
    }

    /// The layer, its output, its parameters and its multiply-adds.
    fn layer(
        &mut self,
        spec: &LayerSpec,
        key: &str,
        x: Shape,
    ) -> std::result::Result<(Layer, Shape, usize, usize), Mistake> {
        let image = match *x.dims() {
            [h, w, c] => Some([h, w, c]),
            _ => None,
        };
        let needs_image = || -> std::result::Result<[usize; 3], Mistake> {
            image.map_or_else(
                || mistake(format!("it takes an image [h, w, c], but here comes {x}"), "put it before `flatten`"),
                Ok,
            )
        };
        let check = |what: &str, from: &Option<usize>, actual: usize| match from {
            Some(n) if *n != actual => mistake(
                format!("it states {n} input {what}, but the layer before it gives {actual}"),
                format!("write {actual}, or leave the number out: it is inferred"),
            ),
            _ => Ok(()),
        };
        let batched = |[h, w, c]: [usize; 3]| Shape::from([1, h, w, c]);
        let unbatched = |s: Shape| Shape::from_slice(&s.dims()[1..]).unwrap_or(Shape::SCALAR);
        let kept = |layer| Ok((layer, x, 0, 0));
        match spec {
            LayerSpec::Conv { window, from, channels, bias } => {
                let [h, w, c] = needs_image()?;
                check("channels", from, c)?;
                let [ho, wo] = window.output("conv2d", [h, w])?;
                let [kh, kw] = window.kernel;
                let fan_in = kh * kw * c;
                if fan_in.saturating_mul(*channels) > TOO_MANY
                    || ho.saturating_mul(wo).saturating_mul(*channels) > TOO_MANY
                {
                    return mistake("the layer would be larger than 16 GiB", "use fewer channels or a smaller kernel");
                }
                let weight = self.layout.add(format!("{key}.weight"), [*channels, kh, kw, c], Init::FanIn(fan_in));
                let b = bias.then(|| self.layout.add(format!("{key}.bias"), [*channels], Init::FanIn(fan_in)));
                let params = fan_in * channels + if *bias { *channels } else { 0 };
                let layer = Layer::Conv { w: weight, b, window: *window };
                Ok((layer, [ho, wo, *channels].into(), params, ho * wo * channels * fan_in))
            }
            LayerSpec::Fc { from, features, bias } => {
                let [inputs] = *x.dims() else {
                    return mistake(
                        format!("it takes features, but here comes an image {x}"),
                        "put `flatten` before it",
                    );
                };
                check("features", from, inputs)?;
                if inputs.saturating_mul(*features) > TOO_MANY {
                    return mistake(
                        "the layer would be larger than 16 GiB",
                        "use fewer features, or pool before `flatten`",
                    );
                }
                let w = self.layout.add(format!("{key}.weight"), [*features, inputs], Init::FanIn(inputs));
                let b = bias.then(|| self.layout.add(format!("{key}.bias"), [*features], Init::FanIn(inputs)));
                let params = inputs * features + if *bias { *features } else { 0 };
                Ok((Layer::Fc { w, b }, [*features].into(), params, inputs * features))
            }
            LayerSpec::BatchNorm { eps, momentum } => {
                let [_, _, c] = needs_image()?;
                let gamma = self.layout.add(format!("{key}.weight"), [c], Init::Constant(1.0));
                let beta = self.layout.add(format!("{key}.bias"), [c], Init::Constant(0.0));
                let running = Running::new(self.device, DType::F32, c)?;
                Ok((Layer::BatchNorm { gamma, beta, running, momentum: *momentum, eps: *eps }, x, 2 * c, 0))
            }
            LayerSpec::MaxPool(window) => {
                let out = max_pool2d::output_shape(batched(needs_image()?), *window)?;
                Ok((Layer::MaxPool(*window), unbatched(out), 0, 0))
            }
            LayerSpec::AdaptiveMaxPool(size) => {
                let out = adaptive_pool2d::output_shape(batched(needs_image()?), *size)?;
                Ok((Layer::AdaptiveMaxPool(*size), unbatched(out), 0, 0))
            }
            LayerSpec::AdaptiveAvgPool(size) => {
                let out = adaptive_pool2d::output_shape(batched(needs_image()?), *size)?;
                Ok((Layer::AdaptiveAvgPool(*size), unbatched(out), 0, 0))
            }
            LayerSpec::Flatten => Ok((Layer::Flatten, [x.len()].into(), 0, 0)),
            LayerSpec::Relu => kept(Layer::Relu),
            LayerSpec::Dropout(p) => kept(Layer::Dropout(*p)),
            LayerSpec::LogSoftmax => kept(Layer::LogSoftmax),
            LayerSpec::Residual(_) => mistake("a residual block is not a single layer", "report this"),
        }
    }

    fn error(&self, key: &str, spec: &LayerSpec, input: Shape, m: Mistake) -> Error {
        let mut table = format!("  {:>6}  {:<44} output\n  {:>6}  {:<44} {}\n", "layer", "", "", "input", self.input);
        for l in &self.layers {
            let _ = writeln!(table, "  {:>6}  {:<44} {}", l.key, l.spec, l.output);
        }
        let _ = write!(table, "> {key:>6}  {:<44} does not fit {input}", spec.to_string());
        Error::Model { layer: key.into(), spec: spec.to_string(), problem: m.problem, table, remedy: m.remedy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(layers: &[&str]) -> Result<Model> {
        let specs: Vec<LayerSpec> = layers.iter().map(|l| l.parse().unwrap()).collect();
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
        assert_eq!(model.output(), Shape::from([10]));
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
        ] {
            let e = build(layers).unwrap_err().to_string();
            assert!(e.contains(words) && e.contains("input") && e.contains("\n> ") && e.contains("remedy"), "{e}");
        }
        let block = LayerSpec::Residual(vec!["conv 3x3, 3 channels".parse().unwrap()]);
        let e = Model::build(&[block], [8, 8, 3], &Device::cpu(), 0).unwrap_err().to_string();
        assert!(e.contains("cannot be added"), "{e}");
    }
}
