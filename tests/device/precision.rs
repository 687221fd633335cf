//! Training in two bytes: the losses of f32, with and without a recorded step, in pieces; and dynamic loss scaling.

use crate::training::{recipe, train, train_on};
use crate::under::Under;
use std::sync::atomic::AtomicBool;
use tilework::Device;
use tilework::data::shapes;
use tilework::device::cuda::CudaOptions;
use tilework::recipes::Recipe;
use tilework::train::{Limits, RunDir, Trainer, checkpoint};

/// Steps of each network on the device, in f16 and bf16, beside those of f32 on the CPU.
#[test]
fn losses_are_those_of_f32() {
    let Some(under) = Under::new() else { return };
    let quickstart = ["batch_size=8", "epochs=9", "optimizer.lr=3e-4"];
    let layers = r#"layers=["conv 3x3, 8 channels, stride 2, pad 1, no bias", "batch_norm", "silu", "dropout 0.2",
        "max_pool 2", "conv 3x3, 16 channels, pad 1", "gelu", "avg_pool 8", "flatten", "fc 10"]"#;
    let others = ["batch_size=8", "epochs=9", "optimizer={kind = \"adamw\", lr = 1e-3}", layers];
    let lenet = ["batch_size=8", "epochs=9"];
    // Filters that are wide as matrices, and weights that are tall.
    let muon = [
        "batch_size=8",
        "epochs=9",
        r#"layers=["conv 5x5, 8 channels, stride 3", "gelu", "flatten", "fc 3", "fc 10"]"#,
        r#"optimizer={kind = "sgd", lr = 1e-3, groups = [{match = "*.weight", muon = {}, lr = 1e-2}]}"#,
    ];
    // 28 images: more than one epoch, and a smaller batch at its end.
    let steps = 5;
    for (name, set) in
        [("quickstart", &quickstart[..]), ("a1-lenet", &lenet), ("a1-lenet", &others), ("a1-lenet", &muon)]
    {
        let (want, _) = train(&recipe(name, set), &Device::cpu(), steps, true);
        // The optimizer of the last is the same in both.
        let all = ["precision=f16", "precision=bf16"];
        for precision in &all[usize::from(set == muon)..] {
            let recipe = recipe(name, &[set, &[*precision]].concat());
            let (replayed, state) = train(&recipe, under.first(), steps, true);
            for (got, want) in replayed.iter().zip(&want) {
                let (step, got, want) = (want.step, got.loss, want.loss);
                assert!((got - want).abs() <= 1e-2, "{name}, {precision}, step {step}: {got} and {want}");
            }
            // Which is the same for both, but for the scale of losses.
            if *precision == "precision=bf16" {
                continue;
            }
            let (launched, other) = train(&recipe, under.first(), steps, false);
            let bits = |all: &[tilework::train::StepReport]| all.iter().map(|r| r.loss.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&replayed), bits(&launched), "{name}, {precision}: with and without a recorded step");
            assert!(state == other, "{name}, {precision}: the state after a recorded step");
        }
    }
}

/// The losses of four steps, fused and apart, differ by so much at most.
#[track_caller]
fn losses_agree(recipe: &Recipe, [fused, apart]: [&Under; 2], difference: f64) {
    let [(one, _), (other, _)] = [fused, apart].map(|under| train(recipe, under.first(), 4, true));
    for (one, other) in one.iter().zip(&other) {
        let (step, one, other, precision) = (one.step, one.loss, other.loss, recipe.precision);
        assert!((one - other).abs() <= difference, "{precision:?}, step {step}: {one} fused and {other} not");
    }
}

