//! The recipes' networks and a ResNet-18 with torchvision's weights (`tools/trajectories.py`).

use super::{batch, close, f64s, input, json};
use serde_json::Value;
use tilework::nn::Model;
use tilework::nn::state::{Array, StateDict};
use tilework::optim::{Algorithm, OptimizerSpec};
use tilework::recipes::{Loss, Recipe};
use tilework::rng::{Stream, stream, to_unit};
use tilework::step::Step;
use tilework::{Device, Var};

/// Loads the tensors of these keys, drawn as `draw` of `tools/trajectories.py` says; the others stay.
fn draw<'a>(model: &mut Model, seed: u64, keys: impl Iterator<Item = &'a str>) {
    let mut state: StateDict = model.state_dict().unwrap();
    let mut fan_in = None;
    for (i, key) in keys.enumerate() {
        let dims = state[key].shape().to_vec();
        let stream = Stream { seed, epoch: 0, step: 0, id: stream::INIT + i as u32 };
        let mut words = vec![0; dims.iter().product()];
        stream.fill(0, &mut words);
        let u = words.into_iter().map(to_unit);
        if dims.len() > 1 {
            fan_in = Some(dims[1..].iter().product::<usize>());
        } else if key.ends_with(".weight") || key.ends_with(".running_var") {
            fan_in = None;
        }
        let values: Vec<f32> = match fan_in {
            Some(n) => {
                let bound = (6.0 / n as f64).sqrt() as f32;
                u.map(|u| (2.0 * u - 1.0) * bound).collect()
            }
            None if key.ends_with(".weight") || key.ends_with(".running_var") => u.map(|u| u + 0.5).collect(),
            None => u.map(|u| u - 0.5).collect(),
        };
        state.insert(key.into(), Array::f32(&dims, &values));
    }
    model.load_state_dict(&state, "drawn".as_ref()).unwrap();
}

fn model(golden: &Value, name: &str, device: &Device) -> Model {
    let set: Vec<String> = serde_json::from_value(golden["set"].clone()).unwrap_or_default();
    let recipe = Recipe::load(name, &set).unwrap();
    let mut model =
        Model::build(&recipe.network().unwrap(), input(golden), device, golden["seed"].as_u64().unwrap()).unwrap();
    model.freeze(&recipe.freeze).unwrap();
    model
}

/// The first losses of the recipes' networks are PyTorch's within 1e-4; the networks that `networks.json` lacks.
#[test]
fn recipes_agree_with_pytorch() {
    for golden in json("recipes.json")["recipes"].as_array().unwrap() {
        let name = golden["name"].as_str().unwrap();
        let device = Device::cpu();
        let mut model = model(golden, name, &device);
        let lr = golden["lr"].as_f64().unwrap();
        let spec: OptimizerSpec =
            Algorithm::Sgd { lr, momentum: 0.9, nesterov: false, weight_decay: 0.0, decoupled: false }.into();
        let mut optimizer = spec.build(&model.params).unwrap();
        let mut grads = model.params.grads().unwrap();
        for (t, want) in f64s(&golden["losses"]["f64"]).into_iter().enumerate() {
            let (x, labels) = batch(golden, t as u32, &device);
            let mut cx = model.train(Step { step: t as u64, ..Step::default() }.rate(spec.rate()));
            let scores = model.forward(&Var::constant(x), &mut cx).unwrap();
            let loss = Loss::CrossEntropy.with(0.0)(&scores, &labels, &mut cx).unwrap();
            let got = loss.value().item().unwrap();
            assert!((got - want).abs() <= 1e-4 * want, "{name}: loss of step {t}: got {got}, PyTorch {want}");
            drop(scores);
            cx.backward_loss(&loss, Some(&mut grads)).unwrap();
            optimizer.step(&mut model.params, &grads).unwrap();
        }
    }
}

/// A state dict with torchvision's keys gives its logits within 1e-4.
#[test]
fn resnet18_has_torchvision_s_logits() {
    let golden = &json("recipes.json")["resnet18"];
    let device = Device::cpu();
    let mut model = model(golden, "d1-resnet18", &device);
    let keys = golden["keys"].as_array().unwrap().iter().map(|k| k.as_str().unwrap());
    draw(&mut model, golden["seed"].as_u64().unwrap(), keys);
    let (x, _) = batch(golden, 0, &device);
    let scores = model.forward(&Var::constant(x), &mut model.eval()).unwrap();
    let rows: Vec<f64> = golden["logits"].as_array().unwrap().iter().flat_map(f64s).collect();
    close("logits of resnet18", &scores.value().to_f64().unwrap(), &rows, 1e-4);
}
