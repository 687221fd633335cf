//! Recorded steps: what is replayed, and what of a step moves beside the rest of it.

use crate::training::{recipe, train};
use crate::under::Under;
use tilework::data::loader::Loader;
use tilework::data::shapes;
use tilework::device::cuda::CudaOptions;
use tilework::nn::Model;
use tilework::optim::{Optimizer, Sgd};
use tilework::step::{Rate, Step};
use tilework::train::Engine;
use tilework::{Ctx, DType, Device, Error, Tensor, Var};

/// A schedule by hand: rate, momentum and decay change with each step, and a recorded step need not be recorded anew.
#[test]
fn a_recorded_step_follows_any_schedule() {
    let Some(under) = Under::new() else { return };
    for kind in ["sgd", "adamw"] {
        let set = [format!("optimizer={{ kind = \"{kind}\", lr = 0.1 }}")];
        let recipe = recipe("a1-lenet", &set.each_ref().map(String::as_str));
        let losses = |device: &Device, graph: bool| {
            let data = std::sync::Arc::new(shapes::generate(0, 20, 1).train);
            let loader = Loader::new(data, 5, &[0.5; 3], &[0.25; 3], device).unwrap();
            let model = Model::build(&recipe.network().unwrap(), [32, 32, 3], device, 7).unwrap();
            // SGD keeps a velocity, whatever the momentum of the first step.
            let optimizer: Box<dyn Optimizer> = match kind {
                "sgd" => Box::new(Sgd::new(&model.params, true, true).unwrap()),
                _ => recipe.optimizer.build(&model.params).unwrap(),
            };
            let loss = |s: &Var, labels: &Tensor, cx: &mut Ctx<'_>| s.cross_entropy(labels, 0.1, cx);
            let mut engine = Engine::new(model, optimizer, loader.feed(true), loss).unwrap();
            if !graph {
                engine.without_graph();
            }
            for step in 0..9 {
                let wave = (step as f64).sin().abs();
                let rate = Rate { lr: 0.01 * wave, momentum: 0.9 - 0.5 * wave, decay: 0.1 * wave };
                let (epoch, batch_offset) = ((step / 4) as u32, 5 * (step % 4) as u32);
                let clip = if step % 3 == 0 { 0.01 } else { 0.0 };
                engine.step(&Step { step, epoch, batch_offset, clip, ..Step::default() }.rate(rate)).unwrap();
            }
            engine.results(0, 9).unwrap().into_iter().map(|(loss, _)| loss).collect::<Vec<_>>()
        };
        let (replayed, launched) = (losses(under.first(), true), losses(under.first(), false));
        assert_eq!(replayed, launched, "{kind}");
        for (got, want) in replayed.iter().zip(losses(&Device::cpu(), true)) {
            assert!((got - want).abs() <= 1e-4, "{kind}: {got} and {want}");
        }
    }
}

