//! What layers with weights share: the matrix product on a CUDA device, and their backward pass.
//!
//! How a product is cut (which tile, how many splits along K) follows from its sizes alone, never from
//! the GPU, so that every GPU gives the same bits; that of two-byte elements, of which some tiles are of one architecture, from
//! that too, and from whether operands are aligned for tensor maps. `kernels/product.cuh` has the other side.

use crate::device::Device;
use crate::device::cuda::{Cuda, Family, In, KernelType, Launch, MULTIPROCESSORS, Out, Tile};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels;
use crate::kernels::linear::{SplitSumDims, linear_split_sum};
use crate::tensor::Tensor;

/// Threads that keep a large GPU busy: 512 for each of its multiprocessors.
const THREADS: usize = 512 * MULTIPROCESSORS;
/// Elements of all partial results together, at most: 64 MiB.
pub(super) const MAX_PARTIAL: usize = 1 << 24;

// What times are estimated by: an H100, whatever the GPU is.
/// Threads that a multiprocessor has registers for.
const RESIDENT: usize = 576;
/// Multiply-adds of a multiprocessor in a nanosecond.
pub(super) const RATE: f64 = 225.0;
/// Nanoseconds that adding up partial results takes at least, and its bytes in a nanosecond.
const ADD_UP: (f64, f64) = (2000.0, 4000.0);

/// The same where the blocks of a cluster do it, of the bytes of a tile.
const IN_CLUSTER: (f64, f64) = (900.0, 50.0);
/// Blocks of a cluster, at most: what every GPU with clusters can run.
pub(super) const MOST_IN_CLUSTER: usize = 8;
/// The first architecture with clusters.
pub(super) const CLUSTERS: u32 = 90;

/// Asked for as a tile: convolutions by strips wherever they are possible (`kernels/conv2d_strip.cu`).
pub const STRIPS: &str = "Strips";

/// Elements of two bytes that are loaded at once.
const CHUNK: usize = 8;

/// How a product is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Plan {
    /// The block's tile.
    pub(super) tile: &'static Tile,
    /// Ranges of K, each with a partial result of its own.
    splits: usize,
    /// Whether the blocks of a cluster have those of a tile, and add up their results.
    in_cluster: bool,
    /// Steps of a range.
    pub(super) split_steps: usize,
    /// Its launch.
    pub(super) launch: Launch,
    /// What it takes, by estimate.
    pub(super) nanoseconds: f64,
}

impl Plan {
    /// The fastest cut with one of these tiles on an architecture, into so many splits at most, by estimate, and the first of
    /// equals; none if there is no tile.
    fn new([m, n, k]: [usize; 3], tiles: impl Iterator<Item = &'static Tile>, arch: u32, limit: usize) -> Option<Self> {
        let mut best: Option<Plan> = None;
        for tile in tiles {
            let [rows, columns] = if tile.transposed { [n, m] } else { [m, n] };
            let blocks = rows.div_ceil(tile.m) * columns.div_ceil(tile.n);
            let steps = k.div_ceil(tile.k);
            let most = steps.min(MAX_PARTIAL / (m * n).max(1)).min(limit).max(1);
            // As many splits as give every multiprocessor the same number of blocks.
            let even = (1..=16).map(|each| (MULTIPROCESSORS * each / blocks.max(1)).clamp(1, most));
            let clusters = 2..=if tile.cluster && arch >= CLUSTERS { MOST_IN_CLUSTER.min(steps).min(limit) } else { 1 };
            let cuts = std::iter::once(1).chain(even).map(|splits| (splits, false));
            for (splits, in_cluster) in cuts.chain(clusters.map(|splits| (splits, true))) {
                let split_steps = steps.div_ceil(splits).max(1);
                let splits = steps.div_ceil(split_steps).max(1);
                let nanoseconds = nanoseconds(tile, blocks * splits, split_steps)
                    + match (splits, in_cluster) {
                        (1, _) => 0.0,
                        (_, true) => IN_CLUSTER.0 + (4 * tile.m * tile.n) as f64 / IN_CLUSTER.1,
                        (_, false) => ADD_UP.0 + (8 * splits * m * n) as f64 / ADD_UP.1,
                    };
                if best.is_none_or(|best| nanoseconds < best.nanoseconds) {
                    let launch = Launch::new(0, tile.threads).shared(tile.shared as usize);
                    // Blocks that walk over tiles begin all at once; those of a cluster share one.
                    let at_once = (MULTIPROCESSORS * resident(tile)).div_ceil(splits);
                    let across = if tile.maps && !in_cluster { blocks.min(at_once) } else { blocks };
                    let launch = launch.grid(across, 1, splits).flops(2 * m * n * k);
                    let launch = match in_cluster {
                        true => launch.cluster(1, 1, splits as u32),
                        false => Launch { strides: tile.maps, ..launch },
                    };
                    best = Some(Plan { tile, splits, in_cluster, split_steps, launch, nanoseconds });
                }
            }
        }
        best
    }
}

/// How long blocks take that make so many steps each. A multiprocessor with few of them waits for each step's loads;
/// one that is full is limited by its arithmetic.
fn nanoseconds(tile: &Tile, blocks: usize, steps: usize) -> f64 {
    let each = blocks.div_ceil(MULTIPROCESSORS);
    let waves = each.div_ceil(resident(tile));
    // A block begins with a load and ends with a store: about two steps.
    let steps = (steps + 2) as f64;
    let waiting = waves as f64 * steps * f64::from(tile.latency);
    let computing = each as f64 * steps * (tile.m * tile.n * tile.k) as f64 / (RATE * f64::from(tile.speed) / 100.0);
    waiting.max(computing)
}

