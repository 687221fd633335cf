//! Rung 2 of the ladder of truth: ops, optimizers and whole networks against PyTorch.
//!
//! `tools/goldens.py` wrote the files in `tests/goldens/`; its header gives their format.

#[path = "../unit/airbench.rs"]
mod airbench;
#[path = "../unit/recipes.rs"]
mod recipes;
#[path = "../unit/updates.rs"]
mod updates;

use safetensors::{SafeTensors, tensor::Dtype};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tilework::autograd::Mode;
use tilework::nn::{LayerSpec, Model, layer};
use tilework::ops::window::Window;
use tilework::optim::{Algorithm, OptimizerSpec};
use tilework::recipes::Loss;
use tilework::rng::{Stream, stream};
use tilework::step::{Rate, Step};
use tilework::{Ctx, DType, Device, Result, Shape, Tensor, Var};

fn file(name: &str) -> PathBuf {
    // Cargo sets it for tests that it runs; so does whoever runs them on another machine.
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&root).join("tests/goldens").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(file(name)).unwrap()).unwrap()
}

fn f64s(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn pair(v: &Value) -> [usize; 2] {
    [v[0].as_u64().unwrap() as usize, v[1].as_u64().unwrap() as usize]
}

fn window(p: &Value) -> Window {
    Window { kernel: pair(&p["kernel"]), stride: pair(&p["stride"]), pad: pair(&p["padding"]) }
}

/// Largest difference, relative to the largest value. Values below 1 % that come out of terms of
/// order one have lost the digits in f32 that the terms had: there the difference is absolute.
#[track_caller]
fn close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let least = if tolerance > 1e-7 { 1e-2 } else { 1e-30 };
    let scale = want.iter().fold(least, |m, w| f64::max(m, w.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= tolerance * scale,
            "{what}[{i}]: got {g}, PyTorch {w} (tolerance {tolerance} of {scale})"
        );
    }
}

/// A tensor of a safetensors file: sizes and numbers as they lie in PyTorch.
struct Torch {
    dims: Vec<usize>,
    values: Vec<f64>,
}

fn read(tensors: &SafeTensors<'_>, name: &str) -> Torch {
    let t = tensors.tensor(name).unwrap();
    let values = match t.dtype() {
        Dtype::F64 => t.data().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        Dtype::I64 => t.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
        other => panic!("{name} is {other:?}"),
    };
    Torch { dims: t.shape().to_vec(), values }
}

/// N, C, H, W to N, H, W, C, and back with `inverse`; other ranks as they are.
fn permute(dims: &[usize], values: &[f64], inverse: bool) -> (Vec<usize>, Vec<f64>) {
    let &[n, c, h, w] = dims else { return (dims.to_vec(), values.to_vec()) };
    let (inner, outer) = if inverse { (h * w, c) } else { (c, h * w) };
    let item = c * h * w;
    let from = |i: usize| i / item * item + i % item % inner * outer + i % item / inner;
    (vec![n, h, w, c], (0..values.len()).map(|i| values[from(i)]).collect())
}

impl Torch {
    fn ours<T: tilework::dtype::Real>(&self, device: &Device) -> Tensor {
        let (dims, values) = permute(&self.dims, &self.values, false);
        let values: Vec<T> = values.iter().map(|&v| T::of(v)).collect();
        Tensor::from_slice(device, Shape::from_slice(&dims).unwrap(), &values).unwrap()
    }
}

/// Our tensor in PyTorch's order.
fn theirs(t: &Tensor) -> Vec<f64> {
    let values = t.to_f64().unwrap();
    match t.shape().rank4() {
        Some([n, h, w, c]) => permute(&[n, c, h, w], &values, true).1,
        None => values,
    }
}

