//! Training on a CUDA device: the CPU's losses, with and without a recorded step; what is allocated;
//! what goes wrong.

use crate::under::Under;
use std::sync::atomic::AtomicBool;
use tilework::data::loader::Loader;
use tilework::data::{Split, shapes};
use tilework::device::cuda::CudaOptions;
use tilework::nn::state::StateDict;
use tilework::recipes::Recipe;
use tilework::step::Step;
use tilework::train::lr_find::Ramp;
use tilework::train::{Event, Limits, Observer, Outcome, RunDir, StepReport, Trainer, checkpoint};
use tilework::{Ctx, Device, Error, Result, Tensor};

/// Keeps the steps' reports.
#[derive(Default)]
struct Steps(Vec<StepReport>);

impl Observer for Steps {
    fn notice(&mut self, event: &Event<'_>) -> Result<()> {
        if let Event::Step(report) = event {
            self.0.push(*report);
        }
        Ok(())
    }
}

pub(crate) fn recipe(name: &str, set: &[&str]) -> Recipe {
    Recipe::load(name, &set.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
}

/// The steps' reports, the state dict, and the averaged one, which is the same where no average is kept.
pub(crate) type Trained = (Vec<StepReport>, [StateDict; 2]);

/// Trains on few images for some steps.
pub(crate) fn train(recipe: &Recipe, device: &Device, steps: u64, graph: bool) -> Trained {
    train_on(28, recipe, device, steps, graph)
}

pub(crate) fn train_on(images: usize, recipe: &Recipe, device: &Device, steps: u64, graph: bool) -> Trained {
    let mut trainer = Trainer::new(recipe.clone(), shapes::generate(0, images, 20), device).unwrap();
    if !graph {
        trainer.engine.without_graph();
    }
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path(), "run").unwrap();
    let mut seen = Steps::default();
    let limits = Limits { max_steps: Some(steps) };
    let outcome = trainer.run(&run, limits, &AtomicBool::new(false), &mut [&mut seen]).unwrap();
    assert_eq!(outcome, Outcome::Finished);
    let state = trainer.engine.model.state_dict().unwrap();
    (seen.0, [state, trainer.engine.averaged(|model| model.state_dict()).unwrap()])
}

#[test]
fn losses_are_the_cpu_s_and_a_recorded_step_s_are_the_same() {
    let Some(under) = Under::new() else { return };
    let augment = ["augment.flip=0.5", "augment.pad=4", "batch_size=7", "epochs=9"];
    let dropout = [
        "batch_size=4",
        "epochs=9",
        "layers=[\"conv 5x5, 6 channels\", \"relu\", \"max_pool 2\", \"dropout 0.5\", \"flatten\", \"fc 10\"]",
    ];
    let layers = r#"layers=["conv 5x5, 6 channels, stride 2", "batch_norm, frozen", "relu", "avg_pool 3, stride 2, pad 1",
        "batch_norm", "avg_pool 4, exclude_pad", "flatten", "fc 10"]"#;
    let cases = [
        // 28 images: a smaller batch at the end of each epoch, and more than one epoch.
        (recipe("quickstart", &["batch_size=8", "epochs=9", "optimizer.lr=3e-4"]), 6),
        (recipe("a1-lenet", &augment), 6),
        (recipe("a1-lenet", &dropout), 9),
        (recipe("a1-lenet", &["batch_size=8", layers]), 6),
    ];
    for (recipe, steps) in &cases {
        let (want, _) = train(recipe, &Device::cpu(), *steps, true);
        let device = under.first();
        let (replayed, state) = train(recipe, device, *steps, true);
        let (launched, other) = train(recipe, device, *steps, false);
        assert_eq!(want.len(), *steps as usize);
        for (got, want) in replayed.iter().zip(&want) {
            assert!((got.loss - want.loss).abs() <= 1e-4, "step {}: {} and {}", want.step, got.loss, want.loss);
            assert_eq!((got.step, got.images, got.batch), (want.step, want.images, want.batch));
            assert!(got.correct.abs_diff(want.correct) <= 1, "step {}", want.step);
        }
        let bits = |reports: &[StepReport]| reports.iter().map(|r| r.loss.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&replayed), bits(&launched), "with and without a recorded step");
        assert!(state == other, "the state after a recorded step, batch counts included");
    }
}

