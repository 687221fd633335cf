//! The tests of `src/ops/conv2d/strip.rs`: how convolutions are cut in strips, and what those compute on the emulated device.

use super::super::definition::Example;
use super::*;
use crate::device::cuda::CudaOptions;
use crate::device::emulator::{EmulatorOptions, Order};
use crate::ops::case::Draw;
use crate::ops::window::Window;
use half::f16;

/// A device that takes strips wherever they are possible.
fn cuts_in_strips(order: Order, checked: bool) -> Device {
    let options = EmulatorOptions { order, checked, ..EmulatorOptions::default() };
    Device::emulated_with(CudaOptions { tile: Some(STRIPS), ..CudaOptions::default() }, options).unwrap()
}

/// Blocks that walk over several tiles: all passes, on convolutions drawn at random, of up to three images, several tiles
/// across, and more outputs than one block has.
#[test]
fn strips_give_what_the_definition_says() {
    let orders = [(Order::Forward, false), (Order::Reverse, false), (Order::Random(3), true)];
    for seed in 0..24 {
        let mut draw = Draw::new(seed);
        let long = draw.int(0, 3) == 0;
        let x = [draw.int(3, if long { 4 } else { 14 }), if long { draw.int(130, 150) } else { draw.int(3, 14) }];
        let [c, o] = [[3, 40], [1, 5], [8, 70], [9, 17], [24, 32], [32, 9]][seed as usize % 6];
        let e = Example::draw(&mut draw, if long { 1 } else { 3 }, x, [c, o], [3, 3]);
        let (d, (order, checked)) = (&e.d, orders[seed as usize / 6 % 3]);
        let device = cuts_in_strips(order, checked);
        let Device::Cuda(cuda) = &device else { unreachable!("an emulated device is a CUDA device") };
        let same = |pass: &str, got: &Tensor, want: &[f64]| {
            let want: Vec<f64> = match got.dtype() {
                DType::F16 => want.iter().map(|v| f16::from_f64(*v).to_f64()).collect(),
                _ => want.to_vec(),
            };
            assert!(got.to_f64().unwrap() == want, "{pass}, {d:?}, {order:?}");
        };
        let walks = |strip: Strip| Strip { blocks: 2, ..strip };
        let [inputs, w, gy, b] = e.tensors(&device);
        if let Some(strip) = Strip::forward::<f16>(cuda, d) {
            let mut y = Tensor::empty(&device, DType::F16, gy.shape()).unwrap();
            walks(strip).multiply::<f16>(cuda, [&inputs, &w], Some(&b), [false; 2], y.output().unwrap()).unwrap();
            same("forward", &y, &e.y);
        }
        if let Some(strip) = Strip::backward_x::<f16>(cuda, d) {
            let mut gx = Tensor::empty(&device, DType::F16, inputs.shape()).unwrap();
            walks(strip).multiply::<f16>(cuda, [&gy, &w], None, [false; 2], gx.output().unwrap()).unwrap();
            same("input gradient", &gx, &e.gx);
        }
        if let Some(strip) = Strip::backward_w::<f16>(cuda, d) {
            let mut gw = Tensor::empty(&device, DType::F32, w.shape()).unwrap();
            let mut slot = Slot::of_tensor(&mut gw, false).unwrap();
            walks(strip).gather::<f16>(cuda, &gy, &inputs, &mut slot, d).unwrap();
            same("weight gradient", &gw, &e.gw);
        }
    }
}

/// The weight gradient of what a max-pool passes on, as of the gradient that it makes of it.
#[test]
fn strips_of_windows_give_what_those_of_pixels_do() {
    let orders = [(Order::Forward, false), (Order::Reverse, false), (Order::Random(5), true)];
    let mut seen = 0;
    for seed in 0..24 {
        let mut draw = Draw::new(seed);
        let long = draw.int(0, 3) == 0;
        let x = [draw.int(5, if long { 6 } else { 14 }), if long { draw.int(132, 150) } else { draw.int(5, 14) }];
        let [c, o] = [[3, 40], [24, 64], [8, 72], [9, 16], [24, 32], [32, 8]][seed as usize % 6];
        let drawn = Example::draw(&mut draw, if long { 1 } else { 3 }, x, [c, o], [2, 2]).d;
        let d = Dims { y: drawn.y.map(|side| side / 2 * 2), ..drawn };
        let (order, checked) = orders[seed as usize / 6 % 3];
        let device = cuts_in_strips(order, checked);
        let Device::Cuda(cuda) = &device else { unreachable!("an emulated device is a CUDA device") };
        let Some(strip) = Strip::backward_w_pooled::<f16>(cuda, &d) else { continue };
        seen += 1;
        // One of the four, or none.
        let ([h, w], mut gy) = (d.y, vec![0.0; d.n * d.pixels() * d.o]);
        let (mut g, mut place) = (vec![], vec![]);
        for i in 0..gy.len() / 4 {
            let (window, channel) = (i / d.o, i % d.o);
            let (line, q) = (window / (w / 2), window % (w / 2));
            let at = [0, 1, 2, 3, 255][draw.int(0, 4)];
            let value = draw.int(0, 22) as f64 - 11.0;
            if at < 4 {
                let row = line / (h / 2) * h + line % (h / 2) * 2 + at / 2;
                gy[(row * w + 2 * q + at % 2) * d.o + channel] = value;
            }
            g.push(f16::from_f64(value));
            place.push(at as u8);
        }
        let e = Example::of(d, gy);
        let shape = [d.n, h / 2, w / 2, d.o];
        let g = Tensor::from_slice(&device, shape, &g).unwrap();
        let place = Tensor::from_slice(&device, shape, &place).unwrap();
        let [inputs, w, ..] = e.tensors(&device);
        let mut gw = Tensor::empty(&device, DType::F32, w.shape()).unwrap();
        let mut slot = Slot::of_tensor(&mut gw, false).unwrap();
        let strip = Strip { blocks: 2, ..strip };
        strip.gather_pooled::<f16>(cuda, [&g, &place], &inputs, &mut slot, &d).unwrap();
        assert!(gw.to_f64().unwrap() == e.gw, "{d:?}, {order:?}");
    }
    assert!(seen >= 12, "{seen} cases");
}

/// Pixels of a tile that see much of the same lie in a square.
#[test]
fn tiles_share_what_their_pixels_see() {
    let device = Device::emulated_with(CudaOptions::default(), EmulatorOptions::default()).unwrap();
    let Device::Cuda(cuda) = &device else { unreachable!("an emulated device is a CUDA device") };
    let tile = |[x, y, side, stride]: [usize; 4], [n, c, o]: [usize; 3]| {
        let window = Window { kernel: [side; 2], stride: [stride; 2], pad: [side / 2; 2] };
        let strip = Strip::forward::<f16>(cuda, &Dims { n, x: [x; 2], c, y: [y; 2], o, window }).unwrap();
        [strip.sizes.images, strip.sizes.rows, strip.sizes.columns]
    };
    assert_eq!(tile([224, 112, 7, 2], [128, 3, 64]), [1, 8, 16]);
    assert_eq!(tile([32, 32, 3, 1], [512, 3, 64]), [1, 8, 16]);
    assert_eq!(tile([28, 28, 3, 1], [256, 1, 16]), [1, 4, 28]);
    assert_eq!(tile([8, 8, 3, 1], [1024, 16, 32]), [2, 8, 8]);
}
