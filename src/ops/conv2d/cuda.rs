//! Convolution on a CUDA device: implicit GEMM by default, explicit GEMM on request.
//!
//! Implicit: the kernels of `kernels/conv2d.cu` find the patches in the image as they load a tile;
//! nothing is laid out. Explicit: im2col writes the patches to memory, and the products are those
//! of linear layers; it is slower and takes `kh·kw` times the memory of the input, and it is the one
//! to study first. [`CudaOptions::explicit_conv`](crate::device::cuda::CudaOptions) chooses it.

use super::halo::{Else, Halo};
use super::strip::Strip;
use super::{Dims, maps};
use crate::device::cuda::{Cuda, Family, KernelType, Launch, Out, Tile, magic};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::conv2d::*;
use crate::kernels::conv2d_pool::*;
use crate::kernels::{TMA64, TMA256};
use crate::ops::linear::cuda as linear;
use crate::ops::product::{Plan, Product};
use crate::ops::window::Window;
use crate::params::Slot;
use crate::tensor::Tensor;

/// Sides of a window whose taps the input gradient's kernel has bits for: `TapsAlongK` in `kernels/conv2d.cuh`.
const MOST_TAPS: usize = 15;
/// Phases that it has a grid for.
const MOST_PHASES: usize = 65_535;

/// The kernels' sizes.
fn sizes(d: &Dims, accumulate: bool, split_steps: usize) -> Conv2dDims {
    let ([kh, kw], [sh, sw], [ph, pw]) = (d.window.kernel, d.window.stride, d.window.pad);
    let ([h, w], [ho, wo]) = (d.x, d.y);
    Conv2dDims {
        n: d.n as i32,
        h: h as i32,
        w: w as i32,
        c: d.c as i32,
        ho: ho as i32,
        wo: wo as i32,
        o: d.o as i32,
        kh: kh as i32,
        kw: kw as i32,
        sh: sh as i32,
        sw: sw as i32,
        ph: ph as i32,
        pw: pw as i32,
        accumulate: i32::from(accumulate),
        split_steps: split_steps as i32,
        by_c: magic(d.c),
        by_o: magic(d.o),
        by_kw: magic(kw),
        by_ho: magic(ho),
        by_wo: magic(wo),
        by_sh: magic(sh),
        by_sw: magic(sw),
        down: (kh / sh) as i32,
        across: (kw / sw) as i32,
        tall: (h / sh) as i32,
        broad: (w / sw) as i32,
        more_down: (kh % sh) as i32,
        more_across: (kw % sw) as i32,
        more_tall: (h % sh) as i32,
        more_broad: (w % sw) as i32,
        rest_h: (ph % sh) as i32,
        rest_w: (pw % sw) as i32,
        by_across: magic((kw / sw).max(1)),
        by_wider: magic(kw / sw + 1),
        by_tall: magic((h / sh).max(1)),
        by_taller: magic(h / sh + 1),
        by_broad: magic((w / sw).max(1)),
        by_broader: magic(w / sw + 1),
        ..Conv2dDims::default()
    }
}

/// The product's rows, the elements of a patch, and the output channels: the sizes of a linear layer.
fn as_linear(d: &Dims) -> [usize; 3] {
    [d.n * d.pixels(), d.patch(), d.o]
}

/// `cols = im2col(x)`, `[n·ho·wo, kh·kw·c]`.
fn im2col<T: KernelType>(cuda: &Cuda, x: &Tensor, d: &Dims) -> Result<Tensor> {
    let mut cols = Tensor::empty(x.device(), x.dtype(), [d.n * d.pixels(), d.patch()])?;
    let launch = Launch::new(cols.len().div_ceil(256), 256);
    conv2d_im2col::<T>(cuda, launch, x.input()?, cols.output()?, &sizes(d, false, 0))?;
    Ok(cols)
}

/// The kernels of a pass, with those whose operands come by tensor maps where the device has them and these are possible.
fn families<'a, T: KernelType>(
    cuda: &Cuda,
    plain: &'a Family,
    tma: &'a Family,
    possible: impl FnOnce() -> Result<bool>,
) -> Result<Vec<&'a Family>> {
    let mapped = tma.tiles(T::DTYPE, cuda.info().arch).next().is_some() && possible()?;
    Ok([plain].into_iter().chain(mapped.then_some(tma)).collect())
}