/// More steps than a device keeps the numbers of, more images than a block has threads, and scores
/// that are equal: dropout makes most of them 0.
#[test]
fn correct_answers_are_counted() {
    let Some(under) = Under::new() else { return };
    let layers = "layers=[\"max_pool 8\", \"flatten\", \"fc 10\", \"dropout 0.9\"]";
    for (batch, images, steps) in [(2, 60, 70), (1300, 1300, 4)] {
        let recipe = recipe("a1-lenet", &[layers, &format!("batch_size={batch}"), "epochs=9"]);
        let counts = |device: &Device| {
            let (reports, _) = train_on(images, &recipe, device, steps, true);
            reports.iter().map(|r| (r.step, r.correct)).collect::<Vec<_>>()
        };
        assert_eq!(counts(under.first()), counts(&Device::cpu()), "batches of {batch}");
    }
}

#[test]
fn nothing_is_allocated_after_the_second_step() {
    let Some(under) = Under::new() else { return };
    let device = under.first();
    let mut trainer =
        Trainer::new(recipe("quickstart", &["batch_size=4"]), shapes::generate(0, 16, 4), device).unwrap();
    let batch = trainer.first_batch().unwrap();
    trainer.step_once(&batch).unwrap();
    trainer.step_once(&batch).unwrap();
    let before = device.memory();
    for _ in 0..3 {
        trainer.step_once(&batch).unwrap();
    }
    let after = device.memory();
    assert_eq!((after.allocations, after.peak), (before.allocations, before.peak));
}

/// Steps for benches are a run's steps, over the whole batches of the data again and again.
#[test]
fn steps_for_benches_train() {
    let Some(under) = Under::new() else { return };
    let state = |device: &Device, graph: bool| {
        let recipe = recipe("a1-lenet", &["batch_size=8", "shuffle=false"]);
        let mut trainer = Trainer::new(recipe, shapes::generate(0, 20, 10), device).unwrap();
        if !graph {
            trainer.engine.without_graph();
        }
        trainer.bench_steps(3).unwrap();
        trainer.bench_steps(4).unwrap();
        assert_eq!(trainer.position().step, 7);
        trainer.engine.model.params.values().read::<f32>(0..trainer.engine.model.params.count()).unwrap()
    };
    let (replayed, launched) = (state(under.first(), true), state(under.first(), false));
    assert!(replayed == launched, "with and without a recorded step");
    let cpu = state(&Device::cpu(), true);
    for (got, want) in replayed.iter().zip(&cpu) {
        assert!((got - want).abs() <= 1e-5, "{got} and {want}");
    }
    let few = Trainer::new(recipe("a1-lenet", &["batch_size=30"]), shapes::generate(0, 20, 10), under.first());
    assert!(few.unwrap().bench_steps(1).unwrap_err().to_string().contains("batch"));
}

/// A step whose kernels are timed, each by itself, is a step like any other.
#[test]
fn timing_kernels_changes_no_number() {
    let Some(under) = Under::new() else { return };
    let device = under.first();
    let Device::Cuda(cuda) = device else { panic!("a CUDA device") };
    let trainer = || {
        let recipe = recipe("quickstart", &["batch_size=2"]);
        Trainer::new(recipe, shapes::generate(0, 6, 10), device).unwrap()
    };
    let state = |mut t: Trainer| {
        t.bench_steps(2).unwrap();
        t.engine.model.state_dict().unwrap()
    };
    let mut timed = trainer();
    let timings = cuda.profile(|| timed.bench_steps(1)).unwrap();
    for kernel in ["batch", "conv2d_fwd", "batch_norm2d_whole_fwd", "cross_entropy_few", "adam_step"] {
        let launches: Vec<_> = timings.iter().filter(|t| t.kernel.starts_with(kernel)).collect();
        assert!(!launches.is_empty(), "{kernel}");
        assert!(launches.iter().all(|t| t.bytes > 0 && !t.time.is_zero()), "{launches:?}");
    }
    let mut plain = trainer();
    plain.bench_steps(1).unwrap();
    assert!(state(timed) == state(plain));
}

#[test]
fn a_loss_that_is_not_a_number_is_reported_with_its_step() {
    let Some(under) = Under::new() else { return };
    let recipe = recipe("a1-lenet", &["optimizer.lr=1e30", "batch_size=8"]);
    let mut trainer = Trainer::new(recipe, shapes::generate(0, 60, 20), under.first()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path(), "run").unwrap();
    let e = trainer.run(&run, Limits::default(), &AtomicBool::new(false), &mut []).unwrap_err();
    let Error::NonFinite { step, .. } = e else { panic!("{e}") };
    assert!((2..5).contains(&step), "{step}");
}

