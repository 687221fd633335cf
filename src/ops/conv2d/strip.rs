//! Convolution of few channels on a CUDA device: `kernels/conv2d_strip.cu`, and how a convolution is cut for it.

use super::Dims;
use crate::device::Device;
use crate::device::cuda::{Cuda, KernelType, Launch, Out, magic, with_kernel_type};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::conv2d_strip::{Conv2dStripDims, conv2d_strip_bwd_w, conv2d_strip_bwd_w_pooled, conv2d_strip_fwd};
use crate::ops::product::{MAX_PARTIAL, Product, STRIPS};
use crate::params::Slot;
use crate::tensor::Tensor;

/// Pixels of a tile, at most, channels of y that a block takes, and elements behind a strip: `PIXELS`, `OUTPUTS` and `BEHIND` in
/// the kernels.
const PIXELS: usize = 128;
const OUTPUTS: usize = 64;
const BEHIND: usize = 16;
/// Columns of the patch that a block of the weight gradient has: `COLUMNS` there.
const COLUMNS: usize = 256;
/// Channels of what a pass reads, at most, and of what the input gradient computes: with more, the products of `conv2d.cu` have
/// enough to do.
const SEEN: usize = 32;
const SEEN_OF_A_GRADIENT: usize = 64;
const MADE_OF_A_GRADIENT: usize = 32;
/// Chunks of a strip that come in the time that the rest of a tile takes, by the instructions of a warp: from 600 for products of
/// 2x2 and the store of 24 channels to 1500 for 7x7 and 64, and 40 for a chunk a thread.
const TILE: usize = 4000;
/// With fewer tiles, the products of `conv2d.cu` are faster.
const LEAST_TILES: i32 = 264;
/// Blocks of the passes that run at once on 132 multiprocessors: four or two on each.
const BLOCKS: usize = 528;
const BLOCKS_OF_THE_WEIGHTS: usize = 264;

/// How a pass is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Strip {
    sizes: Conv2dStripDims,
    shared: usize,
    flops: usize,
    /// Blocks that walk over the tiles, at most: as many as run at once on 132 multiprocessors.
    blocks: usize,
}

/// What pixels see of one side, rows or columns.
#[derive(Clone, Copy)]
struct Side {
    /// From a pixel's strip to the next one's.
    step: usize,
    /// How much of the side one pixel of each class sees, and how far outside of it the first one begins.
    span: usize,
    before: i32,
    /// Classes of pixels, and places of the window that those of one see, at most.
    classes: usize,
    places: usize,
}

impl Side {
    fn forward(d: &Dims, i: usize) -> Self {
        let w = &d.window;
        Side { step: w.stride[i], span: w.kernel[i], before: w.pad[i] as i32, classes: 1, places: w.kernel[i] }
    }

    /// Of the input gradient: `Seen` in the kernels.
    fn backward(d: &Dims, i: usize) -> Self {
        let [side, stride, pad] = [d.window.kernel[i], d.window.stride[i], d.window.pad[i]];
        let classes = (0..stride).filter(|a| (a + pad) % stride < side).map(|a| {
            let first = (a + pad) % stride;
            let last = ((a + pad - first) / stride) as i32;
            (last - (side - first).div_ceil(stride) as i32 + 1, last)
        });
        let [first, last] = classes.fold([i32::MAX, i32::MIN], |[f, l], (a, b)| [f.min(a), l.max(b)]);
        let (span, places) = ((last - first + 1) as usize, side.div_ceil(stride));
        Side { step: 1, span, before: -first, classes: stride, places }
    }
}

impl Strip {
    /// The forward pass, if strips suit it.
    pub(super) fn forward<T: KernelType>(cuda: &Cuda, d: &Dims) -> Option<Self> {
        let sides = [0, 1].map(|i| Side::forward(d, i));
        Self::cut::<T>(cuda, d, [d.n, d.x[0], d.x[1], d.c], [d.y[0], d.y[1], d.o], sides, SEEN, None, 1)
    }

    /// The input gradient.
    pub(super) fn backward_x<T: KernelType>(cuda: &Cuda, d: &Dims) -> Option<Self> {
        if d.c > MADE_OF_A_GRADIENT {
            return None;
        }
        let sides = [0, 1].map(|i| Side::backward(d, i));
        let (seen, made) = ([d.n, d.y[0], d.y[1], d.o], [d.x[0], d.x[1], d.c]);
        let mut strip = Self::cut::<T>(cuda, d, seen, made, sides, SEEN_OF_A_GRADIENT, None, 1)?;
        strip.sizes.turned = 1;
        strip.sizes.by_side = magic(d.c.min(OUTPUTS));
        Some(strip)
    }

    /// The weight gradient.
    pub(super) fn backward_w<T: KernelType>(cuda: &Cuda, d: &Dims) -> Option<Self> {
        Self::of_weights::<T>(cuda, d, 1)
    }

