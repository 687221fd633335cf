//! Elements of two bytes on a device: their conversions, for every value, and the kernels that no op
//! covers.

use crate::under::Under;
use tilework::dtype::Float;
use tilework::ops::batch_norm2d::running;
use tilework::{Ctx, DType, Device, Tensor, Var};

/// Batch-norm in evaluation, with mean 0 and variance 1: what it makes of `[1, 1, 1, c]`, and the
/// gradient of beta for that of its output, where one is given.
fn shift(device: &Device, x: Tensor, gamma: f64, beta: &[f32], gy: Option<Tensor>) -> (Vec<f64>, Vec<f32>) {
    let c = x.len();
    let mut cx = Ctx::train(device).with_mode(tilework::autograd::Mode::Eval);
    let mut scale = Tensor::empty(device, DType::F32, [c]).unwrap();
    scale.fill(gamma).unwrap();
    let beta = cx.leaf(Tensor::from_slice(device, [c], beta).unwrap());
    let [mut mean, mut var] = running(device, DType::F32, c).unwrap();
    let y =
        Var::constant(x).batch_norm2d(&Var::constant(scale), &beta, [&mut mean, &mut var], 0.1, 0.0, &mut cx).unwrap();
    let values = y.value().to_f64().unwrap();
    let Some(gy) = gy else { return (values, Vec::new()) };
    let grads = cx.backward(&y, gy, None).unwrap();
    (values, grads.of(&beta).unwrap().to_vec().unwrap())
}

fn same(a: f64, b: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan())
}

fn conversions<T: Float>(device: &Device, from_bits: fn(u16) -> T) {
    let all: Vec<T> = (0..=u16::MAX).map(from_bits).collect();
    let shape = [1, 1, 1, all.len()];
    let tensor = |values: &[T]| Tensor::from_slice(device, shape, values).unwrap();
    // Read: every value becomes the f32 that it is, and is written as it was.
    let (y, read) = shift(device, tensor(&all), 1.0, &vec![0.0; all.len()], Some(tensor(&all)));
    for (i, v) in all.iter().enumerate() {
        assert!(same(f64::from(read[i]), v.f64()), "{v:?} is read as {}", read[i]);
        assert!(same(y[i], v.f64()), "{v:?} is written as {}", y[i]);
    }
    // Written: what lies in the middle of two neighbours, and right beside the middle.
    let zeros = tensor(&vec![T::of(0.0); all.len()]);
    for beside in [-1, 0, 1] {
        let middle = |i: usize| {
            let at = |by: i32| from_bits((i as i32 + by) as u16).f64();
            // Beyond the largest number: as far above it as the last but one lies below, halved.
            let half = if at(1).is_finite() { (at(1) - at(0)) / 2.0 } else { (at(0) - at(-1)) / 2.0 };
            let v = if at(0).is_finite() { (at(0) + half) as f32 } else { at(0) as f32 };
            if v == 0.0 || !v.is_finite() { v } else { f32::from_bits((v.to_bits() as i32 + beside) as u32) }
        };
        let values: Vec<f32> = (0..all.len()).map(middle).collect();
        let (y, _) = shift(device, zeros.clone(), 0.0, &values, None);
        for (&v, y) in values.iter().zip(y) {
            assert!(same(y, T::of(f64::from(v)).f64()), "{v:e} is written as {y:e}");
        }
    }
}

#[test]
fn every_value_is_read_and_written_right() {
    let Some(under) = Under::new() else { return };
    conversions(under.first(), half::f16::from_bits);
    conversions(under.first(), half::bf16::from_bits);
}

