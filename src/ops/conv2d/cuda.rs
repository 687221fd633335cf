//! Convolution on a CUDA device: implicit GEMM by default, explicit GEMM on request.
//!
//! Implicit: the kernels of `kernels/conv2d.cu` find the patches in the image as they load a tile;
//! nothing is laid out. Explicit: im2col writes the patches to memory, and the products are those
//! of linear layers; it is slower and takes `kh·kw` times the memory of the input, and it is the one
//! to study first. [`CudaOptions::explicit_conv`](crate::device::cuda::CudaOptions) chooses it.

use super::halo::{Else, Halo};
use super::strip::Strip;
use super::{Dims, maps};
use crate::device::cuda::{Cuda, Family, KernelType, Launch, Tile};
use crate::error::Result;
use crate::kernels::TMA64;
use crate::kernels::conv2d::*;
use crate::ops::linear::cuda as linear;
use crate::ops::product::Product;
use crate::params::Slot;
use crate::tensor::Tensor;

/// The two numbers with which kernels divide by `divisor`, at least 1 and below 2^31 (`divide` in
/// `kernels/common.cuh`).
///
/// Source: Granlund, Montgomery, "Division by Invariant Integers using Multiplication", 1994.
pub(in crate::ops) fn magic(divisor: usize) -> [u32; 2] {
    let divisor = divisor as u64;
    let shift = divisor.next_power_of_two().trailing_zeros();
    let magic = (1u64 << 32) * ((1u64 << shift) - divisor) / divisor + 1;
    [magic as u32, shift]
}

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
    let bias = b.map(Tensor::input).transpose()?;
    let product = Product { sizes: [d.n * d.pixels(), d.o, d.patch()], rows: [d.c; 2], bias, accumulate: false, relu };
    let operands = |tile: &Tile| maps::forward::<T>(x, w, d, tile);
    let possible = || maps::possible(d.c, d, || operands(&TMA64));
    let families = families::<T>(cuda, &CONV2D_FWD, &CONV2D_FWD_TMA, possible)?;
    let strip = Strip::forward::<T>(cuda, d);
    let other = Else { strip: strip.as_ref(), product: &product, families: &families };
    if let Some(halo) = Halo::forward::<T>(cuda, d, &other)
        && halo.takes::<T>([x, w], d, &y.output()?)?
    {
        return halo.multiply::<T>(cuda, [x, w], d, b, [false, relu], y.output()?);
    }
    if let Some(strip) = strip {
        return strip.multiply::<T>(cuda, [x, w], b, [false, relu], y.output()?);
    }
    product.run::<T, T>(cuda, families, y.output()?, |plan, y, partial| {
        let d = Conv2dDims { relu: relu.into(), ..sizes(d, false, plan.split_steps) };
        if plan.tile.maps {
            let [x, w] = maps::make(cuda, &operands(plan.tile)?)?;
            return conv2d_fwd_tma::<T>(cuda, plan.tile, plan.launch, &x, &w, bias, y, partial, &d);
        }
        conv2d_fwd::<T>(cuda, plan.tile, plan.launch, x.input()?, w.input()?, bias, y, partial, &d)
    })
}