    /// That of what a max-pool of 2x2 passes on, for [`Strip::gather_pooled`]: tiles are of whole windows, and channels come eight at
    /// a time.
    pub(super) fn backward_w_pooled<T: KernelType>(cuda: &Cuda, d: &Dims) -> Option<Self> {
        let suits = d.y.iter().all(|&side| side > 0 && side % 2 == 0) && d.o.is_multiple_of(8);
        suits.then(|| Self::of_weights::<T>(cuda, d, 2)).flatten()
    }

    fn of_weights<T: KernelType>(cuda: &Cuda, d: &Dims, unit: usize) -> Option<Self> {
        let sides = [0, 1].map(|i| Side::forward(d, i));
        let (seen, made) = ([d.n, d.x[0], d.x[1], d.c], [d.y[0], d.y[1], d.o]);
        let strip = Self::cut::<T>(cuda, d, seen, made, sides, SEEN, Some(2 * PIXELS * (OUTPUTS + 8)), unit);
        let blocks = BLOCKS_OF_THE_WEIGHTS.min(MAX_PARTIAL / (d.o * d.patch())).max(1);
        strip.map(|strip| Strip { blocks, ..strip })
    }

    /// Tiles as large as their strips allow, beside the weights in shared memory or so many elements; their rows and columns are
    /// multiples of `unit`, as those of y are.
    #[expect(clippy::too_many_arguments, reason = "what a pass reads, what it computes, and how")]
    fn cut<T: KernelType>(
        cuda: &Cuda,
        d: &Dims,
        [n, h, w, c]: [usize; 4],
        [ho, wo, o]: [usize; 3],
        [down, across]: [Side; 2],
        most_seen: usize,
        beside: Option<usize>,
        unit: usize,
    ) -> Option<Self> {
        let [kh, kw] = d.window.kernel;
        if size_of::<T>() != 2 || c > most_seen || kh * kw == 1 {
            return None;
        }
        let pitch = pitch(c);
        let depth = (across.places * pitch).next_multiple_of(if beside.is_some() { 8 } else { 16 });
        // Rows of 16, 32 or 64 channels.
        let rows = 16 * o.div_ceil(16).next_power_of_two().min(OUTPUTS / 16);
        let weights = || rows * (down.classes * across.classes * down.places * depth + 8);
        let fixed = beside.unwrap_or_else(weights);
        let [all_rows, all_columns] = [ho.div_ceil(down.classes), wo.div_ceil(across.classes)];
        let even = |size: usize, most: usize| size.div_ceil(size.div_ceil(most.clamp(1, size)));
        let units = |size: usize, most: usize| unit * even(size / unit, most / unit);
        let seen = |rows: usize, columns: usize| {
            [(rows - 1) * down.step + down.span, (columns - 1) * across.step + across.span]
        };
        // So many columns, and as many rows and images as there is room for; and about how long that takes, all in all.
        let cut = |columns: usize| {
            let rows = units(all_rows, PIXELS / columns);
            let images = if rows == all_rows { even(n, PIXELS / (rows * columns)) } else { 1 };
            let tiles = n.div_ceil(images) * all_rows.div_ceil(rows) * all_columns.div_ceil(columns);
            let [high, wide] = seen(rows, columns);
            ([images, rows, columns], tiles * (TILE + images * high * wide * pitch.div_ceil(8)))
        };
        let cuts =
            (1..=all_columns).map(|across| cut(units(all_columns, all_columns.div_ceil(across).min(PIXELS / unit))));
        let ([mut images, mut rows, mut columns], _) = cuts.min_by_key(|(_, time)| *time)?;
        // What every GPU of the architecture lets a block have, or two blocks of sm_90 together.
        let most = match cuda.info().arch {
            75 => 62 << 10,
            90 => 112 << 10,
            _ => 96 << 10,
        };
        let [high, wide, shared] = loop {
            let [high, wide] = seen(rows, columns);
            let shared = 2 * (fixed + 2 * (images * high * wide * pitch + BEHIND));
            match (images, rows, columns) {
                _ if shared <= most => break [high, wide, shared],
                (2.., ..) => images = images.div_ceil(2),
                _ if rows > unit => rows = unit * (rows / unit).div_ceil(2),
                _ if columns > unit => columns = unit * (columns / unit).div_ceil(2),
                _ => return None,
            }
        };
        let [tiles_down, tiles_across] = [all_rows.div_ceil(rows), all_columns.div_ceil(columns)];
        let sizes = Conv2dStripDims {
            n: n as i32,
            h: h as i32,
            w: w as i32,
            c: c as i32,
            ho: ho as i32,
            wo: wo as i32,
            o: o as i32,
            kh: kh as i32,
            kw: kw as i32,
            sh: down.step as i32,
            sw: across.step as i32,
            up: down.before,
            left: across.before,
            turned: 0,
            ah: down.classes as i32,
            aw: across.classes as i32,
            ph: d.window.pad[0] as i32,
            pw: d.window.pad[1] as i32,
            accumulate: 0,
            relu: 0,
            images: images as i32,
            rows: rows as i32,
            columns: columns as i32,
            high: high as i32,
            wide: wide as i32,
            pitch: pitch as i32,
            runs: down.places as i32,
            depth: depth as i32,
            tiles: (n.div_ceil(images) * tiles_down * tiles_across) as i32,
            down: tiles_down as i32,
            across: tiles_across as i32,
            by_columns: magic(columns),
            by_rows: magic(rows),
            by_wide: magic(wide),
            by_high: magic(high),
            by_chunks: magic(pitch.div_ceil(8)),
            by_across: magic(tiles_across),
            by_down: magic(tiles_down),
            by_kw: magic(kw),
            by_taps: magic(kh * kw),
            by_side: magic(c),
            by_half_columns: magic((columns / 2).max(1)),
            by_half_rows: magic((rows / 2).max(1)),
        };
        // Few tiles do not make up for weights that each block lays out anew. No other kernel takes a pooled gradient: any tile that
        // is asked for allows this one.
        let wanted = cuda.options().tile.map_or(sizes.tiles >= LEAST_TILES, |tile| tile == STRIPS || unit > 1);
        wanted.then_some(Strip { sizes, shared, flops: 2 * d.n * d.pixels() * d.patch() * d.o, blocks: BLOCKS })
    }

