//! Every op, forward and backward, on the timed cases of its room: time, GB/s and GFLOP/s; on the
//! CPU, and where there is a GPU on it too, in f32 and in f16, with the share of what it reaches at most.
//!
//! `cargo bench --bench ops -- conv2d` times one room, `-- cuda/` the GPU alone. Bytes are those that
//! must move at least: each input read once and each output written once; the backward pass moves and
//! computes about twice as much, and is stated so.

mod device;
mod rotation;

use criterion::{Criterion, SamplingMode, Throughput};
use device::Chosen;
use rotation::{Rotation, bytes, forward, in_pool, rate};
use std::time::{Duration, Instant};
use tilework::device::cuda::Cuda;
use tilework::ops::ceiling::Ceiling;
use tilework::ops::{Case, ROOMS, Room};
use tilework::{DType, Device, Result, Tensor, Var};

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

fn bench_cuda(
    c: &mut Criterion,
    room: &str,
    (case, dtype): (&Case, DType),
    cuda: &Cuda,
    ceiling: Ceiling,
) -> Result<()> {
    let mut rotation = Rotation::new(case, dtype, cuda, |_| true)?;
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