pub(super) fn backward_x<T: KernelType>(
    cuda: &Cuda,
    gy: &Tensor,
    w: &Tensor,
    gx: &mut Slot<'_>,
    d: &Dims,
) -> Result<()> {
    let (accumulate, len) = (gx.accumulate, d.n * d.image());
    let many =
        d.window.kernel.iter().any(|&size| size > MOST_TAPS) || d.window.stride.iter().product::<usize>() > MOST_PHASES;
    if cuda.options().explicit_conv || many {
        let mut cols = Tensor::empty(gy.device(), gy.dtype(), [d.n * d.pixels(), d.patch()])?;
        linear::backward_x::<T>(cuda, gy, w, &mut Slot::of_tensor(&mut cols, false)?, as_linear(d))?;
        let launch = Launch::new(len.div_ceil(256), 256).flops(cols.len());
        return conv2d_col2im::<T>(cuda, launch, cols.input()?, gx.output()?, &sizes(d, accumulate, 0));
    }
    let sizes_of = [len / d.c, d.c, taps(d) * d.o];
    let product = Product { sizes: sizes_of, rows: [d.o, d.c], bias: None, accumulate, relu: false };
    let operands = |tile: &Tile| maps::backward_x::<T>(gy, w, d, tile);
    let possible = || Ok(d.window.stride == [1; 2] && maps::possible(d.o, d, || operands(&TMA64))?);
    let families = families::<T>(cuda, &CONV2D_BWD_X, &CONV2D_BWD_X_TMA, possible)?;
    let strip = Strip::backward_x::<T>(cuda, d);
    let other = Else { strip: strip.as_ref(), product: &product, families: &families };
    if let Some(halo) = Halo::backward_x::<T>(cuda, d, &other)
        && halo.takes::<T>([gy, w], d, &gx.output()?)?
    {
        return halo.multiply::<T>(cuda, [gy, w], d, None, [accumulate, false], gx.output()?);
    }
    if let Some(strip) = strip {
        return strip.multiply::<T>(cuda, [gy, w], None, [accumulate, false], gx.output()?);
    }
    product.run::<T, T>(cuda, families, gx.output()?, |plan, gx, partial| {
        let (Dims { n, o, .. }, tile) = (d, plan.tile);
        let (launch, sizes) =
            (plan.launch.flops(2 * n * d.pixels() * d.patch() * o), sizes(d, accumulate, plan.split_steps));
        if tile.maps {
            let [gy, w] = maps::make(cuda, &operands(tile)?)?;
            return conv2d_bwd_x_tma::<T>(cuda, tile, launch, &gy, &w, gx, partial, &sizes);
        }
        let [sh, sw] = d.window.stride;
        let tiles = (d.n * d.x[0].div_ceil(sh) * d.x[1].div_ceil(sw)).div_ceil(tile.m) * d.c.div_ceil(tile.n);
        let launch = launch.grid(tiles, sh * sw, launch.grid[2] as usize);
        conv2d_bwd_x::<T>(cuda, tile, launch, gy.input()?, w.input()?, gx, partial, &sizes)
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
    let product =
        Product { sizes: [d.o, d.patch(), d.n * d.pixels()], rows: [d.o, d.c], bias: None, accumulate, relu: false };
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(tilework_emulator)]
    use crate::{Device, device::cuda::CudaOptions, dtype::DType, ops::window::Window};

    #[test]
    fn division_by_multiplication_is_exact() {
        let divide = |n: u64, [magic, shift]: [u32; 2]| (((n * u64::from(magic)) >> 32) + n) >> shift;
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

    /// Blocks that take several tiles of several steps each, in ranges of K, with operands by tensor maps in every pass; and the
    /// blocks of clusters that share each tile.
    #[cfg(tilework_emulator)]
    #[test]
    fn blocks_walk_over_tiles() {
        use super::super::definition::Example;
        use crate::device::emulator::{EmulatorOptions, Order};
        use half::f16;
        let window = Window { kernel: [2, 1], stride: [1; 2], pad: [1, 0] };
        let e = Example::new(Dims { n: 2, x: [13, 15], c: 64, y: [14, 15], o: 192, window });
        let d = &e.d;
        // Partial results have no biases yet.
        let y: Vec<f64> = e.y.iter().zip(e.b.iter().cycle()).map(|(y, b)| y - b).collect();
        for tile in CONV2D_BWD_W_TMA.tiles(DType::F16, 90) {
            for (order, checked) in [(Order::Forward, false), (Order::Reverse, false), (Order::Random(3), true)] {
                let options = EmulatorOptions { order, checked, arch: 90, ..EmulatorOptions::default() };
                let device = Device::emulated_with(CudaOptions::default(), options).unwrap();
                let Device::Cuda(cuda) = &device else { unreachable!("an emulated device is a CUDA device") };
                let tensor = |shape: [usize; 4], of: &[f64]| {
                    let of: Vec<f16> = of.iter().map(|v| f16::from_f64(*v)).collect();
                    Tensor::from_slice(&device, shape, &of).unwrap()
                };
                let x = tensor([d.n, d.x[0], d.x[1], d.c], &e.x);
                let w = tensor([d.o, 2, 1, d.c], &e.w);
                let gy = tensor([d.n, d.y[0], d.y[1], d.o], &e.gy);
                let make = |operands: Result<maps::Operands>| maps::make(cuda, &operands.unwrap()).unwrap();
                let launch = Launch::new(0, tile.threads).grid(2, 1, 2).shared(tile.shared as usize);
                let partial = |len: usize| Tensor::empty(&device, DType::F32, [2, len]).unwrap();
                let check = |pass: &str, partial: &Tensor, want: &[f64]| {
                    let partial = partial.to_f64().unwrap();
                    let (first, second) = partial.split_at(want.len());
                    let sum: Vec<f64> = first.iter().zip(second).map(|(a, b)| a + b).collect();
                    assert!(sum == want, "{pass}, {}, {order:?}", tile.name);
                };
                // What would be written without splits.
                let (mut none, mut no_sums) = (tensor([1; 4], &[0.0]), partial(1));
                let (mut p, [a, b]) = (partial(e.gw.len()), make(maps::backward_w::<f16>(&gy, &x, d)));
                let (to, out) = (no_sums.output().unwrap(), Some(p.output().unwrap()));
                conv2d_bwd_w_tma::<f16>(cuda, tile, launch, &a, &b, to, out, &sizes(d, false, 4)).unwrap();
                check("weight gradient", &p, &e.gw);
                let whole = |pass: &str, got: &Tensor, want: &[f64]| {
                    let want =
                        want.iter().map(|&v| if pass == "weight gradient" { v } else { f16::from_f64(v).to_f64() });
                    assert!(
                        got.to_f64().unwrap() == want.collect::<Vec<_>>(),
                        "{pass} in clusters, {}, {order:?}",
                        tile.name
                    );
                };
                let clusters = |[m, n]: [usize; 2], splits: u32| {
                    let tiles = m.div_ceil(tile.m) * n.div_ceil(tile.n);
                    launch.grid(tiles, 1, splits as usize).cluster(1, 1, splits)
                };
                if tile.cluster {
                    let sides = if tile.transposed { [e.gw.len() / d.o, d.o] } else { [d.o, e.gw.len() / d.o] };
                    let mut sums = Tensor::empty(&device, DType::F32, [e.gw.len()]).unwrap();
                    let (launch, to) = (clusters(sides, 4), sums.output().unwrap());
                    conv2d_bwd_w_tma::<f16>(cuda, tile, launch, &a, &b, to, None, &sizes(d, false, 2)).unwrap();
                    whole("weight gradient", &sums, &e.gw);
                }
                // The other passes are never of a transpose.
                if tile.transposed {
                    continue;
                }
                let (mut p, [a, b]) = (partial(y.len()), make(maps::forward::<f16>(&x, &w, d, tile)));
                let (to, out) = (none.output().unwrap(), Some(p.output().unwrap()));
                conv2d_fwd_tma::<f16>(cuda, tile, launch, &a, &b, None, to, out, &sizes(d, false, 1)).unwrap();
                check("forward", &p, &y);
                let (mut p, [a, b]) = (partial(e.gx.len()), make(maps::backward_x::<f16>(&gy, &w, d, tile)));
                let (to, out) = (none.output().unwrap(), Some(p.output().unwrap()));
                conv2d_bwd_x_tma::<f16>(cuda, tile, launch, &a, &b, to, out, &sizes(d, false, 4)).unwrap();
                check("input gradient", &p, &e.gx);
                if tile.cluster {
                    let (mut got, to) =
                        (tensor([d.n, d.x[0], d.x[1], d.c], &e.x), clusters([d.n * d.image() / d.c, d.c], 3));
                    let (gx, d) = (got.output().unwrap(), sizes(d, false, 2));
                    conv2d_bwd_x_tma::<f16>(cuda, tile, to, &a, &b, gx, None, &d).unwrap();
                    whole("input gradient", &got, &e.gx);
                    let (mut got, to) =
                        (tensor([e.d.n, e.d.y[0], e.d.y[1], e.d.o], &e.gy), clusters([e.d.n * e.d.pixels(), e.d.o], 2));
                    let [a, b] = make(maps::forward::<f16>(&x, &w, &e.d, tile));
                    let bias: Vec<f32> = e.b.iter().map(|&v| v as f32).collect();
                    let bias = Tensor::from_slice(&device, [e.d.o], &bias).unwrap();
                    let (y, bias, d) = (got.output().unwrap(), Some(bias.input().unwrap()), sizes(&e.d, false, 1));
                    conv2d_fwd_tma::<f16>(cuda, tile, to, &a, &b, bias, y, None, &d).unwrap();
                    whole("forward", &got, &e.y);
                }
            }
        }
    }

    /// A tile with maps that is asked for serves where the sizes allow it; its inputs count as memory of the kernel.
    #[cfg(tilework_emulator)]
    #[test]
    fn maps_are_for_some_sizes() {
        use crate::device::emulator::EmulatorOptions;
        let timed = |tile: &'static str, dtype: DType, c: usize| {
            let options = CudaOptions { tile: Some(tile), ..CudaOptions::default() };
            let device = Device::emulated_with(options, EmulatorOptions { arch: 90, ..Default::default() }).unwrap();
            let Device::Cuda(cuda) = &device else { unreachable!("an emulated device is a CUDA device") };
            let d = Dims { n: 1, x: [2, 2], c, y: [2, 2], o: 8, window: Window::square(3, 1, 1) };
            let zeros = |shape: [usize; 4]| Tensor::zeros(&device, dtype, shape).unwrap();
            let (x, w, mut y) = (zeros([1, 2, 2, c]), zeros([8, 3, 3, c]), zeros([1, 2, 2, 8]));
            let timings = cuda.profile(|| match dtype {
                DType::F32 => forward::<f32>(cuda, &x, &w, None, false, &mut y, &d),
                _ => forward::<half::f16>(cuda, &x, &w, None, false, &mut y, &d),
            });
            timings.unwrap().iter().map(|t| (t.kernel, t.bytes)).next().unwrap()
        };
        let bytes = |c: usize| 2 * (4 * c + 8 * 9 * c + 4 * 8);
        assert_eq!(timed("Tma64", DType::F16, 64).0, "conv2d_fwd_tma<half, Tma64>");
        assert_eq!(timed("Halo64", DType::F16, 64), ("conv2d_halo_fwd<half, Halo64>", bytes(64)));
        assert_eq!(timed("Halo32", DType::F16, 24), ("conv2d_halo_fwd<half, Halo32>", bytes(24)));
        assert_eq!(timed("Tma64", DType::F16, 72).0, "conv2d_fwd<half, Mma32>");
        assert_eq!(timed("Halo64", DType::F32, 64).0, "conv2d_fwd<float, Simt32>");
    }
}
