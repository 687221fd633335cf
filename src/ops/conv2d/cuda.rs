//! Convolution on a CUDA device: implicit GEMM by default, explicit GEMM on request.
//!
//! Implicit: the kernels of `kernels/conv2d.cu` find the patches in the image as they load a tile;
//! nothing is laid out. Explicit: im2col writes the patches to memory, and the products are those
//! of linear layers; it is slower and takes `kh·kw` times the memory of the input, and it is the one
//! to study first. [`Options::explicit_conv`](crate::device::cuda::Options) chooses it.

use super::Dims;
use crate::device::Device;
use crate::device::cuda::{Cuda, KernelType, Launch, Plan, magic};
use crate::error::Result;
use crate::kernels::conv2d::*;
use crate::ops::linear::cuda as linear;
use crate::params::Slot;
use crate::tensor::Tensor;

/// The kernels' sizes.
fn sizes(d: &Dims, accumulate: bool, split_steps: usize) -> Conv2dDims {
    let ([kh, kw], [sh, sw], [ph, pw]) = (d.window.kernel, d.window.stride, d.window.pad);
    let ([h, w], [ho, wo]) = (d.x, d.y);
    let (c_magic, c_shift) = magic(d.c);
    let (o_magic, o_shift) = magic(d.o);
    let (kw_magic, kw_shift) = magic(kw);
    let (ho_magic, ho_shift) = magic(ho);
    let (wo_magic, wo_shift) = magic(wo);
    let (sh_magic, sh_shift) = magic(sh);
    let (sw_magic, sw_shift) = magic(sw);
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
        c_magic,
        c_shift,
        o_magic,
        o_shift,
        kw_magic,
        kw_shift,
        ho_magic,
        ho_shift,
        wo_magic,
        wo_shift,
        sh_magic,
        sh_shift,
        sw_magic,
        sw_shift,
    }
}

pub(super) fn forward<T: KernelType>(
    cuda: &Cuda,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    y: &mut Tensor,
    d: &Dims,
) -> Result<()> {
    if cuda.options().explicit_conv {
        return explicit::forward::<T>(cuda, x, w, b, y, d);
    }
    let plan = Plan::new([d.n * d.pixels(), d.o, d.patch()], &CONV2D_FWD, T::DTYPE, cuda)?;
    let bias = b.map(Tensor::input).transpose()?;
    let mut partial = plan.partial(x.device())?;
    let out = partial.as_mut().map(Tensor::output).transpose()?;
    let sizes = sizes(d, false, plan.split_steps);
    conv2d_fwd::<T>(cuda, plan.tile, plan.launch(), x.input()?, w.input()?, bias, y.output()?, out, &sizes)?;
    linear::add_up::<T>(cuda, partial, b, y)
}

pub(super) fn backward_x<T: KernelType>(cuda: &Cuda, gy: &Tensor, w: &Tensor, gx: &mut Tensor, d: &Dims) -> Result<()> {
    if cuda.options().explicit_conv {
        return explicit::backward_x::<T>(cuda, gy, w, gx, d);
    }
    let [kh, kw] = d.window.kernel;
    let plan = Plan::new([gx.len() / d.c, d.c, kh * kw * d.o], &CONV2D_BWD_X, T::DTYPE, cuda)?;
    let mut partial = plan.partial(gy.device())?;
    let out = partial.as_mut().map(Tensor::output).transpose()?;
    let sizes = sizes(d, false, plan.split_steps);
    conv2d_bwd_x::<T>(cuda, plan.tile, plan.launch(), gy.input()?, w.input()?, gx.output()?, out, &sizes)?;
    linear::add_up::<T>(cuda, partial, None, gx)
}

pub(super) fn backward_w<T: KernelType>(
    cuda: &Cuda,
    gy: &Tensor,
    x: &Tensor,
    gw: &mut Slot<'_>,
    d: &Dims,
) -> Result<()> {
    if cuda.options().explicit_conv {
        return explicit::backward_w::<T>(cuda, gy, x, gw, d);
    }
    let plan = Plan::new([d.o, d.patch(), d.n * d.pixels()], &CONV2D_BWD_W, T::DTYPE, cuda)?;
    let mut partial = plan.partial(gy.device())?;
    let out = partial.as_mut().map(Tensor::output).transpose()?;
    let sizes = sizes(d, gw.accumulate, plan.split_steps);
    conv2d_bwd_w::<T>(cuda, plan.tile, plan.launch(), gy.input()?, x.input()?, gw.output()?, out, &sizes)?;
    linear::add_up_gradient(cuda, partial, gw)
}

/// The form with the patches in memory.
mod explicit {
    use super::*;

    /// `cols = im2col(x)`, `[n·ho·wo, kh·kw·c]`.
    fn im2col<T: KernelType>(cuda: &Cuda, x: &Tensor, d: &Dims) -> Result<Tensor> {
        let mut cols = Tensor::empty(&Device::Cuda(cuda.clone()), x.dtype(), [d.n * d.pixels(), d.patch()])?;
        let launch = Launch::new(cols.len().div_ceil(256), 256);
        conv2d_im2col::<T>(cuda, launch, x.input()?, cols.output()?, &sizes(d, false, 0))?;
        Ok(cols)
    }

    /// The products' sizes: rows, inputs, outputs of a linear layer.
    fn product(d: &Dims) -> [usize; 3] {
        [d.n * d.pixels(), d.patch(), d.o]
    }

    pub(super) fn forward<T: KernelType>(
        cuda: &Cuda,
        x: &Tensor,
        w: &Tensor,
        b: Option<&Tensor>,
        y: &mut Tensor,
        d: &Dims,
    ) -> Result<()> {
        let cols = im2col::<T>(cuda, x, d)?;
        linear::forward::<T>(cuda, &cols, w, b, y, product(d))
    }

    pub(super) fn backward_x<T: KernelType>(
        cuda: &Cuda,
        gy: &Tensor,
        w: &Tensor,
        gx: &mut Tensor,
        d: &Dims,
    ) -> Result<()> {
        let mut cols = Tensor::empty(gy.device(), gy.dtype(), [d.n * d.pixels(), d.patch()])?;
        linear::backward_x::<T>(cuda, gy, w, &mut cols, product(d))?;
        let launch = Launch::new(gx.len().div_ceil(256), 256).flops(cols.len());
        conv2d_col2im::<T>(cuda, launch, cols.input()?, gx.output()?, &sizes(d, false, 0))
    }

    pub(super) fn backward_w<T: KernelType>(
        cuda: &Cuda,
        gy: &Tensor,
        x: &Tensor,
        gw: &mut Slot<'_>,
        d: &Dims,
    ) -> Result<()> {
        let cols = im2col::<T>(cuda, x, d)?;
        linear::backward_w::<T>(cuda, gy, &cols, gw, product(d))
    }
}
