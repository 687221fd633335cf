//! A max-pool in the epilogue of a convolution against one by itself: the same numbers, and the same pixels win. In two bytes
//! many are equal. Gradients of weights and biases are sums of f32 over pixels, of which those that no window has are left out:
//! the others are added in another order.

use crate::under::{Under, on_gpu};
use tilework::device::cuda::CudaOptions;
use tilework::dtype::Precision;
use tilework::nn::Model;
use tilework::ops::Case;
use tilework::ops::activation::{Activation, Then};
use tilework::ops::batch_norm2d::running;
use tilework::ops::case::Fill;
use tilework::ops::parity;
use tilework::step::Step;
use tilework::{DType, Device, Tensor, Var};

/// A convolution of images to so many channels, its activation and its max-pool, together or apart.
#[derive(Clone, Copy)]
struct Block {
    x: [usize; 4],
    o: usize,
    kernel: [usize; 2],
    stride: [usize; 2],
    pad: [usize; 2],
    activation: Option<Activation>,
}

fn block(x: [usize; 4], o: usize, [kernel, stride, pad]: [[usize; 2]; 3], activation: Option<Activation>) -> Block {
    Block { x, o, kernel, stride, pad, activation }
}

impl Block {
    /// Its output and gradients.
    fn run(self, device: &Device, dtype: DType, together: bool) -> Vec<(String, Tensor)> {
        let Block { x, o, kernel, stride, pad, activation } = self;
        let case = Case::new("block", move |v, cx| {
            let then = Then { activation, pool: together.then_some(Then::POOL) };
            let y = v[0].conv2d_then(then, &v[1], v.get(2), stride, pad, cx)?;
            if together { Ok(y) } else { y.max_pool2d(Then::POOL, cx) }
        });
        let case = case.input("x", x, Fill::Uniform).input("w", [o, kernel[0], kernel[1], x[3]], Fill::Uniform);
        let case = case.param("b", [o], Fill::Uniform);
        parity::run(&case, device, dtype, 6).unwrap()
    }

    /// Holds the two against each other; `kernel` is what pools.
    #[track_caller]
    fn is_its_twin(self, under: &Under, dtype: DType, kernel: &str) {
        let Device::Cuda(cuda) = under.first() else { panic!("a CUDA device") };
        let mut apart = Vec::new();
        for together in [true, false] {
            let kernels = cuda.profile(|| {
                apart = self.run(under.first(), dtype, together);
                Ok(())
            });
            let kernels = kernels.unwrap();
            let ran = |name: &str| kernels.iter().any(|t| t.kernel.starts_with(name));
            assert_eq!([ran(kernel), ran("max_pool2d_fwd")], [together, !together], "{kernels:?}");
        }
        for (name, device) in &under.devices {
            for ((what, got), (_, want)) in self.run(device, dtype, true).iter().zip(&apart) {
                let [got, want] = [got, want].map(|t| t.to_f64().unwrap());
                let most = want.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
                let in_any_order = ["gw", "gb"].contains(&what.as_str());
                let same = |(got, want): (&f64, &f64)| match in_any_order {
                    true => (got - want).abs() <= 2e-6 * most,
                    false => got.to_bits() == want.to_bits(),
                };
                assert!(
                    got.iter().zip(&want).all(same),
                    "{what} of {:?} to {}, {dtype}, {kernel} ({name})",
                    self.x,
                    self.o
                );
            }
        }
    }
}

