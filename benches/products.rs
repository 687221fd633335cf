//! Every matrix product of the recipes' networks on a GPU, at the recipes' batch sizes: each convolution and linear layer
//! forward, and its gradients of the input and of the weights by themselves, in f32, f16 and bf16: time, GB/s and GFLOP/s
//! with their shares of what the device reaches.
//!
//! `cargo bench --bench products -- bf16` times one type, `-- "fwd conv2d"` one pass. `tools/bundle/run.py` sets cuDNN's times
//! beside these.

mod device;
mod rotation;

use criterion::{Criterion, SamplingMode, Throughput};
use device::Chosen;
use rotation::{Rotation, in_pool};
use std::collections::HashSet;
use tilework::device::cuda::Cuda;
use tilework::nn::LayerInfo;
use tilework::ops::Case;
use tilework::ops::case::Fill;
use tilework::ops::ceiling::Ceiling;
use tilework::recipes::Recipe;
use tilework::{DType, Device, Result};

/// Recipes that have all shapes of the built-in ones between them.
const RECIPES: [&str; 13] = [
    "quickstart",
    "a1-lenet",
    "a3-deeper-head",
    "a6-wide-dropout",
    "a7-wider",
    "a8-third-conv",
    "b1-bn-cnn",
    "c1-fully-connected",
    "c2-conv",
    "c4-conv-bn",
    "c5-deep-conv-bn",
    "d1-resnet18",
    "e1-resnet9-onecycle",
];
/// And those that a rehearsal leaves out.
const MORE: [&str; 2] = ["d5-tiny", "airbench94"];

/// What a pass computes, and of which input it finds the gradient: forward it is none.
const PASSES: [(&str, Option<usize>); 3] = [("fwd", None), ("bwd_x", Some(0)), ("bwd_w", Some(1))];

/// `AxB` or `A` of a phrase's part.
fn pair(text: &str) -> [usize; 2] {
    let mut sides = text.split('x').map(|side| side.parse().expect("a layer's phrase has numbers"));
    let first = sides.next().unwrap_or(1);
    [first, sides.next().unwrap_or(first)]
}

/// The product of a layer for a batch, if it is one.
fn product(layer: &LayerInfo, n: usize) -> Option<Case> {
    let mut parts = layer.spec.split(", ");
    let first = parts.next()?;
    if let Some(kernel) = first.strip_prefix("conv ") {
        let (mut stride, mut pad) = ([1; 2], [0; 2]);
        for part in parts {
            match part.split_once(' ') {
                Some(("stride", text)) => stride = pair(text),
                Some(("pad", text)) => pad = pair(text),
                _ => {}
            }
        }
        let ([h, w, c], [ho, wo, o]): ([usize; 3], [usize; 3]) =
            (layer.input.dims().try_into().ok()?, layer.output.dims().try_into().ok()?);
        let [kh, kw] = pair(kernel);
        let [[sh, sw], [ph, pw]] = [stride, pad];
        let name = format!("conv2d [{n}, {h}, {w}, {c}] to {o}, {kh}x{kw}, stride {sh}x{sw}, pad {ph}x{pw}");
        let case = Case::new(name, move |v, cx| v[0].conv2d(&v[1], None, stride, pad, cx));
        let case = case.input("x", [n, h, w, c], Fill::Uniform).input("w", [o, kh, kw, c], Fill::Uniform);
        return Some(case.flops(2 * n * ho * wo * o * kh * kw * c));
    }
    first.strip_prefix("fc ")?;
    let (inputs, outputs) = (layer.input.len(), layer.output.len());
    let case = Case::new(format!("linear [{n}, {inputs}] to {outputs}"), |v, cx| v[0].linear(&v[1], None, cx));
    let case = case.input("x", [n, inputs], Fill::Uniform).input("w", [outputs, inputs], Fill::Uniform);
    Some(case.flops(2 * n * inputs * outputs))
}

/// The products of the recipes' networks, each once. In a rehearsal the least of either kind.
fn products(emulated: bool) -> Result<Vec<Case>> {
    let (mut seen, mut cases) = (HashSet::new(), Vec::new());
    for name in RECIPES.iter().chain(MORE.iter().filter(|_| !emulated)) {
        let recipe = Recipe::load(name, &[])?;
        let side = recipe.data.size.unwrap_or(32);
        let model = recipe.model([side, side, 3], &Device::cpu())?;
        let of_layers = model.layers.iter().filter_map(|layer| product(layer, recipe.batch_size));
        cases.extend(of_layers.filter(|case| seen.insert(case.name.clone())));
    }
    if emulated {
        cases.sort_by(|a, b| a.flops.total_cmp(&b.flops));
        let least = |op: &str| cases.iter().position(|case| case.name.starts_with(op));
        let kept = ["linear", "conv2d"].map(least);
        let mut place = 0..;
        cases.retain(|_| kept.contains(&place.next()));
    }
    Ok(cases)
}

fn bench(c: &mut Criterion, (case, dtype): (&Case, DType), cuda: &Cuda, ceiling: Ceiling) -> Result<()> {
    let name = format!("{}/products/{dtype}", device::prefix(cuda));
    let mut group = c.benchmark_group(&name);
    group.sampling_mode(SamplingMode::Flat);
    for (pass, tracked) in PASSES {
        let mut rotation: Option<Rotation<'_>> = None;
        group.throughput(Throughput::Elements(case.flops as u64));
        let mut times = Vec::new();
        group.bench_function(format!("{pass} {}", case.name), |b| {
            b.iter_custom(|iterations| {
                let rotation = rotation.get_or_insert_with(|| {
                    Rotation::new(case, dtype, cuda, |i| Some(i) == tracked).expect("a product runs")
                });
                let way = if tracked.is_none() { "fwd" } else { "bwd" };
                assert!(rotation.launches(way), "{} launches nothing", case.name);
                let total = in_pool(|| rotation.time(way, iterations)).expect("a product runs");
                times.push(total.as_secs_f64() / iterations as f64);
                total
            });
        });
        // Empty if the command line chose other benches.
        if let (Some(seconds), Some(rotation)) = (device::median(&mut times), rotation) {
            let id = format!("{name}/{pass} {}", case.name);
            device::line(&id, seconds, &rotation.numbers(1.0, seconds, ceiling));
        }
    }
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    let devices = Chosen::new();
    let mut c = devices.criterion();
    match &devices.cuda {
        None => assert!(devices.cpu, "Chosen ends the program where a device that was asked for is not there"),
        Some(cuda) => {
            let ceiling = cuda.ceiling(5)?;
            for case in &products(cuda.is_emulated())? {
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    bench(&mut c, (case, dtype), cuda, ceiling)?;
                }
            }
        }
    }
    c.final_summary();
    Ok(())
}
