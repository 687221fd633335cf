//! Whole training steps of the recipes: zero the gradients, forward, loss, backward, update, on one
//! batch in memory. `tools/compare_pytorch.py` runs these beside PyTorch.
//!
//! On a GPU each step also makes its batch from the data set in the GPU's memory, as in training, and
//! is timed twice: `replayed`, as a recorded step, and `launched`, kernel by kernel.
//! `TILEWORK_BATCH_SIZE` replaces the recipes' batch sizes.

mod device;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use device::Chosen;
use tilework::device::cuda::Cuda;
use tilework::recipes::Recipe;
use tilework::train::{Trainer, drawn};
use tilework::{Device, Result};

/// The recipes whose steps are timed: one for each network.
const NAMES: [&str; 13] = [
    "quickstart",
    "a1-lenet",
    "a4-longer",
    "a7-wider",
    "a8-third-conv",
    "b1-bn-cnn",
    "c1-fully-connected",
    "c2-conv",
    "c4-conv-bn",
    "c5-deep-conv-bn",
    "d1-resnet18",
    "d5-tiny",
    "e1-resnet9-onecycle",
];

/// A recipe's network with the batch size to time it at, and images for it.
fn trainer(name: &str, device: &Device, otherwise: Option<usize>) -> Result<(Trainer, usize)> {
    let given = std::env::var("TILEWORK_BATCH_SIZE").ok().map(|text| {
        text.parse().unwrap_or_else(|_| panic!("TILEWORK_BATCH_SIZE is `{text}`: make it a number of images"))
    });
    let set: Vec<String> = given.or(otherwise).map(|n: usize| format!("batch_size={n}")).into_iter().collect();
    let recipe = Recipe::load(name, &set)?;
    let batch = recipe.batch_size;
    Ok((drawn(recipe, device)?, batch))
}

/// Runs on a thread of rayon's pool.
fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::join(f, || ()).0
}

fn on_cpu(c: &mut Criterion) {
    let mut group = c.benchmark_group("train_step");
    for name in NAMES {
        if name == "d5-tiny" {
            println!("skipped: train_step/{name}, whose step takes seconds on a CPU");
            continue;
        }
        let (mut trainer, images) = trainer(name, &Device::cpu(), None).expect("a built-in recipe builds");
        let batch = trainer.first_batch().expect("the embedded data has a batch");
        group.throughput(Throughput::Elements(images as u64));
        group.bench_function(name, |b| {
            // On a thread of the pool, as the program trains: handing work over is cheaper from there.
            b.iter_custom(|iterations| {
                in_pool(|| {
                    let start = std::time::Instant::now();
                    for _ in 0..iterations {
                        trainer.step_once(&batch).expect("a step");
                    }
                    start.elapsed()
                })
            });
        });
    }
}

/// Steps before the measurement: kernels are compiled, and the step is recorded.
const WARM_UP: usize = 5;

fn on_cuda(c: &mut Criterion, cuda: &Cuda) {
    let device = Device::Cuda(cuda.clone());
    let group_name = format!("{}/train_step", device::prefix(cuda));
    let mut group = c.benchmark_group(&group_name);
    group.sampling_mode(SamplingMode::Flat);
    for name in NAMES {
        if cuda.is_emulated() && !["quickstart", "a1-lenet"].contains(&name) {
            println!("skipped: {group_name}/{name}, which takes the emulated device too long");
            continue;
        }
        for how in ["replayed", "launched"] {
            // Built when it is known that it is timed at all.
            let mut trained: Option<Trainer> = None;
            let (mut times, mut images) = (Vec::new(), 0);
            group.bench_function(BenchmarkId::new(name, how), |b| {
                b.iter_custom(|iterations| {
                    let trainer = trained.get_or_insert_with(|| {
                        let small = cuda.is_emulated().then_some(2);
                        let (mut trainer, batch) = trainer(name, &device, small).expect("a built-in recipe builds");
                        if how == "launched" {
                            trainer.engine.without_graph();
                        }
                        trainer.bench_steps(WARM_UP).expect("steps");
                        images = batch;
                        trainer
                    });
                    let steps = &mut || trainer.bench_steps(iterations as usize);
                    let time = in_pool(|| cuda.time(steps)).expect("steps");
                    times.push(time.as_secs_f64() / iterations as f64);
                    time
                });
            });
            if let Some(seconds) = device::median(&mut times) {
                let rate = format!("{:.0} images/s at a batch of {images}", images as f64 / seconds);
                device::line(&format!("{group_name}/{name}/{how}"), seconds, &[rate]);
            }
        }
    }
}

fn main() {
    let devices = Chosen::new();
    let mut c = devices.criterion();
    if devices.cpu {
        on_cpu(&mut c);
    }
    if let Some(cuda) = &devices.cuda {
        on_cuda(&mut c, cuda);
    }
    c.final_summary();
}
