//! Cases: the inputs of an op that gradient checks, parity checks and benches share.

use crate::autograd::{Ctx, Var};
use crate::device::Device;
use crate::dtype::{DType, Float, with_float};
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
    /// Whether it is a parameter, which is kept in f32 whatever type activations have.
    pub param: bool,
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
    /// Whether two bytes hold its numbers well enough.
    pub half: bool,
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
        let (name, inputs, apply) = (name.into(), Vec::new(), Box::new(apply));
        Case { name, inputs, apply, flops: 0.0, bench: false, smooth: true, half: true }
    }

    /// With another input.
    pub fn input(mut self, name: &'static str, shape: impl Into<Shape>, fill: Fill) -> Self {
        self.smooth &= fill != Fill::Ties;
        self.inputs.push(Input { name, shape: shape.into(), fill, param: false });
        self
    }

    /// With another input that is a parameter.
    pub fn param(mut self, name: &'static str, shape: impl Into<Shape>, fill: Fill) -> Self {
        self.inputs.push(Input { name, shape: shape.into(), fill, param: true });
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

    /// The inputs' numbers, with activations of type `dtype`; equal bits on every device.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] for a dtype that is not floating point.
    pub fn tensors(&self, device: &Device, dtype: DType, seed: u64) -> Result<Vec<Tensor>> {
        let tensor = |(i, input): (usize, &Input)| {
            let s = Stream { seed, epoch: 0, step: 0, id: i as u32 };
            with_float!("Case::tensors", if input.param { dtype.sums() } else { dtype }, T => {
                Tensor::from_slice(device, input.shape, &fill::<T>(input.shape.len(), input.fill, s))
            })
        };
        self.inputs.iter().enumerate().map(tensor).collect()
    }

    /// The context that a case runs in: training, at a step that is not the first.
    pub fn ctx<'p>(device: &Device) -> Ctx<'p> {
        Ctx::train(device).at(Case::step())
    }
}

fn fill<T: Float>(n: usize, fill: Fill, s: Stream) -> Vec<T> {
    let order = if fill == Fill::Distinct { s.permutation(n) } else { Vec::new() };
    let uniform = |i| 2.0 * f64::from(s.uniform(i)) - 1.0;
    let number = |i| match fill {
        Fill::Uniform => uniform(i),
        Fill::NonZero => uniform(i) + 0.1f64.copysign(uniform(i)),
        Fill::Ties => f64::from(s.below(i, 4)) - 2.0,
        Fill::Distinct => (f64::from(order[i]) - n as f64 / 2.0) * 0.01,
    };
    (0..n).map(|i| T::of(number(i))).collect()
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
