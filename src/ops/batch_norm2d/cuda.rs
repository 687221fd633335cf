//! Batch normalisation on a CUDA device: how the rows are cut, and the launches.

use super::{Activation, BatchNorm2d, Sum, Then};
use crate::device::cuda::{BLOCK, Cuda, KernelType, Launch, MULTIPROCESSORS, magic};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::batch_norm2d::*;
use crate::kernels::batch_norm2d_overlap::*;
use crate::kernels::batch_norm2d_pool::*;
use crate::kernels::batch_norm2d_whole::*;
use crate::ops::product::{CLUSTERS, MOST_IN_CLUSTER};
use crate::ops::window::Window;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// How x `[rows, c]` is cut into blocks, each with a tile of the channels for a range of the rows: so many rows for
/// every thread, so many blocks at most, and `wide` channels a thread, or four, where they come so.
fn cut([rows, c]: [usize; 2], each: usize, blocks: usize, wide: usize) -> (BatchNorm2dDims, Launch) {
    let wide = [wide, 4].into_iter().find(|&wide| c.is_multiple_of(wide)).unwrap_or(1);
    // Up to a warp of threads side by side; the tiles as equal as can be.
    let tiles = c.div_ceil(32 * wide);
    let tile = c.div_ceil(tiles).next_multiple_of(wide);
    let most = rows.div_ceil(each * (BLOCK as usize * wide / tile)).min((blocks / tiles).max(1));
    let chunk = rows.div_ceil(most);
    let ranges = rows.div_ceil(chunk);
    let [rows_, c_, tile, chunk, ranges_] = [rows, c, tile, chunk, ranges].map(|d| d as i32);
    let (unbias, inv_rows) = ((rows as f64 / (rows as f64 - 1.0)) as f32, (1.0 / rows as f64) as f32);
    let d =
        BatchNorm2dDims { rows: rows_, c: c_, tile, chunk, ranges: ranges_, unbias, inv_rows, ..Default::default() };
    (d, Launch::new(0, BLOCK).grid(tiles, ranges, 1))
}

fn rows(x: Shape) -> usize {
    x.len() / x.last()
}

/// Partial results of a channel, at most: eight (`MERGED` in `kernels/batch_norm2d.cu`) for each of 128 threads.
const RANGES: usize = 1024;
const _: () = assert!(RANGES <= 8 * 128);

/// The cut for sums over the rows, whose partial results are added up: some rows for every thread. What a block does besides
/// takes its threads as long as six rows: where the blocks that a large GPU holds at once have few, there are no more.
fn sums(x: &Tensor, wide: usize) -> (BatchNorm2dDims, Launch) {
    let of = |blocks| cut([rows(x.shape()), x.shape().last()], 4, blocks, wide);
    let few = of(512);
    let rows_each = few.0.chunk * few.0.tile / (BLOCK as usize * wide) as i32;
    if rows_each <= 16 { few } else { of(RANGES) }
}

/// The cut for passes over the elements.
fn passes(x: &Tensor) -> (BatchNorm2dDims, Launch) {
    cut([rows(x.shape()), x.shape().last()], 2, 4096, 4)
}

/// A block for each channel, with as many threads as there is use for.
fn channels(d: &BatchNorm2dDims) -> Launch {
    Launch::new(d.c as usize, if d.ranges > 32 { 128 } else { 32 })
}

/// Rows of a batch-norm that one launch treats whole, at most: four (`MOST` in `kernels/batch_norm2d_whole.cu`) for each of 512
/// threads. Of 2048 rows of 128 channels that took 7.7 µs forward and 7.5 backward on an H100, and the kernels apart, with their
/// launches, 12 and 9; of 8192 of 64, eight a thread, 20 and 22, and apart 12 and 9.
const WHOLE: usize = 2048;
const _: () = assert!(WHOLE <= 4 * 512);

