//! The CUDA kernels: one module for each file of `kernels/`, made by `build.rs` from the sources.
//!
//! A kernel's function takes its arguments with their types: what the kernel declares `const T*` is
//! an [`In`], what it declares `T*` an [`Out`], its sizes a struct of the same name.

#![allow(missing_docs, dead_code, unused_imports, unreachable_pub, reason = "written by build.rs, whole")]

use crate::device::Device;
use crate::device::cuda::{
    Arch, Arg, Cuda, CudaOptions, Family, In, Kernel, KernelType, Launch, MappedTensor, Out, Source, Tile, gpu, null,
};
#[cfg(tilework_emulator)]
use crate::device::emulator;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::step::Step;

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Every kernel.
pub fn all() -> impl Iterator<Item = &'static Kernel> {
    SOURCES.iter().flat_map(|source| source.kernels())
}

/// The kernels for activations of one type, and those that have nothing to do with activations.
pub fn of(dtype: DType) -> Vec<&'static Kernel> {
    all().filter(|kernel| kernel.dtype.is_none_or(|d| d == dtype)).collect()
}

/// CUDA devices with these kernels.
impl Device {
    /// The emulated CUDA device.
    ///
    /// # Errors
    /// [`Error::Device`] if this program was built without it.
    pub fn emulated(options: CudaOptions) -> Result<Self> {
        #[cfg(tilework_emulator)]
        return Device::emulated_with(options, emulator::EmulatorOptions::default());
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
    pub fn emulated_with(options: CudaOptions, how: emulator::EmulatorOptions) -> Result<Self> {
        #[cfg(all(tilework_emulator_fma, target_arch = "x86_64"))]
        if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
            return Err(Error::Device {
                device: "emulated".into(),
                problem: "this program's kernels were built for a processor with AVX2 and FMA, and this one has not"
                    .into(),
                remedy: "build the program on this machine".into(),
            });
        }
        Ok(Device::Cuda(Cuda::new(Box::new(emulator::Emulated::new(how)), true, options)?))
    }

    /// The first GPU.
    ///
    /// # Errors
    /// [`Error::Device`] saying what is missing and what to do about it.
    pub fn cuda(options: CudaOptions) -> Result<Self> {
        let how = gpu::GpuOptions { sync_each_launch: options.sync_launches, ..Default::default() };
        Ok(Device::Cuda(Cuda::new(Box::new(gpu::Gpu::new(how, all().count(), HEADERS)?), false, options)?))
    }
}

#[cfg(test)]
#[path = "../tests/kernels/half.rs"]
mod half_tests;

/// Kernels for one architecture alone.
#[cfg(all(test, tilework_emulator))]
#[path = "../tests/kernels/hopper.rs"]
mod for_one_architecture;
