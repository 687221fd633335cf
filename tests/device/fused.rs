//! What applies an activation in its own passes, against the two apart. As in `kernels.rs`, on the emulated device or on the
//! GPU; the rooms' cases compare both with the CPU, in three orders and checked.

use crate::under::Under;
use tilework::ops::Case;
use tilework::ops::activation::Activation;
use tilework::ops::batch_norm2d::running;
use tilework::ops::case::Fill;
use tilework::ops::parity;
use tilework::{DType, Device};

/// The output of a case, and its gradients.
fn run(case: &Case, device: &Device, dtype: DType) -> Vec<(String, Vec<f64>)> {
    let results = parity::run(case, device, dtype, 6).unwrap();
    results.into_iter().map(|(name, t)| (name, t.to_f64().unwrap())).collect()
}

/// A product, or a sum, that applies ReLU as it stores has the same numbers in every type, and the same gradients.
#[test]
fn relu_as_it_is_stored() {
    let Some(under) = Under::new() else { return };
    let linear = |n: usize, bias: bool, fused: bool| {
        let then = fused.then_some(Activation::Relu);
        let case = Case::new("linear", move |v, cx| {
            let y = v[0].linear_then(then, &v[1], v.get(2), cx)?;
            if fused { Ok(y) } else { y.relu(cx) }
        });
        let case = case.input("x", [n, 260], Fill::Uniform).input("w", [20, 260], Fill::Uniform);
        if bias { case.param("b", [20], Fill::Uniform) } else { case }
    };
    let conv = |n: usize, bias: bool, fused: bool| {
        let then = fused.then_some(Activation::Relu);
        let case = Case::new("conv2d", move |v, cx| {
            let y = v[0].conv2d_then(then, &v[1], v.get(2), [1, 2], [1, 0], cx)?;
            if fused { Ok(y) } else { y.relu(cx) }
        });
        let case = case.input("x", [n, 7, 9, 5], Fill::Uniform).input("w", [20, 3, 2, 5], Fill::Uniform);
        if bias { case.param("b", [20], Fill::Uniform) } else { case }
    };
    // One strip of rows and several, one split and several.
    let twins = [(9, true), (700, true), (70, false)].map(|(n, bias)| [linear(n, bias, true), linear(n, bias, false)]);
    let more = [(3, true), (40, true), (3, false)].map(|(n, bias)| [conv(n, bias, true), conv(n, bias, false)]);
    let add = [true, false].map(|fused| {
        let case = Case::new("add", move |v, cx| match fused {
            true => v[0].add_then(Some(Activation::Relu), &v[1], cx),
            false => v[0].add(&v[1], cx)?.relu(cx),
        });
        case.input("a", [7, 33], Fill::Uniform).input("b", [7, 33], Fill::Uniform)
    });
    for [fused, apart] in twins.iter().chain(&more).chain([&add]) {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let device = &under.devices[0].1;
            assert_eq!(run(fused, device, dtype), run(apart, device, dtype), "{} {dtype}", fused.name);
        }
    }
}

/// Batch-norm that applies an activation as it stores has the same numbers where none lies between that is rounded.
#[test]
fn activations_in_batch_norm() {
    let Some(under) = Under::new() else { return };
    for then in [Activation::Relu, Activation::Silu, Activation::Gelu] {
        for c in [3, 8] {
            let twin = |fused: bool| {
                let case = Case::new(format!("{then:?} {c}"), move |v, cx| {
                    let [mut mean, mut var] = running(cx.device(), DType::F32, c)?;
                    let with = fused.then_some(then);
                    let y = v[0].batch_norm2d_then(with, &v[1], &v[2], [&mut mean, &mut var], 0.1, 1e-5, cx)?;
                    if fused { Ok(y) } else { then.of(&y, cx) }
                });
                let case = case.input("x", [4, 9, 7, c], Fill::Uniform);
                case.param("gamma", [c], Fill::NonZero).param("beta", [c], Fill::Uniform)
            };
            let device = &under.devices[0].1;
            let [fused, apart] = [true, false].map(|fused| run(&twin(fused), device, DType::F32).remove(0));
            assert_eq!(fused, apart, "{then:?} {c}");
        }
    }
}
