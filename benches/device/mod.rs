//! The devices that a bench times, and what both benches print.
//!
//! Without `TILEWORK_DEVICE` these are the CPU and, where there is one, the GPU. `cpu`, `cuda` or
//! `emulated` in it chooses one; the emulated device is for rehearsals: its times mean nothing, and
//! its benches are small and short.

use criterion::Criterion;
use std::time::Duration;
use tilework::Device;
use tilework::device::cuda::{Cuda, CudaOptions};

/// What is to be timed.
pub(crate) struct Chosen {
    pub(crate) cpu: bool,
    pub(crate) cuda: Option<Cuda>,
}

impl Chosen {
    /// The devices of this run. Where there is no GPU it says so in a line; where one was asked for,
    /// that ends the program.
    pub(crate) fn new() -> Self {
        let name = std::env::var("TILEWORK_DEVICE").unwrap_or_default();
        let (cpu, device) = match name.as_str() {
            "cpu" => return Chosen { cpu: true, cuda: None },
            "emulated" => (false, Device::emulated(CudaOptions::default())),
            "cuda" => (false, Device::cuda(CudaOptions::default())),
            "" => (true, Device::cuda(CudaOptions::default())),
            other => panic!("TILEWORK_DEVICE is `{other}`: use cpu, cuda or emulated, or unset it for CPU and GPU"),
        };
        let cuda = match device {
            Ok(Device::Cuda(cuda)) => Some(cuda),
            Ok(Device::Cpu(_)) => None,
            Err(e) if cpu => {
                println!("skipped: no GPU ({})", e.to_string().lines().collect::<Vec<_>>().join("; "));
                None
            }
            Err(e) => {
                eprintln!("error: {e}");
                std::process::exit(1);
            }
        };
        Chosen { cpu, cuda }
    }

    /// Whether this is a rehearsal.
    pub(crate) fn emulated(&self) -> bool {
        self.cuda.as_ref().is_some_and(Cuda::is_emulated)
    }

    /// Criterion with the options of the command line; a rehearsal is short without any.
    pub(crate) fn criterion(&self) -> Criterion {
        let c = Criterion::default();
        match self.emulated() {
            false => c,
            true => {
                c.sample_size(10).warm_up_time(Duration::from_millis(10)).measurement_time(Duration::from_millis(100))
            }
        }
        .configure_from_args()
    }
}

/// The first part of a CUDA bench's id.
pub(crate) fn prefix(cuda: &Cuda) -> &'static str {
    if cuda.is_emulated() { "emulated" } else { "cuda" }
}

/// The median; `None` of nothing.
pub(crate) fn median(times: &mut [f64]) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}

/// The line under a CUDA bench, which `tools/bundle/run.py` reads: its id and its numbers.
pub(crate) fn line(id: &str, seconds: f64, numbers: &[String]) {
    println!("    = {id}: {:.2} µs, {}", seconds * 1e6, numbers.join(", "));
}
