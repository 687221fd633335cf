//! Convolution of few channels on a CUDA device: `kernels/conv2d_strip.cu`, and how a convolution is cut for it.

use super::Dims;
use crate::device::Device;
use crate::device::cuda::{Cuda, KernelType, Launch, Out, magic};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::conv2d_strip::{Conv2dStripDims, conv2d_strip_bwd_w, conv2d_strip_fwd};
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
        Self::cut::<T>(cuda, d, [d.n, d.x[0], d.x[1], d.c], [d.y[0], d.y[1], d.o], sides, SEEN, None)
    }

    /// The input gradient.
    pub(super) fn backward_x<T: KernelType>(cuda: &Cuda, d: &Dims) -> Option<Self> {
        if d.c > MADE_OF_A_GRADIENT {
            return None;
        }
        let sides = [0, 1].map(|i| Side::backward(d, i));
        let (seen, made) = ([d.n, d.y[0], d.y[1], d.o], [d.x[0], d.x[1], d.c]);
        let mut strip = Self::cut::<T>(cuda, d, seen, made, sides, SEEN_OF_A_GRADIENT, None)?;
        strip.sizes.turned = 1;
        strip.sizes.by_side = magic(d.c.min(OUTPUTS));
        Some(strip)
    }

    /// The weight gradient.
    pub(super) fn backward_w<T: KernelType>(cuda: &Cuda, d: &Dims) -> Option<Self> {
        let sides = [0, 1].map(|i| Side::forward(d, i));
        let (seen, made) = ([d.n, d.x[0], d.x[1], d.c], [d.y[0], d.y[1], d.o]);
        let strip = Self::cut::<T>(cuda, d, seen, made, sides, SEEN, Some(2 * PIXELS * (OUTPUTS + 8)));
        let blocks = BLOCKS_OF_THE_WEIGHTS.min(MAX_PARTIAL / (d.o * d.patch())).max(1);
        strip.map(|strip| Strip { blocks, ..strip })
    }

    /// Tiles as large as their strips allow, beside the weights in shared memory or so many elements.
    fn cut<T: KernelType>(
        cuda: &Cuda,
        d: &Dims,
        [n, h, w, c]: [usize; 4],
        [ho, wo, o]: [usize; 3],
        [down, across]: [Side; 2],
        most_seen: usize,
        beside: Option<usize>,
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
        let seen = |rows: usize, columns: usize| {
            [(rows - 1) * down.step + down.span, (columns - 1) * across.step + across.span]
        };
        // So many columns, and as many rows and images as there is room for; and about how long that takes, all in all.
        let cut = |columns: usize| {
            let rows = even(all_rows, PIXELS / columns);
            let images = if rows == all_rows { even(n, PIXELS / (rows * columns)) } else { 1 };
            let tiles = n.div_ceil(images) * all_rows.div_ceil(rows) * all_columns.div_ceil(columns);
            let [high, wide] = seen(rows, columns);
            ([images, rows, columns], tiles * (TILE + images * high * wide * pitch.div_ceil(8)))
        };
        let cuts = (1..=all_columns).map(|across| cut(even(all_columns, all_columns.div_ceil(across).min(PIXELS))));
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
                (_, 2.., _) => rows = rows.div_ceil(2),
                (.., 2..) => columns = columns.div_ceil(2),
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
        };
        // Few tiles do not make up for weights that each block lays out anew.
        let wanted = cuda.options().tile.map_or(sizes.tiles >= LEAST_TILES, |tile| tile == STRIPS);
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
        let columns = (self.sizes.kh * self.sizes.depth) as usize;
        let launch = self.launch(256, [columns.div_ceil(COLUMNS), d.o.div_ceil(OUTPUTS)]);
        let blocks = launch.grid[0] as usize;
        let mut partial = Tensor::empty(&Device::Cuda(cuda.clone()), DType::F32, [blocks, d.o, d.patch()])?;
        conv2d_strip_bwd_w::<T>(cuda, launch, gy.input()?, x.input()?, partial.output()?, &self.sizes)?;
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

