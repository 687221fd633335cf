//! Products on Hopper's tensor cores, which exist for sm_90a alone: each tile, in all passes of linear and convolution.
//!
//! On a GPU of another architecture there is nothing to test.

use crate::under::{Under, hold, on_gpu};
use tilework::device::cuda::CudaOptions;
use tilework::ops::activation::Activation;
use tilework::ops::case::Fill;
use tilework::ops::parity::Terms;
use tilework::ops::{Case, ROOMS};
use tilework::{DType, Device};

const TILES: [&str; 2] = ["Wgmma128", "Wgmma64"];
/// Tiles whose operands TMA brings.
const MAPPED: [&str; 3] = ["Tma256", "Tma64", "Tma64Transposed"];

/// Those of convolutions to few channels, for which an image is brought once.
const HALOS: [&str; 2] = ["Halo64", "Halo32"];

fn under(tile: &'static str) -> Option<Under> {
    // Blocks walk over as many tiles as there are, where TMA brings the operands; on a GPU some cases have enough for all.
    let walks = HALOS.contains(&tile) || MAPPED.contains(&tile) && !on_gpu();
    let max_blocks = walks.then_some(2);
    Under::hopper(CudaOptions { tile: Some(tile), max_blocks, ..CudaOptions::default() })
}

fn linear(n: usize, inputs: usize, outputs: usize) -> Case {
    Case::new(format!("[{n}, {inputs}] to {outputs}"), |v, cx| v[0].linear(&v[1], Some(&v[2]), cx))
        .input("x", [n, inputs], Fill::Uniform)
        .input("w", [outputs, inputs], Fill::Uniform)
        .param("b", [outputs], Fill::Uniform)
}

fn conv2d(x: [usize; 4], o: usize, kernel: usize, stride: usize, pad: usize) -> Case {
    let name = format!("{x:?} to {o}, {kernel}x{kernel}, stride {stride}, pad {pad}");
    Case::new(name, move |v, cx| v[0].conv2d(&v[1], None, [stride; 2], [pad; 2], cx))
        .input("x", x, Fill::Uniform)
        .input("w", [o, kernel, kernel, x[3]], Fill::Uniform)
}

/// A convolution whose sizes tensor maps allow, with biases and an activation; input and weights may be used twice, so that
/// the second gradients are added to the first.
fn mapped(
    x: [usize; 4],
    o: usize,
    [kernel, stride, pad]: [[usize; 2]; 3],
    activation: Option<Activation>,
    twice: bool,
) -> Case {
    let name = format!("{x:?} to {o}, {kernel:?}, stride {stride:?}, pad {pad:?}");
    Case::new(name, move |v, cx| {
        let y = v[0].conv2d_then(activation, &v[1], Some(&v[2]), stride, pad, cx)?;
        if twice { y.add(&v[0].conv2d(&v[1], None, stride, pad, cx)?, cx) } else { Ok(y) }
    })
    .input("x", x, Fill::Uniform)
    .input("w", [o, kernel[0], kernel[1], x[3]], Fill::Uniform)
    .param("b", [o], Fill::Uniform)
}

/// Input and weights used twice, so that the second gradients are added to the first.
fn twice(n: usize, inputs: usize, outputs: usize) -> Case {
    Case::new("twice", |v, cx| v[0].linear(&v[1], None, cx)?.add(&v[0].linear(&v[1], None, cx)?, cx))
        .input("x", [n, inputs], Fill::Uniform)
        .input("w", [outputs, inputs], Fill::Uniform)
}