fn check_op<T: tilework::dtype::Real>(case: &Value, tensors: &SafeTensors<'_>, tolerance: f64) {
    let op = case["op"].as_str().unwrap();
    let name = format!("{op} / {} in {}", case["case"], T::DTYPE);
    let p = &case["params"];
    let roles = case["tensors"].as_object().unwrap();
    let get = |role: &str| read(tensors, roles[role].as_str().unwrap());
    let device = Device::cpu();
    let mut cx = Ctx::train(&device);
    let inputs: Vec<&str> =
        ["x", "a", "w", "b", "gamma", "beta"].into_iter().filter(|r| roles.contains_key(*r)).collect();
    let vars: Vec<Var> = inputs.iter().map(|r| cx.leaf(get(r).ours::<T>(&device))).collect();
    let labels = roles.get("labels").map(|_| {
        let t = get("labels");
        let values: Vec<i32> = t.values.iter().map(|&v| v as i32).collect();
        Tensor::from_slice(&device, [values.len()], &values).unwrap()
    });
    let labels = || labels.as_ref().unwrap();
    // Storing a large input in f32 already rounds it, in proportion to its size.
    let largest = inputs.iter().flat_map(|r| get(r).values).fold(1.0, |m: f64, v| m.max(v.abs()));
    let tolerance = if T::DTYPE == DType::F32 { tolerance * largest } else { tolerance };
    let x = &vars[0];
    let mut running = None;
    let y: Result<Var> = match op {
        "conv2d" => x.conv2d(&vars[1], vars.get(2), pair(&p["stride"]), pair(&p["padding"]), &mut cx),
        "linear" => x.linear(&vars[1], vars.get(2), &mut cx),
        "relu" => x.relu(&mut cx),
        "silu" => x.silu(&mut cx),
        "gelu" => x.gelu(&mut cx),
        "scale" => x.scale(p["factor"].as_f64().unwrap(), &mut cx),
        "add" => x.add(&vars[1], &mut cx),
        "flatten" => x.flatten(&mut cx),
        "max_pool2d" => x.max_pool2d(window(p), &mut cx),
        "avg_pool2d" => x.avg_pool2d(window(p), p["count_include_pad"].as_bool().unwrap(), &mut cx),
        "adaptive_max_pool2d" => x.adaptive_max_pool2d(pair(&p["output"]), &mut cx),
        "adaptive_avg_pool2d" => x.adaptive_avg_pool2d(pair(&p["output"]), &mut cx),
        "batch_norm2d" => {
            let [mut mean, mut var] = ["running_mean", "running_var"].map(|role| get(role).ours::<T>(&device));
            let mode = if p["train"].as_bool().unwrap() { Mode::Train } else { Mode::Eval };
            let (momentum, eps) = (p["momentum"].as_f64().unwrap(), p["eps"].as_f64().unwrap());
            let y = cx.with_mode_during(mode, |cx| {
                x.batch_norm2d(&vars[1], &vars[2], [&mut mean, &mut var], momentum, eps, cx)
            });
            running = Some([mean, var]);
            y
        }
        "cross_entropy" => x.cross_entropy(labels(), p["label_smoothing"].as_f64().unwrap(), &mut cx),
        "log_softmax" => x.log_softmax(&mut cx),
        "nll" => x.nll(labels(), &mut cx),
        "log_softmax_nll" => x.log_softmax(&mut cx).and_then(|l| l.nll(labels(), &mut cx)),
        other => panic!("a golden of an op that is not known here: {other}"),
    };
    let y = y.unwrap_or_else(|e| panic!("{name}: {e}"));
    close(&format!("{name}: y"), &theirs(y.value()), &get("y").values, tolerance);
    if let Some([mean, var]) = &running {
        for (role, t) in [("running_mean_after", mean), ("running_var_after", var)] {
            if roles.contains_key(role) {
                close(&format!("{name}: {role}"), &theirs(t), &get(role).values, tolerance);
            }
        }
    }
    let gy = get("gy").ours::<T>(&device).reshape(y.shape()).unwrap();
    let grads = cx.backward(&y, gy, None).unwrap();
    for (role, var) in inputs.iter().zip(&vars) {
        let golden = format!("g{role}");
        if roles.contains_key(&golden) {
            let g = grads.of(var).unwrap_or_else(|| panic!("{name}: nothing flowed to {role}"));
            close(&format!("{name}: {golden}"), &theirs(g), &get(&golden).values, tolerance);
        }
    }
}