pub(super) fn forward<T: KernelType>(
    cuda: &Cuda,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    relu: bool,
    y: &mut Tensor,
    d: &Dims,
) -> Result<()> {
    if cuda.options().explicit_conv {
        return linear::forward::<T>(cuda, &im2col::<T>(cuda, x, d)?, w, b, relu, y, as_linear(d));
    }
    let seen = d.seen(d.c);
    let product = product(b, relu, [d.n * d.pixels(), seen[1] - seen[0]], d)?;
    let families = match Forward::choose::<T>(cuda, [x, w], &product, &y.output()?, d)? {
        Forward::Halo(halo) => return halo.multiply::<T>(cuda, [x, w], d, b, [false, relu], y.output()?),
        Forward::Strip(strip) => return strip.multiply::<T>(cuda, [x, w], b, [false, relu], y.output()?),
        Forward::Product(families) => families,
    };
    let bias = product.bias;
    product.run::<T, T>(cuda, families, y.output()?, |plan, y, partial| {
        let sizes = Conv2dDims { relu: relu.into(), ..along(seen, sizes(d, false, plan.split_steps)) };
        if plan.tile.maps {
            let [x, w] = maps::make(cuda, &maps::forward::<T>(x, w, d, plan.tile)?)?;
            return conv2d_fwd_tma::<T>(cuda, plan.tile, plan.launch, &x, &w, bias, y, partial, &sizes);
        }
        conv2d_fwd::<T>(cuda, plan.tile, plan.launch, x.input()?, w.input()?, bias, y, partial, &sizes)
    })?;
    Ok(())
}

/// What a max-pool of its own takes: nanoseconds, and the bytes in one of what it reads, which would not be written either.
const POOL: (f64, f64) = (2000.0, 3000.0);

/// `y = max_pool(conv(x, w) + b)` with a window of 2x2, or of the ReLU of that; and where in its window each value is from, for
/// the gradient. Nothing if a max-pool of its own is as fast, by estimate.
pub(super) fn forward_pooled<T: KernelType>(
    cuda: &Cuda,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    relu: bool,
    d: &Dims,
) -> Result<Option<[Tensor; 2]>> {
    let [h, wide] = d.y.map(|side| side / 2);
    if cuda.options().explicit_conv || h * wide == 0 {
        return Ok(None);
    }
    let shape = [d.n, h, wide, d.o];
    let mut y = Tensor::empty(x.device(), x.dtype(), shape)?;
    let place = || Tensor::empty(x.device(), DType::U8, shape);
    let apart = POOL.0 + (2 * size_of::<T>() * d.n * d.pixels() * d.o) as f64 / POOL.1;
    let full = product(b, relu, [d.n * d.pixels(), d.patch()], d)?;
    match Forward::choose::<T>(cuda, [x, w], &full, &y.output()?, d)? {
        Forward::Halo(halo) => {
            let pooled = halo.pooled(d).filter(|pooled| pooled.nanoseconds < halo.nanoseconds + apart);
            let Some(pooled) = pooled else { return Ok(None) };
            let mut place = place()?;
            pooled.pool::<T>(cuda, [x, w], d, b, relu, [&mut y, &mut place])?;
            Ok(Some([y, place]))
        }
        Forward::Product(families) => {
            let stride = d.window.stride.map(|step| 2 * step);
            let windows = Dims { y: [h, wide], window: Window { stride, ..d.window }, ..*d };
            let product = product(b, relu, [4 * d.n * h * wide, d.patch()], d)?;
            let operands = |tile: &Tile| maps::pooled::<T>(x, w, &windows, tile);
            let possible = || maps::possible(d.c, d, || operands(&TMA256));
            let pooling = self::families::<T>(cuda, &CONV2D_POOL_FWD, &CONV2D_POOL_FWD_TMA, possible)?;
            let faster = |plan: &Plan| plan.nanoseconds < full.nanoseconds::<T>(cuda, &families) + apart;
            let Some(plan) = product.whole::<T>(cuda, &pooling).filter(faster) else { return Ok(None) };
            let (Plan { tile, launch, .. }, bias) = (plan, product.bias);
            let (mut place, sizes) = (place()?, sizes(&windows, false, plan.split_steps));
            let (sizes, (to, at)) = (Conv2dDims { relu: relu.into(), ..sizes }, (y.output()?, place.output()?));
            if tile.maps {
                let [x, w] = maps::make(cuda, &operands(tile)?)?;
                conv2d_pool_fwd_tma::<T>(cuda, tile, launch, &x, &w, bias, to, at, &sizes)?;
            } else {
                conv2d_pool_fwd::<T>(cuda, tile, launch, x.input()?, w.input()?, bias, to, at, &sizes)?;
            }
            Ok(Some([y, place]))
        }
        Forward::Strip(_) => Ok(None),
    }
}