/// Rows and columns that no window has, and an odd number of rows with their padding. Blocks with several tiles, and windows of
/// which a row is in another slab: `src/ops/conv2d/halo.rs`.
#[test]
fn of_few_channels_on_hopper() {
    for tile in ["Halo64", "Halo32"] {
        let options = CudaOptions { tile: Some(tile), max_blocks: Some(2), ..CudaOptions::default() };
        let Some(under) = Under::hopper(options) else { return };
        for block in [
            block([1, 7, 9, 24], 16, [[3; 2], [1; 2], [1; 2]], None),
            block([2, 4, 9, 8], 24, [[3, 2], [1; 2], [1, 0]], Some(Activation::Relu)),
        ] {
            let dtype = if tile == "Halo64" { DType::F16 } else { DType::BF16 };
            block.is_its_twin(&under, dtype, "conv2d_halo_pool_fwd");
        }
        // Many tiles a block, too much work for a processor.
        if on_gpu() {
            let large = block([200, 31, 31, 24], 64, [[3; 2], [1; 2], [1; 2]], None);
            large.is_its_twin(&under, DType::F16, "conv2d_halo_pool_fwd");
        }
    }
}

/// Operands by tensor maps: strides and padding. K is of one step, which nothing splits: more, and blocks with several tiles, are
/// in `src/ops/conv2d/cuda.rs`.
#[test]
fn of_many_channels_on_hopper() {
    let max_blocks = (!on_gpu()).then_some(3);
    let options = CudaOptions { tile: Some("Tma256"), max_blocks, ..CudaOptions::default() };
    let Some(under) = Under::hopper(options) else { return };
    for (block, dtype) in [
        (block([5, 13, 15, 64], 72, [[1, 1], [1, 1], [1, 0]], None), DType::F16),
        (block([3, 12, 21, 64], 136, [[1, 1], [1, 2], [0, 1]], Some(Activation::Relu)), DType::BF16),
    ] {
        block.is_its_twin(&under, dtype, "conv2d_pool_fwd_tma");
    }
    // All places of the window, many steps and several tiles a block.
    if on_gpu() {
        for large in [
            block([64, 32, 34, 64], 128, [[3; 2], [1; 2], [1; 2]], None),
            block([96, 31, 29, 64], 256, [[3; 2], [1; 2], [0; 2]], Some(Activation::Relu)),
            block([300, 32, 32, 64], 128, [[3; 2], [2; 2], [1; 2]], None),
        ] {
            large.is_its_twin(&under, DType::F16, "conv2d_pool_fwd_tma");
        }
    }
}

/// Holds a case on all devices against its twin on the first, and the kernels that it runs. The sums of the weights' gradient are
/// added up in another order, without pixels that no window has; all else is the same.
#[track_caller]
fn agrees(under: &Under, case: &Case, twin: &Case, dtype: DType, kernels: [(&str, bool); 2]) {
    let Device::Cuda(cuda) = under.first() else { panic!("a CUDA device") };
    let run = cuda.profile(|| parity::run(case, under.first(), dtype, 6).map(drop)).unwrap();
    for (kernel, ran) in kernels {
        assert_eq!(run.iter().any(|t| t.kernel.starts_with(kernel)), ran, "{kernel}: {run:?}");
    }
    let wanted = parity::run(twin, under.first(), dtype, 6).unwrap();
    for (name, device) in &under.devices {
        for ((what, got), (_, want)) in parity::run(case, device, dtype, 6).unwrap().iter().zip(&wanted) {
            let [got, want] = [got, want].map(|t| t.to_f64().unwrap());
            let most = want.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
            let least = if what == "gw" { 2e-6 * most } else { 0.0 };
            let same = |(got, want): (&f64, &f64)| (got - want).abs() <= least;
            assert!(got.iter().zip(&want).all(same), "{what} of {} elements, {dtype} ({name})", got.len());
        }
    }
}

