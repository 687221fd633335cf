//! Convolution to few channels on Hopper's tensor cores: `kernels/conv2d_halo.cu`, and how a convolution is cut for it.

use super::strip::Strip;
use super::{Dims, maps};
use crate::device::cuda::{Cuda, Family, KernelType, Launch, MULTIPROCESSORS, Out, Tile, magic};
use crate::error::Result;
use crate::kernels::conv2d_halo::*;
use crate::ops::product::{Product, RATE};
use crate::tensor::Tensor;

/// Bytes of shared memory beside runs and weights: what results go through, and two barriers.
const FIXED: usize = 4 * 64 * 128 + 16;
/// Runs in shared memory, at most; and weights, at least, where not all of them fit.
const MOST_RUNS: usize = 4;
const LEAST_WEIGHTS: usize = 4;
/// Instead of strips, which take no more channels than there are: channels that are read, at least, and tiles.
const LEAST_CHANNELS: i32 = 16;
const LEAST_TILES: usize = 4 * MULTIPROCESSORS;
/// Places of a row where y is pooled, at most: a window is in 128 places, of which the last 64 are those that it ends in.
const MOST_IN_ROW: usize = 63;

/// What a pass is done by if not by this: strips, or a product by one of some families.
pub(super) struct Else<'a> {
    pub(super) strip: Option<&'a Strip>,
    pub(super) product: &'a Product<'a>,
    pub(super) families: &'a [&'a Family],
}

/// How a pass is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Halo {
    tile: &'static Tile,
    sizes: Conv2dHaloDims,
    /// Whether it is the input gradient.
    turned: bool,
    /// Blocks that walk over the tiles.
    blocks: usize,
    flops: usize,
    tiles: usize,
    /// What it takes, by estimate.
    pub(super) nanoseconds: f64,
}

impl Halo {
    /// The forward pass, if it is possible and asked for, or better than something else.
    pub(super) fn forward<T: KernelType>(cuda: &Cuda, d: &Dims, other: &Else<'_>) -> Option<Self> {
        Self::best::<T>(cuda, &CONV2D_HALO_FWD, other, |tile| Self::cut_forward(d, tile))
    }

    fn cut_forward(d: &Dims, tile: &'static Tile) -> Option<Self> {
        Self::cut(d, (d.x, d.c), (d.y, d.o), d.window.pad, tile)
    }

    /// The same, and a max-pool of 2x2 of its result, if rows are short enough.
    pub(super) fn pooled(&self, d: &Dims) -> Option<Self> {
        let Conv2dHaloDims { row, rows, .. } = self.sizes;
        let (row, rows) = (row as usize, (rows as usize).next_multiple_of(2));
        if row > MOST_IN_ROW {
            return None;
        }
        // Whole pairs of rows a tile.
        let pairs = self.tile.m / (2 * row);
        let [h, w] = d.y.map(|side| side / 2);
        let tiles = (d.n * rows / 2).div_ceil(pairs);
        let ended = [1, 2, 3, 4].map(|slabs| {
            let (whole, rest) = (64 * slabs / (2 * row), 64 * slabs % (2 * row));
            ((whole * w + (rest.saturating_sub(row) / 2).min(w)).min(pairs * w)) as i32
        });
        let sizes = Conv2dHaloDims {
            h: h as i32,
            w: w as i32,
            rows: rows as i32,
            pairs: pairs as i32,
            ended,
            by_rows: magic(rows),
            by_across: magic(w),
            by_down: magic(rows / 2),
            ..self.sizes
        };
        let steps = self.nanoseconds - f64::from(2 * self.tile.latency);
        let slower = tiles.div_ceil(MULTIPROCESSORS) as f64 / self.tiles.div_ceil(MULTIPROCESSORS) as f64;
        let nanoseconds = f64::from(2 * self.tile.latency) + steps * slower;
        let fits = d.n * rows * row + self.tile.m < 1 << 31;
        (fits && h > 0 && w > 0).then_some(Halo {
            sizes,
            blocks: tiles.min(MULTIPROCESSORS),
            tiles,
            nanoseconds,
            ..*self
        })
    }