    fn launch(&self, threads: u32, rest: [usize; 2]) -> Launch {
        let launch = Launch::new(0, threads).shared(self.shared).flops(self.flops);
        launch.grid((self.sizes.tiles as usize).min(self.blocks), rest[0], rest[1])
    }

    /// `y = conv(x, w) + b`, or the input gradient y of a gradient x.
    pub(super) fn multiply<T: KernelType>(
        &self,
        cuda: &Cuda,
        [x, w]: [&Tensor; 2],
        b: Option<&Tensor>,
        [accumulate, relu]: [bool; 2],
        y: Out<'_, T>,
    ) -> Result<()> {
        let b = b.map(Tensor::input).transpose()?;
        let d = Conv2dStripDims { accumulate: accumulate.into(), relu: relu.into(), ..self.sizes };
        let launch = self.launch(128, [(d.o as usize).div_ceil(OUTPUTS), 1]);
        conv2d_strip_fwd::<T>(cuda, launch, x.input()?, w.input()?, b, y, &d)
    }

    /// `gw (+)= gyᵀ·patches`.
    pub(super) fn gather<T: KernelType>(
        &self,
        cuda: &Cuda,
        gy: &Tensor,
        x: &Tensor,
        gw: &mut Slot<'_>,
        d: &Dims,
    ) -> Result<()> {
        self.gather_by(cuda, gw, d, |launch, partial| {
            conv2d_strip_bwd_w::<T>(cuda, launch, gy.input()?, x.input()?, partial, &self.sizes)
        })
    }

    /// Whether [`Strip::gather_pooled`] can read g, 16 bytes at a time.
    pub(super) fn reads_pooled(g: &Tensor) -> Result<bool> {
        with_kernel_type!("conv2d", g.dtype(), T => Ok(g.input::<T>()?.address().is_multiple_of(16)))
    }

    /// The same of what a max-pool of 2x2, whose values are from these places, passes on of its gradient g.
    pub(super) fn gather_pooled<T: KernelType>(
        &self,
        cuda: &Cuda,
        [g, place]: [&Tensor; 2],
        x: &Tensor,
        gw: &mut Slot<'_>,
        d: &Dims,
    ) -> Result<()> {
        self.gather_by(cuda, gw, d, |launch, partial| {
            conv2d_strip_bwd_w_pooled::<T>(cuda, launch, g.input()?, place.input()?, x.input()?, partial, &self.sizes)
        })
    }

    /// What `gather` stores of each block, added up.
    fn gather_by(
        &self,
        cuda: &Cuda,
        gw: &mut Slot<'_>,
        d: &Dims,
        gather: impl FnOnce(Launch, Out<'_, f32>) -> Result<()>,
    ) -> Result<()> {
        let columns = (self.sizes.kh * self.sizes.depth) as usize;
        let launch = self.launch(256, [columns.div_ceil(COLUMNS), d.o.div_ceil(OUTPUTS)]);
        let blocks = launch.grid[0] as usize;
        let mut partial = Tensor::empty(&Device::Cuda(cuda.clone()), DType::F32, [blocks, d.o, d.patch()])?;
        gather(launch, partial.output()?)?;
        let sizes = [d.o, d.patch(), d.n * d.pixels()];
        let sum = Product { accumulate: gw.accumulate, ..Product::of(sizes, [d.o, d.c]) };
        sum.add_up::<f32>(cuda, &partial, gw.output()?)
    }
}

/// Elements from a pixel to the next in shared memory: whole chunks of 8, or half of one. Rows that begin in the same banks
/// would be read one after the other.
fn pitch(channels: usize) -> usize {
    match channels.next_multiple_of(8) {
        8 if channels <= 4 => 4,
        wide if wide % 32 == 0 => wide + 8,
        wide => wide,
    }
}

#[cfg(all(test, tilework_emulator))]
#[path = "../../../tests/unit/conv2d_strips.rs"]
mod tests;