/// A batch-norm behind the pool, which gives the gradient of what was pooled where it alone reads the result.
#[test]
fn that_a_batch_norm_reads() {
    let Some(under) = Under::new() else { return };
    let of = |o: usize, before, after, pool, alone: bool, together: bool| {
        let case = Case::new("normalised", move |v, cx| {
            let [mut mean, mut var] = running(cx.device(), DType::F32, o)?;
            let then = Then { activation: before, pool: together.then_some(Then::POOL) };
            let y = v[0].conv2d_then(then, &v[1], None, [1; 2], [0; 2], cx)?;
            let y = if together { y } else { y.max_pool2d(Then::POOL, cx)? };
            let then = Then { activation: after, pool };
            let z = y.batch_norm2d_then(then, &v[2], &v[3], [&mut mean, &mut var], 0.1, 1e-5, cx)?;
            if alone { Ok(z) } else { z.add(&y, cx) }
        });
        let case = case.input("x", [41, 16, 17, 3], Fill::Uniform).input("w", [o, 2, 2, 3], Fill::Uniform);
        case.param("gamma", [o], Fill::Uniform).param("beta", [o], Fill::Uniform)
    };
    for (o, before, after, pool, alone, dtype) in [
        (8, None, Some(Activation::Gelu), None, true, DType::F16),
        (5, Some(Activation::Relu), None, None, true, DType::F32),
        (4, None, None, None, false, DType::BF16),
        (4, None, Some(Activation::Relu), Some(Then::POOL), true, DType::F16),
        (8, Some(Activation::Relu), None, Some(Then::OVERLAPPING), true, DType::F32),
    ] {
        let [together, apart] = [true, false].map(|together| of(o, before, after, pool, alone, together));
        // One that pools as well gives the gradient of what it was given.
        let spreads = alone && pool.is_none();
        let kernels = [("batch_norm2d_pool_spread", spreads), ("max_pool2d_bwd", !spreads)];
        agrees(&under, &together, &apart, dtype, kernels);
    }
}

/// A convolution of images, the first of a network: its weights' gradient is that of what was pooled, which is not stored.
#[test]
fn of_which_the_weights_alone_want_a_gradient() {
    let options = CudaOptions { tile: Some("Halo64"), max_blocks: Some(2), ..CudaOptions::default() };
    let Some(under) = Under::hopper(options) else { return };
    let of = |o: usize, before, together: bool| {
        let case = Case::new("first", move |v, cx| {
            let [mut mean, mut var] = running(cx.device(), DType::F32, o)?;
            let (x, then) = (
                Var::constant(v[0].value().clone()),
                Then { activation: before, pool: together.then_some(Then::POOL) },
            );
            let y = x.conv2d_then(then, &v[1], None, [1; 2], [1; 2], cx)?;
            let y = if together { y } else { y.max_pool2d(Then::POOL, cx)? };
            let then = Some(Activation::Gelu).into();
            y.batch_norm2d_then(then, &v[2], &v[3], [&mut mean, &mut var], 0.1, 1e-5, cx)
        });
        let case = case.input("x", [3, 11, 16, 24], Fill::Uniform).input("w", [o, 3, 3, 24], Fill::Uniform);
        case.param("gamma", [o], Fill::Uniform).param("beta", [o], Fill::Uniform)
    };
    for (o, before, dtype) in [(16, None, DType::F16), (40, Some(Activation::Relu), DType::BF16)] {
        let [together, apart] = [true, false].map(|together| of(o, before, together));
        let kernels = [("conv2d_strip_bwd_w_pooled", true), ("max_pool2d_bwd", false)];
        agrees(&under, &together, &apart, dtype, kernels);
    }
}

