//! The gradient check: backward passes against central finite differences, in f64 on the CPU.

use super::Case;
use crate::autograd::{Ctx, Mode, Var};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::fmt;

/// Where a backward pass is furthest from the finite difference.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mismatch {
    /// The input's number.
    pub input: usize,
    /// The element of the input.
    pub at: usize,
    /// Its gradient by the backward pass.
    pub backward: f64,
    /// The same by finite differences.
    pub numeric: f64,
    /// How far apart they are, relative to the larger of them and 1. A right gradient stays below 1e-5.
    pub error: f64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { input, at, backward, numeric, error } = self;
        write!(f, "input {input}[{at}]: backward gives {backward}, finite differences {numeric}: {error:.1e} apart")
    }
}

/// Steps of the differences.
const EPS: f64 = 1e-6;
/// Elements of an input that are checked, at most; they are spread over the whole of it.
const PROBES: usize = 40;

/// Checks the gradient of `op` at these inputs of f64, on the CPU, and gives the worst of it. The function whose gradient
/// is taken is the sum of the op's outputs, each times a fixed number. Keep away from corners and ties.
///
/// ```
/// use tilework::{Device, Tensor, ops::gradcheck};
/// let x = Tensor::from_slice(&Device::cpu(), [2, 2], &[-1.5f64, 0.3, 2.0, -0.2])?;
/// let worst = gradcheck(&[x], |v, cx| v[0].relu(cx))?;
/// assert!(worst.error < 1e-5, "{worst}");
/// # Ok::<(), tilework::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] for an input that is not f64, or a gradient of another shape than its input, or none; whatever the
/// op reports.
pub fn gradcheck(inputs: &[Tensor], op: impl Fn(&[Var], &mut Ctx<'_>) -> Result<Var>) -> Result<Mismatch> {
    let device = Device::cpu();
    let inputs = inputs.iter().map(|t| t.to_device(&device)).collect::<Result<Vec<_>>>()?;
    let outputs = |inputs: &[Tensor]| {
        let vars: Vec<Var> = inputs.iter().cloned().map(Var::constant).collect();
        op(&vars, &mut Case::ctx(&device).with_mode(Mode::Train))?.value().to_vec::<f64>()
    };
    let mut cx = Case::ctx(&device);
    let vars: Vec<Var> = inputs.iter().map(|t| cx.leaf(t.clone())).collect();
    let y = op(&vars, &mut cx)?;
    let weights: Vec<f64> = (0..y.value().len()).map(|i| ((i * 7919 + 13) % 97) as f64 / 48.5 - 0.9).collect();
    let grads = cx.backward(&y, Tensor::from_slice(&device, y.shape(), &weights)?, None)?;
    let mut worst = Mismatch::default();
    for (input, var) in vars.iter().enumerate() {
        let (shape, x) = (var.shape(), var.value().to_vec::<f64>()?);
        let g = grads.of(var).filter(|g| g.shape() == shape).ok_or_else(|| {
            let got = grads.of(var).map_or("none".into(), |g| g.shape().to_string());
            Error::shape("gradcheck", format!("a gradient {shape} of input {input}"), got, "see the op's backward pass")
        })?;
        let g = g.to_vec::<f64>()?;
        for at in (0..x.len()).step_by(x.len().div_ceil(PROBES).max(1)) {
            let moved = |delta: f64| {
                let (mut x, mut inputs) = (x.clone(), inputs.clone());
                x[at] += delta;
                inputs[input] = Tensor::from_slice(&device, shape, &x)?;
                outputs(&inputs)
            };
            // Differences first, sums then: the sums of a large output would lose the digits that matter.
            let (above, below) = (moved(EPS)?, moved(-EPS)?);
            let sum: f64 = above.iter().zip(&below).zip(&weights).map(|((a, b), w)| (a - b) * w).sum();
            let (numeric, backward) = (sum / (2.0 * EPS), g[at]);
            let error = (numeric - backward).abs() / numeric.abs().max(backward.abs()).max(1.0);
            // What is not a number is as far apart as can be.
            let error = if error.is_nan() { f64::INFINITY } else { error };
            if error >= worst.error {
                worst = Mismatch { input, at, backward, numeric, error };
            }
        }
    }
    Ok(worst)
}
