//! Networks through the public interface: sizes, keys, what is recorded, mistakes, and a layer that is
//! not in the table.

use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;
use tilework::autograd::Mode;
use tilework::nn::state::Array;
use tilework::nn::{Builder, LAYERS, Layer, LayerSpec, Model, layer};
use tilework::params::{Init, ParamId};
use tilework::step::Step;
use tilework::{Ctx, DType, Device, Result, Shape, Tensor, Var};

fn of_phrases(layers: &[&str]) -> Result<Model> {
    let specs: Vec<LayerSpec> = layers.iter().map(|&l| l.into()).collect();
    Model::build(&specs, [32, 32, 3], &Device::cpu(), 0)
}

#[test]
fn sizes_are_inferred() {
    let lenet = ["conv 5x5, 6 channels", "relu", "max_pool 2", "conv 5x5, 16 channels", "relu", "max_pool 2"];
    let head = ["flatten", "fc 120", "relu", "fc 84", "relu", "fc 10"];
    let model = of_phrases(&[&lenet[..], &head[..]].concat()).unwrap();
    assert_eq!(model.params.count(), 62_006);
    assert_eq!(model.layers[6].output, Shape::from([400]));
    assert_eq!(model.params.list()[2].key, "3.weight");
    assert_eq!(model.output, Shape::from([10]));
}

#[test]
fn nothing_is_recorded_below_what_is_trained() {
    let device = Device::cpu();
    let net = ["conv 3x3, 2 channels", "batch_norm", "relu", "dropout 0.5", "flatten", "fc 10"];
    let mut model = of_phrases(&net).unwrap();
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
        (&["a: conv 1x1, 3 channels", "a: conv 1x1, 3 channels"][..], "there is a layer `a` already"),
        (&["s: scale 2", "s: scale 3"][..], "there is a layer `s` already"),
    ] {
        let e = of_phrases(layers).unwrap_err().to_string();
        assert!(e.contains(words) && e.contains("input") && e.contains("\n> ") && e.contains("remedy"), "{e}");
    }
    let e = of_phrases(&["flatten", "fc 4x7"]).unwrap_err().to_string();
    assert!(e.contains("`4x7` is not a number of features"), "{e}");
}

/// `layers`, as a recipe has them, on images of 8x8x3.
fn build(layers: &str) -> Result<Model, String> {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Recipe {
        layers: Vec<LayerSpec>,
    }
    let recipe: Recipe = toml::from_str(&format!("layers = {layers}")).map_err(|e| e.to_string())?;
    assert_eq!(toml::from_str::<Recipe>(&toml::to_string(&recipe).unwrap()).unwrap(), recipe);
    Model::build(&recipe.layers, [8, 8, 3], &Device::cpu(), 0).map_err(|e| e.to_string())
}

#[test]
fn blocks_of_torchvision_have_its_keys() {
    let model = build(
        r#"["conv 1x1, 64 channels", { name = "layer2", layers = [{
            residual = [
                "conv1: conv 3x3, 128 channels, stride 2, pad 1, no bias", "bn1: batch_norm", "relu",
                "conv2: conv 3x3, 128 channels, pad 1, no bias", "bn2: batch_norm",
            ],
            shortcut = [
                { name = "downsample", layers = ["conv 1x1, 128 channels, stride 2, no bias", "batch_norm"] },
            ],
            after = ["relu"],
        }] }]"#,
    );
    let model = model.unwrap();
    let keys: Vec<_> = model.params.list().iter().map(|p| p.key.as_str()).skip(2).collect();
    let of = |names: &[&str]| names.iter().map(|n| format!("layer2.0.{n}")).collect::<Vec<_>>();
    let wanted = ["conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias"];
    let downsample = ["downsample.0.weight", "downsample.1.weight", "downsample.1.bias"];
    assert_eq!(keys, of(&[&wanted[..], &downsample[..]].concat()));
    let state = model.state_dict().unwrap();
    for key in of(&["bn1.running_mean", "bn2.running_var", "downsample.1.num_batches_tracked"]) {
        assert!(state.contains_key(&key), "{key}");
    }
    assert_eq!(model.output.dims(), [4, 4, 128]);
    let keys: Vec<_> = model.layers.iter().map(|l| l.key.trim_start_matches("layer2.0.")).collect();
    let inner = ["conv1", "bn1", "2", "conv2", "bn2", "downsample", "downsample.0", "downsample.1", "after.0"];
    assert_eq!(keys, [&["0", "layer2", "layer2.0"][..], &inner[..]].concat());
}

