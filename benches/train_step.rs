//! Whole training steps of the recipes: zero the gradients, forward, loss, backward, update, on one
//! batch in memory. `tools/compare_pytorch.py` runs these beside PyTorch.

use criterion::{Criterion, Throughput};
use tilework::data::shapes;
use tilework::recipes::{BUILT_IN, Recipe};
use tilework::train::Trainer;
use tilework::{Device, Result};

fn trainer(name: &str) -> Result<Trainer> {
    let recipe = Recipe::load(name, &[])?;
    Trainer::new(recipe, shapes::generate(0, 1024, 10), &Device::cpu())
}

/// Runs on a thread of rayon's pool.
fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::join(f, || ()).0
}

fn train_step(c: &mut Criterion) {
    let mut group = c.benchmark_group("train_step");
    for (name, _) in BUILT_IN {
        let mut trainer = trainer(name).expect("a built-in recipe builds");
        let batch = trainer.first_batch().expect("the embedded data has a batch");
        group.throughput(Throughput::Elements(batch.labels.len() as u64));
        group.bench_function(*name, |b| {
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

fn main() {
    let mut c = Criterion::default().configure_from_args();
    train_step(&mut c);
    c.final_summary();
}