/// Elements of a tensor whose rows the blocks of a cluster share, each at most as many as above: a block reads 8 bytes of a row,
/// and memory gives sectors of 32.
const SHARED: usize = 1 << 21;

/// Whether one launch treats all rows of x: f32 has the same bits on every GPU, and so no clusters.
fn is_whole<T: KernelType>(cuda: &Cuda, x: &Tensor) -> bool {
    let shares = size_of::<T>() == 2 && cuda.info().arch >= CLUSTERS && x.len() <= SHARED;
    rows(x.shape()) <= if shares { MOST_IN_CLUSTER * WHOLE } else { WHOLE }
}

/// The sizes for that, and a block for so many channels each, or a cluster, with four rows a thread if they are few.
fn whole(x: &Tensor, then: Option<Activation>, channels: usize) -> (BatchNorm2dWholeDims, Launch) {
    let BatchNorm2dDims { rows, c, unbias, inv_rows, .. } = passes(x).0;
    let across = (c as usize).div_ceil(channels);
    let mut blocks = (rows as usize).div_ceil(WHOLE).next_power_of_two();
    // Two for each multiprocessor of a large GPU, if the rows are shared anyway.
    while (2..MOST_IN_CLUSTER).contains(&blocks) && 2 * blocks * across <= 2 * MULTIPROCESSORS {
        blocks *= 2;
    }
    let threads = (rows as u32).div_ceil(4 * blocks as u32).next_power_of_two().clamp(256, 512);
    let activation = Activation::number(then);
    let d = BatchNorm2dWholeDims { rows, c, unbias, inv_rows, activation, ..Default::default() };
    (d, Launch::new(0, threads).grid(across, blocks, 1).cluster(1, blocks as u32, 1))
}

/// Whether training a batch-norm of x computes a max-pool behind it too: of few rows the kernels apart are fewer.
pub(super) fn pools(x: Shape, window: Window) -> bool {
    rows(x) > WHOLE && [Then::POOL, Then::OVERLAPPING].contains(&window)
}

/// What won under the windows of a max-pool, in the shape of its output: the values of x, and their places, a byte each.
pub(super) struct Winners {
    x: Tensor,
    place: Tensor,
    overlap: bool,
}

/// The sizes for that of x to y, which a thread has two windows of: those of y, or all that cells of x are in.
fn windows(x: Shape, y: Shape, cells: bool, then: Option<Activation>) -> (BatchNorm2dPoolDims, Launch) {
    let [[n, h, w, c], [_, ho, wo, _]] = [x, y].map(|s| s.rank4().unwrap_or([1; 4]));
    let [down, across] = if cells { [h.div_ceil(2), w.div_ceil(2)] } else { [ho, wo] };
    let (BatchNorm2dDims { rows, tile, chunk, .. }, launch) = cut([n * down * across, c], 2, 4096, 4);
    let [by_across, by_down] = [across, down].map(magic);
    let inv_rows = (1.0 / self::rows(x) as f64) as f32;
    let activation = Activation::number(then);
    let [h, w, c, ho, wo, down, across] = [h, w, c, ho, wo, down, across].map(|d| d as i32);
    #[rustfmt::skip]
    let d = BatchNorm2dPoolDims { h, w, c, ho, wo, down, across, rows, tile, chunk, by_across, by_down, inv_rows, activation };
    (d, launch)
}

