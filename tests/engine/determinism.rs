//! Equal bits at 1, 2 and 4 threads, and no allocation after the second step.

use tilework::data::shapes;
use tilework::ops::{Case, ROOMS};
use tilework::recipes::Recipe;
use tilework::train::Trainer;
use tilework::{DType, Device, Tensor, Var};

fn with_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

/// The bits of an op's output and of all its inputs' gradients.
fn bits(case: &Case) -> Vec<u32> {
    let device = Device::cpu();
    let mut cx = Case::ctx(&device);
    let inputs = case.tensors(&device, DType::F32, 3).unwrap();
    let vars: Vec<Var> = inputs.into_iter().map(|t| cx.leaf(t)).collect();
    let y = (case.apply)(&vars, &mut cx).unwrap();
    let gy: Vec<f32> = (0..y.value().len()).map(|i| (i % 17) as f32 * 0.1 - 0.8).collect();
    let mut all = y.value().to_vec::<f32>().unwrap();
    let grads = cx.backward(&y, Tensor::from_slice(&device, y.shape(), &gy).unwrap(), None).unwrap();
    for v in &vars {
        all.extend(grads.of(v).map(|g| g.to_vec::<f32>().unwrap()).unwrap_or_default());
    }
    all.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn ops_give_equal_bits_at_1_2_and_4_threads() {
    for room in ROOMS {
        // The largest layers take gigabytes in this check and add nothing: the next ones are cut as well.
        let size = |c: &Case| c.inputs.iter().map(|i| i.shape.len()).sum::<usize>();
        for case in (room.cases)().iter().filter(|c| size(c) < 4_000_000) {
            let one = with_threads(1, || bits(case));
            for threads in [2, 4] {
                assert!(
                    with_threads(threads, || bits(case)) == one,
                    "{} {} at {threads} threads",
                    room.name,
                    case.name
                );
            }
        }
    }
}

/// On no more images than the loader's thread prepares at once: with the first batch it is done, and allocates nothing
/// beside the steps.
fn trainer(name: &str, set: &[&str]) -> Trainer {
    let set: Vec<String> = set.iter().map(ToString::to_string).collect();
    Trainer::new(Recipe::load(name, &set).unwrap(), shapes::generate(0, 256, 10), &Device::cpu()).unwrap()
}

/// The losses and final parameters of a few steps.
fn steps(name: &str, set: &[&str], n: usize) -> Vec<u64> {
    let mut t = trainer(name, set);
    let batch = t.first_batch().unwrap();
    let mut all: Vec<u64> = (0..n).map(|_| t.step_once(&batch).unwrap().to_bits()).collect();
    all.extend(t.engine.model.params.values().host::<f32>().unwrap().iter().map(|x| u64::from(x.to_bits())));
    all
}

#[test]
fn training_gives_equal_bits_at_1_2_and_4_threads() {
    for (name, set, n) in [("a1-lenet", &[][..], 20), ("quickstart", &[], 5), ("b1-bn-cnn", &["batch_size=5"], 2)] {
        let one = with_threads(1, || steps(name, set, n));
        for threads in [2, 4] {
            assert!(with_threads(threads, || steps(name, set, n)) == one, "{name} at {threads} threads");
        }
    }
}

#[test]
fn nothing_is_allocated_after_the_second_step() {
    for name in ["a1-lenet", "quickstart", "b1-bn-cnn"] {
        let mut t = trainer(name, &[]);
        let batch = t.first_batch().unwrap();
        let device = batch.images.device().clone();
        t.step_once(&batch).unwrap();
        t.step_once(&batch).unwrap();
        let before = device.memory();
        for _ in 0..3 {
            t.step_once(&batch).unwrap();
        }
        let after = device.memory();
        assert_eq!(after.allocations, before.allocations, "{name}");
        assert_eq!(after.peak, before.peak, "{name}");
    }
}
