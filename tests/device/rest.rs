//! Groups of parameters whose rate has come to 0 for good: they are frozen, and nothing else changes.

use crate::training::recipe;
use crate::under::Under;
use std::sync::atomic::AtomicBool;
use tilework::Device;
use tilework::data::shapes;
use tilework::train::checkpoint::{self, Checkpoint};
use tilework::train::lr_find::Ramp;
use tilework::train::{Event, Limits, Observer, RunDir, Trainer};

const LAYERS: &str = r#"layers=["w: conv 2x2, 24 channels, stride 4, init whiten", "gelu", "a: conv 3x3, 6 channels, no bias",
    "batch_norm", "relu", "b: conv 1x1, 4 channels", "flatten", "fc: fc 10"]"#;
/// Gradients are clipped by a norm that they never have: no number changes, and no group rests.
const AWAKE: &str = "clip.norm=1e30";

fn groups(optimizer: &str) -> String {
    format!(
        r#"optimizer={{{optimizer}, groups = [{{match = "w.bias", over = 1}}, {{match = "a.*", over = 2}},
        {{match = "b.weight", over = 2, muon = {{steps = 1}}}}, {{match = "fc.weight", lr = 1e-3}},
        {{match = "fc.bias", over = 9}}]}}"#
    )
}

/// What rests after the second epoch.
const RESTING: [&str; 3] = ["w.bias", "a.weight", "b.weight"];

/// The losses of a run's steps.
#[derive(Default)]
struct Losses(Vec<f64>);

impl Observer for Losses {
    fn notice(&mut self, event: &Event<'_>) -> tilework::Result<()> {
        if let Event::Step(report) = event {
            self.0.push(report.loss);
        }
        Ok(())
    }
}

/// A recipe's run in parts, each of so many epochs and up to a step, by a trainer of its own that goes on from the
/// checkpoint before: the losses, the last checkpoint, and the last trainer.
fn run(set: &[&str], device: &Device, graph: bool, parts: &[(u32, u64)]) -> (Vec<f64>, Checkpoint, Trainer) {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path(), "run").unwrap();
    let last = run.path().join("last");
    let mut losses = Losses::default();
    let mut trainer = None;
    for (epochs, steps) in parts {
        let epochs = format!("epochs={epochs}");
        let recipe = recipe("quickstart", &[&[LAYERS, "batch_size=8", "drop_last=true"], set, &[&epochs]].concat());
        let mut t = Trainer::new(recipe, shapes::generate(0, 24, 10), device).unwrap();
        if !graph {
            t.engine.without_graph();
        }
        if let Ok(saved) = checkpoint::load(&last) {
            t.restore(saved, &last).unwrap();
        }
        let limits = Limits { max_steps: Some(*steps) };
        t.run(&run, limits, &AtomicBool::new(false), &mut [&mut losses]).unwrap();
        trainer = Some(t);
    }
    let mut saved = checkpoint::load(&last).unwrap();
    saved.position.seconds = 0.0;
    (losses.0, saved, trainer.unwrap())
}

const ALL: u64 = u64::MAX;