/// Tails in all directions, splits, channels that are no chunks (of one operand, or of both), strides and padding.
fn cases() -> [(&'static str, Case); 7] {
    [
        ("linear", linear(130, 72, 72)),
        ("linear", linear(9, 33, 70)),
        ("linear", linear(5, 640, 16)),
        ("linear", twice(300, 16, 8)),
        ("conv2d", conv2d([2, 5, 7, 8], 16, 3, 2, 1)),
        ("conv2d", conv2d([1, 6, 4, 16], 8, 3, 1, 1)),
        ("conv2d", conv2d([1, 5, 4, 8], 5, 2, 1, 0)),
    ]
}

/// Tails of pixels, of channels and of outputs, windows over row and image ends, padding of all kinds. On a GPU also more
/// tiles than run at once.
fn mapped_cases(device: &Device) -> Vec<(&'static str, Case)> {
    let relu = Some(Activation::Relu);
    let mut cases = vec![
        ("conv2d", mapped([2, 6, 8, 64], 64, [[2, 2], [1, 1], [1, 1]], relu, true)),
        ("conv2d", mapped([1, 3, 9, 64], 72, [[1, 2], [1, 2], [2, 0]], relu, true)),
        ("conv2d", mapped([2, 4, 4, 72], 64, [[2, 1], [1, 1], [0, 1]], relu, false)),
        ("conv2d", mapped([1, 9, 5, 128], 7, [[3, 1], [2, 1], [0, 1]], relu, false)),
        // An input gradient of four phases.
        ("conv2d", mapped([3, 8, 6, 72], 64, [[3, 3], [2, 2], [1, 1]], None, true)),
        // Images of a pixel: eight of nine places are in the padding.
        ("conv2d", mapped([130, 1, 1, 64], 64, [[3, 3], [1, 1], [1, 1]], relu, true)),
        // Of the transpose in the weight gradient a tail of rows and of columns.
        ("conv2d", mapped([1, 6, 5, 64], 40, [[3, 1], [1, 1], [1, 0]], relu, true)),
        // Sums of so many steps that a cluster has them: forward and of the input; of the weights, of the transpose.
        ("conv2d", mapped([1, 6, 5, 128], 128, [[3, 1], [1, 1], [1, 0]], relu, true)),
        ("conv2d", mapped([2, 16, 10, 64], 40, [[3, 1], [1, 1], [1, 0]], None, false)),
    ];
    if matches!(device, Device::Cuda(cuda) if !cuda.is_emulated()) {
        // Of millions of sums some are so near 0 that rounding the inputs to two bytes takes them over it: with ReLU they
        // would have no size, as in f32 they are 0 however the inputs are moved.
        cases.push(("conv2d", mapped([70, 33, 31, 64], 64, [[2, 1], [1, 1], [1, 0]], None, false)));
    }
    cases
}

/// Channels of one step, of several, and such as fill none; windows of all kinds. Of some, blocks have three tiles and more, with
/// weights that stay and, of 72 channels in steps of 64, that come again.
fn halo_cases() -> Vec<(&'static str, Case)> {
    let relu = Some(Activation::Relu);
    vec![
        ("conv2d", mapped([2, 6, 8, 64], 64, [[3, 3], [1, 1], [1, 1]], relu, true)),
        ("conv2d", mapped([4, 17, 16, 24], 64, [[3, 3], [1, 1], [1, 1]], None, false)),
        ("conv2d", mapped([1, 32, 33, 40], 8, [[2, 2], [1, 1], [1, 0]], None, true)),
        ("conv2d", mapped([3, 22, 17, 72], 32, [[3, 3], [1, 1], [1, 1]], None, false)),
        ("conv2d", mapped([1, 5, 4, 72], 32, [[1, 4], [1, 1], [0, 2]], relu, true)),
        ("conv2d", mapped([1, 7, 6, 8], 136, [[5, 3], [1, 1], [4, 0]], relu, true)),
    ]
}

/// Each tile, in every pass of these cases.
fn check<const N: usize>(tiles: [&'static str; N], cases: impl FnOnce(&Device) -> Vec<(&'static str, Case)>) {
    let Some(all) = tiles.into_iter().map(under).collect::<Option<Vec<Under>>>() else { return };
    for (room, case) in cases(all[0].first()) {
        let room = ROOMS.iter().find(|r| r.name == room).unwrap();
        let terms = Terms::of(room, &case, 6).unwrap();
        for dtype in [DType::F16, DType::BF16] {
            let want = terms.expected(dtype).unwrap();
            for (tile, under) in tiles.iter().zip(&all) {
                // In bf16 the same threads do the same as in f16, but for the instruction.
                let devices = if dtype == DType::F16 { &under.devices[..] } else { &under.devices[..1] };
                hold(&format!("{tile}, {}", case.name), &case, dtype, 6, &want, devices);
            }
        }
    }
}

#[test]
fn operands_that_threads_bring() {
    check(TILES, |_| cases().into());
}

#[test]
fn operands_by_tensor_maps() {
    check(MAPPED, mapped_cases);
}

#[test]
fn images_that_are_brought_once() {
    check(HALOS, |_| halo_cases());
}
