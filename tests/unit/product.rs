//! The tests of `src/ops/product.rs`: how products are cut, and how partial results are added up.

use super::*;
use crate::kernels::conv2d::{CONV2D_BWD_W_TMA, CONV2D_FWD_TMA};
use crate::kernels::linear::LINEAR_FWD;

#[test]
fn plans_cover_k_and_fill_the_device() {
    let plan = |m, n, k| Plan::new([m, n, k], LINEAR_FWD.tiles(DType::F32, 0), 0, usize::MAX).unwrap();
    let half =
        |m, n, k, arch| Plan::new([m, n, k], LINEAR_FWD.tiles(DType::F16, arch), arch, usize::MAX).unwrap().tile.name;
    for (m, n, k) in [(1, 1, 1), (4, 120, 400), (3136, 6, 75), (16, 1024, 18_432), (6, 75, 3136), (4096, 4096, 4096)] {
        let p = plan(m, n, k);
        let steps = k.div_ceil(p.tile.k);
        assert!(p.splits * p.split_steps >= steps && (p.splits - 1) * p.split_steps < steps, "{p:?}");
        assert!(p.splits * m * n <= MAX_PARTIAL || p.splits == 1, "{p:?}");
    }
    assert_eq!((plan(4096, 4096, 4096).tile.name, plan(4096, 4096, 4096).splits), ("Simt128", 1));
    assert_eq!(plan(3136, 6, 75).tile.name, "Simt32");
    assert!(plan(16, 1024, 18_432).splits > 1);
    assert_eq!((half(4096, 4096, 4096, 90), half(16384, 64, 576, 90)), ("Wgmma128", "Wgmma64"));
    assert_eq!((half(4096, 4096, 4096, 80), half(3136, 6, 75, 90)), ("Mma128", "Mma32"));
    // Blocks that walk over tiles are as many as a large GPU holds at once.
    let tma = |m, n, k| Plan::new([m, n, k], CONV2D_FWD_TMA.tiles(DType::F16, 90), 90, usize::MAX).unwrap();
    assert_eq!((tma(32_768, 512, 2304).tile.name, tma(32_768, 512, 2304).launch.grid), ("Tma256", [132, 1, 1]));
    assert_eq!((tma(8192, 64, 64).tile.name, tma(8192, 64, 64).launch.grid), ("Tma64", [64, 1, 1]));
    // Of few rows the transpose is cut where that takes fewer blocks.
    let weights =
        |o, patch, k| Plan::new([o, patch, k], CONV2D_BWD_W_TMA.tiles(DType::F16, 90), 90, usize::MAX).unwrap();
    let (few, many) = (weights(64, 576, 450_000), weights(256, 2304, 98_000));
    assert_eq!((few.tile.name, few.launch.grid), ("Tma64Transposed", [5, 1, few.splits as u32]));
    assert_eq!((many.tile.name, weights(128, 64, 50_000).tile.name), ("Tma256", "Tma64"));
    assert_eq!(Plan::new([1, 1, 1], std::iter::empty(), 90, usize::MAX), None);
}

#[test]
fn clusters_share_a_tile_where_there_are_such() {
    let plan = |arch| Plan::new([512, 256, 2304], CONV2D_FWD_TMA.tiles(DType::F16, 90), arch, usize::MAX).unwrap();
    let (with, without) = (plan(90), plan(80));
    assert!(with.in_cluster && with.splits <= MOST_IN_CLUSTER && with.launch.cluster == [1, 1, with.splits as u32]);
    assert!(!without.in_cluster && without.splits > 1 && without.launch.cluster == [1; 3]);
    // Each tile has a cluster of its own.
    assert_eq!(with.launch.grid, [16, 1, with.splits as u32]);
    // The bits of f32 are those of every GPU.
    assert!(!Plan::new([4, 120, 400], LINEAR_FWD.tiles(DType::F32, 90), 90, usize::MAX).unwrap().in_cluster);
}

