//! Part of the crate's own tests: kernels for sm_90a (tests/kernels/hopper.cu) on the emulated device, against plain loops.

use super::*;
use crate::device::cuda::{Order, Swizzle, TensorMapBox, TensorMapSpec};
use crate::device::emulator::EmulatorOptions;
use crate::dtype::Float;
use crate::shape::Shape;
use crate::tensor::Tensor;

include!(concat!(env!("OUT_DIR"), "/hopper.rs"));

/// Emulated devices that run sm_90a: three orders, and one that checks.
fn devices() -> Vec<Device> {
    let device = |order, checked| {
        Device::emulated_with(Default::default(), EmulatorOptions { order, checked, arch: 90, ..Default::default() })
    };
    let all = [(Order::Forward, false), (Order::Reverse, false), (Order::Random(3), false)];
    let checked = [Order::Forward, Order::Reverse, Order::Random(4)].map(|order| (order, true));
    all.into_iter().chain(checked).map(|(order, checked)| device(order, checked).unwrap()).collect()
}

fn cuda(device: &Device) -> &Cuda {
    let Device::Cuda(cuda) = device else { unreachable!() };
    cuda
}

/// Small whole numbers, whose products and sums are exact.
fn numbers(n: usize, seed: usize) -> Vec<f64> {
    (0..n).map(|i| ((i * 7919 + seed * 31) % 13) as f64 - 6.0).collect()
}

fn tensor<T: Float>(device: &Device, shape: &[usize], values: &[f64]) -> Tensor {
    let values: Vec<T> = values.iter().map(|v| T::of(*v)).collect();
    Tensor::from_slice(device, Shape::from_slice(shape).unwrap(), &values).unwrap()
}

fn matrix<T: KernelType>(device: &Device, x: &Tensor, rows: usize, columns: usize, sizes: [u32; 2]) -> TensorMap {
    let address = x.input::<T>().unwrap().address();
    let spec = TensorMapSpec::tiled(2, address, &[columns as u32, rows as u32], &sizes, Swizzle::B128);
    cuda(device).tensor_map(&spec).unwrap()
}

#[test]
fn a_tensor_map_is_an_argument_and_other_devices_are_refused() {
    let device = Device::emulated(Default::default()).unwrap();
    let mut y = device.alloc(DType::F32, 128).unwrap();
    let (map, d) = (TensorMap([1; 16]), hopper::HopperDims { bytes: 512 });
    assert_eq!((size_of::<TensorMap>(), align_of::<TensorMap>()), (128, 64));
    let y = y.output::<f32>(0..128).unwrap();
    let launch = Launch::new(2, 128).cluster(2, 1, 1).shared(64 << 10);
    let e = hopper::hopper_copy(cuda(&device), launch, &map, y, &d).unwrap_err().to_string();
    assert!(
        e.contains("`hopper_copy` has no instance for f32") && e.contains("hopper_copy<float> (sm_90a only)"),
        "{e}"
    );
    let kernel = hopper::HOPPER_COPY.instance(Some(DType::F32), None, 90).unwrap();
    assert_eq!((kernel.arch, kernel.threads), (Some(Arch::specific(90)), 128));
    assert!(hopper::HOPPER_COPY.instance(Some(DType::F16), None, 90).is_err());
}

#[test]
fn a_copy_in_a_cluster() {
    for device in devices() {
        let x = tensor::<f32>(&device, &[128], &(0..128).map(|i| i as f64 + 7.0).collect::<Vec<_>>());
        let address = x.input::<f32>().unwrap().address();
        let map = cuda(&device).tensor_map(&TensorMapSpec::tiled(4, address, &[128], &[128], Swizzle::None)).unwrap();
        let mut y = Tensor::zeros(&device, DType::F32, [512]).unwrap();
        let launch = Launch::new(4, 128).cluster(2, 1, 1).shared(512);
        let d = hopper::HopperDims { bytes: 512 };
        hopper::hopper_copy(cuda(&device), launch, &map, y.output::<f32>().unwrap(), &d).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [7.0; 512]);
    }
}

/// a[m][k] b[n][k], with sizes that are no multiples of a tile.
fn gemm<T: KernelType + Float>() {
    let (m, n, k) = (72, 136, 200);
    let (a, b) = (numbers(m * k, 1), numbers(n * k, 2));
    let cell = |i: usize| (0..k).map(|j| a[i / n * k + j] * b[i % n * k + j]).sum::<f64>();
    let want: Vec<f64> = (0..m * n).map(cell).collect();
    for device in devices() {
        let (x, w) = (tensor::<T>(&device, &[m, k], &a), tensor::<T>(&device, &[n, k], &b));
        let (x, w) = (matrix::<T>(&device, &x, m, k, [64, 64]), matrix::<T>(&device, &w, n, k, [64, 64]));
        let mut y = Tensor::zeros(&device, DType::F32, [m, n]).unwrap();
        let launch = Launch::new(0, 160).grid(n.div_ceil(64), m.div_ceil(64), 1).shared(32 << 10);
        let d = hopper::ProductDims { m: m as i32, n: n as i32, k: k as i32 };
        hopper::hopper_gemm::<T>(cuda(&device), launch, &x, &w, y.output::<f32>().unwrap(), &d).unwrap();
        assert_eq!(y.to_f64().unwrap(), want);
    }
}

#[test]
fn a_product_through_a_ring() {
    gemm::<half::f16>();
    gemm::<half::bf16>();
}
