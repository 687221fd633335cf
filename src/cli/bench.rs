//! `tilework bench`: where the time of a recipe's training step goes, kernel by kernel.

use super::output::{Out, table};
use super::{BenchArgs, note};
use crate::device::Device;
use crate::device::cuda::{Cuda, Timing};
use crate::error::{Error, Result};
use crate::formats::file;
use crate::ops::ceiling::Ceiling;
use crate::recipes::Recipe;
use crate::train::{Trainer, drawn};
use serde_json::json;
use std::collections::BTreeMap;

/// A kernel's launches within one step.
#[derive(Default)]
struct Kernel {
    launches: usize,
    seconds: f64,
    bytes: usize,
    flops: f64,
}

/// Seconds of a step: replayed from a recording, if it is recorded, and launched kernel by kernel.
struct Step {
    replayed: Option<f64>,
    launched: f64,
}

/// Steps before those that are timed: in them the step is recorded.
const WARM_UP: usize = 5;
/// Measurements, of which the median counts.
const ROUNDS: usize = 3;

pub(super) fn run(args: &BenchArgs, out: &mut Out) -> Result<()> {
    args.trace.as_deref().map_or(Ok(()), file::check_file)?;
    let (device, name) = args.machine.device_with(args.tile)?;
    let Device::Cuda(cuda) = &device else {
        return Err(Error::config(
            "--device",
            "the CPU runs no kernels",
            "use --device cuda or --device emulated; `cargo bench` times the CPU's ops",
        ));
    };
    let mut set = args.set.values.clone();
    set.extend(args.batch_size.map(|n| format!("batch_size={n}")));
    set.extend(args.precision.as_ref().map(|p| format!("precision={p}")));
    let recipe = Recipe::load(&args.recipe, &set)?;
    let batch_size = recipe.batch_size;
    let mut trainer = drawn(recipe, &device)?;
    note(&format!("a training step of {} with {batch_size} images on {name}", args.recipe));
    // The second step is not a recorded one, so that its launches can be seen, and does once what every step does.
    trainer.bench_steps(1)?;
    let timings = cuda.profile(|| trainer.bench_steps(1))?;
    let replayed = if cuda.options().sync_launches { None } else { Some(time(cuda, &mut trainer, args.steps)?) };
    trainer.engine.without_graph();
    let step = Step { replayed, launched: time(cuda, &mut trainer, args.steps)? };
    if let Some(path) = &args.trace {
        file::write(path, trace(&timings, &args.recipe).as_bytes())?;
        note(&format!("the step's kernels are in {}", path.display()));
    }
    out.print(&report(&by_kernel(&timings), &args.op, cuda.ceiling(5)?, &step)?)
}

/// The kernels of a step, one after the other as they are launched, in Chrome's trace format
/// (Trace Event Format, complete events): times in microseconds.
fn trace(timings: &[Timing], recipe: &str) -> String {
    let mut start = 0.0;
    let mut events = vec![json!({"name": "process_name", "ph": "M", "pid": 1, "args": {"name": recipe}})];
    for t in timings {
        let (us, seconds) = (t.time.as_secs_f64() * 1e6, t.time.as_secs_f64());
        let rates = json!({"bytes": t.bytes, "flops": t.flops, "GB/s": t.bytes as f64 / seconds / 1e9, "GFLOP/s": t.flops / seconds / 1e9});
        events.push(json!({"name": t.kernel, "ph": "X", "pid": 1, "tid": 1, "ts": start, "dur": us, "args": rates}));
        start += us;
    }
    json!({"traceEvents": events, "displayTimeUnit": "ns"}).to_string()
}

fn by_kernel(timings: &[Timing]) -> BTreeMap<&'static str, Kernel> {
    let mut kernels: BTreeMap<&'static str, Kernel> = BTreeMap::new();
    for t in timings {
        let k = kernels.entry(t.kernel).or_default();
        k.launches += 1;
        k.seconds += t.time.as_secs_f64();
        k.bytes += t.bytes;
        k.flops += t.flops;
    }
    kernels
}