    /// The input gradient: a convolution of gy with the window turned round.
    pub(super) fn backward_x<T: KernelType>(cuda: &Cuda, d: &Dims, other: &Else<'_>) -> Option<Self> {
        Self::best::<T>(cuda, &CONV2D_HALO_BWD_X, other, |tile| Self::cut_backward_x(d, tile))
    }

    fn cut_backward_x(d: &Dims, tile: &'static Tile) -> Option<Self> {
        let ([kh, kw], [ph, pw]) = (d.window.kernel, d.window.pad);
        let pad = [(kh - 1).checked_sub(ph)?, (kw - 1).checked_sub(pw)?];
        Self::cut(d, (d.y, d.o), (d.x, d.c), pad, tile).map(|halo| Halo { turned: true, ..halo })
    }

    fn best<T: KernelType>(
        cuda: &Cuda,
        family: &Family,
        other: &Else<'_>,
        cut: impl Fn(&'static Tile) -> Option<Self>,
    ) -> Option<Self> {
        let asked = cuda.options().tile;
        let tiles = family.tiles(T::DTYPE, cuda.info().arch).filter(|tile| asked.is_none_or(|name| name == tile.name));
        let best = tiles.filter_map(cut).min_by(|a, b| a.nanoseconds.total_cmp(&b.nanoseconds))?;
        let better = || match other.strip {
            Some(_) => best.sizes.c >= LEAST_CHANNELS && best.tiles >= LEAST_TILES,
            None => best.nanoseconds < other.product.nanoseconds::<T>(cuda, other.families),
        };
        (asked.is_some() || better()).then_some(best)
    }

    /// Of what is read and what is computed, rows and columns, and channels; and the padding above and left of what is read.
    fn cut(
        d: &Dims,
        ([high, wide], c): ([usize; 2], usize),
        ([h, w], o): ([usize; 2], usize),
        [up, left]: [usize; 2],
        tile: &'static Tile,
    ) -> Option<Self> {
        let [kh, kw] = d.window.kernel;
        let possible = d.window.stride == [1; 2] && up < kh && left < kw && kh * kw > 1;
        if !possible || !c.is_multiple_of(8) || !o.is_multiple_of(8) || o > tile.n {
            return None;
        }
        // What is right of a row and left of the next is the same, and what is below an image and above the next.
        let across = left.max((w + kw).saturating_sub(1 + wide + left));
        let down = up.max((h + kh).saturating_sub(1 + high + up));
        let [row, rows] = [wide + across, high + down];
        let run = tile.m + (kh - 1) * row + kw - 1;
        let steps = kh * kw * c.div_ceil(tile.k);
        // Weights beside so many runs, each with its barriers.
        let beside = |runs: usize| {
            let free =
                (tile.shared as usize).checked_sub(FIXED + runs * ((2 * tile.k * run).next_multiple_of(1024) + 16));
            free.map_or(0, |free| free / (2 * tile.k * tile.n + 16))
        };
        let all = (2..=MOST_RUNS).rev().find(|&runs| beside(runs) >= steps).map(|runs| [runs, steps]);
        let some = || [3, 2].into_iter().find(|&runs| beside(runs) >= LEAST_WEIGHTS).map(|runs| [runs, beside(runs)]);
        let [runs, weights] = all.or_else(some)?;
        let places = d.n * rows * row;
        let tiles = places.div_ceil(tile.m);
        let sizes = Conv2dHaloDims {
            n: d.n as i32,
            h: h as i32,
            w: w as i32,
            c: c as i32,
            o: o as i32,
            kh: kh as i32,
            kw: kw as i32,
            up: up as i32,
            left: left as i32,
            row: row as i32,
            rows: rows as i32,
            run: run as i32,
            runs: runs as i32,
            weights: weights as i32,
            accumulate: 0,
            relu: 0,
            by_row: magic(row),
            by_rows: magic(rows),
            ..Conv2dHaloDims::default()
        };
        let step = (tile.m * tile.n * tile.k) as f64 / (RATE * f64::from(tile.speed) / 100.0);
        let nanoseconds = f64::from(2 * tile.latency) + (tiles.div_ceil(MULTIPROCESSORS) * steps) as f64 * step;
        let flops = 2 * d.n * d.pixels() * d.patch() * d.o;
        // Places are 31 bits, behind the last tile too.
        let fits = places + tile.m < 1 << 31;
        fits.then_some(Halo {
            tile,
            sizes,
            turned: false,
            blocks: tiles.min(MULTIPROCESSORS),
            flops,
            tiles,
            nanoseconds,
        })
    }

    /// What is read, runs and weights, by maps.
    fn operands<T: KernelType>(&self, inputs: [&Tensor; 2], d: &Dims) -> Result<maps::Operands> {
        let Conv2dHaloDims { up, left, run, row, rows, .. } = self.sizes;
        let (image, part) = match self.turned {
            false => ([d.x[0], d.x[1], d.c], [self.tile.k, self.tile.n]),
            true => ([d.y[0], d.y[1], d.o], [self.tile.n, self.tile.k]),
        };
        let places = [rows as usize, row as usize];
        maps::runs::<T>(inputs, d, image, [-up, -left], places, [run as usize, self.tile.k], part)
    }

    /// Whether maps can describe the operands, and the result is aligned.
    pub(super) fn takes<T: KernelType>(&self, inputs: [&Tensor; 2], d: &Dims, y: &Out<'_, T>) -> Result<bool> {
        let possible = self.operands::<T>(inputs, d)?.iter().all(|spec| spec.check().is_ok());
        Ok(possible && y.address().is_multiple_of(16))
    }

    /// `y = conv(x, w) + b`, or the input gradient y of a gradient x.
    pub(super) fn multiply<T: KernelType>(
        &self,
        cuda: &Cuda,
        inputs: [&Tensor; 2],
        d: &Dims,
        b: Option<&Tensor>,
        [accumulate, relu]: [bool; 2],
        y: Out<'_, T>,
    ) -> Result<()> {
        let b = b.map(Tensor::input).transpose()?;
        let sizes = Conv2dHaloDims { accumulate: accumulate.into(), relu: relu.into(), ..self.sizes };
        let [x, w] = maps::make(cuda, &self.operands::<T>(inputs, d)?)?;
        match self.turned {
            false => conv2d_halo_fwd::<T>(cuda, self.tile, self.launch(), &x, &w, b, y, &sizes),
            true => conv2d_halo_bwd_x::<T>(cuda, self.tile, self.launch(), &x, &w, y, &sizes),
        }
    }

    /// `y = max_pool(conv(x, w) + b)`, or of its ReLU, of one that [pools](Halo::pooled); and where its values are from.
    pub(super) fn pool<T: KernelType>(
        &self,
        cuda: &Cuda,
        inputs: [&Tensor; 2],
        d: &Dims,
        b: Option<&Tensor>,
        relu: bool,
        [y, place]: [&mut Tensor; 2],
    ) -> Result<()> {
        let b = b.map(Tensor::input).transpose()?;
        let sizes = Conv2dHaloDims { relu: relu.into(), ..self.sizes };
        let [x, w] = maps::make(cuda, &self.operands::<T>(inputs, d)?)?;
        let (y, place) = (y.output()?, place.output()?);
        conv2d_halo_pool_fwd::<T>(cuda, self.tile, self.launch(), &x, &w, b, y, place, &sizes)
    }

    fn launch(&self) -> Launch {
        let launch = Launch::new(self.blocks, self.tile.threads).shared(self.tile.shared as usize).flops(self.flops);
        Launch { strides: true, ..launch }
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/conv2d_halo.rs"]
mod tests;
