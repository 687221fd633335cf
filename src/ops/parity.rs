//! Parity: an op on a device against the same op on the CPU.
//!
//! `tilework check` does this on the user's machine, and the tests for every kernel on the emulated
//! device. Both sides get the same numbers; outputs and all gradients are compared element by element.
//!
//! Two ways to add the same terms differ by roundings of the terms, however small their sum is: where
//! it cancels, all digits of the result may differ. So a difference is measured in roundings of the
//! size of an element's terms, not of the element. The size is found without knowing the op: the CPU
//! computes the case some more times, each time with inputs a little elsewhere, so that all rounding
//! errors are drawn anew; the root mean square of what f32 then differs by from f64 is one rounding.
//! (Source: Vignes, "A stochastic arithmetic for reliable scientific computation", 1993.)

use super::Case;
use super::case::Fill;
use crate::autograd::Var;
use crate::device::Device;
use crate::dtype::{DType, with_real};
use crate::error::Result;
use crate::rng::Stream;
use crate::tensor::Tensor;

/// What an op on a device may differ by from the CPU, in roundings of the terms' size.
///
/// Ops that move, compare or select numbers, that round each number once, or that add few numbers in
/// the CPU's order are exact. The others add in another order: the largest of many differences, each
/// of about one rounding.
pub fn tolerance(room: &str) -> f64 {
    match room {
        "add" | "dropout" | "flatten" | "max_pool2d" | "nll" | "relu" => 0.0,
        _ => 16.0,
    }
}

/// Names and numbers: `y`, then the gradient of each input, `gx`.
pub type Results = Vec<(String, Vec<f64>)>;

/// Where two tensors differ most.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// `y`, or the gradient of an input: `gx`.
    pub what: String,
    /// The largest difference, in roundings of the terms' size; infinite where one side is not finite
    /// and the other is not the same.
    pub error: f64,
    /// At this element.
    pub at: usize,
    /// The device's number.
    pub got: f64,
    /// The CPU's number.
    pub want: f64,
}

/// The output of a case and the gradients of its inputs, by name.
///
/// # Errors
/// Whatever the op reports.
pub fn run(case: &Case, device: &Device, dtype: DType, seed: u64) -> Result<Results> {
    run_with(case, device, dtype, seed, &|_, tensor| Ok(tensor))
}

/// The same with each tensor that is handed to the op replaced by what `change` makes of it and its
/// number: the inputs', or after them that of the output's gradient.
///
/// # Errors
/// Whatever the op or `change` reports.
pub fn run_with(
    case: &Case,
    device: &Device,
    dtype: DType,
    seed: u64,
    change: &dyn Fn(usize, Tensor) -> Result<Tensor>,
) -> Result<Results> {
    let inputs = case.tensors(device, dtype, seed)?;
    let mut cx = Case::ctx(device);
    let vars: Result<Vec<Var>> = inputs.into_iter().enumerate().map(|(i, t)| Ok(cx.leaf(change(i, t)?))).collect();
    let vars = vars?;
    let y = (case.apply)(&vars, &mut cx)?;
    let mut all = vec![("y".to_string(), y.value().to_f64()?)];
    // No two neighbouring gradients alike, so that a swapped index shows.
    let gy = |i: usize| (i * 7919 % 1009) as f32 / 504.5 - 0.9;
    let gy = with_real!("parity", dtype, T => {
        let values: Vec<T> = (0..y.value().len()).map(|i| gy(i).into()).collect();
        Tensor::from_slice(device, y.shape(), &values)
    })?;
    let grads = cx.backward(&y, change(vars.len(), gy)?, None)?;
    for (var, input) in vars.iter().zip(&case.inputs) {
        if let Some(g) = grads.of(var) {
            all.push((format!("g{}", input.name), g.to_f64()?));
        }
    }
    Ok(all)
}

/// What the CPU computes for a case.
pub struct Expected {
    values: Results,
    /// For each element, a rounding of the size of its terms.
    roundings: Vec<Vec<f64>>,
}

impl Expected {
    /// How often rounding errors are drawn.
    const DRAWS: u32 = 16;

    /// The CPU's results.
    ///
    /// # Errors
    /// Whatever the op reports.
    pub fn of(case: &Case, seed: u64) -> Result<Self> {
        let cpu = Device::cpu();
        let values = run(case, &cpu, DType::F32, seed)?;
        // The result itself is rounded too.
        let own = |v: &f64| (v * DType::F32.rounding()).powi(2);
        let mut roundings: Vec<Vec<f64>> = values.iter().map(|(_, v)| v.iter().map(own).collect()).collect();
        for draw in 0..Self::DRAWS {
            let run = |dtype| run_with(case, &cpu, dtype, seed, &|i, tensor| elsewhere(case, i, &tensor, draw));
            for ((squares, (_, one)), (_, other)) in roundings.iter_mut().zip(run(DType::F32)?).zip(run(DType::F64)?) {
                let errors = one.iter().zip(&other).map(|(a, b)| (a - b).powi(2) / f64::from(Self::DRAWS));
                squares.iter_mut().zip(errors).for_each(|(sum, e)| *sum += e);
            }
        }
        roundings.iter_mut().flatten().for_each(|sum| *sum = sum.sqrt());
        Ok(Expected { values, roundings })
    }

    /// Where a device's numbers differ most.
    pub fn compare(&self, got: &Results) -> Difference {
        let mut worst = Difference { what: "y".into(), ..Difference::default() };
        if got.len() != self.values.len() {
            return Difference { what: "the number of gradients".into(), error: f64::INFINITY, ..worst };
        }
        for (((what, got), (name, want)), roundings) in got.iter().zip(&self.values).zip(&self.roundings) {
            if what != name || got.len() != want.len() {
                return Difference { what: format!("{what} instead of {name}"), error: f64::INFINITY, ..worst };
            }
            for (at, ((&got, &want), rounding)) in got.iter().zip(want).zip(roundings).enumerate() {
                let error = match got == want || (got.is_nan() && want.is_nan()) {
                    true => 0.0,
                    false if got.is_finite() && want.is_finite() => (got - want).abs() / rounding,
                    false => f64::INFINITY,
                };
                if error > worst.error {
                    worst = Difference { what: what.clone(), error, at, got, want };
                }
            }
        }
        worst
    }
}

/// Input `i`, or the output's gradient, with each number moved by up to 2^-14 of itself.
fn elsewhere(case: &Case, i: usize, tensor: &Tensor, draw: u32) -> Result<Tensor> {
    // Not where the smallest move decides who is the largest.
    let ties = case.inputs.get(i).is_some_and(|input| input.fill == Fill::Ties);
    let stream = Stream { seed: 0, epoch: draw, step: 0, id: i as u32 };
    let by = |i| 1.0 + if ties { 0.0 } else { (2.0 * stream.uniform(i) - 1.0) / 16384.0 };
    // Equal numbers in f32 and f64.
    let moved: Vec<f32> = tensor.to_f64()?.iter().enumerate().map(|(i, &v)| v as f32 * by(i)).collect();
    with_real!("parity", tensor.dtype(), T => {
        Tensor::from_slice(tensor.device(), tensor.shape(), &moved.iter().map(|&v| v.into()).collect::<Vec<T>>())
    })
}
