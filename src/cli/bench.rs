//! `tilework bench`: where the time of a recipe's training step goes, kernel by kernel.

use super::output::{Out, table};
use super::{BenchArgs, note};
use crate::data::shapes;
use crate::device::Device;
use crate::device::cuda::{Cuda, Timing};
use crate::error::{Error, Result};
use crate::ops::ceiling::Ceiling;
use crate::recipes::Recipe;
use crate::train::Trainer;
use std::collections::BTreeMap;

/// A kernel's launches within one step.
#[derive(Default)]
struct Kernel {
    launches: usize,
    /// Seconds of each step.
    seconds: Vec<f64>,
    bytes: usize,
    flops: f64,
}

pub(super) fn run(args: &BenchArgs, out: &mut Out) -> Result<()> {
    let (device, name) = args.machine.device()?;
    let Device::Cuda(cuda) = &device else {
        return Err(Error::config(
            "--device",
            "the CPU runs no kernels",
            "use --device cuda or --device emulated; `cargo bench` times the CPU's ops",
        ));
    };
    let mut set = args.set.values.clone();
    set.extend(args.batch_size.map(|n| format!("batch_size={n}")));
    let recipe = Recipe::load(&args.recipe, &set)?;
    let batch_size = recipe.batch_size;
    // The images do not matter to the time: they are drawn, so that no data set is needed.
    let mut trainer = Trainer::new(recipe, shapes::generate(0, batch_size, 10), &device)?;
    let batch = trainer.first_batch()?;
    note(&format!("a training step of {} with {batch_size} images on {name}", args.recipe));
    trainer.step_once(&batch)?;
    let mut kernels: BTreeMap<&str, Kernel> = BTreeMap::new();
    for _ in 0..args.steps {
        let timings = cuda.profile(|| trainer.step_once(&batch).map(drop))?;
        add(&mut kernels, &timings);
    }
    let whole = step_time(cuda, &mut trainer, &batch, args.steps)?;
    let ceiling = cuda.ceiling(5)?;
    out.print(&report(&kernels, &args.op, ceiling, whole)?)
}

fn add(kernels: &mut BTreeMap<&'static str, Kernel>, timings: &[Timing]) {
    let mut step: BTreeMap<&'static str, Kernel> = BTreeMap::new();
    for t in timings {
        let k = step.entry(t.kernel).or_insert_with(|| Kernel { seconds: vec![0.0], ..Kernel::default() });
        k.launches += 1;
        k.seconds[0] += t.time.as_secs_f64();
        k.bytes += t.bytes;
        k.flops += t.flops;
    }
    for (name, k) in step {
        let all = kernels.entry(name).or_default();
        all.seconds.extend(&k.seconds);
        (all.launches, all.bytes, all.flops) = (k.launches, k.bytes, k.flops);
    }
}

/// The median time of a step as it runs, launches queued one after the other.
fn step_time(cuda: &Cuda, trainer: &mut Trainer, batch: &crate::data::batch::Batch, steps: usize) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..steps {
        times.push(cuda.time(&mut || trainer.step_once(batch).map(drop))?.as_secs_f64());
    }
    Ok(median(&mut times))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn report(kernels: &BTreeMap<&str, Kernel>, op: &Option<String>, ceiling: Ceiling, whole: f64) -> Result<String> {
    let mut rows: Vec<(f64, Vec<String>)> = Vec::new();
    let mut total = 0.0;
    for (name, k) in kernels {
        let seconds = median(&mut k.seconds.clone());
        total += seconds;
        if op.as_ref().is_some_and(|op| !name.starts_with(op.as_str())) {
            continue;
        }
        let (bandwidth, flops) = (k.bytes as f64 / seconds, k.flops / seconds);
        // Whichever it is closer to is what holds it back.
        let share = (bandwidth / ceiling.bandwidth).max(flops / ceiling.flops);
        rows.push((
            seconds,
            vec![
                name.to_string(),
                k.launches.to_string(),
                format!("{:.1}", seconds * 1e6),
                format!("{:.2}", k.bytes as f64 / 1e6),
                format!("{:.1}", bandwidth / 1e9),
                if k.flops > 0.0 { format!("{:.1}", flops / 1e9) } else { String::new() },
                format!("{:.0} %", 100.0 * share),
            ],
        ));
    }
    if rows.is_empty() {
        let names = kernels.keys().copied().collect::<Vec<_>>().join(", ");
        let op = op.as_deref().unwrap_or_default();
        return Err(Error::config(
            format!("op `{op}`"),
            "the step launches no such kernel",
            format!("it launches {names}"),
        ));
    }
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    let head = ["kernel", "launches", "µs", "MB", "GB/s", "GFLOP/s", "of the ceiling"];
    Ok(format!(
        "{}\nall kernels {:.1} µs, each timed by itself; a step as it runs {:.1} µs\n\
         ceilings, measured now: {:.1} GB/s copied, {:.1} GFLOP/s of f32 multiply-adds\n\
         MB are the arguments' sizes, each counted once\n",
        table(&head, "<>>>>>>", rows.into_iter().map(|r| r.1).collect()).trim_start_matches('\n'),
        total * 1e6,
        whole * 1e6,
        ceiling.bandwidth / 1e9,
        ceiling.flops / 1e9,
    ))
}
