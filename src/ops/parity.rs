//! Parity: an op on a device against the same op on the CPU.
//!
//! `tilework check` does this on the user's machine, and the tests for every kernel on the emulated
//! device. Both sides get the same numbers; outputs and all gradients are compared, each element's
//! difference against the largest magnitude of its tensor.

use super::Case;
use crate::autograd::Var;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;

/// What an op may differ by, relative to the largest magnitude of the tensor.
///
/// Ops that only move, compare or select numbers, or that round each number once, are exact. The
/// others sum in another order than the CPU: f32 rounds by 6e-8, and sums of up to some ten thousand
/// products of mixed sign stay within a few hundred roundings of each other.
pub fn tolerance(room: &str) -> f64 {
    match room {
        "add" | "dropout" | "flatten" | "relu" => 0.0,
        // Gradients of overlapping windows are sums of a few numbers.
        "max_pool2d" | "adaptive_pool2d" => 1e-6,
        "cross_entropy" | "log_softmax" | "nll" => 5e-6,
        // conv2d, linear, batch_norm2d, and whatever is to come.
        _ => 2e-5,
    }
}

/// Where two tensors differ most.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// `y`, or the gradient of an input: `gx`.
    pub what: String,
    /// The largest difference, relative to the tensor's largest magnitude; infinite where one side
    /// is not finite and the other is not the same.
    pub error: f64,
    /// At this element.
    pub at: usize,
    /// The device's number.
    pub got: f32,
    /// The CPU's number.
    pub want: f32,
}

/// The output of a case and the gradients of its inputs, by name.
///
/// # Errors
/// Whatever the op reports.
pub fn run(case: &Case, device: &Device, seed: u64) -> Result<Vec<(String, Vec<f32>)>> {
    run_with(case, device, seed, &|_, tensor| Ok(tensor))
}

/// The same with each tensor that is handed to the op replaced by what `change` makes of it and its
/// number: the inputs', or after them that of the output's gradient. It has the same numbers, but may
/// lie elsewhere.
///
/// # Errors
/// Whatever the op or `change` reports.
pub fn run_with(
    case: &Case,
    device: &Device,
    seed: u64,
    change: &dyn Fn(usize, Tensor) -> Result<Tensor>,
) -> Result<Vec<(String, Vec<f32>)>> {
    let inputs = case.tensors(device, DType::F32, seed)?;
    let mut cx = Case::ctx(device);
    let vars: Result<Vec<Var>> = inputs.into_iter().enumerate().map(|(i, t)| Ok(cx.leaf(change(i, t)?))).collect();
    let vars = vars?;
    let y = (case.apply)(&vars, &mut cx)?;
    // No two neighbouring gradients alike, so that a swapped index shows.
    let gy: Vec<f32> = (0..y.value().len()).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 0.9).collect();
    let mut all = vec![("y".to_string(), y.value().to_vec::<f32>()?)];
    let gy = change(vars.len(), Tensor::from_slice(device, y.shape(), &gy)?)?;
    let grads = cx.backward(&y, gy, None)?;
    for (var, input) in vars.iter().zip(&case.inputs) {
        if let Some(g) = grads.of(var) {
            all.push((format!("g{}", input.name), g.to_vec::<f32>()?));
        }
    }
    Ok(all)
}

/// Where the device's numbers differ most from the CPU's.
pub fn compare(got: &[(String, Vec<f32>)], want: &[(String, Vec<f32>)]) -> Difference {
    let mut worst = Difference { what: "y".into(), ..Difference::default() };
    for ((what, got), (name, want)) in got.iter().zip(want) {
        let scale = want.iter().filter(|v| v.is_finite()).fold(0f32, |m, v| m.max(v.abs()));
        if what != name || got.len() != want.len() {
            return Difference { what: format!("{what} instead of {name}"), error: f64::INFINITY, ..worst };
        }
        for (at, (&g, &w)) in got.iter().zip(want).enumerate() {
            let same = g == w || (g.is_nan() && w.is_nan());
            let error = match g.is_finite() && w.is_finite() {
                _ if same => 0.0,
                true => f64::from((g - w).abs()) / f64::from(scale),
                false => f64::INFINITY,
            };
            if error > worst.error {
                worst = Difference { what: what.clone(), error, at, got: g, want: w };
            }
        }
    }
    if got.len() != want.len() {
        worst = Difference { what: "the number of gradients".into(), error: f64::INFINITY, ..worst };
    }
    worst
}