#[test]
fn mistakes_in_a_recipe_are_named() {
    for (layers, words) in [
        (r#"[{ residual = ["conv 3x3, 3 channels"] }]"#, "its input cannot be added"),
        (r#"[{ residual = ["conv 3x3, 3 channels"], shortcut = ["relu"] }]"#, "its shortcut into [8, 8, 3]"),
        (r#"[{ residual = ["cnov 3x3"] }]"#, "there is no layer `cnov`"),
        (r#"[{ residul = ["relu"] }]"#, "a layer such as"),
        (r#"[{ name = "a b", layers = ["relu"] }]"#, "`a b` is not a name"),
        (r#"[{ layers = ["relu"], after = ["relu"] }]"#, "neither a list"),
        (r#"[": relu"]"#, "`` is not a name"),
        ("[3]", "a layer such as"),
    ] {
        let e = build(layers).unwrap_err();
        assert!(e.contains(words), "{layers}: {e}");
    }
}

#[test]
fn training_batches_are_counted() {
    let device = Device::cpu();
    let model = Model::new(vec![layer("batch_norm").unwrap()], [1, 1, 3], &device, 0).unwrap();
    let counts = || model.buffers.counters().iter().map(|c| c.count.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let x = |n| Var::constant(Tensor::zeros(&device, DType::F32, [n, 1, 1, 3]).unwrap());
    assert!(model.forward(&x(1), &mut model.train(Step::default())).is_err());
    model.forward(&x(1), &mut model.eval()).unwrap();
    assert_eq!(counts(), [0]);
    model.forward(&x(2), &mut model.train(Step::default())).unwrap();
    assert_eq!(counts(), [1]);
    model.buffers.count_batch();
    assert_eq!(counts(), [2]);
}

#[test]
fn the_readme_has_the_table_of_layers() {
    let rows: String = LAYERS.iter().map(|k| format!("| `{}` | {} |\n", k.form, k.help)).collect();
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/recipes/README.md")).unwrap();
    assert!(readme.contains(&rows), "src/recipes/README.md lacks these rows:\n{rows}");
}

/// Batch-norm with frozen statistics: training computes what evaluation does and moves nothing, and weight and bias have
/// gradients. Even one value per channel will do.
#[test]
fn frozen_statistics_stay() {
    let device = Device::cpu();
    let of = |phrase| Model::new(vec![layer(phrase).unwrap()], [1, 1, 2], &device, 0).unwrap();
    let (mut frozen, mut usual) = (of("batch_norm, frozen"), of("batch_norm"));
    let mut state = usual.state_dict().unwrap();
    for (key, values) in [("running_mean", [1.0, -2.0]), ("running_var", [4.0, 0.25]), ("weight", [0.5, 3.0])] {
        state.insert(format!("0.{key}"), Array::f32(&[2], &values));
    }
    state.insert("0.num_batches_tracked".into(), Array::i64(7));
    for model in [&mut frozen, &mut usual] {
        model.load_state_dict(&state, "here".as_ref()).unwrap();
    }
    for images in [1, 3] {
        let x: Vec<f32> = (0..2 * images).map(|i| i as f32 * 0.75 - 1.0).collect();
        let x = Var::constant(Tensor::from_slice(&device, [images, 1, 1, 2], &x).unwrap());
        let mut cx = frozen.train(Step::default());
        let y = frozen.forward(&x, &mut cx).unwrap();
        assert_eq!(cx.mode(), Mode::Train);
        let want = usual.forward(&x, &mut usual.eval()).unwrap();
        assert_eq!(y.value().to_vec::<f32>().unwrap(), want.value().to_vec::<f32>().unwrap());
        let mut grads = frozen.params.grads().unwrap();
        cx.backward(&y, y.value().clone(), Some(&mut grads)).unwrap();
        assert!((0..2).all(|i| grads.of(i).unwrap().iter().all(|&g| g != 0.0)));
    }
    assert!(frozen.state_dict().unwrap() == state);
}

/// A sum with one trainable number for each feature.
#[derive(Debug, Default)]
struct Shift(ParamId);

impl Layer for Shift {
    fn infer(&mut self, x: Shape, b: &mut Builder<'_>) -> Result<Shape> {
        self.0 = b.param("shift", [1, x.len()], Init::Constant(0.5))?;
        Ok(x)
    }

    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        x.add(&cx.param(self.0)?, cx)
    }

    fn phrase(&self) -> String {
        "shift".into()
    }
}

#[test]
fn a_layer_of_ones_own() {
    let device = Device::cpu();
    let net = vec![layer("flatten").unwrap(), Box::new(Shift::default()), layer("relu").unwrap()];
    let model = Model::new(net, [1, 1, 2], &device, 0).unwrap();
    let x = Var::constant(Tensor::from_slice(&device, [1, 1, 1, 2], &[1f32, -1.0]).unwrap());
    let mut cx = model.train(Step::default());
    let y = model.forward(&x, &mut cx).unwrap();
    assert_eq!(y.value().to_vec::<f32>().unwrap(), [1.5, 0.0]);
    let mut grads = model.params.grads().unwrap();
    cx.backward(&y, y.value().clone(), Some(&mut grads)).unwrap();
    assert_eq!(grads.of(0).unwrap(), [1.5, 0.0]);
    assert!(model.state_dict().unwrap().contains_key("1.shift"));
}