/// `stats` become the mean and 1/std that x was normalised with, `constants` are momentum and eps.
#[expect(clippy::too_many_arguments, reason = "what batch-norm takes")]
pub(super) fn forward<T: KernelType>(
    cuda: &Cuda,
    x: &Tensor,
    [gamma, beta]: [&Tensor; 2],
    y: &mut Tensor,
    [mean, inv_std]: [&mut Tensor; 2],
    [running_mean, running_var]: [&mut Tensor; 2],
    [momentum, eps]: [f64; 2],
    train: bool,
    Then { activation: then, pool }: Then,
    sum: Option<Sum<'_>>,
) -> Result<Option<Winners>> {
    let plus = sum.map(|sum| sum.plus.value().input::<T>()).transpose()?;
    let (then, of_sum) = sum.map_or((then, 0), |s| (s.after.or(s.before), s.after.is_some().into()));
    let [keep, take, eps] = [1.0 - momentum, momentum, eps].map(|v| v as f32);
    let (m, s) = (mean.output()?, inv_std.output()?);
    if train && pool.is_none() && is_whole::<T>(cuda, x) {
        let (mut d, blocks) = whole(x, then, 4);
        [d.keep, d.take, d.eps] = [keep, take, eps];
        d.of_sum = of_sum;
        let (g, b, rm, rv) = (gamma.input()?, beta.input()?, running_mean.output()?, running_var.output()?);
        batch_norm2d_whole_fwd::<T>(cuda, blocks, x.input()?, plus, g, b, m, s, rm, rv, y.output()?, &d)?;
        return Ok(None);
    }
    let (mut d, blocks) = sums(x, 16 / size_of::<T>());
    [d.keep, d.take, d.eps] = [keep, take, eps];
    if train {
        let mut part = Tensor::empty(x.device(), DType::F32, [d.c as usize, d.ranges as usize, 2])?;
        batch_norm2d_fwd_part::<T>(cuda, blocks, x.input()?, part.output()?, &d)?;
        let (rm, rv) = (running_mean.output()?, running_var.output()?);
        batch_norm2d_fwd_merge(cuda, channels(&d), part.input()?, m, s, rm, rv, &d)?;
    } else {
        let (rm, rv) = (running_mean.input()?, running_var.input()?);
        batch_norm2d_fwd_eval(cuda, Launch::each(d.c as usize), rm, rv, m, s, &d)?;
    }
    let (m, s, g, b) = (mean.input()?, inv_std.input()?, gamma.input()?, beta.input()?);
    if let Some(window) = pool {
        let (d, blocks) = windows(x.shape(), y.shape(), false, then);
        let mut won = Winners {
            x: Tensor::empty(x.device(), x.dtype(), y.shape())?,
            place: Tensor::empty(x.device(), DType::U8, y.shape())?,
            overlap: window == Then::OVERLAPPING,
        };
        let (x, y, values, place) = (x.input()?, y.output()?, won.x.output()?, won.place.output()?);
        match won.overlap {
            true => batch_norm2d_overlap_fwd::<T>(cuda, blocks, x, m, s, g, b, y, values, place, &d)?,
            false => batch_norm2d_pool_fwd::<T>(cuda, blocks, x, m, s, g, b, y, values, place, &d)?,
        }
        return Ok(Some(won));
    }
    let (mut d, blocks) = passes(x);
    (d.activation, d.of_sum) = (Activation::number(then), of_sum);
    batch_norm2d_fwd::<T>(cuda, blocks, x.input()?, plus, m, s, g, b, y.output()?, &d)?;
    Ok(None)
}