/// More steps than a ring of shared memory has slots, in a block that is not split, and in clusters whose blocks have ranges
/// of K each.
#[cfg(tilework_emulator)]
#[test]
fn slots_are_used_again() {
    use crate::device::cuda::CudaOptions;
    use crate::device::emulator::{EmulatorOptions, Order};
    use crate::kernels::linear::{LinearDims, linear_fwd};
    use half::f16;
    let [n, inputs, outputs] = [41, 64 * 13 + 8, 10];
    // Small enough for every sum to be exact.
    let number = |i: usize, by: usize| (i * by % 13 % 3) as f32 - 1.0;
    let numbers = |len, by| (0..len).map(|i| f16::from_f32(number(i, by))).collect::<Vec<_>>();
    let (x, w) = (numbers(n * inputs, 5), numbers(outputs * inputs, 11));
    let dot = |i: usize| -> f32 {
        let (row, column) = (i / outputs * inputs, i % outputs * inputs);
        (0..inputs).map(|k| number(row + k, 5) * number(column + k, 11)).sum()
    };
    let want: Vec<f16> = (0..n * outputs).map(|i| f16::from_f32(dot(i))).collect();
    for tile in LINEAR_FWD.tiles(DType::F16, 90).filter(|t| t.shared > 0 || t.cluster) {
        for (order, checked) in [(Order::Forward, false), (Order::Reverse, false), (Order::Random(3), true)] {
            let options = EmulatorOptions { order, checked, arch: 90, ..EmulatorOptions::default() };
            let device = Device::emulated_with(CudaOptions::default(), options).unwrap();
            let Device::Cuda(cuda) = &device else { unreachable!("an emulated device is a CUDA device") };
            let tensor = |shape: [usize; 2], of: &[f16]| Tensor::from_slice(&device, shape, of).unwrap();
            let (x, w) = (tensor([n, inputs], &x), tensor([outputs, inputs], &w));
            let mut y = Tensor::empty(&device, DType::F16, [n, outputs]).unwrap();
            let [dn, di, dout] = [n, inputs, outputs].map(|size| size as i32);
            let (steps, splits) = (inputs.div_ceil(tile.k), if tile.cluster { 5 } else { 1 });
            let split_steps = steps.div_ceil(splits) as i32;
            let d = LinearDims { n: dn, inputs: di, outputs: dout, accumulate: 0, split_steps, relu: 0 };
            let launch = Launch::new(0, tile.threads).shared(tile.shared as usize);
            let launch = launch.grid(n.div_ceil(tile.m), 1, splits).cluster(1, 1, splits as u32);
            let (input, weights, output) = (x.input().unwrap(), w.input().unwrap(), y.output().unwrap());
            linear_fwd::<f16>(cuda, tile, launch, input, weights, None, output, None, &d).unwrap();
            assert_eq!(y.to_vec::<f16>().unwrap(), want, "{}, {order:?}", tile.name);
        }
    }
}

/// Partial results of so many elements that each thread has four.
#[cfg(tilework_emulator)]
#[test]
fn many_partial_results_are_added_up() {
    use crate::device::cuda::CudaOptions;
    use crate::device::emulator::{EmulatorOptions, Order};
    use half::f16;
    let [m, n, splits] = [521, 520, 3];
    let number = |i: usize| (i * 7919 % 31) as f32 - 15.0;
    let numbers = |len: usize, from: usize| (from..from + len).map(number).collect::<Vec<_>>();
    let (partial, bias, old) = (numbers(splits * m * n, 0), numbers(n, 5), numbers(m * n, 9));
    let sum = |i: usize| (0..splits).map(|z| partial[z * m * n + i]).sum::<f32>() + bias[i % n];
    for order in [Order::Forward, Order::Reverse] {
        let options = EmulatorOptions { order, ..EmulatorOptions::default() };
        let device = Device::emulated_with(CudaOptions::default(), options).unwrap();
        let Device::Cuda(cuda) = &device else { unreachable!("an emulated device is a CUDA device") };
        let tensor = |shape: [usize; 2], of: &[f32]| Tensor::from_slice(&device, shape, of).unwrap();
        let (partial, bias) = (tensor([splits, m * n], &partial), tensor([1, n], &bias));
        let masks = tensor([m, n], &old).to_dtype(DType::F16).unwrap();
        let product = Product { bias: Some(bias.input().unwrap()), ..Product::of([m, n, 1], [n; 2]) };
        let mut y = tensor([m, n], &old);
        let adds = Product { accumulate: true, relu: true, ..product };
        adds.add_up::<f32>(cuda, &partial, y.output().unwrap()).unwrap();
        let want = (0..m * n).map(|i| (sum(i) + old[i]).max(0.0)).collect::<Vec<_>>();
        assert!(y.to_vec::<f32>().unwrap() == want, "{order:?}");
        let mut y = Tensor::empty(&device, DType::F16, [m, n]).unwrap();
        let masked = Product { accumulate: false, relu: false, masks: Some(&masks), ..adds };
        masked.add_up::<f16>(cuda, &partial, y.output().unwrap()).unwrap();
        let want = (0..m * n).map(|i| f16::from_f32(if old[i] > 0.0 { sum(i) } else { 0.0 })).collect::<Vec<_>>();
        assert!(y.to_vec::<f16>().unwrap() == want, "{order:?}");
    }
}