/// Parameters of the last layers move while the backward pass goes on, once nothing reads them any more: the emulated device
/// does it as late as it may, and with threads in reverse order as early.
#[test]
fn the_last_layers_move_while_the_pass_goes_on() {
    let Some(under) = Under::new() else { return };
    // More than half a million parameters behind the first layer.
    let layers = r#"layers=["max_pool 4", "flatten", "fc 64", "relu", "fc 8192", "relu", "fc 10"]"#;
    let groups = r#"groups = [{match = "*.bias", weight_decay = 0.0}, {match = "6.*", lr = 1e-2}]"#;
    let sgd = format!(r#"optimizer={{kind = "sgd", lr = 1e-3, momentum = 0.9, weight_decay = 0.1, {groups}}}"#);
    let adam = format!(r#"optimizer={{kind = "adam", lr = 1e-3, {groups}}}"#);
    for more in [[sgd.as_str(), "precision=bf16", "ema.decay=0.7"], [adam.as_str(), "precision=f32", "clip.value=0.5"]]
    {
        let recipe = recipe("quickstart", &[&[layers, "batch_size=2"], &more[..]].concat());
        let launched = train(&recipe, under.first(), 4, false);
        for (name, device) in under.devices.iter().take(2) {
            assert!(launched == train(&recipe, device, 4, true), "{more:?} ({name})");
        }
        for device in under.shuffled() {
            assert!(launched == train(&recipe, &device, 4, true), "{more:?} (nodes shuffled)");
        }
    }
}

/// Gradients of weights and biases, matrices of Muon, metrics and averages lie beside the main line of a recording: in whichever
/// order a GPU does them, the numbers are those of launches.
#[test]
fn lines_side_by_side_change_no_number() {
    let hopper = CudaOptions { tile: Some("Halo64"), ..CudaOptions::default() };
    let (Some(under), hopper) = (Under::new(), Under::hopper(hopper)) else { return };
    let biased = r#"layers=["conv 5x5, 4 channels, stride 2", "relu",
        {residual = ["conv 3x3, 4 channels, pad 1", "conv 3x3, 4 channels, pad 1"]}, "max_pool 2",
        "conv 3x3, 6 channels", "relu", "flatten", "fc 12", "relu", "dropout 0.3", "fc 10"]"#;
    let residual = r#"layers=["conv 3x3, 8 channels, stride 4", "batch_norm", "relu",
        {residual = ["am: conv 3x3, 8 channels, pad 1", "batch_norm", "relu", "bm: conv 3x3, 8 channels, pad 1", "batch_norm"]},
        "relu", "cm: conv 3x3, 8 channels, pad 1", "max_pool 2", "flatten", "fc 10"]"#;
    let muon = r#"optimizer={kind = "sgd", lr = 1e-3, momentum = 0.9, groups = [{match = "*m.weight", lr = 0.02, muon = {}}]}"#;
    // What is pooled and has no input to give a gradient of.
    let pooled = r#"layers=["conv 3x3, 8 channels, stride 3", "gelu", "conv 3x3, 16 channels, pad 1, no bias", "max_pool 2",
        "batch_norm", "gelu", "conv 3x3, 8 channels, no bias", "flatten", "fc 10"]"#;
    let on_default = [
        [biased, "precision=bf16", "batch_size=4", "ema.decay=0.9"],
        [biased, "precision=f32", "batch_size=4", "accumulate=2"],
        [residual, "precision=f16", "batch_size=6", muon],
        [residual, "precision=f32", "batch_size=5", "clip.norm=0.1"],
    ];
    let on_hopper = [pooled, "precision=f16", "batch_size=4", r#"freeze=["0.*"]"#];
    if let Some(Device::Cuda(cuda)) = hopper.as_ref().map(Under::first) {
        let recipe = recipe("quickstart", &on_hopper);
        let launched = || {
            train(&recipe, &Device::Cuda(cuda.clone()), 2, false);
            Ok(())
        };
        let kernels = cuda.profile(launched).unwrap();
        assert!(kernels.iter().any(|t| t.kernel.starts_with("conv2d_strip_bwd_w_pooled")), "{kernels:?}");
    }
    let on_hopper = hopper.iter().map(|hopper| (hopper, on_hopper));
    for (under, set) in on_default.map(|set| (&under, set)).into_iter().chain(on_hopper) {
        let recipe = recipe("quickstart", &set);
        let launched = train(&recipe, under.first(), 8, false);
        for device in under.shuffled() {
            assert!(launched == train(&recipe, &device, 8, true), "{set:?}");
        }
    }
}

/// What was captured is replayed on the state of the day, and keeps its memory to itself.
#[test]
fn captured_work_is_replayed() {
    let Some(under) = Under::new() else { return };
    let device = under.first();
    let Device::Cuda(cuda) = device else { panic!("a CUDA device") };
    let x = Var::constant(Tensor::from_slice(device, [64], &[1f32; 64]).unwrap());
    let mut kept = Tensor::zeros(device, DType::F32, [64]).unwrap();
    let dropped = |step: u64, kept: &mut Tensor| {
        let state = Step { step, ..Step::default() };
        let y = x.dropout(0.5, &mut Ctx::train(device).at(state))?;
        kept.copy_from(y.value())
    };
    let state = |step| Step { step, ..Step::default() };
    device.set_step(&state(1)).unwrap();
    dropped(1, &mut kept).unwrap();
    let first = kept.to_vec::<f32>().unwrap();
    let recorded = cuda.capture(|| dropped(1, &mut kept)).unwrap();
    assert_eq!(recorded.launches(), 1);
    device.set_step(&state(2)).unwrap();
    recorded.replay().unwrap();
    let second = kept.to_vec::<f32>().unwrap();
    assert_ne!(first, second);
    // Its temporary is not handed out while it may be replayed.
    let others: Vec<Tensor> = (0..4).map(|_| Tensor::from_slice(device, [64], &[7f32; 64]).unwrap()).collect();
    recorded.replay().unwrap();
    assert!(others.iter().all(|t| t.to_vec::<f32>().unwrap() == [7.0; 64]));
    device.set_step(&state(1)).unwrap();
    recorded.replay().unwrap();
    assert_eq!(kept.to_vec::<f32>().unwrap(), first);
    // A failure within leaves the device usable.
    assert!(cuda.capture(|| Err(Error::Internal("planned".into()))).is_err());
    recorded.replay().unwrap();
    drop(recorded);
    assert_eq!(kept.to_vec::<f32>().unwrap(), first);
}