/// `ggamma` and `gbeta`; gx if it is wanted, or the gradient of what x is the max-pool of where it won is given, to `spread` gx,
/// and a kernel does that; and the gradient of a sum that ReLU made `masks` of, unless gy is that already.
pub(super) fn backward<T: KernelType>(
    cuda: &Cuda,
    node: &BatchNorm2d,
    gy: &Tensor,
    masks: Option<&Tensor>,
    spread: Option<&Tensor>,
    [ggamma, gbeta]: [&mut Tensor; 2],
) -> Result<[Option<Tensor>; 2]> {
    let (x, mean, inv_std) = (node.x.input()?, node.mean.input()?, node.inv_std.input()?);
    let (gamma, beta, from) = (node.gamma.input()?, node.beta.input()?, gy.input()?);
    let y = masks.map(Tensor::input).transpose()?;
    let mut masked = y.map(|_| Tensor::empty(gy.device(), gy.dtype(), gy.shape())).transpose()?;
    let is_whole = node.train && node.winners.is_none() && is_whole::<T>(cuda, &node.x);
    let spread = spread.filter(|_| !is_whole && node.winners.is_none());
    let gx_shape = match (spread, node.x.shape().rank4()) {
        (Some(_), Some([n, h, w, c])) => [n, 2 * h, 2 * w, c].into(),
        _ => node.x.shape(),
    };
    // In one launch gx is computed in any case: the sums have the same bits whether it is wanted or not.
    let mut gx = match is_whole || node.ids[0].is_some() {
        true => Some(Tensor::empty(gy.device(), gy.dtype(), gx_shape)?),
        false => None,
    };
    if let (true, Some(gx)) = (is_whole, &mut gx) {
        let (mut d, blocks) = whole(gy, node.then, 8 / size_of::<T>());
        d.x_is_relu = node.x_is_relu.into();
        let (gg, gb, to) = (ggamma.output()?, gbeta.output()?, gx.output()?);
        let g = masked.as_mut().map(Tensor::output).transpose()?;
        batch_norm2d_whole_bwd::<T>(cuda, blocks, x, from, y, g, mean, inv_std, gamma, beta, gg, gb, to, &d)?;
    } else {
        let (mut d, blocks) = sums(gy, 4);
        d.activation = Activation::number(node.then);
        let mut part = Tensor::empty(gy.device(), DType::F32, [d.c as usize, d.ranges as usize, 2])?;
        // Only what won has a gradient.
        let of = node.winners.as_ref().map_or(Ok(x), |won| won.x.input())?;
        match (y, &mut masked) {
            (Some(y), Some(g)) => {
                let (g, part) = (g.output()?, part.output()?);
                batch_norm2d_bwd_part_masked::<T>(cuda, blocks, of, from, y, mean, g, part, &d)?
            }
            _ => batch_norm2d_bwd_part::<T>(cuda, blocks, of, from, mean, inv_std, gamma, beta, part.output()?, &d)?,
        }
        let from = masked.as_ref().map_or(Ok(from), Tensor::input)?;
        batch_norm2d_bwd_merge(cuda, channels(&d), part.input()?, inv_std, ggamma.output()?, gbeta.output()?, &d)?;
        let (gg, gb) = (ggamma.input()?, gbeta.input()?);
        match (&mut gx, &node.winners, spread) {
            (Some(gx), None, Some(place)) => {
                let (mut d, blocks) = windows(gx.shape(), gy.shape(), false, node.then);
                d.inv_rows = (1.0 / rows(gy.shape()) as f64) as f32;
                let (place, to) = (place.input()?, gx.output()?);
                batch_norm2d_pool_spread::<T>(
                    cuda, blocks, x, mean, inv_std, gamma, beta, gg, gb, from, place, to, &d,
                )?;
            }
            (Some(gx), Some(won), _) => {
                let (d, blocks) = windows(node.x.shape(), gy.shape(), true, node.then);
                let (place, to) = (won.place.input()?, gx.output()?);
                let bwd = if won.overlap { batch_norm2d_overlap_bwd::<T> } else { batch_norm2d_pool_bwd::<T> };
                bwd(cuda, blocks, x, mean, inv_std, gamma, beta, gg, gb, from, place, to, &d)?;
            }
            (Some(gx), None, None) => {
                let (mut d, blocks) = passes(gy);
                (d.activation, d.x_is_relu) = (Activation::number(node.then), node.x_is_relu.into());
                if !node.train {
                    d.inv_rows = 0.0;
                }
                let to = gx.output()?;
                batch_norm2d_bwd_input::<T>(cuda, blocks, x, mean, inv_std, gamma, beta, gg, gb, from, to, &d)?;
            }
            (None, ..) => {}
        }
    }
    Ok([gx.filter(|_| node.ids[0].is_some()), masked])
}
