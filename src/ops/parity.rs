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

use super::case::Fill;
use super::{Case, Room};
use crate::autograd::Var;
use crate::device::Device;
use crate::dtype::{DType, Float};
use crate::error::Result;
use crate::rng::{Stream, to_unit};
use crate::tensor::Tensor;

/// What an op on a device may differ by from the CPU, with results of a type, in roundings of the
/// terms' size to that type.
///
/// Ops that move, compare or select numbers, that round each number once, or that add few numbers in
/// the CPU's order are exact. The others add in another order: the largest of many differences, each
/// of about one rounding. Where results have two bytes, sums still have four, and little is rounded to
/// two but the result.
fn tolerance(room: &str, dtype: DType) -> f64 {
    match (room, dtype) {
        ("add" | "avg_pool2d" | "dropout" | "flatten" | "max_pool2d" | "nll" | "relu", _) => 0.0,
        (_, DType::F16 | DType::BF16) => 4.0,
        _ => 16.0,
    }
}

/// Names and numbers: `y`, then the gradient of each input, `gx`.
pub type Results = Vec<(String, Tensor)>;

/// Where two tensors differ most.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// `y`, or the gradient of an input: `gx`.
    pub what: String,
    /// The largest difference against the tolerance: 1 is just allowed. Infinite where nothing is
    /// allowed, or one side is not finite and the other is not the same.
    pub error: f64,
    /// The same difference, in roundings of the terms' size.
    pub roundings: f64,
    /// As many as are allowed for the result's own type: gradients of weights are of f32 where activations have two bytes.
    pub allowed: f64,
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
    let inputs = case.tensors(device, dtype, seed)?.into_iter().enumerate().map(|(i, t)| change(i, t));
    run_on(case, device, inputs.collect::<Result<_>>()?, &|gy| change(case.inputs.len(), gy))
}

/// The output and the gradients for these inputs, and for what `change` makes of the output's gradient.
fn run_on(
    case: &Case,
    device: &Device,
    inputs: Vec<Tensor>,
    change: &dyn Fn(Tensor) -> Result<Tensor>,
) -> Result<Results> {
    let mut cx = Case::ctx(device);
    let vars: Vec<Var> = inputs.into_iter().map(|t| cx.leaf(t)).collect();
    let y = (case.apply)(&vars, &mut cx)?;
    let mut all = vec![("y".to_string(), y.value().clone())];
    // No two neighbouring gradients alike, so that a swapped index shows; all are numbers of every type.
    let gy: Vec<f32> = (0..y.value().len()).map(|i| (i * 158 % 254) as f32 / 128.0 - 127.0 / 128.0).collect();
    let gy = Tensor::from_slice(device, y.shape(), &gy)?.to_dtype(y.value().dtype())?;
    let grads = cx.backward(&y, change(gy)?, None)?;
    for (var, input) in vars.iter().zip(&case.inputs) {
        if let Some(g) = grads.of(var) {
            all.push((format!("g{}", input.name), g.clone()));
        }
    }
    Ok(all)
}

/// The size of the terms that the results of a case are sums of. It is the same for all types.
pub struct Terms<'c> {
    room: &'static str,
    /// The case.
    pub case: &'c Case,
    seed: u64,
    /// For each result and element, the root mean square of what f32 differed by from f64, in roundings of 1. It is not known, and
    /// NaN, where every result was 0, as behind a ReLU.
    errors: Vec<Vec<f32>>,
}

/// What the CPU computes for a case, for activations of one type.
pub struct Expected {
    room: &'static str,
    /// In f32, from inputs that were rounded.
    values: Vec<(String, Vec<f64>)>,
    /// For each element, the size of its terms.
    sizes: Vec<Vec<f64>>,
}

/// Names and numbers in f64.
fn numbers(results: Results) -> Result<Vec<(String, Vec<f64>)>> {
    results.into_iter().map(|(name, tensor)| Ok((name, tensor.to_f64()?))).collect()
}

impl<'c> Terms<'c> {
    /// How often rounding errors are drawn.
    const DRAWS: u32 = 16;

    /// Computes the case again and again on the CPU.
    ///
    /// # Errors
    /// Whatever the op reports.
    pub fn of(room: &Room, case: &'c Case, seed: u64) -> Result<Self> {
        let cpu = Device::cpu();
        let inputs = case.tensors(&cpu, DType::F32, seed)?;
        let mut squares: Vec<Vec<f64>> = Vec::new();
        for draw in 0..Self::DRAWS {
            let moved = inputs.iter().enumerate().map(|(i, tensor)| elsewhere(case, i, tensor, draw));
            let moved: Vec<Tensor> = moved.collect::<Result<_>>()?;
            let run = |dtype| {
                let inputs = moved.iter().map(|t| t.to_dtype(dtype)).collect::<Result<_>>()?;
                numbers(run_on(case, &cpu, inputs, &|gy| elsewhere(case, moved.len(), &gy, draw)?.to_dtype(dtype))?)
            };
            let (ones, others) = (run(DType::F32)?, run(DType::F64)?);
            if squares.is_empty() {
                squares = ones.iter().map(|(_, v)| vec![f64::NAN; v.len()]).collect();
            }
            for ((squares, (_, one)), (_, other)) in squares.iter_mut().zip(ones).zip(others) {
                for ((sum, a), b) in squares.iter_mut().zip(one).zip(other).filter(|((_, a), b)| *a != 0.0 || *b != 0.0)
                {
                    *sum = if sum.is_nan() { 0.0 } else { *sum } + (a - b).powi(2);
                }
            }
        }
        let error = |sum: f64| ((sum / f64::from(Self::DRAWS)).sqrt() / DType::F32.rounding(1.0)) as f32;
        let errors = squares.into_iter().map(|all| all.into_iter().map(error).collect());
        Ok(Terms { room: room.name, case, seed, errors: errors.collect() })
    }