#[test]
fn groups_at_rest_change_no_number() {
    let Some(under) = Under::new() else { return };
    let sgd = groups(r#"kind = "sgd", lr = 1e-2, momentum = 0.9, nesterov = true, weight_decay = 0.1"#);
    let decoupled = groups(r#"kind = "sgd", lr = 1e-2, weight_decay = 0.1, decoupled = true"#);
    let adam = groups(r#"kind = "adam", lr = 1e-3, weight_decay = 0.1"#);
    let adamw = groups(r#"kind = "adamw", lr = 1e-3, weight_decay = 0.1"#);
    let (cpu, device) = (Device::cpu(), under.first());
    let cases: [(&Device, &str, &[&str]); 7] = [
        (&cpu, &sgd, &["schedule.kind=linear"]),
        (&cpu, &adam, &["schedule.kind=cosine", "ema.decay=0.8", "accumulate=2"]),
        (&cpu, &adamw, &["schedule={kind = \"linear\", warmup = 0.5}"]),
        (device, &sgd, &["schedule.kind=linear"]),
        (device, &decoupled, &["schedule.kind=linear", "ema.decay=0.8", "precision=bf16"]),
        (device, &sgd, &["schedule.kind=linear", "precision=f16", "reduction=sum", "accumulate=2"]),
        (device, &adamw, &["schedule.kind=linear"]),
    ];
    for (device, optimizer, set) in cases {
        let set = [&[optimizer], set].concat();
        let mut resting = run(&set, device, true, &[(4, ALL)]);
        let awake = run(&[&set[..], &[AWAKE]].concat(), device, true, &[(4, ALL)]);
        assert_eq!((resting.0.len(), &resting.0), (12, &awake.0), "{set:?}");
        let frozen = |t: &Trainer| {
            let frozen = t.engine.model.params.list().iter().filter(|p| !p.trainable).map(|p| p.key.clone());
            frozen.collect::<Vec<_>>()
        };
        assert_eq!(frozen(&resting.2), ["w.weight", "w.bias", "a.weight", "b.weight"], "{set:?}");
        assert_eq!(frozen(&awake.2), ["w.weight"], "{set:?}");
        let (got, want) = (&resting.1, &awake.1);
        assert!(got.model == want.model && got.trained == want.trained && got.position == want.position, "{set:?}");
        // What is remembered of those at rest stays as it was, and nothing else differs.
        for (name, got) in got.optimizer.as_ref().unwrap() {
            let (got, want) = (got.to_f32().unwrap(), want.optimizer.as_ref().unwrap()[name].to_f32().unwrap());
            let params = resting.2.engine.model.params.list().iter();
            let resting: Vec<_> = params.filter(|p| RESTING.contains(&&*p.key)).map(|p| p.range()).collect();
            let same = |at: usize| got[at] == want[at] || resting.iter().any(|range| range.contains(&at));
            assert!((0..got.len()).all(same), "{set:?}: {name}");
            assert!(name == "loss_scale" || got != want, "{set:?}: {name}");
        }
        // Launch by launch, and in pieces that end before, at and after the first step at rest.
        for (graph, parts) in [(false, &[(4, ALL)][..]), (true, &[(4, 2), (4, 3), (4, 5), (4, 7), (4, ALL)])] {
            let other = run(&set, device, graph, parts);
            assert!((&other.0, &other.1) == (&resting.0, &resting.1), "{set:?}: {graph} {parts:?}");
        }
        // In more epochs than were asked for at first.
        let longer = [(2, ALL), (4, ALL)];
        let (other, awake) =
            (run(&set, device, true, &longer), run(&[&set[..], &[AWAKE]].concat(), device, true, &longer));
        assert!((&other.0, &other.1.model) == (&awake.0, &awake.1.model), "{set:?}: longer");
        // Back to where they moved.
        let folder = tempfile::tempdir().unwrap();
        let run_dir = RunDir::create(folder.path(), "run").unwrap();
        let early = run(&set, device, true, &[(4, 2)]).1;
        resting.2.restore(early, run_dir.path()).unwrap();
        resting.2.run(&run_dir, Limits::default(), &AtomicBool::new(false), &mut []).unwrap();
        let mut again = checkpoint::load(&run_dir.path().join("last")).unwrap();
        again.position.seconds = 0.0;
        assert!(again == resting.1, "{set:?}: again");
    }
}

/// The kernels of gradients that nobody needs are launched no more, in a recorded step neither.
#[test]
fn groups_at_rest_launch_no_kernels() {
    let Some(under) = Under::new() else { return };
    let Device::Cuda(cuda) = under.first() else { panic!("a CUDA device") };
    let optimizer = groups(r#"kind = "sgd", lr = 1e-2, momentum = 0.9"#);
    let kernels = |set: &[&str]| {
        let set = [&[&*optimizer, "schedule.kind=linear"], set].concat();
        let (_, _, mut trainer) = run(&set, under.first(), false, &[(1, ALL)]);
        let timings = cuda.profile(|| trainer.bench_steps(1)).unwrap();
        timings.iter().map(|t| t.kernel.to_string()).filter(|k| !k.contains("norm")).collect::<Vec<_>>()
    };
    let (resting, awake) = (kernels(&[]), kernels(&[AWAKE]));
    let count = |kernels: &[String], start: &str| kernels.iter().filter(|k| k.starts_with(start)).count();
    // After an epoch the bias of the first convolution rests.
    for (kernel, before, after) in
        [("bias_activation_sums", 1, 0), ("gelu_bwd", 0, 0), ("conv2d_bwd_x", 2, 1), ("bias_sums", 2, 2), ("sgd", 1, 1)]
    {
        assert_eq!(
            (count(&awake, kernel), count(&resting, kernel)),
            (before, after),
            "{kernel}: {awake:?} {resting:?}"
        );
    }
}

/// The learning-rate finder moves them too, and they rest again after it.
#[test]
fn the_rate_finder_wakes_groups_at_rest() {
    let Some(under) = Under::new() else { return };
    // Without a momentum nothing is remembered.
    let optimizer = groups(r#"kind = "sgd", lr = 1e-2"#);
    for device in [&Device::cpu(), under.first()] {
        let found = |set: &[&str]| {
            let set = [&[&*optimizer, "schedule.kind=linear"], set].concat();
            let (_, _, mut trainer) = run(&set, device, true, &[(1, ALL)]);
            let curve = trainer.find_rate(Ramp { start: 1e-3, end: 1e2, steps: 20 }).unwrap();
            trainer.bench_steps(2).unwrap();
            let resting = trainer.engine.model.params.list().iter().filter(|p| !p.trainable).count();
            (curve, trainer.engine.model.state_dict().unwrap(), resting)
        };
        let (resting, awake) = (found(&[]), found(&[AWAKE]));
        assert_eq!(resting.0, awake.0);
        assert!(resting.1 == awake.1);
        assert_eq!((resting.2, awake.2), (2, 1));
    }
}
