//! How the matrix product of `kernels/gemm.cuh` is cut: which tile, how many splits along K.
//!
//! The choice follows from the sizes alone, never from the GPU, so that every GPU gives the same bits.

use super::Cuda;
use super::launch::{Family, Launch, Tile};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;

/// Blocks that keep a large GPU busy: two for each of 132 multiprocessors.
const BLOCKS: usize = 264;
/// Steps along K that a split has at least.
const MIN_STEPS: usize = 4;
/// Elements of all partial results together, at most: 64 MiB.
const MAX_PARTIAL: usize = 1 << 24;

/// How a product `[m, k] · [k, n]` is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// The block's tile.
    pub tile: &'static Tile,
    /// Ranges of K, each with a partial result of its own.
    pub splits: usize,
    /// Steps of a range.
    pub split_steps: usize,
    m: usize,
    n: usize,
    k: usize,
}

impl Plan {
    /// The cheapest cut with a tile that the family has for this type, or with the one that the device's
    /// options ask for; the first of equals.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such tile.
    pub fn new([m, n, k]: [usize; 3], family: &Family, dtype: DType, cuda: &Cuda) -> Result<Self> {
        let asked = cuda.options().tile;
        let tiles = family.tiles(dtype, cuda.info().arch).filter(|t| asked.is_none_or(|name| t.name == name));
        let plans = tiles.map(|tile| {
            let blocks = m.div_ceil(tile.m) * n.div_ceil(tile.n);
            let steps = k.div_ceil(tile.k);
            let splits = (BLOCKS / blocks).min(steps / MIN_STEPS).min(MAX_PARTIAL / (m * n).max(1)).max(1);
            let split_steps = steps.div_ceil(splits).max(1);
            let splits = steps.div_ceil(split_steps).max(1);
            let busy = ((blocks * splits) as f64 / BLOCKS as f64).min(1.0);
            let cost = (blocks * tile.m * tile.n * steps * tile.k) as f64 / f64::from(tile.speed) / busy;
            (Plan { tile, splits, split_steps, m, n, k }, cost)
        });
        let best = plans.min_by(|a, b| a.1.total_cmp(&b.1)).map(|best| best.0);
        best.ok_or_else(|| family.lacks(&format!("{dtype}, {}", asked.unwrap_or("any tile"))))
    }

    /// The launch of the product.
    pub fn launch(&self) -> Launch {
        let tiles = self.m.div_ceil(self.tile.m) * self.n.div_ceil(self.tile.n);
        Launch::new(0, self.tile.threads).grid(tiles, 1, self.splits).flops(2 * self.m * self.n * self.k)
    }

    /// Memory for the partial results `[splits, m, n]`; `None` if there is one alone, which is the
    /// result.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn partial(&self, device: &Device) -> Result<Option<Tensor>> {
        let make = || Tensor::empty(device, DType::F32, [self.splits, self.m, self.n]);
        (self.splits > 1).then(make).transpose()
    }
}

/// The two numbers with which kernels divide by `divisor`, at least 1 and below 2^31 (`divide` in
/// `kernels/common.cuh`).
///
/// Source: Granlund, Montgomery, "Division by Invariant Integers using Multiplication", 1994.
pub fn magic(divisor: usize) -> (u32, u32) {
    let divisor = divisor as u64;
    let shift = divisor.next_power_of_two().trailing_zeros();
    let magic = (1u64 << 32) * ((1u64 << shift) - divisor) / divisor + 1;
    (magic as u32, shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_by_multiplication_is_exact() {
        let divide = |n: u64, (magic, shift): (u32, u32)| (((n * u64::from(magic)) >> 32) + n) >> shift;
        let divisors = (1..200).chain([1023, 1024, 1025, 65_535, 1_000_003, (1 << 30) + 1, (1 << 31) - 1]);
        for d in divisors {
            let m = magic(d as usize);
            let near = |k: u64| [k.saturating_sub(1), k, k + 1];
            let numbers = (0..50).flat_map(|i| near(i * d)).chain(near((1 << 31) / d * d)).chain([(1 << 31) - 1]);
            for n in numbers.filter(|&n| n < 1 << 31) {
                assert_eq!(divide(n, m), n / d, "{n} / {d}");
            }
        }
    }

    fn plan(m: usize, n: usize, k: usize) -> Plan {
        let Device::Cuda(cuda) = Device::emulated(Default::default()).unwrap() else { unreachable!() };
        Plan::new([m, n, k], &crate::kernels::linear::LINEAR_FWD, DType::F32, &cuda).unwrap()
    }

    #[test]
    fn plans_cover_k_and_fill_the_device() {
        for (m, n, k) in
            [(1, 1, 1), (4, 120, 400), (3136, 6, 75), (16, 1024, 18_432), (6, 75, 3136), (4096, 4096, 4096)]
        {
            let p = plan(m, n, k);
            let steps = k.div_ceil(p.tile.k);
            assert!(p.splits * p.split_steps >= steps && (p.splits - 1) * p.split_steps < steps, "{p:?}");
            assert!(p.splits * m * n <= MAX_PARTIAL || p.splits == 1, "{p:?}");
        }
        assert_eq!((plan(4096, 4096, 4096).tile.name, plan(4096, 4096, 4096).splits), ("Simt128", 1));
        assert_eq!(plan(3136, 6, 75).tile.name, "Simt32");
        assert!(plan(16, 1024, 18_432).splits > 1);
    }
}
