//! The CUDA kernels: one module for each file of `kernels/`, made by `build.rs` from the sources.
//!
//! A kernel's function takes its arguments with their types: what the kernel declares `const T*` is
//! an [`In`], what it declares `T*` an [`Out`], its sizes a struct of the same name.

#![allow(missing_docs, dead_code, unused_imports, unreachable_pub, reason = "written by build.rs, whole")]

use crate::device::Device;
use crate::device::cuda::{Arg, Cuda, Entry, In, KernelType, Launch, Options, Out, Source, gpu, null};
#[cfg(tilework_emulator)]
use crate::device::emulator;
use crate::error::{Error, Result};
use crate::step::Step;

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The kernel files, each once.
pub fn sources() -> Vec<&'static Source> {
    let mut sources: Vec<&Source> = ENTRIES.iter().map(|entry| entry.source).collect();
    sources.dedup_by_key(|source| source.stem);
    sources
}

/// CUDA devices with these kernels.
impl Device {
    /// The emulated CUDA device.
    ///
    /// # Errors
    /// [`Error::Device`] if this program was built without it.
    pub fn emulated(options: Options) -> Result<Self> {
        #[cfg(tilework_emulator)]
        return Device::emulated_with(options, emulator::Options::default());
        #[cfg(not(tilework_emulator))]
        {
            let _ = options;
            Err(Error::Device {
                device: "emulated".into(),
                problem: "this program was built without the emulated device".into(),
                remedy: "install a C++ compiler and build with `cargo build --release --features emulator`".into(),
            })
        }
    }

    /// The emulated CUDA device, run in a certain way.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    #[cfg(tilework_emulator)]
    pub fn emulated_with(options: Options, how: emulator::Options) -> Result<Self> {
        #[cfg(all(tilework_emulator_fma, target_arch = "x86_64"))]
        if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
            return Err(Error::Device {
                device: "emulated".into(),
                problem: "this program's kernels were built for a processor with AVX2 and FMA, and this one has not"
                    .into(),
                remedy: "build the program on this machine".into(),
            });
        }
        Ok(Device::Cuda(Cuda::new(Box::new(emulator::Emulated::new(how, ENTRIES)), true, options)?))
    }

    /// The first GPU.
    ///
    /// # Errors
    /// [`Error::Device`] saying what is missing and what to do about it.
    pub fn cuda(options: Options) -> Result<Self> {
        let how = gpu::Options { sync_each_launch: options.sync_launches, ..gpu::Options::default() };
        Ok(Device::Cuda(Cuda::new(Box::new(gpu::Gpu::new(how, ENTRIES.len(), HEADERS)?), false, options)?))
    }
}
