//! The CUDA kernels: one module for each file of `kernels/`, made by `build.rs` from the sources.
//!
//! A kernel's function takes its arguments with their types: what the kernel declares `const T*` is
//! an [`In`], what it declares `T*` an [`Out`], its sizes a struct of the same name.

#![allow(missing_docs, dead_code, unused_imports, unreachable_pub, reason = "written by build.rs, whole")]

use crate::autograd::StepState;
use crate::device::cuda::{
    Arch, Arg, Cuda, Family, In, Kernel, KernelType, Launch, Out, Source, TensorMap, Tile, null,
};
use crate::dtype::DType;
use crate::error::Result;

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// A kernel for one architecture alone, which only NVRTC compiles.
#[cfg(test)]
mod for_one_architecture {
    use super::*;
    include!(concat!(env!("OUT_DIR"), "/hopper.rs"));

    #[test]
    fn a_tensor_map_is_an_argument_and_other_devices_are_refused() {
        let Ok(device) = crate::Device::emulated(Default::default()) else {
            return println!("skipped: no emulated device");
        };
        let crate::Device::Cuda(cuda) = &device else { unreachable!() };
        let mut y = device.alloc(DType::F32, 128).unwrap();
        let (map, d) = (TensorMap([1; 16]), hopper::HopperDims { bytes: 512 });
        assert_eq!((size_of::<TensorMap>(), align_of::<TensorMap>()), (128, 64));
        let y = y.output::<f32>(0..128).unwrap();
        let launch = Launch::new(2, 128).cluster(2, 1, 1).shared(64 << 10);
        let e = hopper::hopper_copy(cuda, launch, &map, y, &d).unwrap_err().to_string();
        assert!(
            e.contains("`hopper_copy` has no instance for f32") && e.contains("hopper_copy<float> (sm_90a only)"),
            "{e}"
        );
        let kernel = hopper::HOPPER_COPY.instance(Some(DType::F32), None, 90).unwrap();
        assert_eq!((kernel.arch, kernel.threads), (Some(Arch::specific(90)), 128));
        assert!(hopper::HOPPER_COPY.instance(Some(DType::F16), None, 90).is_err());
    }
}

/// Every kernel.
pub fn all() -> impl Iterator<Item = &'static Kernel> {
    SOURCES.iter().flat_map(|source| source.kernels())
}

/// How many there are.
pub fn count() -> usize {
    all().count()
}

/// The kernels for activations of one type, and those that have nothing to do with activations.
pub fn of(dtype: DType) -> Vec<&'static Kernel> {
    all().filter(|kernel| kernel.dtype.is_none_or(|d| d == dtype)).collect()
}
