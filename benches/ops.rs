//! Every op, forward and backward, on the timed cases of its room: time, GB/s and GFLOP/s; on the
//! CPU, and where there is a GPU on it too, in f32 and in f16, with the share of what it reaches at most.
//!
//! `cargo bench --bench ops -- conv2d` times one room, `-- cuda/` the GPU alone. Bytes are those that
//! must move at least: each input read once and each output written once; the backward pass moves and
//! computes about twice as much, and is stated so.

mod device;

use criterion::{Criterion, SamplingMode, Throughput};
use device::Chosen;
use std::time::{Duration, Instant};
use tilework::device::cuda::{Captured, Cuda, Timing};
use tilework::ops::ceiling::Ceiling;
use tilework::ops::{Case, ROOMS, Room};
use tilework::{DType, Device, Error, Result, Tensor, Var};

/// Runs `f` on a thread of rayon's pool, where the program's own work runs.
fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::join(f, || ()).0
}

fn forward(case: &Case, inputs: &[Tensor], device: &Device) -> Result<Var> {
    let mut cx = Case::ctx(device);
    let vars: Vec<Var> = inputs.iter().map(|t| Var::constant(t.clone())).collect();
    (case.apply)(&vars, &mut cx)
}

/// The time of the backward pass alone.
fn backward(case: &Case, inputs: &[Tensor], gy: &Tensor, device: &Device) -> Result<Duration> {
    let mut cx = Case::ctx(device);
    let vars: Vec<Var> = inputs.iter().map(|t| cx.leaf(t.clone())).collect();
    let y = (case.apply)(&vars, &mut cx)?;
    let start = Instant::now();
    let grads = cx.backward(&y, gy.clone(), None)?;
    let time = start.elapsed();
    drop(grads);
    Ok(time)
}

fn rate(per_iteration: f64, what: &str, seconds: f64) -> String {
    format!("{:.1} {what}", per_iteration / seconds / 1e9)
}

fn bench(c: &mut Criterion, room: &str, case: &Case) -> Result<()> {
    let device = Device::cpu();
    let inputs = case.tensors(&device, DType::F32, 1)?;
    let y = forward(case, &inputs, &device)?.value().clone();
    let bytes = bytes(&inputs, &y);
    let gy = Tensor::from_slice(&device, y.shape(), &vec![0.5f32; y.len()])?;
    let mut group = c.benchmark_group(room);
    for (pass, work) in [("fwd", 1), ("bwd", 2)] {
        group.throughput(Throughput::Bytes((bytes * work) as u64));
        let mut shortest = f64::INFINITY;
        group.bench_function(format!("{pass} {}", case.name), |b| {
            b.iter_custom(|iterations| {
                let total = in_pool(|| -> Result<Duration> {
                    let start = Instant::now();
                    let mut spent = Duration::ZERO;
                    for _ in 0..iterations {
                        match pass {
                            "fwd" => drop(forward(case, &inputs, &device)?),
                            _ => spent += backward(case, &inputs, &gy, &device)?,
                        }
                    }
                    Ok(if pass == "fwd" { start.elapsed() } else { spent })
                })
                .expect("a case runs");
                shortest = shortest.min(total.as_secs_f64() / iterations as f64);
                total
            });
        });
        if shortest.is_finite() {
            let work = work as f64;
            let flops = if case.flops > 0.0 { rate(case.flops * work, "GFLOP/s", shortest) } else { String::new() };
            println!(
                "    at its fastest {:.1} µs: {} {flops}",
                shortest * 1e6,
                rate(bytes as f64 * work, "GB/s", shortest)
            );
        }
    }
    group.finish();
    Ok(())
}

/// Bytes that the forward pass must move.
fn bytes(inputs: &[Tensor], y: &Tensor) -> usize {
    inputs.iter().chain([y]).map(|t| t.len() * t.dtype().size()).sum()
}

/// An op on a CUDA device, with as many copies of its inputs as it takes to leave the L2 behind.
struct Rotation<'c> {
    case: &'c Case,
    device: Device,
    cuda: Cuda,
    sets: Vec<Vec<Tensor>>,
    gy: Tensor,
    bytes: usize,
    /// The forward passes of all sets, and those with the backward passes; `None` for an op that
    /// gets something from the host within the pass and so cannot be recorded.
    recorded: Option<[Captured; 2]>,
}