/// The loss is read long after the step: what was saved before is still there, averaged weights and all.
#[test]
fn the_last_good_checkpoint_stays() {
    let Some(under) = Under::new() else { return };
    let trainer = |lr: &str| {
        let recipe = recipe("a1-lenet", &["batch_size=8", "ema.decay=0.9", lr]);
        Trainer::new(recipe, shapes::generate(0, 60, 20), under.first()).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path(), "run").unwrap();
    let (last, never) = (run.path().join("last"), AtomicBool::new(false));
    trainer("epochs=1").run(&run, Limits::default(), &never, &mut []).unwrap();
    let good = checkpoint::load(&last).unwrap();
    let mut bad = trainer("optimizer.lr=1e30");
    bad.restore(checkpoint::load(&last).unwrap(), &last).unwrap();
    let e = bad.run(&run, Limits::default(), &never, &mut []).unwrap_err().to_string();
    assert!(e.contains("run-001/last, after step 8 and 1 whole epochs"), "{e}");
    assert_eq!(checkpoint::load(&last).unwrap(), good);
}

#[test]
fn waiting_for_each_launch_changes_no_number() {
    let Some(under) = Under::new() else { return };
    let Some(waiting) = Under::with(CudaOptions { sync_launches: true, ..CudaOptions::default() }) else { return };
    let recipe = recipe("a1-lenet", &["batch_size=8", "epochs=2"]);
    let losses = |device: &Device| train(&recipe, device, 5, true).0.iter().map(|r| r.loss).collect::<Vec<_>>();
    assert_eq!(losses(under.first()), losses(waiting.first()));
}

/// A loop by hand over the loader's batches: each step drops other elements, and the CPU's.
#[test]
fn dropout_in_a_loop_by_hand_draws_anew_each_step() {
    let Some(under) = Under::new() else { return };
    let dropped = |device: &Device| {
        let data = std::sync::Arc::new(shapes::generate(0, 8, 1).train);
        let loader = Loader::new(data, 2, &[0.5; 3], &[0.25; 3], device).unwrap();
        let base = Step { seed: 3, epoch: 1, ..Step::default() };
        let ones = Tensor::from_slice(device, [64], &[1f32; 64]).unwrap();
        let (mut feed, mut other) = (loader.feed(false), loader.feed(true));
        let masks = (0..4u32).map(|step| {
            feed.batch(&Step { batch_offset: 2 * step, ..base }).unwrap();
            let mut cx = Ctx::train(device).at(Step { step: u64::from(step), ..base });
            let x = cx.leaf(ones.clone());
            let y = x.dropout(0.5, &mut cx).unwrap();
            let mask = y.value().to_vec::<f32>().unwrap();
            // The backward pass recomputes the mask, whatever was loaded meanwhile.
            other.batch(&Step { batch_offset: 4, ..base }).unwrap();
            let gx = cx.backward(&y, ones.clone(), None).unwrap().of(&x).unwrap().to_vec::<f32>().unwrap();
            assert_eq!(mask, gx, "{device:?}, step {step}");
            mask
        });
        masks.collect::<Vec<_>>()
    };
    let want = dropped(&Device::cpu());
    assert!(want.windows(2).all(|w| w[0] != w[1]));
    for (name, device) in &under.devices {
        assert_eq!(dropped(device), want, "{name}");
    }
}