/// Layers that are computed together give the bits of layers that are not in f32, and nearly so in two bytes.
#[test]
fn fused_layers_are_those_by_themselves() {
    let options = CudaOptions { no_fuse: true, ..CudaOptions::default() };
    let (Some(fused), Some(apart)) = (Under::new(), Under::with(options)) else { return };
    let layers = r#"layers=["conv 3x3, 8 channels, stride 2, no bias", "batch_norm", "relu", "conv 3x3, 6 channels, stride 2",
        "batch_norm, no scale", "gelu", "conv 3x3, 5 channels", "batch_norm", "silu", "conv 2x2, 8 channels",
        "relu", { residual = ["conv 3x3, 8 channels, pad 1"], after = ["relu"] }, "flatten", "fc 12", "relu", "fc 10"]"#;
    for (precision, difference) in [("f32", 0.0), ("f16", 1e-3), ("bf16", 1e-2)] {
        let recipe = recipe("a1-lenet", &[layers, "batch_size=6", &format!("precision={precision}")]);
        losses_agree(&recipe, [&fused, &apart], difference);
        let what = "six activations, the gradients of all, those of two biases before batch-norms, and the loss's";
        assert_eq!(launches(&recipe, &apart) - launches(&recipe, &fused), 15, "{what}");
    }
}

/// Few logits behind a log-softmax have their gradient from the launch that computes the loss.
#[test]
fn a_loss_has_its_gradient_at_once() {
    let options = CudaOptions { no_fuse: true, ..CudaOptions::default() };
    let (Some(fused), Some(apart)) = (Under::new(), Under::with(options)) else { return };
    let layers = r#"layers=["max_pool 8", "flatten", "fc 10", "log_softmax"]"#;
    for (precision, difference) in [("f32", 1e-6), ("f16", 1e-3)] {
        let recipe = recipe("a1-lenet", &[layers, "loss=nll", "batch_size=6", &format!("precision={precision}")]);
        losses_agree(&recipe, [&fused, &apart], difference);
        assert_eq!(launches(&recipe, &apart) - launches(&recipe, &fused), 2, "{precision}");
    }
}

/// Launches of a step.
fn launches(recipe: &Recipe, under: &Under) -> usize {
    let Device::Cuda(cuda) = under.first() else { return 0 };
    let mut trainer = trainer(recipe, under.first());
    cuda.profile(|| trainer.bench_steps(1)).unwrap().len()
}

/// What ReLU passes on is written by what follows it, through pools and dropout, so that its own pass is none; the numbers are
/// those with one.
#[test]
fn relu_s_gradient_takes_no_pass() {
    let options = CudaOptions { no_fuse: true, ..CudaOptions::default() };
    let (Some(fused), Some(apart)) = (Under::new(), Under::with(options)) else { return };
    let layers = r#"layers=["conv 3x3, 8 channels, stride 2", "relu", "max_pool 3x3, stride 2", "conv 3x3, 4 channels", "relu",
        "batch_norm", { residual = ["conv 1x1, 4 channels", "batch_norm"], after = ["relu"] }, "conv 2x2, 8 channels, stride 2",
        "relu", "flatten", "fc 16", "relu", "dropout 0.3", "fc 10"]"#;
    for (precision, difference) in [("f32", 0.0), ("f16", 1e-3), ("bf16", 1e-2)] {
        let recipe = recipe("a1-lenet", &[layers, "batch_size=6", &format!("precision={precision}")]);
        losses_agree(&recipe, [&fused, &apart], difference);
        let masks = |under: &Under| {
            let Device::Cuda(cuda) = under.first() else { return 0 };
            let mut trainer = trainer(&recipe, under.first());
            let kernels = cuda.profile(|| trainer.bench_steps(1)).unwrap();
            let by_itself = |name: &str| ["relu_bwd", "bias_relu_sums", "batch_norm2d_bwd_part_masked"].contains(&name);
            kernels.iter().filter(|t| by_itself(t.kernel.split('<').next().unwrap_or_default())).count()
        };
        assert_eq!((masks(&fused), masks(&apart)), (0, 5), "{precision}");
    }
}

