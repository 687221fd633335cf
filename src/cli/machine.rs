//! The options that say where to compute, and the device that they mean.

use super::{counted, note};
use crate::device::Device;
use crate::device::cuda::CudaOptions;
use crate::dtype::DType;
use crate::error::{Error, Result};
use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};

#[derive(Clone, Debug, Args)]
pub(super) struct Machine {
    /// Where to compute
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// CPU threads; the results do not depend on it [default: the available cores]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    threads: Option<usize>,
    /// On a CUDA device: wait after each kernel and name the one that fails; slow
    #[arg(long)]
    sync_launches: bool,
    /// On a CUDA device: lay the patches of convolutions out in memory (im2col); slower
    #[arg(long)]
    explicit_conv: bool,
    /// On a CUDA device: each layer by kernels of its own, none fused with the activation or the max-pool behind it, and gradients of
    /// biases before batch-norms, which are zero, added up; slower
    #[arg(long)]
    no_fuse: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum DeviceChoice {
    /// The GPU if there is one, else the CPU
    Auto,
    /// The processor
    Cpu,
    /// An NVIDIA GPU
    Cuda,
    /// The CUDA kernels, run by the processor: slow, for tests and for study
    Emulated,
}

impl Machine {
    /// The options as they would be typed, for a command to be printed; those that are not the default.
    pub(super) fn typed(&self) -> String {
        let device = self.device.to_possible_value().filter(|_| !matches!(self.device, DeviceChoice::Auto));
        let mut text = device.map_or_else(String::new, |d| format!(" --device {}", d.get_name()));
        text += &self.threads.map_or_else(String::new, |n| format!(" --threads {n}"));
        let on =
            [(self.sync_launches, "sync-launches"), (self.explicit_conv, "explicit-conv"), (self.no_fuse, "no-fuse")];
        for (on, option) in on {
            text += &if on { format!(" --{option}") } else { String::new() };
        }
        text
    }

    pub(super) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Runs `f` on a pool of as many threads as were asked for.
    pub(super) fn install<R: Send>(&self, f: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads()).thread_name(|i| format!("worker {i}"));
        let failed =
            |e: rayon::ThreadPoolBuildError| Error::config("--threads", e.to_string(), "ask for fewer threads");
        pool.build().map_err(failed)?.install(f)
    }

    /// The device, and its name with the reason for the choice.
    pub(super) fn device(&self) -> Result<(Device, String)> {
        self.device_with(None)
    }

    /// The same, whose products have one tile only.
    pub(super) fn device_with(&self, tile: Option<&'static str>) -> Result<(Device, String)> {
        let options = CudaOptions {
            explicit_conv: self.explicit_conv,
            no_fuse: self.no_fuse,
            sync_launches: self.sync_launches,
            tile,
            ..CudaOptions::default()
        };
        let threads = counted(self.threads(), "thread");
        let cpu = |why: &str| (Device::cpu(), format!("cpu{why}, {threads}"));
        Ok(match self.device {
            DeviceChoice::Cpu => cpu(""),
            DeviceChoice::Emulated => (Device::emulated(options)?, format!("emulated CUDA device, {threads}")),
            DeviceChoice::Cuda => named(gpu(options).map_err(or_without_gpu)?),
            DeviceChoice::Auto => match gpu(options) {
                Ok(device) => named(device),
                Err(Error::Device { problem, .. }) => {
                    let problem = problem.lines().next().unwrap_or_default();
                    cpu(&format!(" (auto: {problem}; see `tilework doctor`)"))
                }
                Err(e) => return Err(e),
            },
        })
    }
}

/// The GPU, its kernels compiled.
fn gpu(options: CudaOptions) -> Result<Device> {
    let device = Device::cuda(options)?;
    if let Device::Cuda(cuda) = &device {
        cuda.prepare(&crate::kernels::of(DType::F32), &mut |text| note(text))?;
    }
    Ok(device)
}

/// The error with what can be used instead of a GPU.
fn or_without_gpu(error: Error) -> Error {
    match error {
        Error::Device { device, problem, remedy } => {
            let emulated = if cfg!(tilework_emulator) { "" } else { " (in a build with `--features emulator`)" };
            let else_use = format!(
                "without a GPU use `--device cpu`, or `--device emulated`{emulated} to run the CUDA kernels on the processor"
            );
            Error::Device { device, problem, remedy: format!("{remedy}\n  or: {else_use}") }
        }
        other => other,
    }
}

/// A GPU and its name.
fn named(device: Device) -> (Device, String) {
    let name = match &device {
        Device::Cuda(cuda) => {
            let info = cuda.info();
            format!("cuda, {} (sm_{}, {:.0} GiB)", info.name, info.arch, info.memory as f64 / f64::from(1 << 30))
        }
        Device::Cpu(_) => device.name().to_string(),
    };
    (device, name)
}