/// All that a recipe has for its updates, at once: groups, clipping by norm, accumulation with a smaller last group, an
/// average, a schedule for each update; from the steps to the checkpoint, and on from it.
#[test]
fn updates_are_the_cpu_s_in_a_recorded_step_too() {
    let Some(under) = Under::new() else { return };
    let never = AtomicBool::new(false);
    let layers = r#"layers=["conv 5x5, 4 channels, stride 3, no bias", "batch_norm", "relu", "flatten", "fc 10"]"#;
    let common = [layers, "accumulate=3", "ema.decay=0.7", "schedule.kind=one-cycle", "epochs=4"];
    let groups = r#"groups = [{match = "*.bias", weight_decay = 0.0}, {match = "1.*", lr = 1e-3}]"#;
    let adamw = format!(r#"optimizer={{kind = "adamw", lr = 1e-3, {groups}}}"#);
    let sgd = format!(
        r#"optimizer={{kind = "sgd", lr = 1e-3, momentum = 0.9, weight_decay = 0.1, decoupled = true, {groups}}}"#
    );
    let muon =
        r#"groups = [{match = "0.weight", lr = 0.01, muon = {normalise = true}}, {match = "4.weight", muon = {}}]"#;
    let muon = format!(r#"optimizer={{kind = "adamw", lr = 1e-3, {muon}}}"#);
    let both = [(&sgd, "clip.norm=0.5"), (&sgd, "clip.value=0.01")];
    for (optimizer, clip) in [(&adamw, "clip.norm=0.5"), (&muon, "clip.norm=0.5")].into_iter().chain(both) {
        let recipe = recipe("quickstart", &[&common[..], &[optimizer, clip, "batch_size=4"]].concat());
        let run = |device: &Device, graph: bool, stops: &[u64]| {
            let folder = tempfile::tempdir().unwrap();
            let run = RunDir::create(folder.path(), "run").unwrap();
            let last = run.path().join("last");
            let mut seen = Steps::default();
            for stop in stops {
                // 30 images: groups of three, three and two batches, the last one of two images.
                let mut trainer = Trainer::new(recipe.clone(), shapes::generate(0, 30, 20), device).unwrap();
                if !graph {
                    trainer.engine.without_graph();
                }
                if let Ok(saved) = checkpoint::load(&last) {
                    trainer.restore(saved, &last).unwrap();
                }
                let limits = Limits { max_steps: Some(*stop) };
                trainer.run(&run, limits, &never, &mut [&mut seen]).unwrap();
            }
            let mut saved = checkpoint::load(&last).unwrap();
            saved.position.seconds = 0.0;
            assert!(saved.trained.as_ref().unwrap() != &saved.model);
            (seen.0.iter().map(|r| r.loss).collect::<Vec<_>>(), saved)
        };
        let device = under.first();
        let replayed = run(device, true, &[32]);
        assert_eq!(replayed.0.len(), 32);
        assert!(replayed == run(device, false, &[32]), "{optimizer} {clip}: with and without a recorded step");
        // Step 10 is in the middle of a group, which is finished before the run stops.
        assert!(replayed == run(device, true, &[10, 14, 32]), "{optimizer} {clip}: in pieces");
        let cpu = run(&Device::cpu(), true, &[32]);
        assert!(cpu == run(&Device::cpu(), true, &[1, 17, 32]), "{optimizer} {clip}: in pieces on the CPU");
        for (got, want) in replayed.0.iter().zip(&cpu.0) {
            assert!((got - want).abs() <= 1e-4, "{optimizer} {clip}: {got} and {want}");
        }
        for (key, want) in &cpu.1.model {
            let (got, want) = (replayed.1.model[key].to_f32(), want.to_f32());
            let close = |(got, want): (&f32, &f32)| (got - want).abs() <= 2e-4 * want.abs().max(1.0);
            assert!(got.iter().flatten().zip(want.iter().flatten()).all(close), "{optimizer} {clip}: average of {key}");
        }
    }
}

/// What `airbench94` is made of, in small: the losses and an evaluation by six views are the CPU's.
#[test]
fn whitening_and_muon_are_the_cpu_s_in_a_recorded_step_too() {
    let Some(under) = Under::new() else { return };
    let layers = r#"layers=["w: conv 2x2, 24 channels, stride 3, init whiten", "gelu",
        "a: conv 3x3, 6 channels, stride 2, no bias, init dirac", "batch_norm, no scale, eps 1e-12", "gelu",
        "b: conv 1x1, 9 channels, no bias", "flatten", "fc: fc 10, no bias, init unit_std", "scale 1/16"]"#;
    let optimizer = r#"optimizer={kind = "sgd", lr = 1e-3, momentum = 0.8, nesterov = true, weight_decay = 0.1, groups = [
        {match = "w.bias", over = 1}, {match = "fc.*", lr = 2e-3},
        {match = "a.*", lr = 0.02, momentum = 0.6, muon = {steps = 3, normalise = true}},
        {match = "b.*", lr = 0.02, momentum = 0.9, muon = {}}]}"#;
    let set = [
        layers,
        optimizer,
        "batch_size=8",
        "drop_last=true",
        "reduction=sum",
        "label_smoothing=0.2",
        "epochs=3",
        "schedule.kind=linear",
        "augment={flip = 0.5, alternate = true, pad = 2, border = \"reflect\"}",
        "tta=mirror-shift",
    ];
    let recipe = recipe("quickstart", &set);
    let run = |device: &Device, graph: bool| {
        let mut trainer = Trainer::new(recipe.clone(), shapes::generate(0, 30, 20), device).unwrap();
        if !graph {
            trainer.engine.without_graph();
        }
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path(), "run").unwrap();
        let mut seen = Steps::default();
        trainer.run(&run, Limits::default(), &AtomicBool::new(false), &mut [&mut seen]).unwrap();
        let found = trainer.evaluate(Split::Test, &mut |_| Ok(())).unwrap();
        (seen.0.iter().map(|r| r.loss).collect::<Vec<_>>(), found, trainer.engine.model.state_dict().unwrap())
    };
    let (device, cpu) = (under.first(), run(&Device::cpu(), true));
    let replayed = run(device, true);
    assert!(replayed == run(device, false), "with and without a recorded step");
    // 30 images: three batches an epoch, none of them of six.
    assert_eq!(replayed.0.len(), 9);
    for (got, want) in replayed.0.iter().zip(&cpu.0) {
        assert!((got - want).abs() <= 1e-4, "{got} and {want}");
    }
    assert!((replayed.1.loss - cpu.1.loss).abs() <= 1e-4, "{} and {}", replayed.1.loss, cpu.1.loss);
    let (w, ones) = (&cpu.2["w.weight"], cpu.2["3.weight"].to_f32().unwrap());
    assert!(w == &replayed.2["w.weight"] && ones.iter().all(|&x| x == 1.0));
}