/// GELU and SiLU of every value of a type, and their gradients at a gradient of 1, against formulas in f64: rounded once,
/// from a float that is wrong by less than a hundredth of a rounding.
fn activations<T: Float>(device: &Device, dtype: DType, from_bits: fn(u16) -> T) {
    let all: Vec<T> = (0..=u16::MAX).map(from_bits).collect();
    let ones = vec![T::of(1.0); all.len()];
    let gelu = |x: f64| {
        let (below, bell) = (0.5 * libm::erfc(-x * 0.5f64.sqrt()), (-x * x / 2.0).exp());
        let slope = x * bell / (2.0 * std::f64::consts::PI).sqrt();
        (x * below, below + slope, below + slope.abs())
    };
    let silu = |x: f64| {
        let s = 1.0 / (1.0 + (-x).exp());
        let slope = x * s * (1.0 - s);
        (x * s, s + slope, s + slope.abs())
    };
    let check = |what: &str,
                 apply: fn(&Var, &mut Ctx<'_>) -> tilework::Result<Var>,
                 of: &dyn Fn(f64) -> (f64, f64, f64)| {
        let mut cx = Ctx::train(device);
        let x = cx.leaf(Tensor::from_slice(device, [all.len()], &all).unwrap());
        let y = apply(&x, &mut cx).unwrap();
        let values = y.value().to_f64().unwrap();
        let grads = cx.backward(&y, Tensor::from_slice(device, [all.len()], &ones).unwrap(), None).unwrap();
        let gradients = grads.of(&x).unwrap().to_f64().unwrap();
        for (i, x) in all.iter().map(|x| x.f64()).enumerate() {
            let (y, g, terms) = of(x);
            for (got, want, size, what) in [(values[i], y, y.abs(), what), (gradients[i], g, terms, "its gradient")] {
                if x.is_infinite() || x.is_nan() {
                    // 0 times infinity, as on the CPU.
                    assert!(same(got, want), "{what} of {x}: {got}, not {want}");
                    continue;
                }
                // Where an exponential is below 2^-126 it is 0.
                let allowed = 1.01 * dtype.rounding(size) + 1e-35;
                assert!((got - want).abs() <= allowed, "{what} of {x:e}: {got:e}, not {want:e}");
            }
        }
    };
    check("GELU", |x, cx| x.gelu(cx), &gelu);
    check("SiLU", |x, cx| x.silu(cx), &silu);
}

#[test]
fn activations_of_every_value() {
    let Some(under) = Under::new() else { return };
    activations(under.first(), DType::F16, half::f16::from_bits);
    activations(under.first(), DType::BF16, half::bf16::from_bits);
}

#[test]
fn fills_copies_and_sums() {
    let Some(under) = Under::new() else { return };
    for (name, device) in &under.devices {
        for dtype in [DType::F16, DType::BF16] {
            for n in [1, 7, 8, 300] {
                let mut t = Tensor::zeros(device, dtype, [n]).unwrap();
                t.fill(1.0 / 3.0).unwrap();
                let third = dtype_of(1.0 / 3.0, dtype);
                assert_eq!(t.to_f64().unwrap(), vec![third; n], "{name}");
                assert_eq!(t.to_device(&Device::cpu()).unwrap().to_f64().unwrap(), vec![third; n], "{name}");
                assert!(t.is_finite().unwrap());
                // A variable that is used twice gets its gradient in two parts.
                let mut cx = Ctx::train(device);
                let x = cx.leaf(t.clone());
                let y = x.relu(&mut cx).unwrap().add(&x, &mut cx).unwrap();
                let grads = cx.backward(&y, t, None).unwrap();
                assert_eq!(grads.of(&x).unwrap().to_f64().unwrap(), vec![2.0 * third; n], "{name}");
            }
        }
    }
}

fn dtype_of(v: f64, dtype: DType) -> f64 {
    if dtype == DType::F16 { half::f16::of(v).f64() } else { half::bf16::of(v).f64() }
}

#[test]
fn losses_are_f32_whatever_scores_are() {
    let Some(under) = Under::new() else { return };
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        let device = under.first();
        let labels = Tensor::from_slice(device, [2], &[0, 1]).unwrap();
        let x =
            Tensor::from_slice(device, [2, 3], &[0.5f32, 1.0, -1.0, 0.25, 2.0, 0.0]).unwrap().to_dtype(dtype).unwrap();
        for fused in [true, false] {
            let mut cx = Ctx::train(device);
            let x = cx.leaf(x.clone());
            let loss = if fused { x.cross_entropy(&labels, 0.0, &mut cx) } else { x.nll(&labels, &mut cx) }.unwrap();
            assert_eq!(loss.value().dtype(), DType::F32);
            let grads = cx.backward_loss(&loss, None).unwrap();
            assert_eq!(grads.of(&x).unwrap().dtype(), dtype);
        }
    }
}
