//! Muon, whitening, and steps of the recipe `airbench94` (`tools/airbench.py`).

use super::{batch, close, f64s, input, json, norm, state};
use std::sync::Arc;
use tilework::data::loader::{Batch, Loader};
use tilework::data::{Views, shapes};
use tilework::nn::{Model, layer};
use tilework::optim::{Muon, MuonSpec, Optimizer, Point, Sgd};
use tilework::recipes::{BUILT_IN, Recipe, Reduction};
use tilework::step::{Rate, Step};
use tilework::train::Engine;
use tilework::{Device, Shape, Tensor, Var};

/// A filter bank or a matrix, whose gradient is given: it is the whole network, a convolution of one place or a linear layer.
#[test]
fn muon_agrees_with_pytorch() {
    for (number, case) in json("airbench.json")["muon"].as_array().unwrap().iter().enumerate() {
        let device = Device::cpu();
        let dims: Vec<usize> = f64s(&case["shape"]).into_iter().map(|d| d as usize).collect();
        // O, I, H, W in PyTorch, O, H, W, I here.
        let ours = |values: &[f64]| -> Vec<f32> {
            let shape = Shape::from_slice(&dims).unwrap();
            let (inner, outer) = shape.rank4().map_or((1, 1), |[_, i, h, w]| (h * w, i));
            let item = inner * outer;
            (0..values.len())
                .map(|at| values[at / item * item + at % outer * inner + at % item / outer] as f32)
                .collect()
        };
        let (net, size) = match *dims {
            [o, i, h, w] => (vec![layer(&format!("conv {h}x{w}, {o} channels, no bias")).unwrap()], [h, w, i]),
            [o, i] => (vec![layer("flatten").unwrap(), layer(&format!("fc {o}, no bias")).unwrap()], [1, 1, i]),
            _ => panic!("{dims:?}"),
        };
        let mut model = Model::new(net, size, &device, 0).unwrap();
        model.params.configure(|p| p.by_matrix = true).unwrap();
        let range = model.params.list()[0].range();
        let start = ours(&f64s(&case["start"]));
        model.params.values_mut().unwrap().write(range.start, &start).unwrap();
        let spec =
            MuonSpec { steps: case["steps"].as_u64().unwrap() as u32, normalise: case["normalise"].as_bool().unwrap() };
        let others = Box::new(Sgd::new(&model.params, false, false).unwrap());
        let mut muon = Muon::new(&model.params, others, &[spec]).unwrap();
        let number_of = |key: &str| case[key].as_f64().unwrap();
        for (t, (g, lr)) in case["grads"].as_array().unwrap().iter().zip(f64s(&case["lr"])).enumerate() {
            let rate = Rate { lr, momentum: number_of("momentum"), decay: number_of("decay") };
            let mut grads = model.params.grads().unwrap();
            // Row o of the gradient is that of output o: an image a row, and one output of each counts.
            let (g, rows) = (ours(&f64s(g)), dims[0]);
            let mut cx = model.train(Step { step: t as u64, ..Step::default() }.rate(rate));
            let x = Tensor::from_slice(&device, [rows, size[0], size[1], size[2]], &g).unwrap();
            let y = model.forward(&Var::constant(x), &mut cx).unwrap();
            let one: Vec<f32> = (0..rows * rows).map(|i| if i / rows == i % rows { 1.0 } else { 0.0 }).collect();
            cx.backward(&y, Tensor::from_slice(&device, y.shape(), &one).unwrap(), Some(&mut grads)).unwrap();
            drop(y);
            muon.step(&mut model.params, &grads).unwrap();
            let got: Vec<f64> =
                model.params.values().read::<f32>(range.clone()).unwrap().into_iter().map(f64::from).collect();
            let want: Vec<f64> = ours(&f64s(&case["after"][t])).into_iter().map(f64::from).collect();
            close(&format!("muon {number}, step {t}"), &got, &want, 2e-6);
        }
    }
}

