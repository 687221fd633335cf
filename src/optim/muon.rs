//! Muon: momentum, then every direction of a matrix as far as every other.
//!
//! A parameter `[out, …]` is a matrix of `out` rows. Each step:
//!
//! 1. `v = momentum·v + g; u = g + momentum·v` (Nesterov's momentum, the gradient unscaled and clipped as for others);
//! 2. `X = u / (‖u‖ + 1e-7)`, then a few times `A = X·Xᵀ; X = (3.4445·I - 4.7750·A + 2.0315·A²)·X`: Newton and Schulz's
//!    iteration, which brings the singular values of X near 1 and leaves its singular vectors (for a matrix with more
//!    rows than columns `A = Xᵀ·X`, from the other side, which is the same);
//! 3. where weights are normalised `p *= sqrt(out) / ‖p‖`;
//! 4. `p = (1 - lr·decay)·p - lr·X`.
//!
//! The iteration computes in the precision of activations, on tensor cores if that has two bytes; all else is in f32.
//! Parameters that are not marked as matrices are another optimizer's.
//!
//! Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.

use super::{Optimizer, gradient_scale, norm_for_clipping, used, zeros_like};
use crate::device::cuda::{BLOCK, Cuda, Launch, with_kernel_type};
use crate::device::{Buffer, Device};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::muon::*;
use crate::ops::linear::{Factors, matrix_product};
use crate::params::{Moved, Param, ParamGrads, Params, Scaling};
use crate::step::{GROUPS, Rate};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// The coefficients of I, A and A²: they make small singular values grow fast, and end between 0.7 and 1.2.
const COEFFICIENTS: [f32; 3] = [3.4445, -4.7750, 2.0315];

/// Blocks that add up the squares of a matrix, at most.
const BLOCKS: usize = 512;

/// Lines of work beside each other in a recorded step.
const LINES: usize = 8;

/// Added to a norm.
const NOTHING: f32 = 1e-7;

/// How Muon moves the matrices of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MuonSpec {
    /// Newton-Schulz iterations.
    pub steps: u32,
    /// Whether a matrix of `out` rows is brought to the norm `sqrt(out)` before each update.
    pub normalise: bool,
}

impl Default for MuonSpec {
    /// As PyTorch's: five iterations, and weights as they are.
    fn default() -> Self {
        MuonSpec { steps: 5, normalise: false }
    }
}

impl MuonSpec {
    /// Checks the constants; `key` is for the error.
    ///
    /// # Errors
    /// [`Error::Config`] for a number of iterations that makes no sense.
    pub fn check(&self, key: &str) -> Result<()> {
        match self.steps {
            1..=20 => Ok(()),
            n => Err(Error::config(format!("{key}.steps"), format!("{n} iterations"), "use 1 to 20; 5 is usual")),
        }
    }
}

/// Muon for the parameters that are marked [`by_matrix`](Param::by_matrix), another optimizer for the others.
pub struct Muon {
    others: Box<dyn Optimizer>,
    /// By group.
    specs: [MuonSpec; GROUPS],
    velocity: Buffer,
}

impl Muon {
    /// With its velocity at zero. `specs` are those of the groups, in their order; a group beyond them has the default.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(params: &Params, others: Box<dyn Optimizer>, specs: &[MuonSpec]) -> Result<Self> {
        let specs = std::array::from_fn(|i| specs.get(i).copied().unwrap_or_default());
        Ok(Muon { others, specs, velocity: zeros_like(params)? })
    }
}

impl Optimizer for Muon {
    fn step(&mut self, params: &mut Params, grads: &ParamGrads) -> Result<()> {
        self.others.step(params, grads)?;
        let matrices: Vec<Param> = params.list().iter().filter(|p| p.trainable && p.by_matrix).cloned().collect();
        match params.values().device().clone() {
            Device::Cpu(_) => {
                let scale = gradient_scale(grads)?;
                matrices.iter().try_for_each(|p| self.step_cpu(p, params, grads, scale))
            }
            Device::Cuda(cuda) => {
                let norm = norm_for_clipping(&cuda, grads)?;
                // No matrix waits for another.
                for (line, p) in matrices.iter().enumerate() {
                    cuda.beside(line % LINES, || self.step_cuda(&cuda, p, params, grads, norm.as_ref()))?;
                }
                cuda.join()
            }
        }
    }

