//! What a training run tells its observers.

use super::evaluate::Evaluation;
use super::watch::Took;
use crate::data::Split;
use crate::error::Result;
use std::path::Path;
use std::time::Duration;

/// One optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The step, counted from 1 over the whole run.
    pub step: u64,
    /// The epoch, counted from 1.
    pub epoch: u32,
    /// The step within its epoch, counted from 1.
    pub batch: usize,
    /// Steps in an epoch.
    pub batches: usize,
    /// Images in the mini-batch.
    pub images: usize,
    /// The learning rate of the step.
    pub lr: f64,
    /// The mini-batch's mean loss.
    pub loss: f64,
    /// Images of the mini-batch classified right, before the update.
    pub correct: usize,
}

/// One pass over the training data (or the part of it before `--max-steps`).
#[derive(Clone, Debug, PartialEq)]
pub struct EpochReport {
    /// The epoch, counted from 1.
    pub epoch: u32,
    /// Mean loss over the epoch's images, each measured before its update.
    pub train_loss: f64,
    /// Share of the epoch's images classified right, each before its update.
    pub train_accuracy: f64,
    /// What `held_out` is: the validation set where there is one, else the test set.
    pub split: Split,
    /// Its loss and accuracy after the epoch.
    pub held_out: Evaluation,
    /// The learning rate of the epoch's last step.
    pub lr: f64,
    /// Seconds of training; evaluation, saving and the loading of kernels do not count.
    pub seconds: f64,
    /// Training images per second.
    pub images_per_second: f64,
}

/// Where the time of a process that trains has gone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Making the first layer's weights from the images, where the network asks for that.
    pub whitening: Duration,
    /// Compiling and loading kernels, as far as the host had to wait for it in steps and evaluations, whose own time does not count
    /// it.
    pub loading: Duration,
    /// Training steps.
    pub training: Duration,
    /// Evaluation after epochs, and of the test set at the end.
    pub evaluation: Duration,
    /// Saving, as far as training or the end of the run had to wait for it.
    pub saving: Duration,
}

impl Spent {
    pub(super) fn train(&mut self, took: Took) {
        self.training += took.work;
        self.loading += took.loading;
    }

    pub(super) fn evaluate(&mut self, took: Took) {
        self.evaluation += took.work;
        self.loading += took.loading;
    }
}

/// Where to stop before the recipe's last epoch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Steps, over the whole run.
    pub max_steps: Option<u64>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are done, or the last allowed step.
    Finished,
    /// Someone asked it to stop; the state is saved.
    Stopped,
    /// The recipe's `early_stopping` ended it: the accuracy has not become better for so many epochs.
    StoppedEarly,
}

/// Something that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// An epoch begins (or goes on, after a resume).
    EpochStarted {
        /// The epoch, counted from 1.
        epoch: u32,
        /// Epochs in the run.
        epochs: u32,
        /// Steps of this epoch done before.
        done: usize,
        /// Steps in an epoch.
        batches: usize,
    },
    /// A step was taken.
    Step(StepReport),
    /// The validation set is being evaluated, or the test set where there is none.
    Evaluating {
        /// Images so far.
        done: usize,
        /// Images in all.
        total: usize,
    },
    /// An epoch is over and evaluated.
    EpochEnded(&'a EpochReport),
    /// A checkpoint is about to be written: what goes with it must be on its way to the disk.
    Saving {
        /// Its folder.
        path: &'a Path,
    },
    /// A checkpoint is safely on disk.
    Saved {
        /// Its folder.
        path: &'a Path,
        /// Whether it is the best so far.
        best: bool,
    },
}

/// Something that listens to a training run.
pub trait Observer {
    /// Called on the training thread for each event; it should be quick.
    ///
    /// # Errors
    /// An error stops the run.
    fn notice(&mut self, event: &Event<'_>) -> Result<()>;
}
