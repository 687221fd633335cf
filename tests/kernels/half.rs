// Part of the crate's own tests: the kernels that make batches and count hits, for elements of two bytes.

use super::*;
use crate::device::cuda::magic;
use crate::dtype::Float;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// What both kernels make of the same numbers: pixels, labels, losses, hits.
fn run<T: KernelType + Float>(device: &Device) -> (Vec<f64>, Vec<i32>, Vec<f32>, Vec<i32>) {
    let Device::Cuda(cuda) = device else { unreachable!() };
    let step = Step { seed: 9, step: 5, batch_offset: 2, ..Step::default() };
    let tensor = |dtype, shape: &[usize]| Tensor::zeros(device, dtype, Shape::from_slice(shape).unwrap()).unwrap();
    let (n, h, w, c) = (5, 4, 6, 3);
    let bytes: Vec<u8> = (0..9 * h * w * c).map(|i| (i * 7919 % 251) as u8).collect();
    let images = Tensor::from_slice(device, [9, h, w, c], &bytes).unwrap();
    let labels = Tensor::from_slice(device, [9], &[0, 1, 2, 3, 2, 1, 0, 1, 2]).unwrap();
    let order = Tensor::from_slice(device, [9], &[8, 6, 7, 5, 3, 0, 4, 2, 1]).unwrap();
    let table: Vec<f32> = (0..c * 256).map(|i| (i as f32 / 255.0 - 0.47) / 0.23).collect();
    let table = Tensor::from_slice(device, [c * 256], &table).unwrap();
    let (mut x, mut y) = (tensor(T::DTYPE, &[n, h, w, c]), tensor(DType::I32, &[n]));
    let (scale, turns) = ([1f32 / 255.0, 0.0].repeat(c), [65536, 0]);
    let scale = Tensor::from_slice(device, [2 * c], &scale).unwrap();
    let turns = Tensor::from_slice(device, [2], &turns).unwrap();
    let [by_out_h, by_out_w] = [h, w].map(magic);
    let (h, w, c) = (h as i32, w as i32, c as i32);
    let flips = (1 << 23, 1 << 23);
    let d = batch::BatchDims {
        h,
        w,
        c,
        out_h: h,
        out_w: w,
        samples: 0,
        angles: 1,
        pad: 2,
        border: 2,
        mean: 0,
        cutout: 1,
        flip: flips.0,
        vertical_flip: flips.1,
        alternate: 0,
        by_out_h,
        by_out_w,
    };
    let (images, bytes, table) = (images.input().unwrap(), labels.input().unwrap(), table.input().unwrap());
    let (order, at) = (order.input().unwrap(), cuda.step(&step).unwrap());
    let (pixels, classes) = (x.output().unwrap(), y.output().unwrap());
    let (scale, turns) = (scale.input().unwrap(), turns.input().unwrap());
    let launch = Launch::new(n, 256);
    batch::batch_make::<T>(cuda, launch, images, bytes, order, table, scale, turns, at, pixels, classes, &d).unwrap();
    // Its pixels as scores of the 24 * 3 classes.
    let (mut losses, mut correct) = (tensor(DType::F32, &[8]), tensor(DType::I32, &[8]));
    let loss = Tensor::from_slice(device, [1], &[0.1f32]).unwrap();
    let scores = x.to_f64().unwrap();
    let best = |row: &[f64]| (0..72).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as i32;
    let labels: Vec<i32> = scores.chunks(72).enumerate().map(|(i, row)| if i == 1 { -1 } else { best(row) }).collect();
    let labels = Tensor::from_slice(device, [n], &labels).unwrap();
    let d = metrics::MetricsDims { n: n as i32, c: 72, ring: 8 };
    let (loss, labels, at) = (loss.input().unwrap(), labels.input().unwrap(), cuda.step(&step).unwrap());
    let out = (losses.output().unwrap(), correct.output().unwrap());
    metrics::metrics_record::<T>(cuda, Launch::new(1, 256), loss, x.input().unwrap(), labels, at, out.0, out.1, &d)
        .unwrap();
    (scores, y.to_vec().unwrap(), losses.to_vec().unwrap(), correct.to_vec().unwrap())
}

fn rounded<T: KernelType + Float>(device: &Device) {
    let (want, got) = (run::<f32>(device), run::<T>(device));
    assert_eq!(got.0, want.0.iter().map(|&v| T::of(v).f64()).collect::<Vec<_>>());
    assert_eq!((got.1, got.2, &got.3), (want.1, want.2, &want.3));
    // The fifth step of a ring of eight; one label of five was wrong.
    assert_eq!(got.3[5], 4);
}

#[test]
fn batches_and_metrics_of_two_bytes() {
    let Ok(device) = Device::emulated(Default::default()) else { return println!("skipped: no emulated device") };
    rounded::<half::f16>(&device);
    rounded::<half::bf16>(&device);
}