/// What is stored with the sums of a cluster: masks of whole fours, of pairs and of neither, with what is there; biases.
#[cfg(tilework_emulator)]
#[test]
fn clusters_mask_and_add() {
    use crate::device::cuda::CudaOptions;
    use crate::device::emulator::{EmulatorOptions, Order};
    use crate::kernels::linear::{LINEAR_BWD_X, LinearDims, linear_bwd_x, linear_fwd};
    use half::f16;
    let number = |i: usize, by: usize| (i * by % 13 % 3) as f32 - 1.0;
    let numbers = |len, by| (0..len).map(|i| f16::from_f32(number(i, by))).collect::<Vec<_>>();
    let tile = LINEAR_BWD_X.tiles(DType::F16, 90).find(|t| t.name == "Mma32").unwrap();
    let [n, k, splits] = [37, 32 * 5 + 8, 3usize];
    for (order, checked) in [(Order::Forward, false), (Order::Reverse, false), (Order::Random(3), true)] {
        let options = EmulatorOptions { order, checked, arch: 90, ..EmulatorOptions::default() };
        let device = Device::emulated_with(CudaOptions::default(), options).unwrap();
        let Device::Cuda(cuda) = &device else { unreachable!("an emulated device is a CUDA device") };
        for columns in [12, 34, 9] {
            let tensor = |shape: [usize; 2], of: &[f16]| Tensor::from_slice(&device, shape, of).unwrap();
            let d = LinearDims { n: n as i32, split_steps: 2, ..LinearDims::default() };
            let launch = |columns: usize| {
                let tiles = n.div_ceil(tile.m) * columns.div_ceil(tile.n);
                Launch::new(0, tile.threads).grid(tiles, 1, splits).cluster(1, 1, splits as u32)
            };
            // a [n][k] times b [k][columns].
            let (a, b) = (numbers(n * k, 5), numbers(k * columns, 11));
            let sum = |i: usize| -> f32 {
                (0..k).map(|at| number(i / columns * k + at, 5) * number(at * columns + i % columns, 11)).sum()
            };
            let (masks, old) = (numbers(n * columns, 7), numbers(n * columns, 3));
            let (left, right, mask) = (tensor([n, k], &a), tensor([k, columns], &b), tensor([n, columns], &masks));
            for accumulate in [0, 1] {
                let d = LinearDims { inputs: columns as i32, outputs: k as i32, accumulate, ..d };
                let mut y = tensor([n, columns], &old);
                let (a, b, masks) = (left.input().unwrap(), right.input().unwrap(), Some(mask.input().unwrap()));
                linear_bwd_x::<f16>(cuda, tile, launch(columns), a, b, masks, y.output().unwrap(), None, &d).unwrap();
                let all = |i: usize| sum(i) + if accumulate == 1 { number(i, 3) } else { 0.0 };
                let want = (0..n * columns).map(|i| f16::from_f32(if number(i, 7) > 0.0 { all(i) } else { 0.0 }));
                assert!(y.to_vec::<f16>().unwrap() == want.collect::<Vec<_>>(), "{columns}, {accumulate}, {order:?}");
            }
            // The same with b as rows of weights, biases and ReLU.
            let turned: Vec<f16> = (0..k * columns).map(|i| b[i % k * columns + i / k]).collect();
            let bias: Vec<f32> = (0..columns).map(|i| number(i, 2)).collect();
            let (weights, biases) =
                (tensor([columns, k], &turned), Tensor::from_slice(&device, [columns], &bias).unwrap());
            let d = LinearDims { inputs: k as i32, outputs: columns as i32, relu: 1, ..d };
            let mut y = Tensor::empty(&device, DType::F16, [n, columns]).unwrap();
            let (a, w, b) = (left.input().unwrap(), weights.input().unwrap(), Some(biases.input().unwrap()));
            linear_fwd::<f16>(cuda, tile, launch(columns), a, w, b, y.output().unwrap(), None, &d).unwrap();
            let want = (0..n * columns).map(|i| f16::from_f32((sum(i) + bias[i % columns]).max(0.0)));
            assert!(y.to_vec::<f16>().unwrap() == want.collect::<Vec<_>>(), "{columns}, forward, {order:?}");
        }
    }
}