/// Blocks that a multiprocessor holds at once.
fn resident(tile: &Tile) -> usize {
    if tile.blocks > 0 { tile.blocks as usize } else { RESIDENT / tile.threads as usize }
}

/// A matrix product `[m, k] · [k, n]` on a CUDA device, and what becomes of its sums.
pub(super) struct Product<'a> {
    /// m, n and k.
    pub(super) sizes: [usize; 3],
    /// Elements that lie side by side in the first factor's memory, and in the second's.
    pub(super) rows: [usize; 2],
    /// `[n]`, added to every row.
    pub(super) bias: Option<In<'a, f32>>,
    /// Add to what is there instead of overwriting it.
    pub(super) accumulate: bool,
    /// ReLU of the result.
    pub(super) relu: bool,
    /// `[m, n]`, what ReLU made: the result is its gradient, and 0 where it is not above 0.
    pub(super) masks: Option<&'a Tensor>,
}

impl Product<'_> {
    /// A product that is stored as it is.
    pub(super) fn of(sizes: [usize; 3], rows: [usize; 2]) -> Self {
        Product { sizes, rows, bias: None, accumulate: false, relu: false, masks: None }
    }

    /// What the best cut takes, by estimate.
    pub(super) fn nanoseconds<T: KernelType>(&self, cuda: &Cuda, families: &[&Family]) -> f64 {
        self.plan::<T>(cuda, families, usize::MAX).map_or(f64::INFINITY, |plan| plan.nanoseconds)
    }

    /// The best cut that leaves K whole, if there is one.
    pub(super) fn whole<T: KernelType>(&self, cuda: &Cuda, families: &[&Family]) -> Option<Plan> {
        self.plan::<T>(cuda, families, 1)
    }

    /// The best with so many splits at most.
    fn plan<T: KernelType>(&self, cuda: &Cuda, families: &[&Family], limit: usize) -> Option<Plan> {
        let tiles = || families.iter().flat_map(|family| family.tiles(T::DTYPE, cuda.info().arch));
        // Where a tile that suits some sizes alone is asked for and cannot be had, it does not matter which.
        let is_for_some =
            |name: &str| name == STRIPS || kernels::all().any(|k| k.tile.is_some_and(|t| t.maps && t.name == name));
        let asked = cuda.options().tile.filter(|name| tiles().any(|t| t.name == *name) || !is_for_some(name));
        // The largest steps are not for operands that are read element by element.
        let wide = self.rows.iter().all(|row| row % CHUNK == 0);
        let fits = |t: &&Tile| asked.map_or(wide || t.shared == 0, |name| t.name == name);
        Plan::new(self.sizes, tiles().filter(fits), cuda.info().arch, limit)
    }

    /// Runs one of some families of kernels for activations of type `T`: `launch` gets the cut, the result, and the
    /// memory for the partial results if there are several, which are then added up. Returns whether the result is masked.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the families have no tile for the type, or the one that the device's
    /// options ask for; whatever `launch` reports.
    pub(super) fn run<'f, T: KernelType, Y: KernelType>(
        &self,
        cuda: &Cuda,
        families: impl IntoIterator<Item = &'f Family>,
        mut y: Out<'_, Y>,
        launch: impl FnOnce(&Plan, Out<'_, Y>, Option<Out<'_, f32>>) -> Result<()>,
    ) -> Result<bool> {
        let [m, n, _] = self.sizes;
        let families: Vec<&Family> = families.into_iter().collect();
        let asked = cuda.options().tile.unwrap_or("any tile");
        let lacks = || families[0].lacks(&format!("{}, {asked}", T::DTYPE));
        let plan = self.plan::<T>(cuda, &families, usize::MAX).ok_or_else(lacks)?;
        if plan.splits == 1 || plan.in_cluster {
            return launch(&plan, y, None).map(|()| self.masks.is_some() && plan.tile.masks);
        }
        let mut partial = Tensor::empty(&Device::Cuda(cuda.clone()), DType::F32, [plan.splits, m, n])?;
        launch(&plan, y.again(), Some(partial.output()?))?;
        self.add_up(cuda, &partial, y).map(|()| self.masks.is_some())
    }

    /// `y (+)= sum of the partial results [splits, m, n] (+ bias)`.
    pub(super) fn add_up<Y: KernelType>(&self, cuda: &Cuda, partial: &Tensor, y: Out<'_, Y>) -> Result<()> {
        let [m, n, _] = self.sizes;
        let (size, splits) = (m * n, partial.shape().dims()[0]);
        let mut groups = 1;
        while groups < 32 && groups < splits / 4 && size * groups < THREADS {
            groups *= 2;
        }
        let fours = groups == 1 && n.is_multiple_of(4) && size / 4 >= THREADS;
        let d = SplitSumDims {
            size: size as i32,
            columns: n as i32,
            splits: splits as i32,
            groups: groups as i32,
            share: splits.div_ceil(groups) as i32,
            accumulate: self.accumulate.into(),
            relu: self.relu.into(),
            fours: fours.into(),
        };
        let threads = if fours { size / 4 } else { size * groups };
        let launch = Launch::new(threads.div_ceil(256), 256).flops(partial.len());
        let masks = self.masks.map(Tensor::input).transpose()?;
        linear_split_sum::<Y>(cuda, launch, partial.input()?, self.bias, masks, y, &d)
    }
}

#[cfg(test)]
#[path = "../../tests/unit/product.rs"]
mod tests;
