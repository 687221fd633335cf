//! The tests of `src/ops/conv2d/cuda.rs`: operands by tensor maps, and the blocks of clusters.

use super::*;
#[cfg(tilework_emulator)]
use crate::{Device, device::cuda::CudaOptions, dtype::DType, ops::window::Window};

/// Blocks that take several tiles of several steps each, in ranges of K, with operands by tensor maps in every pass; and the
/// blocks of clusters that share each tile. The output lacks its last column.
#[cfg(tilework_emulator)]
#[test]
fn blocks_walk_over_tiles() {
    use super::super::definition::Example;
    use crate::device::emulator::{EmulatorOptions, Order};
    use half::f16;
    let window = Window { kernel: [2, 1], stride: [1; 2], pad: [1, 0] };
    let e = Example::new(Dims { n: 2, x: [13, 15], c: 64, y: [14, 14], o: 192, window });
    let d = &e.d;
    // Partial results have no biases yet.
    let y: Vec<f64> = e.y.iter().zip(e.b.iter().cycle()).map(|(y, b)| y - b).collect();
    for tile in CONV2D_BWD_W_TMA.tiles(DType::F16, 90) {
        for (order, checked) in [(Order::Forward, false), (Order::Reverse, false), (Order::Random(3), true)] {
            let options = EmulatorOptions { order, checked, arch: 90, ..EmulatorOptions::default() };
            let device = Device::emulated_with(CudaOptions::default(), options).unwrap();
            let Device::Cuda(cuda) = &device else { unreachable!("an emulated device is a CUDA device") };
            let [x, w, gy, bias] = e.tensors(&device);
            let empty = |like: &Tensor| Tensor::empty(&device, DType::F16, like.shape()).unwrap();
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
            let (mut none, mut no_sums) = (Tensor::empty(&device, DType::F16, [1; 4]).unwrap(), partial(1));
            let (mut p, [a, b]) = (partial(e.gw.len()), make(maps::backward_w::<f16>(&gy, &x, d)));
            let (to, out) = (no_sums.output().unwrap(), Some(p.output().unwrap()));
            conv2d_bwd_w_tma::<f16>(cuda, tile, launch, &a, &b, to, out, &sizes(d, false, 4)).unwrap();
            check("weight gradient", &p, &e.gw);
            let whole = |pass: &str, got: &Tensor, want: &[f64]| {
                let want = want.iter().map(|&v| if pass == "weight gradient" { v } else { f16::from_f64(v).to_f64() });
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
            let sizes_of = |channels: usize, steps: usize| along(d.seen(channels), sizes(d, false, steps));
            conv2d_fwd_tma::<f16>(cuda, tile, launch, &a, &b, None, to, out, &sizes_of(d.c, 1)).unwrap();
            check("forward", &p, &y);
            let (mut p, [a, b]) = (partial(e.gx.len()), make(maps::backward_x::<f16>(&gy, &w, d, tile)));
            let (to, out) = (none.output().unwrap(), Some(p.output().unwrap()));
            conv2d_bwd_x_tma::<f16>(cuda, tile, launch, &a, &b, None, to, out, &sizes_of(d.o, 4)).unwrap();
            check("input gradient", &p, &e.gx);
            if tile.cluster {
                let (mut got, to) = (empty(&x), clusters([d.n * d.image() / d.c, d.c], 3));
                let (gx, d) = (got.output().unwrap(), sizes_of(d.o, 2));
                conv2d_bwd_x_tma::<f16>(cuda, tile, to, &a, &b, None, gx, None, &d).unwrap();
                whole("input gradient", &got, &e.gx);
                let (mut got, to) = (empty(&gy), clusters([e.d.n * e.d.pixels(), e.d.o], 2));
                let [a, b] = make(maps::forward::<f16>(&x, &w, &e.d, tile));
                let (y, bias, d) = (got.output().unwrap(), Some(bias.input().unwrap()), sizes_of(e.d.c, 1));
                conv2d_fwd_tma::<f16>(cuda, tile, to, &a, &b, bias, y, None, &d).unwrap();
                whole("forward", &got, &e.y);
            }
        }
    }
}

/// Blocks that take several tiles of several steps each, with tails of windows and of channels, and strides; and an image whose
/// last row and column no window has.
#[cfg(tilework_emulator)]
#[test]
fn windows_by_maps_give_what_the_definition_says() {
    use super::super::definition::Example;
    use crate::device::emulator::{EmulatorOptions, Order};
    use half::f16;
    let cases = [
        ([3, 15, 13], [64, 136], Window::square(3, 1, 1)),
        ([2, 12, 39], [128, 24], Window { kernel: [2, 1], stride: [1, 2], pad: [0, 1] }),
        ([2, 47, 10], [64, 72], Window { kernel: [1, 2], stride: [2, 1], pad: [1, 0] }),
    ];
    let orders = [(Order::Forward, false), (Order::Reverse, false), (Order::Random(3), true)];
    for (([n, h, w], [c, o], window), (order, checked)) in cases.into_iter().zip(orders) {
        let y = window.output("conv2d", [h, w]).unwrap();
        let e = Example::new(Dims { n, x: [h, w], c, y, o, window });
        let options = EmulatorOptions { order, checked, arch: 90, ..EmulatorOptions::default() };
        let device = Device::emulated_with(CudaOptions::default(), options).unwrap();
        let Device::Cuda(cuda) = &device else { unreachable!("an emulated device is a CUDA device") };
        let [x, w, _, b] = e.tensors(&device);
        let window = Window { stride: window.stride.map(|step| 2 * step), ..window };
        let d = Dims { y: y.map(|side| side / 2), window, ..e.d };
        for relu in [false, true] {
            let shape = [n, d.y[0], d.y[1], o];
            let [mut y, mut place] = [DType::F16, DType::U8].map(|dtype| Tensor::empty(&device, dtype, shape).unwrap());
            let launch = Launch::new(2, TMA256.threads).shared(TMA256.shared as usize);
            let [x, w] = maps::make(cuda, &maps::pooled::<f16>(&x, &w, &d, &TMA256).unwrap()).unwrap();
            let sizes = Conv2dDims { relu: relu.into(), ..sizes(&d, false, d.patch() / 64) };
            let (to, at, b) = (y.output().unwrap(), place.output().unwrap(), Some(b.input().unwrap()));
            conv2d_pool_fwd_tma::<f16>(cuda, &TMA256, launch, &x, &w, b, to, at, &sizes).unwrap();
            let (values, places) = e.pooled(relu);
            assert!(y.to_f64().unwrap() == values, "{d:?}, {order:?}");
            assert_eq!(place.to_vec::<u8>().unwrap(), places, "{d:?}, {order:?}");
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
