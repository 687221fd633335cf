//! Every op, forward and backward, on the timed cases of its room: time, GB/s and GFLOP/s.
//!
//! `cargo bench --bench ops -- conv2d` times one room. Bytes are those that must move at least:
//! each input read once and each output written once; the backward pass moves and computes about
//! twice as much, and is stated so.

use criterion::{Criterion, Throughput};
use std::time::{Duration, Instant};
use tilework::ops::{Case, ROOMS};
use tilework::{DType, Device, Result, Tensor, Var};

/// Runs `f` on a thread of rayon's pool, where the program's own work runs.
fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::join(f, || ()).0
}

fn forward(case: &Case, inputs: &[Tensor], device: &Device) -> Result<()> {
    let mut cx = Case::ctx(device)?;
    let vars: Vec<Var> = inputs.iter().map(|t| Var::constant(t.clone())).collect();
    (case.apply)(&vars, &mut cx).map(drop)
}

/// The time of the backward pass alone.
fn backward(case: &Case, inputs: &[Tensor], gy: &Tensor, device: &Device) -> Result<Duration> {
    let mut cx = Case::ctx(device)?;
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
    let vars: Vec<Var> = inputs.iter().map(|t| Var::constant(t.clone())).collect();
    let y = (case.apply)(&vars, &mut Case::ctx(&device)?)?.value().clone();
    let bytes = 4 * (y.len() + inputs.iter().map(Tensor::len).sum::<usize>());
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
                            "fwd" => forward(case, &inputs, &device)?,
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

fn main() -> Result<()> {
    let mut c = Criterion::default().configure_from_args();
    for room in ROOMS {
        for case in (room.cases)().iter().filter(|c| c.bench) {
            bench(&mut c, room.name, case)?;
        }
    }
    c.final_summary();
    Ok(())
}