/// A run that is stopped and goes on is the run that was not, the scale of its losses included; with an average, whose
/// evaluation changes the weights for a while.
#[test]
fn a_run_in_pieces_is_a_run_at_once() {
    let Some(under) = Under::new() else { return };
    let layers = r#"layers=["conv 5x5, 4 channels, stride 3", "batch_norm", "relu", "flatten", "fc 10"]"#;
    let set = [layers, "precision=f16", "batch_size=4", "accumulate=3", "ema.decay=0.7", "clip.norm=0.5", "epochs=4"];
    let recipe = recipe("quickstart", &set);
    let run = |graph: bool, stops: &[u64]| {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path(), "run").unwrap();
        let last = run.path().join("last");
        for stop in stops {
            let mut trainer = trainer(&recipe, under.first());
            if !graph {
                trainer.engine.without_graph();
            }
            if let Ok(saved) = checkpoint::load(&last) {
                trainer.restore(saved, &last).unwrap();
            }
            let limits = Limits { max_steps: Some(*stop) };
            trainer.run(&run, limits, &AtomicBool::new(false), &mut []).unwrap();
        }
        let mut saved = checkpoint::load(&last).unwrap();
        saved.position.seconds = 0.0;
        saved
    };
    let whole = run(true, &[32]);
    assert!(whole.optimizer.as_ref().unwrap().contains_key("loss_scale"));
    assert!(whole == run(false, &[32]), "with and without a recorded step");
    assert!(whole == run(true, &[10, 32]), "in pieces");
}

fn trainer(recipe: &Recipe, device: &Device) -> Trainer {
    Trainer::new(recipe.clone(), shapes::generate(0, 30, 20), device).unwrap()
}

/// One image a batch and one number between two layers: gradients that f16 does not hold at the first scale.
#[test]
fn a_step_whose_gradients_overflow_moves_nothing() {
    let Some(under) = Under::new() else { return };
    let layers = r#"layers=["max_pool 8", "flatten", "fc 1", "fc 10"]"#;
    let muon = r#"kind = "sgd", groups = [{match = "*.weight", muon = {}, momentum = 0.6}]"#;
    for optimizer in [r#"kind = "sgd""#, r#"kind = "adamw""#, muon] {
        let optimizer = format!("optimizer={{lr = 1e-2, {optimizer}}}");
        // Large inputs make a network that is sure of itself, and wrong.
        let inputs = "data.std=[0.01, 0.01, 0.01]";
        let recipe = recipe("a1-lenet", &[layers, inputs, "batch_size=1", "precision=f16", &optimizer]);
        let mut trainer = trainer(&recipe, under.first());
        assert_eq!(trainer.engine.loss_scale().unwrap(), Some((65536.0, 0)));
        let (mut skipped, mut moved) = (0, 0);
        for step in 0..12 {
            let before = trainer.engine.model.state_dict().unwrap();
            trainer.bench_steps(1).unwrap();
            let (scale, now) = trainer.engine.loss_scale().unwrap().unwrap();
            let same = before == trainer.engine.model.state_dict().unwrap();
            assert_eq!(
                same,
                now > skipped,
                "step {step}: {now} steps skipped, and the parameters are the same: {same}"
            );
            assert_eq!(scale, 65536.0 / 2f32.powi(now as i32));
            moved += u64::from(!same);
            skipped = now;
        }
        assert!(skipped >= 1 && moved >= 6, "{skipped} steps skipped, {moved} not");
    }
    // Nothing is scaled for a type whose gradients do not overflow.
    for (precision, device) in [("f32", under.first()), ("bf16", under.first())] {
        let recipe = recipe("a1-lenet", &[layers, &format!("precision={precision}")]);
        assert_eq!(trainer(&recipe, device).engine.loss_scale().unwrap(), None);
    }
}

#[test]
fn the_cpu_computes_in_f32() {
    let recipe = recipe("a1-lenet", &["precision=f16"]);
    let e = Trainer::new(recipe, shapes::generate(0, 30, 20), &Device::cpu()).err().unwrap().to_string();
    assert!(e.contains("precision") && e.contains("--device cuda"), "{e}");
    let e = Recipe::load("a1-lenet", &["precision=f8".into()]).unwrap_err().to_string();
    assert!(e.contains("f16") && e.contains("bf16"), "{e}");
    let (report, _) = train_on(8, &self::recipe("a1-lenet", &["precision=f32"]), &Device::cpu(), 1, true);
    assert_eq!(report.len(), 1);
}
