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

fn matrix<T: KernelType>(device: &Device, x: &Tensor, rows: usize, columns: usize, sizes: [u32; 2]) -> MappedTensor {
    let address = x.input::<T>().unwrap().address();
    let spec = TensorMapSpec::tiled(2, address, &[columns as u32, rows as u32], &sizes, Swizzle::B128);
    cuda(device).tensor_map(&spec).unwrap()
}

#[test]
fn a_tensor_map_is_an_argument_and_other_devices_are_refused() {
    let device = Device::emulated(Default::default()).unwrap();
    let mut y = device.alloc(DType::F32, 128).unwrap();
    let y = y.output::<f32>(0..128).unwrap();
    let spec = TensorMapSpec::tiled(4, y.address(), &[128], &[128], Swizzle::None);
    let (map, d) = (cuda(&device).tensor_map(&spec).unwrap(), hopper::HopperDims { bytes: 512 });
    assert_eq!((size_of_val(&map.map), align_of_val(&map.map)), (128, 64));
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

/// What a product of the tests is launched with.
type Launcher = fn(&Cuda, Launch, &MappedTensor, &MappedTensor, Out<'_, f32>, &hopper::ProductDims) -> Result<()>;

/// a b' with rows of a and b along k, or a' b with rows along m and n; sizes that are no multiples of a tile.
fn product<T: KernelType + Float>(kernel: Launcher, launch: Launch, turned: bool, box_rows: u32) {
    let (m, n, k) = (72, 136, 200);
    let (a, b) = (numbers(m * k, 1), numbers(n * k, 2));
    let at = |x: &[f64], i: usize, j: usize, lines: usize| if turned { x[j * lines + i] } else { x[i * k + j] };
    let cell = |i: usize| (0..k).map(|j| at(&a, i / n, j, m) * at(&b, i % n, j, n)).sum::<f64>();
    let want: Vec<f64> = (0..m * n).map(cell).collect();
    for device in devices() {
        let shape = |lines| if turned { [k, lines] } else { [lines, k] };
        let (x, w) = (tensor::<T>(&device, &shape(m), &a), tensor::<T>(&device, &shape(n), &b));
        let map = |x: &Tensor, [rows, columns]: [usize; 2], lines| matrix::<T>(&device, x, rows, columns, [64, lines]);
        let (x_map, w_map) = (map(&x, shape(m), 64), map(&w, shape(n), box_rows));
        let mut y = Tensor::zeros(&device, DType::F32, [m, n]).unwrap();
        let d = hopper::ProductDims { m: m as i32, n: n as i32, k: k as i32 };
        kernel(cuda(&device), launch, &x_map, &w_map, y.output().unwrap(), &d).unwrap();
        assert_eq!(y.to_f64().unwrap(), want);
    }
}

#[test]
fn operands_along_m_and_n() {
    let launch = Launch::new(0, 160).grid(3, 2, 1).shared(32 << 10);
    product::<half::f16>(hopper::hopper_turned::<half::f16>, launch, true, 64);
    product::<half::bf16>(hopper::hopper_turned::<half::bf16>, launch, true, 64);
}

#[test]
fn a_cluster_shares_an_operand_or_a_sum() {
    let launch = Launch::new(0, 160).grid(3, 2, 1).shared(32 << 10).cluster(1, 2, 1);
    product::<half::f16>(hopper::hopper_multicast::<half::f16>, launch, false, 32);
    let launch = Launch::new(0, 128).grid(6, 2, 1).shared(32 << 10).cluster(2, 1, 1);
    product::<half::f16>(hopper::hopper_split::<half::f16>, launch, false, 64);
}

/// A convolution of [n, h, w, c] with [o][kh][kw][c].
fn conv<T: KernelType + Float>([n, h, w, c, o, kernel, stride, pad]: [usize; 8]) {
    let out = |size: usize| (size + 2 * pad - kernel) / stride + 1;
    let (oh, ow) = (out(h), out(w));
    let (x, f) = (numbers(n * h * w * c, 1), numbers(o * kernel * kernel * c, 2));
    // In quarters, so that two bytes hold the sums.
    let f: Vec<f64> = f.iter().map(|v| (*v / 4.0).round() / 4.0).collect();
    let mut want = vec![0.0; n * oh * ow * o];
    for (i, y) in want.iter_mut().enumerate() {
        let (image, top, left) = (i / o / ow / oh, i / o / ow % oh * stride, i / o % ow * stride);
        for (r, s) in (0..kernel * kernel).map(|tap| (tap / kernel, tap % kernel)) {
            let (row, column) = ((top + r).wrapping_sub(pad), (left + s).wrapping_sub(pad));
            if row < h && column < w {
                let (at, tap) = (((image * h + row) * w + column) * c, ((i % o * kernel + r) * kernel + s) * c);
                *y += (0..c).map(|k| x[at + k] * f[tap + k]).sum::<f64>();
            }
        }
        *y = T::of(*y).f64();
    }
    for device in devices() {
        let (x, f) = (tensor::<T>(&device, &[n * h * w, c], &x), tensor::<T>(&device, &[o * kernel * kernel, c], &f));
        let mut y = Tensor::zeros(&device, T::DTYPE, [n * oh * ow, o]).unwrap();
        let size = |v: usize| v as u32;
        // The window's first pixel runs from -pad to pad pixels before the last place of its last one.
        let (lower, upper) = (-(pad as i32), pad as i32 + 1 - kernel as i32);
        let column = TensorMapBox::Im2col {
            lower: vec![lower; 2],
            upper: vec![upper; 2],
            channels: 64,
            pixels: 64,
            steps: vec![size(stride); 2],
        };
        let address = x.input::<T>().unwrap().address();
        let x_spec = TensorMapSpec::im2col(2, address, [n, h, w, c].map(size), column, Swizzle::B128);
        let address = f.input::<T>().unwrap().address();
        let dims = [c, kernel * kernel, o].map(size);
        let f_spec = TensorMapSpec::tiled(2, address, &dims, &[64, 1, 64], Swizzle::B128);
        let address = y.output::<T>().unwrap().address();
        let y_spec = TensorMapSpec::tiled(2, address, &[o, n * oh * ow].map(size), &[64, 64], Swizzle::B128);
        let [x_map, f_map, y_map] = [x_spec, f_spec, y_spec].map(|spec| cuda(&device).tensor_map(&spec).unwrap());
        let launch = Launch::new(0, 160).grid((n * oh * ow).div_ceil(64), o.div_ceil(64), 1).shared(40 << 10);
        let [c, taps, kw, oh, ow, stride, pad] = [c, kernel * kernel, kernel, oh, ow, stride, pad].map(|v| v as i32);
        let d = hopper::ConvDims { c, taps, kw, oh, ow, stride, pad };
        hopper::hopper_conv::<T>(cuda(&device), launch, &x_map, &f_map, &y_map, &d).unwrap();
        assert_eq!(y.to_f64().unwrap(), want);
    }
}

#[test]
fn a_convolution_by_columns_of_pixels() {
    conv::<half::f16>([2, 9, 11, 24, 40, 3, 1, 1]);
    conv::<half::bf16>([3, 7, 6, 72, 8, 3, 2, 1]);
    conv::<half::f16>([1, 5, 13, 8, 72, 1, 1, 0]);
}

#[test]
fn rows_of_every_length() {
    for (row, swizzle) in [(64, Swizzle::B64), (32, Swizzle::B32), (16, Swizzle::None)] {
        for turned in [false, true] {
            let (k, lines) = (if turned { 16 } else { row.max(32) / 2 }, 64);
            let (a, b) = (numbers(k * lines, 1), numbers(k * lines, 2));
            let at = |x: &[f64], i: usize, j: usize| if turned { x[j * lines + i] } else { x[i * k + j] };
            let cell = |i: usize| (0..16).map(|j| at(&a, i / 64, j) * at(&b, i % 64, j)).sum::<f64>();
            let want: Vec<f64> = (0..4096).map(cell).collect();
            for device in devices() {
                let shape = if turned { [k, lines] } else { [lines, k] };
                let operands = [&a, &b].map(|x| tensor::<half::f16>(&device, &shape, x));
                let [a, b] = operands.each_ref().map(|x| {
                    let address = x.input::<half::f16>().unwrap().address();
                    let (dims, sizes) = ([shape[1] as u32, shape[0] as u32], [row as u32 / 2, shape[0] as u32]);
                    cuda(&device).tensor_map(&TensorMapSpec::tiled(2, address, &dims, &sizes, swizzle)).unwrap()
                });
                let mut y = Tensor::zeros(&device, DType::F32, [64, 64]).unwrap();
                let d = hopper::ProductDims { m: 64, n: 64, k: if turned { -(row as i32) } else { row as i32 } };
                let launch = Launch::new(1, 128).shared(8 << 10);
                hopper::hopper_rows::<half::f16>(cuda(&device), launch, &a, &b, y.output().unwrap(), &d).unwrap();
                assert_eq!(y.to_f64().unwrap(), want, "{row}, {turned}");
            }
        }
    }
}

#[test]
fn every_other_instruction() {
    for device in devices() {
        let x = tensor::<half::f16>(&device, &[64, 64], &numbers(4096, 5));
        let map = matrix::<half::f16>(&device, &x, 64, 64, [64, 64]);
        let mut y = Tensor::zeros(&device, DType::F32, [2048]).unwrap();
        let address = y.output::<f32>().unwrap().address();
        let out = TensorMapSpec::tiled(4, address, &[2048], &[256], Swizzle::None);
        let out = cuda(&device).tensor_map(&out).unwrap();
        let mut z = Tensor::zeros(&device, DType::F32, [512]).unwrap();
        let launch = Launch::new(4, 128).cluster(2, 1, 1).shared(16 << 10);
        let d = hopper::HopperDims { bytes: 8192 };
        hopper::hopper_words::<half::f16>(cuda(&device), launch, &map, &out, z.output().unwrap(), &d).unwrap();
        let (x, y, z) = (numbers(4096, 5), y.to_f64().unwrap(), z.to_f64().unwrap());
        let cell = |i: usize, j: usize| (0..16).map(|k| x[i * 64 + k] * x[j * 64 + k]).sum::<f64>();
        for block in 0..4 {
            for t in 0..64 {
                let (row, column) = (t / 32 * 16 + t % 32 / 4, t % 4 * 2);
                let place = block % 2 + 2 * 10 + block / 2 * 100 + 2 * 1000 + 2 * 10000;
                let want = [cell(row, column), cell(row, column + 1), cell(row, column + 1), place as f64];
                assert_eq!(y[block * 512 + t * 4..][..4], want, "block {block}, thread {t}");
            }
            // The first column of a warp's first tile: lanes 0, 4, 8, ... in the lower half of their registers.
            assert_eq!(z[block * 128..][..4], [0.0, 8.0, 16.0, 24.0]);
        }
    }
}

#[test]
fn a_product_through_a_ring() {
    let launch = Launch::new(0, 160).grid(3, 2, 1).shared(32 << 10);
    product::<half::f16>(hopper::hopper_gemm::<half::f16>, launch, false, 64);
    product::<half::bf16>(hopper::hopper_gemm::<half::bf16>, launch, false, 64);
}
