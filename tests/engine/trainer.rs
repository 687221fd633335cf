//! The training loop from the library's side: what it refuses, and stopping at awkward moments.

use std::sync::atomic::{AtomicBool, Ordering};
use tilework::data::{Split, shapes};
use tilework::recipes::Recipe;
use tilework::train::run::{Config, RunInfo};
use tilework::train::{CsvLog, EpochReport, Event, Limits, Observer, Outcome, RunDir, Trainer, checkpoint};
use tilework::{Device, Result};

const LAYERS: &str = r#"layers=["max_pool 8", "flatten", "fc 10"]"#;

fn recipe(set: &[&str]) -> Recipe {
    let set: Vec<String> = set.iter().map(ToString::to_string).collect();
    Recipe::load("quickstart", &set).unwrap()
}

fn trainer(set: &[&str]) -> Result<Trainer> {
    Trainer::new(recipe(set), shapes::generate(0, 200, 600), &Device::cpu())
}

#[test]
fn a_last_batch_that_batch_norm_cannot_take_is_refused_at_once() {
    let norm = r#"layers=["max_pool 32", "batch_norm", "flatten", "fc 10"]"#;
    let e = trainer(&[norm, "batch_size=199"]).err().unwrap().to_string();
    assert!(e.contains("batch_size") && e.contains("layer 1 (batch_norm)") && e.contains("remedy"), "{e}");
    assert!(trainer(&[norm, "batch_size=1"]).is_err());
    assert!(trainer(&[norm, "batch_size=198"]).is_ok());
    assert!(trainer(&[norm, "batch_size=199", "frozen_batch_norm=true"]).is_ok());
    assert!(trainer(&[r#"layers=["max_pool 16", "batch_norm", "flatten", "fc 10"]"#, "batch_size=199"]).is_ok());
}

#[cfg(target_os = "linux")]
#[test]
fn what_cannot_fit_the_memory_is_refused() {
    // 100 layers of 14 GiB each: found before any memory is asked for.
    let layers = ["\"flatten\"".to_string()].into_iter().chain((0..100).map(|_| "\"fc 60000\"".to_string()));
    let e = trainer(&[&format!("layers=[{}]", layers.collect::<Vec<_>>().join(","))]).err().unwrap();
    let e = e.to_string();
    assert!(e.contains("GiB") && e.contains("remedy"), "{e}");
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let mut t = trainer(&[LAYERS]).unwrap();
    let mut state = t.engine.model.state_dict().unwrap();
    state.insert("2.bias".into(), tilework::nn::state::Array::f32(&[10], &[f32::NAN; 10]));
    std::fs::write(&path, tilework::nn::state::serialize(&state).unwrap()).unwrap();
    let e = t.init_from(&path).unwrap_err().to_string();
    assert!(e.contains("`2.bias`") && e.contains("not finite"), "{e}");
}

/// Sets the stop flag at the first event that `when` accepts.
struct StopAt<'a>(&'a AtomicBool, fn(&Event<'_>) -> bool);

impl Observer for StopAt<'_> {
    fn notice(&mut self, event: &Event<'_>) -> Result<()> {
        self.0.fetch_or((self.1)(event), Ordering::Relaxed);
        Ok(())
    }
}

fn run_dir(parent: &std::path::Path) -> RunDir {
    let run = RunDir::create(parent, "t").unwrap();
    let info = RunInfo {
        name: "t".into(),
        tilework: String::new(),
        git_commit: None,
        device: "cpu".into(),
        threads: 1,
        data: None,
        init: None,
        image: None,
        classes: Vec::new(),
    };
    Config { run: info, recipe: recipe(&[LAYERS]) }.write(&run).unwrap();
    run
}

#[test]
fn stopping_anywhere_and_going_on_gives_the_same_bits() {
    for held_out in ["data.validation=0", "data.validation=40"] {
        stop_and_go_on(&[LAYERS, "epochs=2", "batch_size=50", held_out]);
    }
}

/// The same with all that has a state or random numbers of its own.
#[test]
fn stopping_and_going_on_with_everything_at_once() {
    let layers = r#"layers=["max_pool 8", "batch_norm", "flatten", "dropout 0.2", "fc 10"]"#;
    let augment = "augment={flip=0.5, vertical_flip=0.5, rotation=20, pad=2, border=\"reflect\", cutout=4}";
    let pace = ["schedule={kind=\"one-cycle\"}", "accumulate=3", "ema.decay=0.9", "clip.norm=1"];
    let set = [&[layers, augment, "data.validation=40", "epochs=2", "batch_size=40"][..], &pace].concat();
    stop_and_go_on(&set);
    // Each of them changes what comes out.
    let end = |set: &[&str]| {
        let (dir, never) = (tempfile::tempdir().unwrap(), AtomicBool::new(false));
        let mut trainer = trainer(set).unwrap();
        trainer.run(&run_dir(dir.path()), Limits::default(), &never, &mut []).unwrap();
        trainer.engine.model.state_dict().unwrap()
    };
    let wanted = end(&set);
    for other in
        ["augment.rotation=0", "augment.pad=0", "augment.cutout=0", "accumulate=1", "schedule.kind=\"constant\""]
    {
        assert!(end(&[&set[..], &[other]].concat()) != wanted, "{other}");
    }
}

fn stop_and_go_on(set: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let never = AtomicBool::new(false);
    let whole = run_dir(dir.path());
    trainer(set).unwrap().run(&whole, Limits::default(), &never, &mut []).unwrap();
    let wanted = checkpoint::load(&whole.path().join("last")).unwrap();
    let moments: [fn(&Event<'_>) -> bool; 5] = [
        |e| matches!(e, Event::EpochStarted { epoch: 2, .. }),
        |e| matches!(e, Event::Step(s) if s.step == 4),
        |e| matches!(e, Event::Step(s) if s.step == 6),
        |e| matches!(e, Event::Evaluating { .. }),
        // The last: what is left is its epoch's evaluation.
        |e| matches!(e, Event::Step(s) if s.step == 8),
    ];
    for (i, when) in moments.into_iter().enumerate() {
        let run = run_dir(dir.path());
        let last = run.path().join("last");
        let stop = AtomicBool::new(false);
        let outcome = trainer(set).unwrap().run(&run, Limits::default(), &stop, &mut [&mut StopAt(&stop, when)]);
        assert_eq!(outcome.unwrap(), Outcome::Stopped, "moment {i}");
        let mut t = trainer(set).unwrap();
        t.restore(checkpoint::load(&last).unwrap(), &last).unwrap();
        assert_eq!(t.run(&run, Limits::default(), &never, &mut []).unwrap(), Outcome::Finished);
        assert_eq!(checkpoint::load(&last).unwrap(), wanted, "moment {i}");
    }
}

/// What the observers are told of saving, in order; and a file that is in the way of the second epoch's checkpoint.
#[derive(Default)]
struct Saves {
    told: Vec<String>,
    in_the_way: Option<std::path::PathBuf>,
}

impl Observer for Saves {
    fn notice(&mut self, event: &Event<'_>) -> Result<()> {
        let name = |path: &std::path::Path| path.file_name().unwrap().to_str().unwrap().to_string();
        match event {
            Event::Saving { path } => self.told.push(format!("saving {}", name(path))),
            Event::Saved { path, best } => {
                // Whole and in its place when it is told.
                assert!(checkpoint::load(path).unwrap().optimizer.is_none() == *best);
                self.told.push(format!("saved {}", name(path)));
                // The first epoch's is whole: what comes now is in the second's way.
                if let Some(in_the_way) = self.in_the_way.take_if(|_| !best) {
                    std::fs::write(in_the_way, "a file, not a folder").unwrap();
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn a_save_that_fails_is_an_error_of_the_run_and_costs_one_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let set = [LAYERS, "epochs=3", "batch_size=50"];
    let never = AtomicBool::new(false);
    let whole = run_dir(dir.path());
    let mut saves = Saves::default();
    trainer(&set).unwrap().run(&whole, Limits::default(), &never, &mut [&mut saves]).unwrap();
    assert_eq!(saves.told[..4], ["saving best", "saving last", "saved best", "saved last"]);
    assert_eq!(saves.told.last().unwrap(), "saved last");
    let wanted = checkpoint::load(&whole.path().join("last")).unwrap();

    let run = run_dir(dir.path());
    let last = run.path().join("last");
    let in_the_way = run.path().join("last.new");
    let mut saves = Saves { in_the_way: Some(in_the_way.clone()), ..Saves::default() };
    let e = trainer(&set).unwrap().run(&run, Limits::default(), &never, &mut [&mut saves]).unwrap_err().to_string();
    assert!(e.contains("last.new"), "{e}");
    assert_eq!(saves.told.iter().filter(|told| *told == "saved last").count(), 1);
    std::fs::remove_file(&in_the_way).unwrap();
    let saved = checkpoint::load(&last).unwrap();
    assert_eq!(saved.position.epoch, 1);
    let mut t = trainer(&set).unwrap();
    t.restore(saved, &last).unwrap();
    assert_eq!(t.run(&run, Limits::default(), &never, &mut []).unwrap(), Outcome::Finished);
    assert_eq!(checkpoint::load(&last).unwrap(), wanted);
}

#[test]
fn a_position_of_another_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_dir(dir.path());
    let last = run.path().join("last");
    trainer(&[LAYERS, "epochs=1", "batch_size=50"])
        .unwrap()
        .run(&run, Limits::default(), &AtomicBool::new(false), &mut [])
        .unwrap();
    let mut other = trainer(&[LAYERS, "epochs=1", "batch_size=20"]).unwrap();
    let e = other.restore(checkpoint::load(&last).unwrap(), &last).unwrap_err().to_string();
    assert!(e.contains("position"), "{e}");
}

#[test]
fn a_run_without_progress_stops_early() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_dir(dir.path());
    // At a rate of 0 no epoch is better than the first.
    let set = [LAYERS, "epochs=9", "batch_size=50", "optimizer.lr=0.0", "early_stopping.patience=3"];
    let never = AtomicBool::new(false);
    let outcome = trainer(&set).unwrap().run(&run, Limits { max_steps: Some(8) }, &never, &mut []).unwrap();
    assert_eq!(outcome, Outcome::Finished);
    let last = run.path().join("last");
    let mut t = trainer(&set).unwrap();
    t.restore(checkpoint::load(&last).unwrap(), &last).unwrap();
    for _ in 0..2 {
        assert_eq!(t.run(&run, Limits::default(), &never, &mut []).unwrap(), Outcome::StoppedEarly);
        assert_eq!((t.position().epoch, t.waited_long_enough()), (4, true));
    }
    // Better, but not by so much.
    let set = [LAYERS, "epochs=9", "batch_size=50", "early_stopping={patience = 1, min_delta = 100.0}"];
    let mut t = trainer(&set).unwrap();
    assert_eq!(t.run(&run, Limits::default(), &never, &mut []).unwrap(), Outcome::StoppedEarly);
    assert_eq!(t.position().epoch, 2);
}

/// An update that ruins the weights right before the run is asked to stop: what is saved stays what it was.
#[test]
fn weights_that_are_not_finite_are_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_dir(dir.path());
    let last = run.path().join("last");
    let set = [LAYERS, "epochs=2", "batch_size=50", "ema.decay=0.5"];
    let limits = Limits { max_steps: Some(4) };
    trainer(&set).unwrap().run(&run, limits, &AtomicBool::new(false), &mut []).unwrap();
    let good = checkpoint::load(&last).unwrap();
    let mut t = trainer(&[&set[..], &["optimizer.lr=1e300"]].concat()).unwrap();
    t.restore(checkpoint::load(&last).unwrap(), &last).unwrap();
    let stop = AtomicBool::new(false);
    let at_once: fn(&Event<'_>) -> bool = |e| matches!(e, Event::EpochStarted { .. });
    let e = t.run(&run, Limits::default(), &stop, &mut [&mut StopAt(&stop, at_once)]).unwrap_err().to_string();
    assert!(e.contains("not finite") && e.contains("after step 4 and 1 whole epochs"), "{e}");
    assert_eq!(checkpoint::load(&last).unwrap(), good);
}

/// The reports of a run's epochs.
#[derive(Default)]
struct Epochs(Vec<EpochReport>);

impl Observer for Epochs {
    fn notice(&mut self, event: &Event<'_>) -> Result<()> {
        if let Event::EpochEnded(e) = event {
            self.0.push((*e).clone());
        }
        Ok(())
    }
}

#[test]
fn a_validation_set_chooses_the_best_and_the_test_set_measures_it() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_dir(dir.path());
    let mut seen = Epochs::default();
    // A rate at which the accuracy goes up and down.
    let set = [LAYERS, "epochs=6", "batch_size=30", "optimizer.lr=0.3", "data.validation=60", "data.train=90"];
    let mut t = trainer(&set).unwrap();
    assert_eq!((t.split(), t.batches(), t.splits().1.unwrap().len()), (Split::Validation, 3, 60));
    let mut csv = CsvLog::open(&run, 0, 0, t.split()).unwrap();
    t.run(&run, Limits::default(), &AtomicBool::new(false), &mut [&mut seen, &mut csv]).unwrap();
    assert!(seen.0.iter().all(|e| e.split == Split::Validation && e.held_out.count == 60));
    let first_best = seen.0.iter().rev().max_by(|a, b| a.held_out.accuracy.total_cmp(&b.held_out.accuracy)).unwrap();
    let path = run.path().join("best");
    let best = checkpoint::load(&path).unwrap();
    assert_eq!(
        (best.position.epoch, best.position.best_accuracy),
        (first_best.epoch, Some(first_best.held_out.accuracy))
    );
    let rows = std::fs::read_to_string(run.path().join("metrics.csv")).unwrap();
    assert!(rows.starts_with("epoch,train_loss,train_accuracy,val_loss,val_accuracy,lr,"), "{rows}");

    let before = t.engine.model.state_dict().unwrap();
    let measured = t.test(&best, &path, &AtomicBool::new(false)).unwrap();
    assert_eq!(measured.count, 600);
    assert!(t.engine.model.state_dict().unwrap() == before);
    // The same in a program of its own, which makes the same split again.
    let mut again = trainer(&set).unwrap();
    again.engine.model.load_state_dict(&best.model, &path).unwrap();
    let mut of = |split| again.evaluate(split, &mut |_| Ok(())).unwrap();
    assert_eq!((of(Split::Test), of(Split::Validation)), (measured, first_best.held_out.clone()));
    assert_eq!(of(Split::Train).count, 90);

    let mut whole = trainer(&[LAYERS]).unwrap();
    assert_eq!(whole.split(), Split::Test);
    let e = whole.evaluate(Split::Validation, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(e.contains("data.validation") && e.contains("remedy"), "{e}");
}

#[test]
fn several_views_measure_the_last_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let of = |set: &[&str], name: &str| {
        let mut seen = Epochs::default();
        let set = [&[LAYERS, "epochs=2", "batch_size=30", "data.train=60"], set].concat();
        let mut t = trainer(&set).unwrap();
        let run = run_dir(&dir.path().join(name));
        t.run(&run, Limits::default(), &AtomicBool::new(false), &mut [&mut seen]).unwrap();
        let measured = t.evaluate(t.split(), &mut |_| Ok(())).unwrap();
        let losses: Vec<f64> = seen.0.iter().map(|e| e.held_out.loss).collect();
        assert_eq!(losses[1], measured.loss);
        losses
    };
    let (one, both) = (of(&[], "one"), of(&["tta=mirror"], "mirror"));
    assert_eq!(one[0], both[0]);
    assert_ne!(one[1], both[1]);
}

#[test]
fn mistakes_in_updates_are_named() {
    for (set, word) in [
        ("optimizer.groups=[{match = \"*.bais\", lr = 0.1}]", "matches no parameter"),
        ("optimizer.groups=[{match = \"*\"}, {match = \"2.bias\"}]", "groups.1.match"),
        ("optimizer.groups=[{match = \"*\", lr = -1.0}]", "optimizer.groups.0.lr"),
        ("optimizer.groups=[{match = \"*\", decay = 1.0}]", "unknown field `decay`"),
        ("clip={}", "clip.value"),
        ("clip.norm=0.0", "clip.norm"),
        ("accumulate=0", "accumulate"),
        ("ema.decay=1.0", "ema.decay"),
        ("early_stopping.patience=0", "early_stopping.patience"),
        ("data.validation=200", "200 of 200 training images"),
        ("data.train=201", "data.train"),
        ("data.validaton=20", "did you mean `validation`?"),
        ("freeze=[\"1-x\"]", "`1-x` fits no parameter"),
    ] {
        let recipe = Recipe::load("quickstart", &[LAYERS.to_string(), set.to_string()]);
        let e = recipe.and_then(|r| Trainer::new(r, shapes::generate(0, 200, 10), &Device::cpu())).err().unwrap();
        let e = e.to_string();
        assert!(e.contains(word) && e.contains("remedy"), "{set}: {e}");
    }
}