/// The validation set is the CPU's, image by image, and measured with the same result.
#[test]
fn a_validation_set_is_the_cpu_s() {
    let Some(under) = Under::new() else { return };
    let recipe = recipe("quickstart", &["batch_size=8", "data.validation=20", "data.split_seed=3"]);
    let measured = |device: &Device| {
        let mut trainer = Trainer::new(recipe.clone(), shapes::generate(0, 60, 20), device).unwrap();
        trainer.bench_steps(5).unwrap();
        [Split::Validation, Split::Train, Split::Test].map(|s| trainer.evaluate(s, &mut |_| Ok(())).unwrap())
    };
    for (got, want) in measured(under.first()).iter().zip(&measured(&Device::cpu())) {
        assert!((got.loss - want.loss).abs() <= 1e-4, "{got:?} and {want:?}");
        assert_eq!((got.count, got.accuracy, &got.per_class), (want.count, want.accuracy, &want.per_class));
    }
}

/// The learning-rate finder in the midst of training: what comes after has the same bits as without it.
#[test]
fn the_rate_finder_leaves_everything_as_it_was() {
    let Some(under) = Under::new() else { return };
    let layers = r#"layers=["conv 5x5, 4 channels, stride 3, no bias", "batch_norm", "relu", "flatten", "dropout 0.2", "fc 10"]"#;
    let recipe = recipe("quickstart", &[layers, "batch_size=8", "accumulate=2", "ema.decay=0.5", "clip.norm=1.0"]);
    for device in [&Device::cpu(), under.first()] {
        let run = |find: bool| {
            let mut trainer = Trainer::new(recipe.clone(), shapes::generate(0, 60, 20), device).unwrap();
            trainer.bench_steps(3).unwrap();
            let curve = find.then(|| trainer.find_rate(Ramp { start: 1e-4, end: 1e4, steps: 20 }).unwrap());
            let found = trainer.engine.results(0, 3).unwrap();
            trainer.bench_steps(3).unwrap();
            let average = trainer.engine.averaged(|model| model.state_dict()).unwrap();
            (curve, found, trainer.engine.model.state_dict().unwrap(), average)
        };
        let (with, without) = (run(true), run(false));
        let curve = with.0.unwrap();
        assert!(curve.diverged && curve.tried.len() > 10, "{curve:?}");
        assert!(curve.valley().unwrap() < 10.0);
        assert!((with.1, with.2, with.3) == (without.1, without.2, without.3));
    }
}

/// Freezing in the midst of a run: a step that was recorded before is recorded anew.
#[test]
fn a_recorded_step_notices_what_is_frozen_later() {
    let Some(under) = Under::new() else { return };
    let state = |graph: bool| {
        let recipe = recipe("a1-lenet", &["batch_size=4", "shuffle=false", "clip.norm=1.0"]);
        let mut trainer = Trainer::new(recipe, shapes::generate(0, 20, 10), under.first()).unwrap();
        if !graph {
            trainer.engine.without_graph();
        }
        trainer.bench_steps(5).unwrap();
        let before = trainer.engine.model.state_dict().unwrap();
        trainer.engine.model.params.configure(|p| p.trainable = p.key.starts_with("11.")).unwrap();
        trainer.bench_steps(5).unwrap();
        let after = trainer.engine.model.state_dict().unwrap();
        let moved = |key: &str| before[key] != after[key];
        assert!(moved("11.weight") && !moved("0.weight") && !moved("9.bias"));
        after
    };
    assert!(state(true) == state(false));
}
