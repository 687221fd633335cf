//! The ceilings of a device, measured on it: what a copy moves, and what multiply-adds and tensor cores compute.

use crate::device::Device;
use crate::device::cuda::{BLOCK, Cuda, Launch};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::ceiling::{CeilingDims, ceiling_copy, ceiling_mma, ceiling_multiply_add};
use crate::tensor::Tensor;

/// What a device reaches at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceiling {
    /// Bytes per second, read and written, of a large copy.
    pub bandwidth: f64,
    /// Floating-point operations per second of f32 multiply-adds in registers.
    pub flops: f64,
    /// Those of products of f16 on tensor cores, by mma.sync.
    pub tensor: f64,
}

/// Multiply-adds of a round: the kernel's chains.
const CHAINS: usize = 8;
/// Of a product of a warp.
const PRODUCT: usize = 16 * 8 * 16;

impl Cuda {
    /// Measures the ceilings: the best of `repeats`.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`]; [`crate::Error::Device`] if the device fails.
    pub fn ceiling(&self, repeats: usize) -> Result<Ceiling> {
        // Beyond any cache of a GPU; the emulated device takes seconds for as much.
        let (n, rounds) = if self.is_emulated() { (1 << 18, 64) } else { (1 << 26, 4096) };
        let device = Device::Cuda(self.clone());
        let x = Tensor::zeros(&device, DType::F32, [4 * n])?;
        let mut y = Tensor::empty(&device, DType::F32, [4 * n])?;
        let d = CeilingDims { n: n as i32, rounds: rounds as i32 };
        let blocks = if self.is_emulated() { 16 } else { self.info().multiprocessors as usize * 16 };
        let [mut copy, mut compute, mut multiply] = [f64::INFINITY; 3];
        // The first launch of each compiles and warms up.
        for round in 0..=repeats {
            let copied = self.time(&mut || ceiling_copy(self, Launch::each(n), x.input()?, y.output()?, &d))?;
            let computed =
                self.time(&mut || ceiling_multiply_add(self, Launch::new(blocks, BLOCK), y.output()?, &d))?;
            let multiplied = self.time(&mut || ceiling_mma(self, Launch::new(blocks, BLOCK), y.output()?, &d))?;
            if round > 0 {
                copy = copy.min(copied.as_secs_f64());
                compute = compute.min(computed.as_secs_f64());
                multiply = multiply.min(multiplied.as_secs_f64());
            }
        }
        let work = (2 * CHAINS * rounds * blocks * BLOCK as usize) as f64;
        let tensor = work * (PRODUCT / 32) as f64 / multiply;
        Ok(Ceiling { bandwidth: (32 * n) as f64 / copy, flops: work / compute, tensor })
    }
}