/// Copies that are made at most: those of the smallest cases stay in the L2, and are bound by their
/// launches anyway.
const MOST_SETS: usize = 512;

impl<'c> Rotation<'c> {
    fn new(case: &'c Case, dtype: DType, cuda: &Cuda) -> Result<Self> {
        let device = Device::Cuda(cuda.clone());
        let first = case.tensors(&device, dtype, 1)?;
        // Also the warm-up: kernels are compiled, and blocks get into the pool.
        let y = forward(case, &first, &device)?.value().clone();
        let gy = Tensor::from_slice(&device, y.shape(), &vec![0.5f32; y.len()])?.to_dtype(y.dtype())?;
        backward(case, &first, &gy, &device)?;
        let bytes = bytes(&first, &y);
        let count = (2 * cuda.info().l2_bytes).div_ceil(bytes).clamp(2, MOST_SETS);
        let copy = |t: &Tensor| -> Result<Tensor> {
            let mut copy = Tensor::empty(&device, t.dtype(), t.shape())?;
            copy.copy_from(t)?;
            Ok(copy)
        };
        let mut sets = vec![first];
        while sets.len() < count {
            sets.push(sets[0].iter().map(copy).collect::<Result<_>>()?);
        }
        let mut rotation = Rotation { case, device, cuda: cuda.clone(), sets, gy, bytes, recorded: None };
        if let (Ok(forward), Ok(both)) = (rotation.record(false), rotation.record(true)) {
            rotation.recorded = Some([forward, both]);
        }
        cuda.sync()?;
        Ok(rotation)
    }

    /// Records the forward passes of all sets, tracked as in training, and the backward passes if asked.
    fn record(&self, backward: bool) -> Result<Captured> {
        self.cuda.capture(|| {
            // What is saved and what results is kept to the end, so that each set has its own.
            let (mut kept, mut grads) = (Vec::new(), Vec::new());
            for set in &self.sets {
                let mut cx = Case::ctx(&self.device);
                let vars: Vec<Var> = set.iter().map(|t| cx.leaf(t.clone())).collect();
                let y = (self.case.apply)(&vars, &mut cx)?;
                match backward {
                    true => {
                        grads.push(cx.backward(&y, self.gy.clone(), None)?);
                        kept.push((y, None));
                    }
                    false => kept.push((y, Some(cx))),
                }
            }
            Ok(())
        })
    }

    /// Whether the pass has anything to time: some ops hand their gradient on as it is.
    fn launches(&self, pass: &str) -> bool {
        let Some([forward, both]) = &self.recorded else { return true };
        if pass == "fwd" { forward.launches() > 0 } else { both.launches() > forward.launches() }
    }

    /// The device's time for that many passes.
    fn time(&mut self, pass: &str, iterations: u64) -> Result<Duration> {
        let Some([forward, both]) = &self.recorded else { return self.one_by_one(pass, iterations) };
        let rounds = iterations.div_ceil(self.sets.len() as u64);
        let replays = |graph: &Captured| self.cuda.time(&mut || (0..rounds).try_for_each(|_| graph.replay()));
        let time = match pass {
            "fwd" => replays(forward)?,
            // Backward needs what forward saved: both are run, and forward's time is taken off.
            _ => replays(both)?.saturating_sub(replays(forward)?).max(Duration::from_nanos(iterations)),
        };
        Ok(time.mul_f64(iterations as f64 / (rounds * self.sets.len() as u64) as f64))
    }

    /// The same as the sum of what each kernel takes by itself.
    fn one_by_one(&self, pass: &str, iterations: u64) -> Result<Duration> {
        let sum = |timings: Vec<Timing>| timings.iter().map(|t| t.time).sum::<Duration>();
        let mut cx = Case::ctx(&self.device);
        let vars: Vec<Var> = self.sets[0].iter().map(|t| cx.leaf(t.clone())).collect();
        let mut y = None;
        let forward = self.cuda.profile(|| {
            y = Some((self.case.apply)(&vars, &mut cx)?);
            Ok(())
        })?;
        let y = y.ok_or_else(|| Error::Internal("a forward pass without a result".into()))?;
        let time = sum(match pass {
            "fwd" => forward,
            _ => self.cuda.profile(|| cx.backward(&y, self.gy.clone(), None).map(drop))?,
        });
        Ok(time.mul_f64(iterations as f64))
    }

