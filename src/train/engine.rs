//! The engine: what takes one training step after the other.
//!
//! It knows nothing of epochs, recipes, files or schedules: the [`Step`] in hand says where the batch lies in the data
//! and at which rates the parameters move.
//!
//! ```
//! use tilework::data::{loader::Loader, shapes};
//! use tilework::step::Rate;
//! use tilework::{Device, nn::Model, optim::Sgd, train::Engine};
//!
//! let data = Loader::new(shapes::generate(0, 64, 1).train.into(), 16, &[0.5; 3], &[0.25; 3], &Device::cpu())?;
//! let model = Model::build(&["max_pool 4".into(), "flatten".into(), "fc 10".into()], [32, 32, 3], &Device::cpu(), 0)?;
//! let optimizer = Sgd::new(&model.params, true, false)?;
//! let mut engine = Engine::new(model, Box::new(optimizer), data.feed(true), |scores, labels, cx| {
//!     scores.cross_entropy(labels, 0.0, cx)
//! })?;
//! for step in 0..40 {
//!     let rate = Rate { lr: 0.02 * (1.0 - step as f64 / 40.0), momentum: 0.9, decay: 0.0 };
//!     engine.step(&data.step(step).rate(rate))?;
//! }
//! assert!(engine.results(39, 1)?[0].0 < engine.results(0, 1)?[0].0);
//! # Ok::<(), tilework::Error>(())
//! ```

use super::diagnose::{advise, find_non_finite, non_finite};
use super::evaluate::{Evaluation, Objective, evaluate};
use super::metrics::{Metrics, RING};
use crate::autograd::{Ctx, Var};
use crate::data::loader::{Batch, Feed, Loader};
use crate::device::cuda::Captured;
use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::nn::Model;
use crate::nn::state::{Array, Snapshot, StateDict};
use crate::optim::Optimizer;
use crate::params::ParamGrads;
use crate::step::Step;
use crate::tensor::Tensor;
use std::path::Path;

/// A network in training: the model, its optimizer and its data.
pub struct Engine {
    /// The network. What is to be frozen is frozen before the first step: a recorded step stays as it was recorded.
    pub model: Model,
    optimizer: Box<dyn Optimizer>,
    feed: Feed,
    loss: Box<Objective>,
    grads: ParamGrads,
    metrics: Metrics,
    recording: Recording,
    /// Bytes that were in use before the first step.
    fixed: Option<usize>,
}

/// Recording a step on a CUDA device, to replay it from then on.
#[derive(Default)]
struct Recording {
    enabled: bool,
    /// Steps of a whole batch that ran launch by launch.
    warm: u32,
    step: Option<Captured>,
}

/// Steps that run before one is recorded: after them every buffer that a step takes is in the pool.
const WARM_UP: u32 = 2;

impl Engine {
    /// An engine at its first step. `loss` is called with the network's outputs and the labels of a batch.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(
        model: Model,
        optimizer: Box<dyn Optimizer>,
        feed: Feed,
        loss: impl Fn(&Var, &Tensor, &mut Ctx<'_>) -> Result<Var> + Send + 'static,
    ) -> Result<Self> {
        let device = model.params.values().device();
        Ok(Engine {
            grads: model.params.grads()?,
            metrics: Metrics::new(device)?,
            recording: Recording { enabled: can_record(device), ..Recording::default() },
            fixed: None,
            loss: Box::new(loss),
            feed,
            optimizer,
            model,
        })
    }

    /// Launches every kernel of every step, instead of recording a step and replaying it. The
    /// numbers are the same.
    pub fn without_graph(&mut self) {
        self.recording = Recording::default();
    }

    /// The device that it runs on.
    pub fn device(&self) -> &Device {
        self.model.params.values().device()
    }

    /// Takes a step: makes the batch that lies at it, forward, backward, update, and notes the loss. Nothing is read
    /// back. On a CUDA device, where the work goes on after the return, the third step with a whole batch is recorded
    /// and replayed from then on; all that may change from step to step is in the [`Step`].
    ///
    /// # Errors
    /// [`Error::NonFinite`] on the CPU, before anything is changed, if the loss is not a number; [`Error::OutOfMemory`]
    /// with the batch size that would fit; [`Error::Config`] if the data has no batch there; whatever the ops report.
    pub fn step(&mut self, step: &Step) -> Result<()> {
        let fixed = *self.fixed.get_or_insert_with(|| self.model.params.values().device().memory().in_use);
        let images = self.feed.seek(step)?;
        self.run(images, step).map_err(|e| advise(e, &self.model, images, fixed))
    }