    fn state(&mut self) -> Vec<(&'static str, &mut Buffer)> {
        let mut state = self.others.state();
        state.push(("muon", &mut self.velocity));
        state
    }
}

impl Muon {
    fn step_cpu(&mut self, p: &Param, params: &mut Params, grads: &ParamGrads, scale: f32) -> Result<()> {
        let ([rows, columns], step, range) = (sizes(p)?, grads.step(), p.range());
        let (Rate { lr, momentum, decay }, spec) = (step.rates[usize::from(p.group)], self.specs[usize::from(p.group)]);
        let (g, momentum) = (&grads.buffer().host::<f32>()?[range.clone()], momentum as f32);
        let mut u = Tensor::empty(grads.buffer().device(), DType::F32, [rows, columns])?;
        let numbers = u.host_mut::<f32>()?;
        for ((u, v), &g) in numbers.iter_mut().zip(&mut self.velocity.host_mut::<f32>()?[range.clone()]).zip(g) {
            let g = used(g, scale, step.clip);
            *v = momentum * *v + g;
            *u = g + momentum * *v;
        }
        let inverse = 1.0 / (norm(numbers) + NOTHING);
        numbers.iter_mut().for_each(|u| *u *= inverse);
        let x = orthogonalise(u, spec.steps)?;
        let weights = &mut params.values_mut()?.host_mut::<f32>()?[range];
        let length = match norm(weights) {
            n if spec.normalise && n > 0.0 => (rows as f32).sqrt() / n,
            _ => 1.0,
        };
        let (keep, lr) = (length * (1.0 - lr as f32 * decay as f32), lr as f32);
        weights.iter_mut().zip(x.host::<f32>()?).for_each(|(p, x)| *p = *p * keep - lr * x);
        Ok(())
    }

    fn step_cuda(
        &mut self,
        cuda: &Cuda,
        p: &Param,
        params: &mut Params,
        grads: &ParamGrads,
        clipped: Option<&Buffer>,
    ) -> Result<()> {
        let ([rows, columns], step, range, n) = (sizes(p)?, grads.step(), p.range(), p.shape.len());
        let blocks = n.div_ceil(BLOCK as usize).min(BLOCKS);
        let (spec, launch) = (self.specs[usize::from(p.group)], Launch::new(blocks, BLOCK));
        let root = if spec.normalise { (rows as f32).sqrt() } else { 0.0 };
        let d = MuonDims { n: n as i32, group: p.group.into(), blocks: blocks as i32, root };
        let mut u = Tensor::empty(grads.buffer().device(), DType::F32, [rows, columns])?;
        let clipped = clipped.map(|b| b.input(0..1)).transpose()?;
        let mut squares = Tensor::empty(u.device(), DType::F32, [2, blocks])?;
        let (g, v) = (grads.buffer().input(range.clone())?, self.velocity.output(range.clone())?);
        let (old, to, sums) = (params.values().input(range.clone())?, u.output()?, squares.output()?);
        let scaling = grads.scaling().map(Scaling::input).transpose()?;
        muon_momentum(cuda, launch, g, old, v, to, sums, clipped, scaling, cuda.step(step)?, &d)?;
        let dtype = params.update()?.dtype();
        let mut x = Tensor::empty(u.device(), dtype, [rows, columns])?;
        let unit = UnitDims { n: n as i32, blocks: blocks as i32, nothing: NOTHING };
        with_kernel_type!("muon", dtype, T => {
            muon_unit::<T>(cuda, launch, u.input()?, x.output()?, squares.input()?, &unit)
        })?;
        let x = orthogonalise(x, spec.steps)?;
        let mut update = params.update()?;
        with_kernel_type!("muon", dtype, T => {
            let Moved { p, copy, .. } = update.part(range)?;
            muon_step::<T>(cuda, launch, x.input()?, p, copy, squares.input()?, scaling, cuda.step(step)?, &d)
        })
    }
}