#[cfg(test)]
mod tests {
    /// Blocks that walk over several tiles: all passes, on convolutions drawn at random, of up to three images, several tiles
    /// across, and more outputs than one block has.
    #[cfg(tilework_emulator)]
    #[test]
    fn strips_give_what_the_definition_says() {
        use super::super::definition::Example;
        use super::*;
        use crate::device::cuda::CudaOptions;
        use crate::device::emulator::{EmulatorOptions, Order};
        use crate::ops::case::Draw;
        use half::f16;
        let orders = [(Order::Forward, false), (Order::Reverse, false), (Order::Random(3), true)];
        for seed in 0..24 {
            let mut draw = Draw::new(seed);
            let long = draw.int(0, 3) == 0;
            let x = [draw.int(3, if long { 4 } else { 14 }), if long { draw.int(130, 150) } else { draw.int(3, 14) }];
            let [c, o] = [[3, 40], [1, 5], [8, 70], [9, 17], [24, 32], [32, 9]][seed as usize % 6];
            let e = Example::draw(&mut draw, if long { 1 } else { 3 }, x, [c, o], [3, 3]);
            let (d, (order, checked)) = (&e.d, orders[seed as usize % 3]);
            let options = EmulatorOptions { order, checked, ..EmulatorOptions::default() };
            let device =
                Device::emulated_with(CudaOptions { tile: Some(STRIPS), ..CudaOptions::default() }, options).unwrap();
            let Device::Cuda(cuda) = &device else { unreachable!("an emulated device is a CUDA device") };
            let same = |pass: &str, got: &Tensor, want: &[f64]| {
                let want: Vec<f64> = match got.dtype() {
                    DType::F16 => want.iter().map(|v| f16::from_f64(*v).to_f64()).collect(),
                    _ => want.to_vec(),
                };
                assert!(got.to_f64().unwrap() == want, "{pass}, {d:?}, {order:?}");
            };
            let walks = |strip: Strip| Strip { blocks: 2, ..strip };
            let [inputs, w, gy, b] = e.tensors(&device);
            if let Some(strip) = Strip::forward::<f16>(cuda, d) {
                let mut y = Tensor::empty(&device, DType::F16, gy.shape()).unwrap();
                walks(strip).multiply::<f16>(cuda, [&inputs, &w], Some(&b), [false; 2], y.output().unwrap()).unwrap();
                same("forward", &y, &e.y);
            }
            if let Some(strip) = Strip::backward_x::<f16>(cuda, d) {
                let mut gx = Tensor::empty(&device, DType::F16, inputs.shape()).unwrap();
                walks(strip).multiply::<f16>(cuda, [&gy, &w], None, [false; 2], gx.output().unwrap()).unwrap();
                same("input gradient", &gx, &e.gx);
            }
            if let Some(strip) = Strip::backward_w::<f16>(cuda, d) {
                let mut gw = Tensor::empty(&device, DType::F32, w.shape()).unwrap();
                let mut slot = Slot::of_tensor(&mut gw, false).unwrap();
                walks(strip).gather::<f16>(cuda, &gy, &inputs, &mut slot, d).unwrap();
                same("weight gradient", &gw, &e.gw);
            }
        }
    }

    /// Pixels of a tile that see much of the same lie in a square.
    #[cfg(tilework_emulator)]
    #[test]
    fn tiles_share_what_their_pixels_see() {
        use super::*;
        use crate::device::cuda::CudaOptions;
        use crate::device::emulator::EmulatorOptions;
        use crate::ops::window::Window;
        let device = Device::emulated_with(CudaOptions::default(), EmulatorOptions::default()).unwrap();
        let Device::Cuda(cuda) = &device else { unreachable!("an emulated device is a CUDA device") };
        let tile = |[x, y, side, stride]: [usize; 4], [n, c, o]: [usize; 3]| {
            let window = Window { kernel: [side; 2], stride: [stride; 2], pad: [side / 2; 2] };
            let strip = Strip::forward::<half::f16>(cuda, &Dims { n, x: [x; 2], c, y: [y; 2], o, window }).unwrap();
            [strip.sizes.images, strip.sizes.rows, strip.sizes.columns]
        };
        assert_eq!(tile([224, 112, 7, 2], [128, 3, 64]), [1, 8, 16]);
        assert_eq!(tile([32, 32, 3, 1], [512, 3, 64]), [1, 8, 16]);
        assert_eq!(tile([28, 28, 3, 1], [256, 1, 16]), [1, 4, 28]);
        assert_eq!(tile([8, 8, 3, 1], [1024, 16, 32]), [2, 8, 8]);
    }
}