    /// Where a device's results for activations of a type differ most from the CPU's.
    ///
    /// # Errors
    /// Whatever the op reports, and [`crate::Error::Device`] if the device fails.
    pub fn check(&self, device: &Device, dtype: DType) -> Result<Difference> {
        self.expected(dtype)?.compare(&run(self.case, device, dtype, self.seed)?)
    }

    /// The CPU's results for activations of a type.
    ///
    /// # Errors
    /// Whatever the op reports.
    pub fn expected(&self, dtype: DType) -> Result<Expected> {
        let case = self.case;
        let values = numbers(run_with(case, &Device::cpu(), DType::F32, self.seed, &|i, tensor| {
            let rounded = case.inputs.get(i).is_some_and(|input| !input.param);
            if rounded { tensor.to_dtype(dtype)?.to_dtype(DType::F32) } else { Ok(tensor) }
        })?)?;
        let sizes = self.errors.iter().zip(&values).map(|(errors, (_, values))| {
            let largest = errors.iter().copied().fold(0.0, f32::max);
            // What is not 0 from inputs that were rounded has terms like the others.
            let error = |e: f32, v: f64| if e.is_nan() { if v == 0.0 { 0.0 } else { largest } } else { e };
            // The result itself is rounded too.
            let size = |(e, v): (&f32, &f64)| f64::from(error(*e, *v)) + v.abs();
            errors.iter().zip(values).map(size).collect()
        });
        Ok(Expected { room: self.room, sizes: sizes.collect(), values })
    }
}

impl Expected {
    /// The CPU's results for one type alone.
    ///
    /// # Errors
    /// Whatever the op reports.
    pub fn of(room: &Room, case: &Case, dtype: DType, seed: u64) -> Result<Self> {
        Terms::of(room, case, seed)?.expected(dtype)
    }

    /// Where a device's numbers differ most.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    pub fn compare(&self, got: &Results) -> Result<Difference> {
        let allowed = got.first().map_or(0.0, |(_, y)| tolerance(self.room, y.dtype()));
        let mut worst = Difference { what: "y".into(), allowed, ..Difference::default() };
        if got.len() != self.values.len() {
            return Ok(Difference { what: "the number of gradients".into(), error: f64::INFINITY, ..worst });
        }
        for (((what, got), (name, want)), sizes) in got.iter().zip(&self.values).zip(&self.sizes) {
            if what != name || got.len() != want.len() {
                return Ok(Difference { what: format!("{what} instead of {name}"), error: f64::INFINITY, ..worst });
            }
            let dtype = got.dtype();
            let allowed = tolerance(self.room, dtype);
            for (at, ((got, &want), &size)) in got.to_f64()?.into_iter().zip(want).zip(sizes).enumerate() {
                let want = round(want, dtype);
                let roundings = match got == want || (got.is_nan() && want.is_nan()) {
                    true => continue,
                    false if got.is_finite() && want.is_finite() => (got - want).abs() / dtype.rounding(size),
                    false => f64::INFINITY,
                };
                if roundings / allowed > worst.error {
                    let error = roundings / allowed;
                    worst = Difference { what: what.clone(), error, roundings, allowed, at, got, want };
                }
            }
        }
        Ok(worst)
    }
}

/// The nearest number of a type.
fn round(v: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F16 => half::f16::of(v).f64(),
        DType::BF16 => half::bf16::of(v).f64(),
        _ => v,
    }
}

/// Input `i`, or the output's gradient, in f32 with each number moved by up to 2^-14 of itself.
fn elsewhere(case: &Case, i: usize, tensor: &Tensor, draw: u32) -> Result<Tensor> {
    // Not where the smallest move decides who is the largest.
    let ties = case.inputs.get(i).is_some_and(|input| input.fill == Fill::Ties);
    let mut values = tensor.to_dtype(DType::F32)?.to_vec::<f32>()?;
    if !ties {
        let mut words = vec![0; values.len()];
        Stream { seed: 0, epoch: draw, step: 0, id: i as u32 }.fill(0, &mut words);
        let by = |word| 1.0 + (2.0 * to_unit(word) - 1.0) / 16384.0;
        values.iter_mut().zip(words).for_each(|(v, word)| *v *= by(word));
    }
    Tensor::from_slice(tensor.device(), tensor.shape(), &values)
}
