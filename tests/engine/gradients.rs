//! Rung 1 of the ladder of truth: every op's gradient in f64 against central finite differences.

use tilework::ops::{Case, Draw, ROOMS, gradcheck};
use tilework::{DType, Device, Error, Tensor, Var};

const RTOL: f64 = 1e-5;
const RANDOM_CASES: u64 = 24;

fn check(room: &str, case: &Case, seed: u64) {
    let inputs = case.tensors(&Device::cpu(), DType::F64, seed).unwrap();
    let worst = gradcheck(&inputs, &case.apply).unwrap();
    assert!(worst.error <= RTOL, "{room} {}, {}: {worst}", case.name, case.inputs[worst.input].name);
}

#[test]
fn every_op_against_finite_differences() {
    for room in ROOMS {
        let chosen = (room.cases)().into_iter().filter(|c| c.smooth && !c.bench);
        let random = (0..RANDOM_CASES).map(|seed| (room.random_case)(&mut Draw::new(seed)));
        for (i, case) in chosen.chain(random).enumerate() {
            check(room.name, &case, i as u64);
        }
    }
}

/// One input used twice, and a chain of ops, so that gradients accumulate and share memory.
#[test]
fn a_variable_used_many_times() {
    let case = Case::new("reuse", |v, cx| {
        let a = v[0].add(&v[0], cx)?;
        let b = a.relu(cx)?;
        let c = b.add(&a, cx)?.add(&v[0], cx)?;
        c.add(&b, cx)
    })
    .input("x", [3, 4], tilework::ops::case::Fill::NonZero);
    check("graph", &case, 5);
}

/// The check finds what is wrong, and where.
#[test]
fn a_wrong_gradient_is_found() {
    let tensor = |values: &[f64]| Tensor::from_slice(&Device::cpu(), [values.len()], values).unwrap();
    let inputs = [tensor(&[0.5, -0.5, 1.5]), tensor(&[1.0, 2.0, -3.0])];
    // Nothing flows through a copy of an input's value: the gradient is 1 where it should be 1 + 1.
    let worst = gradcheck(&inputs, |v, cx| v[0].add(&v[1], cx)?.add(&Var::constant(v[1].value().clone()), cx)).unwrap();
    assert!(worst.input == 1 && (worst.error - 0.5).abs() < 1e-3, "{worst}");
    assert!((worst.numeric - 2.0 * worst.backward).abs() < 1e-6, "{worst}");
    let e = gradcheck(&inputs, |v, cx| v[0].relu(cx)).unwrap_err();
    assert!(matches!(&e, Error::Shape { .. }) && e.to_string().contains("input 1"), "{e}");
    let e = gradcheck(&[tensor(&[f64::NAN])], |v, cx| v[0].add(&v[0], cx)).unwrap();
    assert!(e.error.is_infinite());
    let f32s = Tensor::from_slice(&Device::cpu(), [1], &[1f32]).unwrap();
    assert!(gradcheck(&[f32s], |v, cx| v[0].relu(cx)).is_err());
}