    fn numbers(&self, work: f64, seconds: f64, ceiling: Ceiling) -> Vec<String> {
        let with_share = |per_iteration: f64, unit: &str, most: f64| {
            let share = 100.0 * per_iteration / seconds / most;
            format!("{} ({share:.0} % of the ceiling)", rate(per_iteration, unit, seconds))
        };
        let mut numbers = vec![with_share(self.bytes as f64 * work, "GB/s", ceiling.bandwidth)];
        if self.case.flops > 0.0 {
            // In two bytes what has much arithmetic is a product, on tensor cores.
            let most = if self.gy.dtype() == DType::F32 { ceiling.flops } else { ceiling.tensor };
            numbers.push(with_share(self.case.flops * work, "GFLOP/s", most));
        }
        if self.sets.len() * self.bytes < 2 * self.cuda.info().l2_bytes {
            numbers.push("in the L2".into());
        }
        if self.recorded.is_none() {
            numbers.push("each kernel timed by itself".into());
        }
        numbers
    }
}

fn bench_cuda(
    c: &mut Criterion,
    room: &str,
    (case, dtype): (&Case, DType),
    cuda: &Cuda,
    ceiling: Ceiling,
) -> Result<()> {
    let mut rotation = Rotation::new(case, dtype, cuda)?;
    let of = if dtype == DType::F32 { String::new() } else { format!("/{dtype}") };
    let name = format!("{}/{room}{of}", device::prefix(cuda));
    let mut group = c.benchmark_group(&name);
    group.sampling_mode(SamplingMode::Flat);
    for (pass, work) in [("fwd", 1), ("bwd", 2)] {
        if !rotation.launches(pass) {
            println!("skipped: {name}/{pass} {}, which launches no kernel", case.name);
            continue;
        }
        group.throughput(Throughput::Bytes((rotation.bytes * work) as u64));
        let mut times = Vec::new();
        group.bench_function(format!("{pass} {}", case.name), |b| {
            b.iter_custom(|iterations| {
                let total = in_pool(|| rotation.time(pass, iterations)).expect("a case runs");
                times.push(total.as_secs_f64() / iterations as f64);
                total
            });
        });
        // Empty if the command line chose other benches.
        if let Some(seconds) = device::median(&mut times) {
            let id = format!("{name}/{pass} {}", case.name);
            device::line(&id, seconds, &rotation.numbers(work as f64, seconds, ceiling));
        }
    }
    group.finish();
    Ok(())
}

/// The cases of a room that are timed on a CUDA device: in a rehearsal the largest of those that the
/// emulated device runs in no time.
fn chosen(room: &Room, emulated: bool) -> Vec<Case> {
    let cases = (room.cases)().into_iter();
    if !emulated {
        return cases.filter(|c| c.bench).collect();
    }
    let size = |c: &Case| c.inputs.iter().map(|i| i.shape.len()).sum::<usize>();
    cases.filter(|c| size(c) < 5000 && c.flops < 2e5).max_by_key(size).into_iter().collect()
}

fn main() -> Result<()> {
    let devices = Chosen::new();
    let mut c = devices.criterion();
    for room in ROOMS.iter().filter(|_| devices.cpu) {
        for case in (room.cases)().iter().filter(|c| c.bench) {
            bench(&mut c, room.name, case)?;
        }
    }
    if let Some(cuda) = &devices.cuda {
        let ceiling = cuda.ceiling(5)?;
        println!(
            "ceilings, measured now: {:.1} GB/s copied, {:.1} GFLOP/s of f32 multiply-adds, {:.1} of f16 on tensor cores",
            ceiling.bandwidth / 1e9,
            ceiling.flops / 1e9,
            ceiling.tensor / 1e9
        );
        for room in ROOMS {
            for case in &chosen(room, cuda.is_emulated()) {
                for dtype in [DType::F32, DType::F16].into_iter().filter(|d| *d == DType::F32 || case.half) {
                    bench_cuda(&mut c, room.name, (case, dtype), cuda, ceiling)?;
                }
            }
        }
    }
    c.final_summary();
    Ok(())
}
