//! The step: all that changes from one training step to the next.
//!
//! Host and device read the same [`Step`]. A kernel takes it from the device's memory and never as an
//! argument, so that a recorded step can be replayed at any other: whoever launches a kernel that
//! reads it says which step is meant ([`Cuda::step`](crate::device::cuda::Cuda::step)).

use crate::rng::Stream;

/// Groups of parameters, each with its own [`Rate`].
pub const GROUPS: usize = 8;

/// How fast the parameters of a group move.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Rate {
    /// Learning rate.
    pub lr: f64,
    /// SGD's momentum, Adam's first beta.
    pub momentum: f64,
    /// Weight decay.
    pub decay: f64,
}

/// Where a run is, and the numbers that change while it goes on.
///
/// ```
/// use tilework::step::{Rate, Step};
/// let step = Step { seed: 7, step: 3, ..Step::default() }.rate(Rate { lr: 0.05, momentum: 0.9, decay: 0.0 });
/// assert_eq!(step.rates[0].lr, 0.05);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Step {
    /// The run's seed.
    pub seed: u64,
    /// The step, counted from 0 over the whole run.
    pub step: u64,
    /// How many steps before this one only added to the gradients and moved no parameter.
    pub held: u64,
    /// Decay of the weights' moving average, for whoever keeps one: it becomes `ema · average + (1 - ema) · weights`.
    pub ema: f64,
    /// The epoch, counted from 0.
    pub epoch: u32,
    /// Where the batch begins in the epoch's order.
    pub batch_offset: u32,
    /// Of a batch that several devices share: the first image that is this device's.
    pub first_image: u32,
    /// Gradients are clipped to ± this value; 0 for no clipping.
    pub clip: f32,
    /// The norm that all gradients together are shrunk to where it is larger; 0 for no clipping.
    pub clip_norm: f32,
    /// What the loss was multiplied by before the backward pass: gradients are divided by it.
    pub loss_scale: f32,
    /// The groups' rates: [`GROUPS`] of them. (A literal: rustc 1.95 stumbles over the constant in closures of other crates.)
    pub rates: [Rate; 8],
}

impl Default for Step {
    fn default() -> Self {
        Step { loss_scale: 1.0, ..bytemuck::Zeroable::zeroed() }
    }
}

impl Step {
    /// With one rate for all groups.
    pub fn rate(self, rate: Rate) -> Self {
        Step { rates: [rate; GROUPS], ..self }
    }

    /// How many times the parameters were moved before this step.
    pub fn updates(&self) -> u64 {
        self.step - self.held
    }

    /// The random numbers that `id` draws at this step.
    pub fn stream(&self, id: u32) -> Stream {
        Stream { seed: self.seed, epoch: self.epoch, step: self.step as u32, id }
    }

    /// The random numbers that `id` draws for the whole epoch.
    pub fn epoch_stream(&self, id: u32) -> Stream {
        Stream { step: 0, ..self.stream(id) }
    }
}