#[test]
fn whitening_agrees_with_pytorch() {
    for case in json("airbench.json")["whiten"].as_array().unwrap() {
        let device = Device::cpu();
        let (size, [_, _, c]) = (case["kernel"].as_u64().unwrap() as usize, input(case));
        let net = format!("conv {size}x{size}, {} channels, init whiten", 2 * size * size * c);
        let mut model = Model::build(&[net.as_str().into()], input(case), &device, 0).unwrap();
        model.whiten(&batch(case, 0, &device).0).unwrap();
        close(&net, &state(&mut model)("0.weight"), &f64s(&case["filters"]), 1e-6);
    }
}

/// From the same weights on the same batches the recipe's steps give PyTorch's losses, numbers and views.
#[test]
fn airbench94_agrees_with_pytorch() {
    let device = Device::cpu();
    for run in json("airbench.json")["steps"].as_array().unwrap() {
        let (n, seed) = (run["batch"].as_u64().unwrap() as usize, run["seed"].as_u64().unwrap());
        let of = |t: usize| {
            let (images, labels) = batch(run, t as u32, &device);
            Batch { images, labels }
        };
        let data = Arc::new(shapes::generate(0, n, 1).train);
        let width = |i: usize| format!("{} channels", run["widths"][i]);
        let (_, text) = BUILT_IN.iter().find(|(name, _)| *name == "airbench94").unwrap();
        let text = text.replace("64 channels", &width(0)).replace("256 channels", &width(1));
        let recipe = Recipe::parse(&text, "airbench94", &[]).unwrap();
        assert_eq!((recipe.reduction, recipe.tta), (Reduction::Sum, Views::MirrorShift));
        let mut model = Model::build(&recipe.network().unwrap(), input(run), &device, seed).unwrap();
        model.whiten(&of(0).images).unwrap();
        recipe.optimizer.group(&mut model.params).unwrap();
        let optimizer = recipe.optimizer.build(&model.params).unwrap();
        let loader = Loader::new(data.clone(), n, &[0.5; 3], &[0.5; 3], &device).unwrap();
        let loss = recipe.loss.with(recipe.label_smoothing);
        let mut engine = Engine::new(model, optimizer, loader.feed(false), loss).unwrap();
        engine.sum_losses(true);
        let (losses, factor) = (f64s(&run["losses"]["f64"]), run["factor"].as_f64().unwrap());
        let mut got = Vec::new();
        for t in 0..losses.len() {
            let point = Point { epoch: 0, epochs: recipe.epochs, batch: t, batches: 25 };
            let mut step = recipe.at(Step { step: t as u64, ..Step::default() }, point);
            step.rates.iter_mut().for_each(|rate| rate.lr *= factor);
            engine.step_on(&of(t), &step).unwrap();
            got.push(engine.results(t as u64, 1).unwrap()[0].0);
        }
        close(&format!("losses at {factor}"), &got, &losses, 1e-6);
        let now = state(&mut engine.model);
        for (key, want) in run["numbers"].as_object().unwrap() {
            let (got, length) = (now(key), want["norm"].as_f64().unwrap());
            close(&format!("norm of {key} at {factor}"), &[norm(&got)], &[length], 1e-4);
            // Each against the tensor's root mean square.
            let usual = (length / (got.len() as f64).sqrt()).max(1e-6);
            for (at, want) in f64s(&want["at"]).into_iter().zip(f64s(&want["values"])) {
                let got = got[at as usize];
                assert!((got - want).abs() <= 1e-3 * usual, "{key}[{at}] at {factor}: got {got}, PyTorch {want}");
            }
        }
        let model = &engine.model;
        let scores = Views::MirrorShift.mean(&of(0).images, &mut model.eval(), |x, cx| model.forward(x, cx)).unwrap();
        let views: Vec<f64> = run["views"].as_array().unwrap().iter().flat_map(f64s).collect();
        let largest = views.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let got: Vec<f64> = scores.value().to_f64().unwrap().iter().map(|v| v / largest).collect();
        close(&format!("views at {factor}"), &got, &views.iter().map(|v| v / largest).collect::<Vec<_>>(), 1e-3);
    }
}
