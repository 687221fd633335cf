//! Cases: the inputs of an op that gradient checks, parity checks and benches share.

use crate::autograd::{Ctx, Var};
use crate::device::Device;
use crate::dtype::{DType, Real, with_real};
use crate::error::Result;
use crate::rng::{Stream, to_unit};
use crate::shape::Shape;
use crate::step::Step;
use crate::tensor::Tensor;

/// An op's room, as tests and benches see it.
pub struct Room {
    /// The stem of its files.
    pub name: &'static str,
    /// Chosen cases: the corners, and the sizes that are timed.
    pub cases: fn() -> Vec<Case>,
    /// A small case drawn at random, for the gradient check.
    pub random_case: fn(&mut Draw) -> Case,
}

/// How an input is filled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Uniform in [-1, 1).
    Uniform,
    /// Uniform with |x| ≥ 0.1: away from ReLU's corner.
    NonZero,
    /// All values at least 0.01 apart: no ties within reach of a finite difference.
    Distinct,
    /// Few different values: ties everywhere.
    Ties,
}

/// An input of a case.
#[derive(Clone, Debug)]
pub struct Input {
    /// `x`, `w`, `b`.
    pub name: &'static str,
    /// Sizes.
    pub shape: Shape,
    /// Contents.
    pub fill: Fill,
}

type Apply = Box<dyn Fn(&[Var], &mut Ctx<'_>) -> Result<Var> + Send + Sync>;

/// One call of an op: its inputs and how to make the call.
pub struct Case {
    /// What sets it apart, as text: part of a bench's id.
    pub name: String,
    /// The differentiable inputs.
    pub inputs: Vec<Input>,
    /// The call.
    pub apply: Apply,
    /// Floating-point operations of the forward pass; 0 for ops that only move data.
    pub flops: f64,
    /// Whether it is large enough to be timed; the others only check.
    pub bench: bool,
    /// Whether finite differences apply (no ties, no corner in reach).
    pub smooth: bool,
}

impl Case {
    /// The step that cases run at: not the first, and with a seed that fills its 64 bits.
    pub fn step() -> Step {
        Step { seed: 0x0123_4567_89AB_CDEF, epoch: 1, step: 7, ..Step::default() }
    }

    /// A case for checks.
    pub fn new(
        name: impl Into<String>,
        apply: impl Fn(&[Var], &mut Ctx<'_>) -> Result<Var> + Send + Sync + 'static,
    ) -> Self {
        Case { name: name.into(), inputs: Vec::new(), apply: Box::new(apply), flops: 0.0, bench: false, smooth: true }
    }

    /// With another input.
    pub fn input(mut self, name: &'static str, shape: impl Into<Shape>, fill: Fill) -> Self {
        self.smooth &= fill != Fill::Ties;
        self.inputs.push(Input { name, shape: shape.into(), fill });
        self
    }

    /// With the number of floating-point operations of the forward pass.
    pub fn flops(mut self, flops: usize) -> Self {
        self.flops = flops as f64;
        self
    }

    /// Also timed.
    pub fn timed(mut self) -> Self {
        self.bench = true;
        self
    }

    /// The inputs' numbers; equal bits on every device.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] for a dtype that is not `f32` or `f64`.
    pub fn tensors(&self, device: &Device, dtype: DType, seed: u64) -> Result<Vec<Tensor>> {
        self.inputs
            .iter()
            .enumerate()
            .map(|(i, input)| {
                let s = Stream { seed, epoch: 0, step: 0, id: i as u32 };
                with_real!("Case::tensors", dtype, T => {
                    let mut values = vec![T::default(); input.shape.len()];
                    fill(&mut values, input.fill, s);
                    Tensor::from_slice(device, input.shape, &values)
                })
            })
            .collect()
    }

    /// The context that a case runs in: training, at a step that is not the first.
    pub fn ctx<'p>(device: &Device) -> Ctx<'p> {
        Ctx::train(device).at(Case::step())
    }
}

fn fill<T: Real>(out: &mut [T], fill: Fill, s: Stream) {
    match fill {
        Fill::Uniform => out.iter_mut().enumerate().for_each(|(i, x)| *x = T::of(2.0 * f64::from(s.uniform(i)) - 1.0)),
        Fill::NonZero => out.iter_mut().enumerate().for_each(|(i, x)| {
            let u = 2.0 * f64::from(s.uniform(i)) - 1.0;
            *x = T::of(u + 0.1f64.copysign(u));
        }),
        Fill::Ties => out.iter_mut().enumerate().for_each(|(i, x)| *x = T::of(f64::from(s.below(i, 4)) - 2.0)),
        Fill::Distinct => {
            let order = s.permutation(out.len());
            let middle = out.len() as f64 / 2.0;
            out.iter_mut().zip(order).for_each(|(x, rank)| *x = T::of((f64::from(rank) - middle) * 0.01));
        }
    }
}

/// Draws the sizes of random cases.
pub struct Draw {
    stream: Stream,
    next: usize,
}

impl Draw {
    /// The draws of one case.
    pub fn new(seed: u64) -> Self {
        Draw { stream: Stream { seed, epoch: 0, step: 0, id: 0xCA5E }, next: 0 }
    }

    /// A whole number in `low..=high`.
    pub fn int(&mut self, low: usize, high: usize) -> usize {
        self.next += 1;
        low + self.stream.below(self.next, (high - low + 1) as u32) as usize
    }

    /// True half of the time.
    pub fn flip(&mut self) -> bool {
        self.int(0, 1) == 1
    }

    /// A number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        self.next += 1;
        f64::from(to_unit(self.stream.word(self.next)))
    }

    /// Labels for a batch.
    pub fn labels(&mut self, n: usize, classes: usize) -> Vec<i32> {
        (0..n).map(|_| self.int(0, classes - 1) as i32).collect()
    }
}