/// The product of a forward pass, of so many pixels and elements of a patch.
fn product<'a>(b: Option<&'a Tensor>, relu: bool, [pixels, patch]: [usize; 2], d: &Dims) -> Result<Product<'a>> {
    let bias = b.map(Tensor::input).transpose()?;
    Ok(Product { bias, relu, ..Product::of([pixels, d.o, patch], [d.c; 2]) })
}

/// The sizes with what is [seen](Dims::seen).
fn along([from, to]: [usize; 2], sizes: Conv2dDims) -> Conv2dDims {
    Conv2dDims { from: from as i32, to: to as i32, ..sizes }
}

/// What a forward pass is done by.
enum Forward {
    Halo(Halo),
    Strip(Strip),
    /// A product by one of these.
    Product(Vec<&'static Family>),
}

impl Forward {
    fn choose<T: KernelType>(
        cuda: &Cuda,
        [x, w]: [&Tensor; 2],
        product: &Product<'_>,
        y: &Out<'_, T>,
        d: &Dims,
    ) -> Result<Self> {
        let possible = || maps::possible(d.c, d, || maps::forward::<T>(x, w, d, &TMA64));
        let families = families::<T>(cuda, &CONV2D_FWD, &CONV2D_FWD_TMA, possible)?;
        let strip = Strip::forward::<T>(cuda, d);
        let halo = Halo::forward::<T>(cuda, d, &Else { strip: strip.as_ref(), product, families: &families });
        if let Some(halo) = halo
            && halo.takes::<T>([x, w], d, y)?
        {
            return Ok(Forward::Halo(halo));
        }
        Ok(strip.map_or(Forward::Product(families), Forward::Strip))
    }
}

/// Whether gx is 0 where `masks` is not above 0, which products alone do.
pub(super) fn backward_x<T: KernelType>(
    cuda: &Cuda,
    gy: &Tensor,
    w: &Tensor,
    masks: Option<&Tensor>,
    gx: &mut Slot<'_>,
    d: &Dims,
) -> Result<bool> {
    let (accumulate, masked, len) = (gx.accumulate, gx.masked, d.n * d.image());
    let many =
        d.window.kernel.iter().any(|&size| size > MOST_TAPS) || d.window.stride.iter().product::<usize>() > MOST_PHASES;
    if cuda.options().explicit_conv || many {
        let mut cols = Tensor::empty(gy.device(), gy.dtype(), [d.n * d.pixels(), d.patch()])?;
        linear::backward_x::<T>(cuda, gy, w, None, &mut Slot::of_tensor(&mut cols, false)?, as_linear(d))?;
        let launch = Launch::new(len.div_ceil(256), 256).flops(cols.len());
        conv2d_col2im::<T>(cuda, launch, cols.input()?, gx.output()?, &sizes(d, accumulate, 0))?;
        return Ok(false);
    }
    // With a stride each phase has taps of its own.
    let strided = d.window.stride != [1; 2];
    let seen = if strided { [0, taps(d) * d.o] } else { d.seen(d.o) };
    let sizes_of = [len / d.c, d.c, seen[1] - seen[0]];
    let product = Product { accumulate, masks, ..Product::of(sizes_of, [d.o, d.c]) };
    let operands = |tile: &Tile| maps::backward_x::<T>(gy, w, d, tile);
    let possible = || Ok(!strided && maps::possible(d.o, d, || operands(&TMA64))?);
    let families = families::<T>(cuda, &CONV2D_BWD_X, &CONV2D_BWD_X_TMA, possible)?;
    let strip = Strip::backward_x::<T>(cuda, d);
    let other = Else { strip: strip.as_ref(), product: &product, families: &families };
    if let Some(halo) = Halo::backward_x::<T>(cuda, d, &other)
        && halo.takes::<T>([gy, w], d, &gx.output()?)?
    {
        return halo.multiply::<T>(cuda, [gy, w], d, None, [accumulate, false], gx.output()?).map(|()| false);
    }
    if let Some(strip) = strip {
        return strip.multiply::<T>(cuda, [gy, w], None, [accumulate, false], gx.output()?).map(|()| false);
    }
    let of = masks.map(Tensor::input).transpose()?;
    product.run::<T, T>(cuda, families, gx.output()?, |plan, gx, partial| {
        // As many as outputs and taps have in common, whatever lies in the padding.
        let macs = d.n * d.pixels() * if strided { d.patch() * d.o } else { d.c * (seen[1] - seen[0]) };
        let (tile, launch) = (plan.tile, plan.launch.flops(2 * macs));
        let sizes = along(seen, sizes(d, accumulate, plan.split_steps));
        let keeps = accumulate && (masked || of.is_none() || !tile.masks);
        let sizes = Conv2dDims { keeps: keeps.into(), ..sizes };
        if tile.maps {
            let [gy, w] = maps::make(cuda, &operands(tile)?)?;
            return conv2d_bwd_x_tma::<T>(cuda, tile, launch, &gy, &w, of, gx, partial, &sizes);
        }
        let [sh, sw] = d.window.stride;
        let tiles = (d.n * d.x[0].div_ceil(sh) * d.x[1].div_ceil(sw)).div_ceil(tile.m) * d.c.div_ceil(tile.n);
        let launch = launch.grid(tiles, sh * sw, launch.grid[2] as usize);
        conv2d_bwd_x::<T>(cuda, tile, launch, gy.input()?, w.input()?, of, gx, partial, &sizes)
    })
}

/// Taps of the window that reach an input pixel, at most.
fn taps(d: &Dims) -> usize {
    [0, 1].map(|i| d.window.kernel[i].div_ceil(d.window.stride[i])).iter().product()
}

pub(super) fn backward_w<T: KernelType>(
    cuda: &Cuda,
    gy: &Tensor,
    x: &Tensor,
    gw: &mut Slot<'_>,
    d: &Dims,
) -> Result<()> {
    if cuda.options().explicit_conv {
        return linear::backward_w::<T>(cuda, gy, &im2col::<T>(cuda, x, d)?, gw, as_linear(d));
    }
    if let Some(strip) = Strip::backward_w::<T>(cuda, d) {
        return strip.gather::<T>(cuda, gy, x, gw, d);
    }
    let accumulate = gw.accumulate;
    let product = Product { accumulate, ..Product::of([d.o, d.patch(), d.n * d.pixels()], [d.o, d.c]) };
    let operands = || maps::backward_w::<T>(gy, x, d);
    let possible = || maps::possible(d.c, d, operands);
    let families = families::<T>(cuda, &CONV2D_BWD_W, &CONV2D_BWD_W_TMA, possible)?;
    product.run::<T, f32>(cuda, families, gw.output()?, |plan, gw, partial| {
        let d = sizes(d, accumulate, plan.split_steps);
        if plan.tile.maps {
            let [gy, x] = maps::make(cuda, &operands()?)?;
            return conv2d_bwd_w_tma::<T>(cuda, plan.tile, plan.launch, &gy, &x, gw, partial, &d);
        }
        conv2d_bwd_w::<T>(cuda, plan.tile, plan.launch, gy.input()?, x.input()?, gw, partial, &d)
    })?;
    Ok(())
}

#[cfg(test)]
#[path = "../../../tests/unit/conv2d_maps.rs"]
mod tests;