    /// Launch by launch, or by replaying a recorded step.
    fn run(&mut self, images: usize, step: &Step) -> Result<()> {
        let whole = images == self.feed.loader().batch_size();
        let Device::Cuda(cuda) = self.device().clone() else { return self.compute(images, step) };
        cuda.set_step(step)?;
        if !self.recording.enabled || !whole || self.recording.warm < WARM_UP {
            self.recording.warm += u32::from(whole);
            return self.compute(images, step);
        }
        if let Some(recorded) = &self.recording.step {
            recorded.replay()?;
            // What a forward pass counts on the host.
            self.model.buffers.count_batch();
            return Ok(());
        }
        let recorded = cuda.capture(|| self.compute(images, step))?;
        recorded.replay()?;
        self.recording.step = Some(recorded);
        Ok(())
    }

    fn compute(&mut self, images: usize, step: &Step) -> Result<()> {
        let batch = self.feed.take(images, step)?;
        self.step_on(&batch, step)
    }

    /// Takes a step on a batch of one's own, launch by launch.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn step_on(&mut self, batch: &Batch, step: &Step) -> Result<()> {
        let mut cx = self.model.train(*step);
        let scores = self.model.forward(&Var::constant(batch.images.clone()), &mut cx)?;
        let loss = (self.loss)(&scores, &batch.labels, &mut cx)?;
        // Where reading the loss costs nothing it is checked before it does any harm.
        if let Device::Cpu(_) = batch.images.device() {
            let value = loss.value().item()?;
            if !value.is_finite() {
                drop(cx);
                let origin = find_non_finite(&self.model, batch, step)?;
                return Err(non_finite(value, step.step + 1, step.epoch, origin));
            }
        }
        self.metrics.record(loss.value(), scores.value(), &batch.labels, step)?;
        drop(scores);
        cx.backward_loss(&loss, Some(&mut self.grads))?;
        self.optimizer.step(&mut self.model.params, &self.grads)
    }

    /// Mean loss, and images classified right before the update, of `count` steps from step number `first` on. Those
    /// of the last 64 steps are there. On a CUDA device this waits for the steps.
    ///
    /// # Errors
    /// [`Error::Config`] for more than 64 steps; [`Error::Device`] if the device, or a step, failed.
    pub fn results(&self, first: u64, count: usize) -> Result<Vec<(f64, usize)>> {
        if count > RING {
            let problem = format!("{count} steps, and those of the last {RING} are kept");
            return Err(Error::config("results", problem, "ask for them more often"));
        }
        self.metrics.read(first, count)
    }

    /// Loss and accuracy on the images of `data`.
    ///
    /// # Errors
    /// As [`evaluate`].
    pub fn evaluate(&self, data: &Loader) -> Result<Evaluation> {
        evaluate(&self.model, &mut data.feed(false), &*self.loss, &mut |_| Ok(()))
    }

    /// Steps after which to ask for their results: many where that means to wait for the device.
    pub(super) fn patience(&self) -> usize {
        if can_record(self.device()) { RING } else { 1 }
    }

    /// A copy of the network's and the optimizer's numbers in the memory of `host`, a CPU device.
    pub(super) fn snapshot(&mut self, host: &Device) -> Result<(Snapshot, Vec<(&'static str, Buffer)>)> {
        let optimizer = self.optimizer.state().into_iter().map(|(name, b)| Ok((name, b.to_host(host)?)));
        Ok((self.model.snapshot(host)?, optimizer.collect::<Result<_>>()?))
    }

    /// Takes over a network's and an optimizer's numbers. `path` is for errors.
    pub(super) fn restore(&mut self, model: &StateDict, saved: &StateDict, path: &Path) -> Result<()> {
        let bad =
            |problem| Err(Error::file(path, problem, "resume from the folder `last` of a run of the same recipe"));
        self.model.load_state_dict(model, path)?;
        let mut state = self.optimizer.state();
        if state.len() != saved.len() {
            return bad(format!("its optimizer has {} states, the recipe's {}", saved.len(), state.len()));
        }
        for (name, buffer) in &mut state {
            match saved.get(*name).and_then(Array::to_f32).filter(|v| v.len() == buffer.len()) {
                Some(values) => buffer.write(0, &values)?,
                None => return bad(format!("its optimizer state `{name}` does not fit")),
            }
        }
        Ok(())
    }
}

/// Whether steps can be recorded: on a CUDA device, unless each launch is to be waited for.
fn can_record(device: &Device) -> bool {
    matches!(device, Device::Cuda(cuda) if !cuda.options().sync_launches)
}
