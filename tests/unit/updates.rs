//! Two hundred updates with what a recipe has for them (`tools/updates.py`): clipping, groups, decoupled decay,
//! accumulation, averages.

use super::{batch, close, input, json, layers, norm};
use serde_json::{Value, json as value};
use std::sync::Arc;
use tilework::data::loader::{Batch, Loader};
use tilework::data::shapes;
use tilework::nn::Model;
use tilework::nn::state::StateDict;
use tilework::optim::Point;
use tilework::recipes::Recipe;
use tilework::step::Step;
use tilework::train::Engine;
use tilework::{Device, Var};

fn check(what: &str, numbers: &StateDict, golden: &Value) {
    for (key, want) in golden.as_object().unwrap() {
        let got: Vec<f64> = numbers[key].to_f32().unwrap().into_iter().map(f64::from).collect();
        close(&format!("{what}: norm of {key}"), &[norm(&got)], &[want["norm"].as_f64().unwrap()], 1e-4);
        for (at, want) in want["at"].as_array().unwrap().iter().zip(super::f64s(&want["values"])) {
            close(&format!("{what}: {key}"), &[got[at.as_u64().unwrap() as usize]], &[want], 1e-3);
        }
    }
}

#[test]
fn two_hundred_updates_agree_with_pytorch() {
    let golden = json("updates.json");
    let number = |key: &str| golden[key].as_u64().unwrap();
    let (batches, seed) = (number("batches") as usize, number("seed"));
    let device = Device::cpu();
    let data = Arc::new(shapes::generate(0, number("batch") as usize, 1).train);
    let of = |t: usize| {
        let mut golden = golden.clone();
        golden["batch"] = if t == batches - 1 { golden["last"].clone() } else { golden["batch"].clone() };
        let (images, labels) = batch(&golden, t as u32, &device);
        Batch { images, labels }
    };
    for case in golden["cases"].as_array().unwrap() {
        let mut set: Vec<String> = serde_json::from_value(case["set"].clone()).unwrap();
        let epochs = case["epochs"].as_u64().unwrap() as u32;
        let name = set.join(" ");
        set.push(format!("epochs={epochs}"));
        set.push(format!("layers={}", value!(layers(&golden))));
        let recipe = Recipe::load("a1-lenet", &set).unwrap();
        let mut model = Model::build(&recipe.layers, input(&golden), &device, seed).unwrap();
        recipe.optimizer.group(&mut model.params).unwrap();
        let optimizer = recipe.optimizer.build(&model.params).unwrap();
        let loader = Loader::new(data.clone(), number("batch") as usize, &[0.5; 3], &[0.5; 3], &device).unwrap();
        let mut engine = Engine::new(model, optimizer, loader.feed(false), recipe.loss.with(0.0)).unwrap();
        if recipe.ema.is_some() {
            engine.keep_average().unwrap();
        }
        let updates = batches.div_ceil(recipe.accumulate);
        let mut losses = Vec::new();
        for step in 0..epochs as usize * batches {
            let (epoch, t) = (step / batches, step % batches);
            let point = Point { epoch: epoch as u32, epochs, batch: t / recipe.accumulate, batches: updates };
            let held = (step - (epoch * updates + point.batch)) as u64;
            let now = recipe.at(Step { step: step as u64, held, ..Step::default() }, point);
            let last = (t + 1) % recipe.accumulate == 0 || t + 1 == batches;
            match last {
                true => engine.step_on(&of(t), &now).unwrap(),
                false => engine.accumulate_on(&of(t), &now).unwrap(),
            }
            losses.push(engine.results(step as u64, 1).unwrap()[0].0);
        }
        let losses: Vec<f64> = losses.into_iter().step_by(7).collect();
        close(&format!("{name}: losses"), &losses, &super::f64s(&case["losses"]), 1e-4);
        check(&name, &engine.model.state_dict().unwrap(), &case["parameters"]);
        if recipe.ema.is_some() {
            let (state, loss) = engine
                .averaged(|model| {
                    let batch = of(0);
                    let mut cx = model.eval();
                    let scores = model.forward(&Var::constant(batch.images), &mut cx)?;
                    let loss = scores.cross_entropy(&batch.labels, 0.0, &mut cx)?.value().item()?;
                    drop((scores, cx));
                    Ok((model.state_dict()?, loss))
                })
                .unwrap();
            check(&format!("{name}: average"), &state, &case["averaged"]);
            close(&format!("{name}: its loss"), &[loss], &[case["averaged_loss"].as_f64().unwrap()], 1e-4);
        }
    }
}
