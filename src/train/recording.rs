//! Steps recorded on a CUDA device, to be replayed.

use crate::device::cuda::Captured;
use crate::params::Recorded;
use crate::step::Step;

/// What makes a step another one than the step before: each form is recorded by itself. All else that may change from
/// step to step is in the device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    /// Whether it adds to gradients that are there.
    pub(super) adds: bool,
    /// Whether it moves the parameters.
    pub(super) moves: bool,
    /// Whether the gradients' norm is clipped.
    pub(super) clips_norm: bool,
    /// How often the parameters had been configured: which are frozen, and the group of each.
    pub(super) configured: u64,
}

impl Form {
    /// Of a step on parameters that have been configured so often.
    pub(super) fn new(step: &Step, adds: bool, moves: bool, configured: u64) -> Self {
        Form { adds, moves, clips_norm: moves && step.clip_norm > 0.0, configured }
    }
}

/// A form's recording.
pub(super) struct Recording {
    form: Form,
    /// Steps of a whole batch that ran launch by launch, since the last recording that failed, if one did.
    pub(super) warm: u32,
    /// Recordings for which there was no memory.
    pub(super) failed: u32,
    /// The step, and what its backward pass takes for granted.
    pub(super) step: Option<(Captured, Recorded)>,
}

/// The recordings that are worth keeping.
#[derive(Default)]
pub(super) struct Recordings {
    pub(super) enabled: bool,
    list: Vec<Recording>,
}

impl Recordings {
    pub(super) fn new(enabled: bool) -> Self {
        Recordings { enabled, list: Vec::new() }
    }

    /// Gives the memory of all recorded steps back, which are recorded anew; whether there were any.
    pub(super) fn free(&mut self) -> bool {
        let mut any = false;
        for recording in &mut self.list {
            any |= recording.step.take().is_some();
            recording.warm = 0;
        }
        any
    }

    /// The recording of a form, empty if it is new. What was recorded before the parameters were configured anew is gone.
    pub(super) fn of(&mut self, form: Form) -> &mut Recording {
        self.list.retain(|r| r.form.configured == form.configured);
        let at = self.list.iter().position(|r| r.form == form).unwrap_or(self.list.len());
        if at == self.list.len() {
            self.list.push(Recording { form, warm: 0, failed: 0, step: None });
        }
        &mut self.list[at]
    }
}
