//! The rule by which a device is compared with the CPU: differences of last bits pass, wrong numbers do not.

use tilework::ops::parity::{Expected, Results, run};
use tilework::ops::{Case, ROOMS, Room};
use tilework::{DType, Device, Tensor};

/// An op, and its case that begins so.
fn case(room: &str, start: &str) -> (&'static Room, Case) {
    let room = ROOMS.iter().find(|r| r.name == room).unwrap();
    (room, (room.cases)().into_iter().find(|c| c.name.starts_with(start)).unwrap())
}

fn cpu(case: &Case, seed: u64) -> Results {
    run(case, &Device::cpu(), DType::F32, seed).unwrap()
}

/// The results with one number of the tensor `what` changed.
fn with(results: &Results, what: &str, at: usize, change: impl Fn(f64) -> f64) -> Results {
    let mut results = results.clone();
    let (_, tensor) = results.iter_mut().find(|(name, _)| name == what).unwrap();
    let mut values = tensor.to_f64().unwrap();
    values[at] = change(values[at]);
    let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
    *tensor = Tensor::from_slice(tensor.device(), tensor.shape(), &values).unwrap();
    results
}

/// Of two values a channel, the gradient of the input is what is left when all but everything cancels.
#[test]
fn a_sum_that_cancels_is_measured_by_its_terms() {
    let (room, case) = case("batch_norm2d", "[2, 1, 1, 1] Train");
    let (expected, results) = (Expected::of(room, &case, DType::F32, 0).unwrap(), cpu(&case, 0));
    let error = |what, change: &dyn Fn(f64) -> f64| expected.compare(&with(&results, what, 0, change)).unwrap().error;
    assert_eq!(expected.compare(&results).unwrap().error, 0.0);
    // What an H100 differed by in this case, which is little beside terms of about 0.5.
    assert!(error("gx", &|v| v * (1.0 + 2.8e-4)) <= 1.0);
    assert!(error("gx", &|v| v + 5e-6) > 1.0);
    // Elsewhere nothing cancels.
    for what in ["y", "ggamma", "gbeta"] {
        assert!(error(what, &|v| v * (1.0 + 5e-6)) > 1.0, "{what}");
    }
}

/// The same gradient as a GPU may compute it: multiply-adds that round once or twice, and statistics
/// whose last bit is another.
#[test]
fn other_last_bits_of_statistics_pass() {
    let (room, case) = case("batch_norm2d", "[2, 1, 1, 1] Train");
    for seed in 0..50 {
        let expected = Expected::of(room, &case, DType::F32, seed).unwrap();
        let inputs = case.tensors(&Device::cpu(), DType::F32, seed).unwrap();
        let [x, gamma, _] = [0, 1, 2].map(|i: usize| inputs[i].to_vec::<f32>().unwrap());
        let gy: [f32; 2] = [-127.0 / 128.0, 31.0 / 128.0];
        let moved = |v: f32, by: i32| f32::from_bits((v.to_bits() as i32 + by) as u32);
        for bits in 0..27 {
            let by = |i: i32| bits / 3i32.pow(i as u32) % 3 - 1;
            let fma = |a: f32, b: f32, c: f32| if by(2) == 0 { a * b + c } else { a.mul_add(b, c) };
            let mean = moved((x[0] + x[1]) / 2.0, by(0));
            let [d0, d1] = [x[0] - mean, x[1] - mean];
            let inv_std = moved(1.0 / (fma(d0, d0, d1 * d1) / 2.0 + 1e-5).sqrt(), by(1));
            let (ggamma, gbeta) = (fma(gy[0], d0, gy[1] * d1) * inv_std, gy[0] + gy[1]);
            let a = gamma[0] * inv_std;
            let (b, e) = (-a * inv_std * ggamma * 0.5, -a * gbeta * 0.5);
            let mut results = cpu(&case, seed);
            for (i, d) in [d0, d1].into_iter().enumerate() {
                results = with(&results, "gx", i, |_| f64::from(fma(a, gy[i], fma(b, d, e))));
            }
            let difference = expected.compare(&results).unwrap();
            assert!(difference.error <= 1.0, "{seed} {bits}: {difference:?}");
        }
    }
}

/// Where a sum does not cancel, the yardstick is the result's own last digits, whatever the largest
/// element of its tensor is.
#[test]
fn small_elements_are_not_measured_by_large_ones() {
    for (name, start) in [("linear", "[5, 24]"), ("conv2d", "[2, 5, 6, 4]"), ("log_softmax", "[7, 33]")] {
        let (room, case) = case(name, start);
        let (expected, results) = (Expected::of(room, &case, DType::F32, 3).unwrap(), cpu(&case, 3));
        for (what, tensor) in &results {
            let values = tensor.to_f64().unwrap();
            let largest = values.iter().fold(0f64, |m, v| m.max(v.abs()));
            for at in 0..values.len() {
                let difference = expected.compare(&with(&results, what, at, |v| v + 2e-5 * largest)).unwrap();
                assert!(difference.error > 1.0, "{name} {what}[{at}] of {start}");
            }
        }
    }
}

#[test]
fn numbers_that_are_missing_or_not_finite_differ() {
    let (room, case) = case("relu", "[1]");
    let (expected, results) = (Expected::of(room, &case, DType::F32, 0).unwrap(), cpu(&case, 0));
    for bad in [f64::NAN, f64::INFINITY] {
        assert_eq!(expected.compare(&with(&results, "y", 0, |_| bad)).unwrap().error, f64::INFINITY);
    }
    assert_eq!(expected.compare(&results[..1].to_vec()).unwrap().error, f64::INFINITY);
    assert_eq!(expected.compare(&vec![results[1].clone(), results[0].clone()]).unwrap().what, "gx instead of y");
}
