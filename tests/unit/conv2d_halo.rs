//! The tests of `src/ops/conv2d/halo.rs`: how a convolution is cut, and that its runs give what the definition says.

use super::super::definition::Example;
use super::*;
use crate::ops::window::Window;

const TILES: [&Tile; 2] = [&crate::kernels::HALO64, &crate::kernels::HALO32];

fn dims(n: usize, x: [usize; 2], [c, o]: [usize; 2], kernel: [usize; 2], pad: [usize; 2]) -> Dims {
    let window = Window { kernel, stride: [1; 2], pad };
    Dims { n, x, c, y: window.output("conv2d", x).unwrap(), o, window }
}

/// Without the last row and column of y.
fn cropped(d: Dims) -> Dims {
    Dims { y: d.y.map(|side| side - 1), ..d }
}

/// Blocks that walk over several tiles with tails, images that end in a run, weights that stay and weights that come again.
#[cfg(tilework_emulator)]
fn runs_give_what_the_definition_says(tile: &'static Tile) {
    use crate::device::Device;
    use crate::device::cuda::CudaOptions;
    use crate::device::emulator::{EmulatorOptions, Order};
    use crate::dtype::DType;
    use half::f16;
    // n, image, channels, kernel, padding, blocks, runs and weights in shared memory.
    let cases = [
        (dims(3, [17, 19], [64, 64], [3, 3], [1, 1]), 1, None),
        (cropped(dims(2, [21, 23], [72, 40], [2, 3], [1, 0])), 1, Some([2, 3])),
        (cropped(dims(7, [11, 16], [24, 8], [3, 2], [0, 1])), 2, None),
        (dims(1, [40, 37], [40, 64], [1, 4], [0, 3]), 2, Some([3, 2])),
        (dims(9, [9, 8], [8, 24], [5, 5], [4, 2]), 1, Some([2, 4])),
        (dims(4, [6, 61], [8, 16], [3, 3], [1, 2]), 2, None),
    ];
    let orders = [(Order::Forward, false), (Order::Reverse, false), (Order::Random(3), true)];
    let all = cases.iter().map(|(d, blocks, slots)| (Example::new(*d), blocks, slots)).collect::<Vec<_>>();
    for ((e, blocks, slots), (order, checked)) in all.iter().flat_map(|case| orders.map(|order| (case, order))) {
        let d = &e.d;
        let options = EmulatorOptions { order, checked, arch: 90, ..EmulatorOptions::default() };
        let device = Device::emulated_with(CudaOptions::default(), options).unwrap();
        let Device::Cuda(cuda) = &device else { unreachable!("an emulated device is a CUDA device") };
        let rounded = |of: &[f64]| of.iter().map(|v| f16::from_f64(*v).to_f64()).collect::<Vec<_>>();
        let [x, w, gy, b] = e.tensors(&device);
        let walks = |halo: Option<Halo>| {
            let halo = halo?;
            assert!(halo.tiles > 2 * **blocks);
            let [runs, weights] = slots.unwrap_or([halo.sizes.runs, halo.sizes.weights]);
            Some(Halo { blocks: **blocks, sizes: Conv2dHaloDims { runs, weights, ..halo.sizes }, ..halo })
        };
        let same = |what: &str, got: &Tensor, want: &[f64]| {
            assert!(got.to_f64().unwrap() == rounded(want), "{what}, {d:?}, {order:?}");
        };
        if let Some(halo) = walks(Halo::cut_forward(d, tile)) {
            let mut y = Tensor::empty(&device, DType::F16, gy.shape()).unwrap();
            halo.multiply::<f16>(cuda, [&x, &w], d, Some(&b), [false; 2], y.output().unwrap()).unwrap();
            same(tile.name, &y, &e.y);
        }
        let relu = order != Order::Forward;
        let halo = walks(Halo::cut_forward(d, tile).and_then(|halo| halo.pooled(d)));
        let shape = [d.n, d.y[0] / 2, d.y[1] / 2, d.o];
        let (values, places) = e.pooled(relu);
        let [mut y, mut place] = [DType::F16, DType::U8].map(|dtype| Tensor::empty(&device, dtype, shape).unwrap());
        halo.unwrap().pool::<f16>(cuda, [&x, &w], d, Some(&b), relu, [&mut y, &mut place]).unwrap();
        same("pooled", &y, &values);
        assert_eq!(place.to_vec::<u8>().unwrap(), places, "{d:?}, {order:?}");
        // Added to itself.
        if let Some(halo) = walks(Halo::cut_backward_x(d, tile)) {
            let mut gx = Tensor::empty(&device, DType::F16, x.shape()).unwrap();
            for accumulate in [false, true] {
                halo.multiply::<f16>(cuda, [&gy, &w], d, None, [accumulate, false], gx.output().unwrap()).unwrap();
            }
            let first = e.gx.iter().map(|v| f16::from_f64(*v).to_f64() + v);
            same(tile.name, &gx, &first.collect::<Vec<_>>());
        }
    }
}

#[cfg(tilework_emulator)]
#[test]
fn runs_of_64_channels() {
    runs_give_what_the_definition_says(TILES[0]);
}