#[test]
fn ops_agree_with_pytorch() {
    let bytes = std::fs::read(file("ops.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let cases = json("ops.json");
    let cases = cases.as_array().unwrap();
    for case in cases {
        check_op::<f64>(case, &tensors, 1e-9);
        // Numbers that f32 flushes to zero are for f64 alone.
        let tiny =
            |role: &Value| read(&tensors, role.as_str().unwrap()).values.iter().any(|&v| v != 0.0 && v as f32 == 0.0);
        if !case["tensors"].as_object().unwrap().values().any(tiny) {
            check_op::<f32>(case, &tensors, 2e-5);
        }
    }
    // Every op that PyTorch has too is among them (dropout draws its own mask).
    for room in tilework::ops::ROOMS.iter().filter(|r| r.name != "dropout") {
        let stem = room.name.trim_start_matches("adaptive_");
        assert!(cases.iter().any(|c| c["op"].as_str().unwrap().contains(stem)), "no golden for {}", room.name);
    }
}

/// A network of one parameter vector: a linear layer without a bias, whose gradient is given.
#[test]
fn optimizers_agree_with_pytorch() {
    let all = json("optim.json");
    let mut kinds = std::collections::BTreeSet::new();
    for case in all.as_array().unwrap() {
        let (kind, p) = (case["optimizer"].as_str().unwrap(), &case["params"]);
        let name = format!("{kind} / {}", case["case"]);
        kinds.insert(kind);
        let number = |key: &str| p[key].as_f64().unwrap_or(0.0);
        let adam = || {
            ([p["betas"][0].as_f64().unwrap(), p["betas"][1].as_f64().unwrap()], number("eps"), number("weight_decay"))
        };
        let spec: OptimizerSpec = match kind {
            "sgd" => Algorithm::Sgd {
                lr: 0.0,
                momentum: number("momentum"),
                nesterov: p["nesterov"].as_bool().unwrap(),
                weight_decay: number("weight_decay"),
                decoupled: false,
            },
            "adam" => {
                let (betas, eps, weight_decay) = adam();
                Algorithm::Adam { lr: 0.0, betas, eps, weight_decay }
            }
            _ => {
                let (betas, eps, weight_decay) = adam();
                Algorithm::Adamw { lr: 0.0, betas, eps, weight_decay }
            }
        }
        .into();
        let device = Device::cpu();
        let start = f64s(&case["start"]);
        let net = vec![layer("flatten").unwrap(), layer("fc 1, no bias").unwrap()];
        let mut model = Model::new(net, [1, 1, start.len()], &device, 0).unwrap();
        let range = model.params.list()[0].range();
        let start: Vec<f32> = start.iter().map(|&v| v as f32).collect();
        model.params.values_mut().unwrap().host_mut::<f32>().unwrap()[range.clone()].copy_from_slice(&start);
        let mut grads = model.params.grads().unwrap();
        let mut optimizer = spec.build(&model.params).unwrap();
        let steps =
            case["grads"].as_array().unwrap().iter().zip(case["after"].as_array().unwrap()).zip(f64s(&case["lr"]));
        for (step, ((g, after), lr)) in steps.enumerate() {
            // y = x·wᵀ with gradient 1, so that the gradient of w is x.
            let x: Vec<f32> = f64s(g).iter().map(|&v| v as f32).collect();
            let rate = Rate { lr, ..spec.rate() };
            let now = Step { step: step as u64, ..Step::default() }.rate(rate);
            let mut cx = model.train(now);
            let x = Var::constant(Tensor::from_slice(&device, [1, 1, 1, x.len()], &x).unwrap());
            let y = model.forward(&x, &mut cx).unwrap();
            let one = Tensor::from_slice(&device, y.shape(), &[1f32]).unwrap();
            cx.backward(&y, one, Some(&mut grads)).unwrap();
            drop(y);
            optimizer.step(&mut model.params, &grads).unwrap();
            let got: Vec<f64> =
                model.params.values().host::<f32>().unwrap()[range.clone()].iter().map(|&v| f64::from(v)).collect();
            close(&format!("{name}, step {step}"), &got, &f64s(after), 3e-6);
        }
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["adam", "adamw", "sgd"]);
}

fn layers(golden: &Value) -> Vec<LayerSpec> {
    serde_json::from_value(golden["layers"].clone()).unwrap()
}

/// Input sizes as `[h, w, c]`; the goldens have PyTorch's c, h, w.
fn input(golden: &Value) -> [usize; 3] {
    let i = |at: usize| golden["input"][at].as_u64().unwrap() as usize;
    [i(1), i(2), i(0)]
}

/// Batch `t` of a golden: pixels and labels drawn from Philox on both sides.
fn batch(golden: &Value, t: u32, device: &Device) -> (Tensor, Tensor) {
    let (n, [h, w, c]) = (golden["batch"].as_u64().unwrap() as usize, input(golden));
    let (seed, classes) = (golden["seed"].as_u64().unwrap(), golden["classes"].as_u64().unwrap_or(10));
    let draw = |epoch| Stream { seed, epoch, step: t, id: stream::SHAPES };
    let pixel = |i| ((draw(1).word(i) >> 24) as f32 / 255.0 - 0.5) / 0.5;
    let x: Vec<f32> = (0..n * h * w * c).map(pixel).collect();
    let labels: Vec<i32> = (0..n).map(|i| draw(2).below(i, classes as u32) as i32).collect();
    (Tensor::from_slice(device, [n, h, w, c], &x).unwrap(), Tensor::from_slice(device, [n], &labels).unwrap())
}

/// The numbers of a state dict by key, in PyTorch's order.
fn state(model: &mut Model) -> impl Fn(&str) -> Vec<f64> + use<> {
    let entries = model.state_dict().unwrap();
    move |key| entries[key].to_f32().unwrap().iter().map(|&v| f64::from(v)).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// Twenty steps from the same weights on the same batches give PyTorch's losses within 1e-4.
#[test]
fn trajectories_agree_with_pytorch() {
    let goldens = json("networks.json");
    for golden in goldens["networks"].as_array().unwrap() {
        let name = golden["name"].as_str().unwrap();
        let device = Device::cpu();
        let mut model =
            Model::build(&layers(golden), input(golden), &device, golden["seed"].as_u64().unwrap()).unwrap();
        let now = state(&mut model);
        for (key, want) in golden["initial"].as_object().unwrap() {
            let got = now(key);
            let at: Vec<f64> =
                want["at"].as_array().unwrap().iter().map(|i| got[i.as_u64().unwrap() as usize]).collect();
            let bits = |v: &[f64]| v.iter().map(|&x| (x as f32).to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&at), bits(&f64s(&want["values"])), "{name}: initial {key}");
        }
        let lr = golden["lr"].as_f64().unwrap();
        let momentum = golden["momentum"].as_f64().unwrap();
        let spec: OptimizerSpec =
            Algorithm::Sgd { lr, momentum, nesterov: false, weight_decay: 0.0, decoupled: false }.into();
        let mut optimizer = spec.build(&model.params).unwrap();
        let mut grads = model.params.grads().unwrap();
        let loss_kind = if golden["loss"] == "nll" { Loss::Nll } else { Loss::CrossEntropy };
        let losses = f64s(&golden["losses"]["f64"]);
        for (t, want) in losses.iter().enumerate() {
            let step = Step { step: t as u64, ..Step::default() }.rate(spec.rate());
            let (x, labels) = batch(golden, t as u32, &device);
            let mut cx = model.train(step);
            let scores = model.forward(&Var::constant(x), &mut cx).unwrap();
            let loss = loss_kind.with(0.0)(&scores, &labels, &mut cx).unwrap();
            let got = loss.value().item().unwrap();
            assert!((got - want).abs() <= 1e-4 * want, "{name}: loss of step {t}: got {got}, PyTorch {want}");
            if t == 0 {
                let drawn: Vec<f64> = labels.host::<i32>().unwrap().iter().map(|&l| f64::from(l)).collect();
                assert_eq!(drawn, f64s(&golden["first_batch"]["labels"]), "{name}: labels of the first batch");
                let rows: Vec<f64> = golden["logits"]["f64"].as_array().unwrap().iter().flat_map(f64s).collect();
                close(&format!("{name}: logits"), &scores.value().to_f64().unwrap(), &rows, 5e-5);
            }
            drop(scores);
            cx.backward_loss(&loss, Some(&mut grads)).unwrap();
            if t == 0 {
                check_gradients(name, &model, &grads, golden);
            }
            optimizer.step(&mut model.params, &grads).unwrap();
        }
        let end = state(&mut model);
        for part in ["parameters", "buffers"] {
            for (key, want) in golden[part].as_object().into_iter().flatten() {
                let want = want["norm"]["f64"].as_f64().or_else(|| want["f64"].as_f64());
                if let Some(want) = want {
                    let got = norm(&end(key));
                    assert!(
                        (got - want).abs() <= 1e-4 * want + 1e-5,
                        "{name}: norm of {key} at the end: got {got}, PyTorch {want}"
                    );
                }
            }
        }
    }
}

fn check_gradients(name: &str, model: &Model, grads: &tilework::params::ParamGrads, golden: &Value) {
    let golden = golden["gradients"].as_object().unwrap();
    let wanted = |key: &str| golden[key]["norm"]["f64"].as_f64().unwrap();
    let largest = model.params.list().iter().map(|p| wanted(&p.key)).fold(0.0, f64::max);
    for (i, p) in model.params.list().iter().enumerate() {
        let g: Vec<f64> = grads.of(i).unwrap().iter().map(|&v| f64::from(v)).collect();
        let (got, want) = (norm(&g), wanted(&p.key));
        // A gradient that is zero but for rounding is measured against the network's largest.
        assert!(
            (got - want).abs() <= 1e-4 * want + 1e-6 * largest,
            "{name}: gradient of {}: norm {got}, PyTorch {want}",
            p.key
        );
        let (got, want) = (g.iter().sum::<f64>(), golden[&p.key]["sum"]["f64"].as_f64().unwrap());
        let scale = norm(&g) * (g.len() as f64).sqrt();
        assert!(
            (got - want).abs() <= 1e-4 * scale + 1e-5 * largest,
            "{name}: gradient of {}: sum {got}, PyTorch {want}",
            p.key
        );
    }
}

/// State dicts that PyTorch saved load unchanged and give its logits.
#[test]
fn state_dicts_of_pytorch_load() {
    let goldens = json("networks.json");
    for golden in goldens["state_dicts"].as_array().unwrap() {
        let path = file(golden["file"].as_str().unwrap());
        let bytes = std::fs::read(&path).unwrap();
        let entries = tilework::nn::state::deserialize(&bytes, &path).unwrap();
        let device = Device::cpu();
        let mut model = Model::build(&layers(golden), input(golden), &device, 0).unwrap();
        model.load_state_dict(&entries, &path).unwrap();
        // And back: the same keys, shapes and numbers.
        assert!(model.state_dict().unwrap() == entries);
        let (x, labels) = batch(golden, 0, &device);
        let mut cx = model.eval();
        let scores = model.forward(&Var::constant(x), &mut cx).unwrap();
        let rows: Vec<f64> = golden["logits"]["f64"].as_array().unwrap().iter().flat_map(f64s).collect();
        close(golden["file"].as_str().unwrap(), &scores.value().to_f64().unwrap(), &rows, 1e-5);
        let loss = scores.cross_entropy(&labels, 0.0, &mut cx).unwrap().value().item().unwrap();
        assert!((loss - golden["loss"].as_f64().unwrap()).abs() < 1e-5);
        assert_eq!(scores.value().dtype(), DType::F32);
    }
}
