//! Rung 1 of the ladder of truth: every op's gradient in f64 against central finite differences.

use tilework::ops::{Case, Draw, ROOMS};
use tilework::{Ctx, DType, Device, Tensor, Var};

const EPS: f64 = 1e-6;
const RTOL: f64 = 1e-5;
const RANDOM_CASES: u64 = 24;
/// Elements of an input that are checked, at most; they are spread over the whole of it.
const PROBES: usize = 40;

/// The output, and fixed pseudo-random numbers `r` of its shape: the function whose gradient is taken
/// is `sum(y · r)`.
fn weighted(case: &Case, device: &Device, inputs: &[Tensor]) -> (Vec<f64>, Vec<f64>, Tensor) {
    let mut cx = Case::ctx(device).with_mode(tilework::autograd::Mode::Train);
    let vars: Vec<Var> = inputs.iter().cloned().map(Var::constant).collect();
    let y = (case.apply)(&vars, &mut cx).unwrap();
    let weights: Vec<f64> = (0..y.value().len()).map(|i| ((i * 7919 + 13) % 97) as f64 / 48.5 - 0.9).collect();
    let r = Tensor::from_slice(device, y.shape(), &weights).unwrap();
    (y.value().to_vec::<f64>().unwrap(), weights, r)
}

fn check(room: &str, case: &Case, seed: u64) {
    let device = Device::cpu();
    let inputs = case.tensors(&device, DType::F64, seed).unwrap();
    let mut cx: Ctx<'_> = Case::ctx(&device);
    let vars: Vec<Var> = inputs.iter().map(|t| cx.leaf(t.clone())).collect();
    let y = (case.apply)(&vars, &mut cx).unwrap();
    let (_, weights, r) = weighted(case, &device, &inputs);
    let grads = cx.backward(&y, r, None).unwrap();
    for (i, var) in vars.iter().enumerate() {
        let x = inputs[i].to_vec::<f64>().unwrap();
        let analytic = match grads.of(var) {
            Some(g) => {
                assert_eq!(g.shape(), inputs[i].shape());
                g.to_vec::<f64>().unwrap()
            }
            None => panic!("{room} {}: nothing flowed to {}", case.name, case.inputs[i].name),
        };
        let stride = x.len().div_ceil(PROBES);
        for j in (0..x.len()).step_by(stride) {
            let at = |delta: f64| {
                let mut x = x.clone();
                x[j] += delta;
                let mut inputs = inputs.clone();
                inputs[i] = Tensor::from_slice(&device, inputs[i].shape(), &x).unwrap();
                weighted(case, &device, &inputs).0
            };
            // Differences first, sums then: the sums of a large output would lose the digits that matter.
            let (above, below) = (at(EPS), at(-EPS));
            let difference: f64 = above.iter().zip(&below).zip(&weights).map(|((a, b), r)| (a - b) * r).sum();
            let numeric = difference / (2.0 * EPS);
            let tolerance = RTOL * numeric.abs().max(analytic[j].abs()).max(1.0);
            assert!(
                (numeric - analytic[j]).abs() <= tolerance,
                "{room} {}: d/d{}[{j}]: finite difference {numeric}, backward {}",
                case.name,
                case.inputs[i].name,
                analytic[j]
            );
        }
    }
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