#[cfg(tilework_emulator)]
#[test]
fn runs_of_32_channels() {
    runs_give_what_the_definition_says(TILES[1]);
}

/// Large products to few channels; small ones have other tiles, or strips where there are few channels on both sides.
#[cfg(tilework_emulator)]
#[test]
fn sizes_choose() {
    use crate::device::Device;
    use crate::device::cuda::CudaOptions;
    use crate::device::emulator::EmulatorOptions;
    use crate::kernels::conv2d::*;
    use half::f16;
    let options = EmulatorOptions { arch: 90, ..EmulatorOptions::default() };
    let device = Device::emulated_with(CudaOptions::default(), options).unwrap();
    let Device::Cuda(cuda) = &device else { unreachable!("an emulated device is a CUDA device") };
    let chosen = |n: usize, side: usize, c: usize, o: usize| {
        let d = dims(n, [side; 2], [c, o], [3, 3], [1, 1]);
        let pixels = n * side * side;
        let product = |sizes: [usize; 3]| Product::of(sizes, [c, o]);
        let (forward, backward) = (product([pixels, o, 9 * c]), product([pixels, c, 9 * o]));
        let strips = [Strip::forward::<f16>(cuda, &d), Strip::backward_x::<f16>(cuda, &d)];
        let other = |i: usize, product, families| Else { strip: strips[i].as_ref(), product, families };
        let halos = [
            Halo::forward::<f16>(cuda, &d, &other(0, &forward, &[&CONV2D_FWD, &CONV2D_FWD_TMA])),
            Halo::backward_x::<f16>(cuda, &d, &other(1, &backward, &[&CONV2D_BWD_X, &CONV2D_BWD_X_TMA])),
        ];
        halos.map(|halo| halo.map(|halo| halo.tile.name))
    };
    let (wide, narrow) = (Some("Halo64"), Some("Halo32"));
    assert_eq!(chosen(1000, 15, 64, 64), [wide; 2]);
    assert_eq!(chosen(128, 56, 64, 64), [wide; 2]);
    assert_eq!(chosen(1000, 15, 64, 256), [None, wide]);
    assert_eq!(chosen(1000, 31, 24, 64), [narrow, wide]);
    assert_eq!(chosen(512, 32, 64, 128), [None, wide]);
    assert_eq!(chosen(128, 8, 64, 64), [None; 2]);
    assert_eq!(chosen(16, 31, 24, 64), [None; 2]);
    assert_eq!(chosen(1000, 31, 8, 64), [None, wide]);
}

#[test]
fn what_a_cut_takes() {
    let halo = |d: Dims, tile: usize| Halo::cut_forward(&d, TILES[tile]);
    let slots = |halo: Option<Halo>| halo.map(|halo| [halo.sizes.runs, halo.sizes.weights]);
    // Weights that stay, and those of four times the channels, which do not.
    assert_eq!(slots(halo(dims(2000, [15, 15], [64, 64], [3, 3], [1, 1]), 0)), Some([3, 9]));
    assert_eq!(slots(halo(dims(128, [56, 56], [64, 64], [3, 3], [1, 1]), 0)), Some([2, 9]));
    assert_eq!(slots(halo(dims(2000, [15, 15], [256, 64], [3, 3], [1, 1]), 0)), Some([3, 10]));
    assert_eq!(slots(halo(dims(2000, [31, 31], [24, 64], [3, 3], [1, 1]), 1)), Some([4, 9]));
    // A pooled y: pairs of rows a tile, none of which is left out of airbench94's; windows that end in each of four slabs; rows of
    // 63 places at most.
    let pooled = |side: usize, pad: usize| {
        let d = dims(2000, [side; 2], [24, 64], [3, 3], [pad; 2]);
        let sizes = halo(d, 1)?.pooled(&d)?.sizes;
        Some((sizes.pairs, sizes.ended, sizes.rows))
    };
    assert_eq!(pooled(31, 1), Some((4, [15, 30, 45, 60], 32)));
    assert_eq!(pooled(32, 1), Some((3, [15, 30, 45, 48], 34)));
    assert_eq!(pooled(63, 0), Some((2, [0, 30, 31, 60], 64)));
    assert_eq!(pooled(64, 0), None);
    // As many places as a box may have.
    assert!(halo(dims(1, [3, 382], [64, 64], [3, 3], [1, 1]), 1).is_some());
    let none = [
        dims(1, [9, 9], [63, 64], [3, 3], [1, 1]),
        dims(1, [9, 9], [64, 65], [3, 3], [1, 1]),
        dims(1, [9, 9], [64, 72], [3, 3], [1, 1]),
        dims(1, [9, 9], [64, 64], [1, 1], [0, 0]),
        dims(1, [9, 9], [64, 64], [3, 3], [3, 1]),
        dims(1, [9, 9], [64, 64], [3, 3], [1, 3]),
        dims(1, [3, 900], [64, 64], [3, 3], [1, 1]),
    ];
    assert!(none.into_iter().all(|d| halo(d, 0).is_none()));
}