/// The same of a gradient that is no multiple of 16 bytes from where memory begins: the kernel does not take it.
#[test]
fn gradients_of_what_is_pooled_that_are_not_aligned() {
    let options = CudaOptions { tile: Some("Halo64"), ..CudaOptions::default() };
    let Some(under) = Under::hopper(options) else { return };
    let Device::Cuda(cuda) = under.first() else { panic!("a CUDA device") };
    let case = Case::new("first", move |v, cx| {
        let then = Then { activation: None, pool: Some(Then::POOL) };
        Var::constant(v[0].value().clone()).conv2d_then(then, &v[1], None, [1; 2], [1; 2], cx)
    });
    let case = case.input("x", [2, 6, 7, 24], Fill::Uniform).input("w", [16, 3, 3, 24], Fill::Uniform);
    let gw = |by: usize| {
        let mut gw = Vec::new();
        let kernels = cuda.profile(|| {
            let results = parity::run_with(&case, under.first(), DType::F16, 6, &|i, tensor| {
                if i < 2 {
                    return Ok(tensor);
                }
                let values: Vec<f32> = tensor.to_f64()?.into_iter().map(|v| v as f32).collect();
                let values = [vec![f32::NAN; by], values].concat();
                let shifted = Tensor::from_slice(under.first(), [values.len()], &values)?.to_dtype(DType::F16)?;
                shifted.narrow(by, tensor.len())?.reshape(tensor.shape())
            })?;
            gw = results[1].1.to_f64()?;
            Ok(())
        });
        let took = kernels.unwrap().iter().any(|t| t.kernel.starts_with("conv2d_strip_bwd_w_pooled"));
        assert_eq!(took, by.is_multiple_of(8), "{by}");
        gw
    };
    let want = gw(0);
    let most = want.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
    for by in [1, 4, 8] {
        assert!(gw(by).iter().zip(&want).all(|(got, want)| (got - want).abs() <= 2e-6 * most), "{by}");
    }
}

/// Behind ReLU and a pool a batch-norm's gradient has sums of zero, and what ReLU lets through of it has not: the bias in front of
/// them is trained.
#[test]
fn biases_before_relu_and_a_pool() {
    let options = CudaOptions { tile: Some("Halo64"), ..CudaOptions::default() };
    let no_fuse = CudaOptions { no_fuse: true, ..options };
    let (Some(fused), Some(apart)) = (Under::hopper(options), Under::hopper(no_fuse)) else { return };
    let layers = ["conv 3x3, 16 channels, pad 1", "relu", "max_pool 2", "batch_norm"].map(|l| l.into());
    let of = |device: &Device| {
        let mut model = Model::build(&layers, [7, 9, 24], device, 0).unwrap();
        model.params.set_precision(Precision::F16).unwrap();
        let mut grads = model.params.grads().unwrap();
        let numbers = |shape: [usize; 4], by: usize| {
            let numbers: Vec<f32> =
                (0..shape.iter().product()).map(|i: usize| (i * by % 13) as f32 / 8.0 - 0.7).collect();
            Tensor::from_slice(device, shape, &numbers).unwrap().to_dtype(DType::F16).unwrap()
        };
        let mut cx = model.train(Step::default());
        let y = model.forward(&Var::constant(numbers([2, 7, 9, 24], 7)), &mut cx).unwrap();
        drop(cx.backward(&y, numbers([2, 3, 4, 16], 5), Some(&mut grads)).unwrap());
        grads.of(1).unwrap()
    };
    let want = of(apart.first());
    let most = want.iter().fold(0f32, |most, v| most.max(v.abs()));
    for (name, device) in &fused.devices {
        for (got, want) in of(device).iter().zip(&want) {
            assert!((got - want).abs() <= 0.02 * most, "{got}, apart {want} ({name})");
        }
    }
}

/// Rows and columns that no window has, channels that fill no tile, strides and padding. K is of one step, which nothing splits.
#[test]
fn of_pixels_that_are_gathered_by_windows() {
    let Some(under) = Under::new() else { return };
    for block in [
        block([2, 9, 8, 3], 5, [[2, 2], [1, 1], [1, 0]], None),
        block([3, 11, 13, 4], 36, [[2, 2], [2, 1], [0, 1]], Some(Activation::Relu)),
        block([5, 15, 16, 8], 40, [[1, 2], [1, 2], [0, 1]], Some(Activation::Relu)),
    ] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            block.is_its_twin(&under, dtype, "conv2d_pool_fwd");
        }
    }
}