/// Seconds of a step among `steps` in a row.
fn time(cuda: &Cuda, trainer: &mut Trainer, steps: usize) -> Result<f64> {
    trainer.bench_steps(WARM_UP)?;
    let mut round = || Ok(cuda.time(&mut || trainer.bench_steps(steps))?.as_secs_f64() / steps as f64);
    let mut times = (0..ROUNDS).map(|_| round()).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[ROUNDS / 2])
}

fn report(kernels: &BTreeMap<&str, Kernel>, op: &Option<String>, ceiling: Ceiling, step: &Step) -> Result<String> {
    let mut rows: Vec<(f64, Vec<String>)> = Vec::new();
    let mut total = 0.0;
    for (name, k) in kernels {
        let seconds = k.seconds;
        total += seconds;
        if op.as_ref().is_some_and(|op| !name.starts_with(op.as_str())) {
            continue;
        }
        let (bandwidth, flops) = (k.bytes as f64 / seconds, k.flops / seconds);
        // Whichever it is closer to is what holds it back.
        let most = if on_tensor_cores(name) { ceiling.tensor } else { ceiling.flops };
        let share = (bandwidth / ceiling.bandwidth).max(flops / most);
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
    let replayed = step.replayed.map_or(String::new(), |s| format!("a recorded step {:.1} µs, ", s * 1e6));
    Ok(format!(
        "{}\nall kernels {:.1} µs, each timed by itself and without its launch; {replayed}a launched step {:.1} µs\n\
         ceilings, measured now: {:.1} GB/s copied, {:.1} GFLOP/s of f32 multiply-adds, {:.1} of f16 on tensor cores\n\
         MB are the arguments' sizes, each counted once\n",
        table(&head, "<>>>>>>", rows.into_iter().map(|r| r.1).collect()).trim_start_matches('\n'),
        total * 1e6,
        step.launched * 1e6,
        ceiling.bandwidth / 1e9,
        ceiling.flops / 1e9,
        ceiling.tensor / 1e9,
    ))
}

/// Whether a kernel's arithmetic is that of tensor cores: by its tile.
fn on_tensor_cores(kernel: &str) -> bool {
    ["Mma", "Wgmma", "Tma"].iter().any(|tile| kernel.contains(tile))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn kernels_add_up() {
        let timing = |kernel, us, bytes, flops| Timing { kernel, time: Duration::from_micros(us), bytes, flops };
        let timings =
            [timing("a_fwd", 30, 30_000, 0.0), timing("b_fwd", 40, 5_000, 8e4), timing("a_fwd", 50, 10_000, 0.0)];
        let ceiling = Ceiling { bandwidth: 1e9, flops: 4e9, tensor: 1e12 };
        let text = |op: Option<&str>, replayed| {
            let step = Step { replayed, launched: 150e-6 };
            report(&by_kernel(&timings), &op.map(String::from), ceiling, &step)
        };
        let all = text(None, Some(125e-6)).unwrap();
        let rows: Vec<Vec<&str>> = all.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(rows[1], ["a_fwd", "2", "80.0", "0.04", "0.5", "50", "%"]);
        assert_eq!(rows[2], ["b_fwd", "1", "40.0", "0.01", "0.1", "2.0", "50", "%"]);
        assert!(all.contains("all kernels 120.0 µs") && all.contains("a recorded step 125.0 µs"), "{all}");
        let traced: serde_json::Value = serde_json::from_str(&trace(&timings, "a")).unwrap();
        let second = &traced["traceEvents"][2];
        assert_eq!((&second["name"], &second["ts"], &second["dur"]), (&json!("b_fwd"), &json!(30.0), &json!(40.0)));
        // One op's rows, but the sum of all.
        let one = text(Some("b"), None).unwrap();
        assert!(one.contains("all kernels 120.0 µs") && !one.contains("a_fwd") && !one.contains("recorded"), "{one}");
        assert!(text(Some("c"), None).unwrap_err().to_string().contains("it launches a_fwd, b_fwd"));
    }
}