/// Rows and columns of a parameter as a matrix.
fn sizes(p: &Param) -> Result<[usize; 2]> {
    match p.shape.dims() {
        [rows, rest @ ..] if !rest.is_empty() => Ok([*rows, rest.iter().product()]),
        _ => Err(Error::Internal(format!("{} is to move as a matrix and is {}", p.key, p.shape))),
    }
}

fn norm(values: &[f32]) -> f32 {
    values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt() as f32
}

/// Newton and Schulz's iteration on a matrix whose norm is at most 1.
fn orthogonalise(mut x: Tensor, steps: u32) -> Result<Tensor> {
    let [rows, columns] = x.shape().rank2().unwrap_or_default();
    for _ in 0..steps {
        let wide = rows <= columns;
        let gram = matrix_product(if wide { Factors::SecondTransposed } else { Factors::FirstTransposed }, &x, &x)?;
        // It is its own transpose.
        let mut square = matrix_product(Factors::SecondTransposed, &gram, &gram)?;
        polynomial(COEFFICIENTS, &gram, &mut square)?;
        x = match wide {
            true => matrix_product(Factors::AsTheyAre, &square, &x)?,
            false => matrix_product(Factors::AsTheyAre, &x, &square)?,
        };
    }
    Ok(x)
}

/// `y = a·I + b·x + c·y`, square matrices.
fn polynomial([a, b, c]: [f32; 3], x: &Tensor, y: &mut Tensor) -> Result<()> {
    let columns = y.shape().last();
    match y.device().clone() {
        Device::Cpu(_) => {
            let x = x.host::<f32>()?;
            let y = y.host_mut::<f32>()?;
            y.iter_mut().zip(x).for_each(|(y, x)| *y = b * x + c * *y);
            y.iter_mut().step_by(columns + 1).for_each(|y| *y += a);
            Ok(())
        }
        Device::Cuda(cuda) => {
            let (launch, n) = (Launch::each(y.len()), y.len() as i32);
            let d = PolynomialDims { n, columns: columns as i32, a, b, c };
            with_kernel_type!("muon", y.dtype(), T => muon_polynomial::<T>(&cuda, launch, x.input()?, y.output()?, &d))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn singular_values_come_near_one() {
        let s = Stream { seed: 4, epoch: 0, step: 0, id: 1 };
        for [rows, columns] in [[3, 3], [4, 40], [40, 4], [1, 7], [7, 1]] {
            let mut x: Vec<f32> = (0..rows * columns).map(|i| 2.0 * s.uniform(i) - 1.0).collect();
            let n = norm(&x);
            x.iter_mut().for_each(|x| *x /= n);
            let x = Tensor::from_slice(&Device::cpu(), [rows, columns], &x).unwrap();
            let y = orthogonalise(x.clone(), 5).unwrap();
            let least = rows.min(columns);
            let form = if rows <= columns { Factors::SecondTransposed } else { Factors::FirstTransposed };
            let gram = matrix_product(form, &y, &y).unwrap();
            // The sum of the squares of the singular values.
            let trace: f32 = gram.to_vec::<f32>().unwrap().iter().step_by(least + 1).sum();
            assert!((0.4 * least as f32..1.5 * least as f32).contains(&trace), "{rows}x{columns}: {trace}");
        }
    }

    #[test]
    fn a_matrix_and_its_transpose_move_alike() {
        let x: Vec<f32> = (0..24).map(|i| ((i * 7 % 24) as f32 - 11.5) / 40.0).collect();
        let t: Vec<f32> = (0..24).map(|i| x[i % 4 * 6 + i / 4]).collect();
        let of = |v: &[f32], shape: [usize; 2]| {
            let x = Tensor::from_slice(&Device::cpu(), shape, v).unwrap();
            orthogonalise(x, 3).unwrap().to_vec::<f32>().unwrap()
        };
        let (wide, tall) = (of(&x, [4, 6]), of(&t, [6, 4]));
        assert!((0..24).all(|i| (tall[i] - wide[i % 4 * 6 + i / 4]).abs() < 1e-5));
    }
}
