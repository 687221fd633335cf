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

use super::average::Average;
use super::diagnose::{advise, find_non_finite, non_finite};
use super::evaluate::{Evaluation, Objective, evaluate};
use super::metrics::{Metrics, RING};
use super::recording::{Form, Recordings};
use crate::autograd::{Ctx, Var};
use crate::data::loader::{Batch, Feed, Loader};
use crate::device::Device;
use crate::dtype::Precision;
use crate::error::{Error, Result};
use crate::nn::Model;
use crate::optim::Optimizer;
use crate::params::ParamGrads;
use crate::step::{GROUPS, Step};
use crate::tensor::Tensor;

/// A network in training: the model, its optimizer and its data.
pub struct Engine {
    /// The network.
    pub model: Model,
    pub(super) optimizer: Box<dyn Optimizer>,
    pub(super) average: Option<Average>,
    feed: Feed,
    loss: Box<Objective>,
    /// Whether a batch's losses are added up; else their mean counts.
    sums: bool,
    pub(super) grads: ParamGrads,
    pub(super) metrics: Metrics,
    recordings: Recordings,
    /// Images whose gradients have been added up and not used yet.
    pub(super) held: usize,
    /// Bytes that were in use before the first step.
    fixed: Option<usize>,
    /// The groups of parameters that rest, and where those begin that were frozen for it.
    resting: ([bool; GROUPS], Vec<usize>),
}

/// Steps that run before one is recorded: after them every buffer that a step takes is in the pool.
const WARM_UP: u32 = 2;

/// Recordings of a step that are tried, if there is too little memory; then it runs launch by launch.
const ATTEMPTS: u32 = 2;

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
        let mut grads = model.params.grads()?;
        if model.params.precision() == Precision::F16 {
            grads.scale()?;
        }
        Ok(Engine {
            grads,
            metrics: Metrics::new(device)?,
            recordings: Recordings::new(can_record(device)),
            average: None,
            held: 0,
            sums: false,
            fixed: None,
            resting: Default::default(),
            loss: Box::new(loss),
            feed,
            optimizer,
            model,
        })
    }

    /// Launches every kernel of every step, instead of recording a step and replaying it. The
    /// numbers are the same.
    pub fn without_graph(&mut self) {
        self.recordings = Recordings::default();
    }

    /// With `sums` the sum of a batch's losses is minimised, of a `loss` that is their mean: gradients are those of the
    /// mean times the images. What is reported stays the mean. Gradients that are accumulated are then not averaged.
    pub fn sum_losses(&mut self, sums: bool) {
        self.sums = sums;
        self.recordings = Recordings::new(self.recordings.enabled);
    }

    /// The device that it runs on.
    pub fn device(&self) -> &Device {
        self.model.params.values().device()
    }

    /// Keeps a moving average of the weights from the next update on, which is to be the first: it copies them. Each
    /// update moves it at the decay [`Step::ema`]. Evaluations and snapshots are then of the average, and
    /// [`Engine::averaged`] is.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn keep_average(&mut self) -> Result<()> {
        self.average = Some(Average::new(&self.model)?);
        self.recordings = Recordings::new(self.recordings.enabled);
        Ok(())
    }

    /// Calls `f` on the network as it is to be used: with the averaged weights, where an average is kept.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn averaged<R>(&mut self, f: impl FnOnce(&mut Model) -> Result<R>) -> Result<R> {
        let Some(average) = &mut self.average else { return f(&mut self.model) };
        average.swap(&mut self.model)?;
        let result = f(&mut self.model);
        average.swap(&mut self.model)?;
        result
    }

    /// Calls `f`, and if it runs out of memory once more without what recorded steps keep: they are recorded anew.
    pub(super) fn with_room<R>(&mut self, mut f: impl FnMut(&mut Self) -> Result<R>) -> Result<R> {
        match f(self) {
            Err(Error::OutOfMemory { .. }) if self.recordings.free() => f(self),
            found => found,
        }
    }

    /// Freezes the parameters of the groups that are marked, and trains those again that it had frozen in others: for
    /// groups whose rate is 0 from now on, which would move no more and cost their gradients all the same. What the
    /// optimizer remembers of them, such as a velocity, stays as it is.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn rest(&mut self, groups: [bool; GROUPS]) -> Result<()> {
        if groups == self.resting.0 {
            return Ok(());
        }
        let mut frozen = Vec::new();
        self.model.params.configure(|p| {
            // Others are frozen for good.
            let trained = p.trainable || self.resting.1.contains(&p.range().start);
            p.trainable = trained && !groups[usize::from(p.group)];
            if trained && !p.trainable {
                frozen.push(p.range().start);
            }
        })?;
        self.resting = (groups, frozen);
        Ok(())
    }

    /// Takes a step: makes the batch that lies at it, forward, backward, update, and notes the loss. Nothing is read
    /// back. On a CUDA device, where the work goes on after the return, the third step with a whole batch is recorded
    /// and replayed from then on; all that may change from step to step is in the [`Step`]. A step of another
    /// [form](Engine::accumulate), or after other parameters were frozen, is recorded by itself. Where there is no memory for a
    /// recording, steps are launched.
    ///
    /// # Errors
    /// [`Error::NonFinite`] on the CPU, before anything is changed, if the loss is not a number; [`Error::OutOfMemory`]
    /// with the batch size that would fit; [`Error::Config`] if the data has no batch there; whatever the ops report.
    pub fn step(&mut self, step: &Step) -> Result<()> {
        self.take(step, true)
    }

    /// The same without the update: the gradients stay, and those of the next steps are added to them, until
    /// [`Engine::step`] moves the parameters as one step on all these images would, for a loss that is a mean.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn accumulate(&mut self, step: &Step) -> Result<()> {
        self.take(step, false)
    }

    fn take(&mut self, step: &Step, moves: bool) -> Result<()> {
        let fixed = *self.fixed.get_or_insert_with(|| self.model.params.values().device().memory().in_use);
        let images = self.feed.seek(step)?;
        self.run(images, step, moves).map_err(|e| advise(e, &self.model, images, fixed))
    }

    /// Launch by launch, or by replaying a recorded step.
    fn run(&mut self, images: usize, step: &Step, moves: bool) -> Result<()> {
        let (step, held) = (&self.scaled(step, images, moves), self.held);
        let whole = images == self.feed.loader().batch_size();
        let Device::Cuda(cuda) = self.device().clone() else { return self.compute(images, step, moves) };
        // A recorded step takes the rounded weights as they are.
        self.model.params.refresh()?;
        cuda.set_step(step)?;
        let form = Form::new(step, held > 0, moves, self.model.params.version());
        let recording = self.recordings.of(form);
        if let Some((captured, recorded)) = recording.step.as_ref().filter(|_| whole) {
            self.grads.replaying(recorded)?;
            captured.replay()?;
            // What a step counts on the host.
            self.model.buffers.count_batch();
            self.held = if moves { 0 } else { held + images };
            return Ok(());
        }
        if !whole || recording.warm < WARM_UP || recording.failed == ATTEMPTS || !self.recordings.enabled {
            self.recordings.of(form).warm += u32::from(whole);
            return self.compute(images, step, moves);
        }
        let counts = self.model.buffers.counts();
        let captured = match cuda.capture(|| self.compute(images, step, moves)) {
            Err(Error::OutOfMemory { .. }) => {
                // Lines side by side take more memory than launches in a row, and the pool may keep blocks that are no use.
                self.recordings.free();
                cuda.give_back_memory()?;
                self.model.buffers.set_counts(&counts);
                self.held = held;
                let recording = self.recordings.of(form);
                (recording.warm, recording.failed) = (1, recording.failed + 1);
                return self.compute(images, step, moves);
            }
            captured => captured?,
        };
        let recorded = self.grads.recorded();
        self.grads.replaying(&recorded)?;
        captured.replay()?;
        self.recordings.of(form).step = Some((captured, recorded));
        Ok(())
    }

    /// The step with the scale of the gradients that have been added up when it moves the parameters: each loss counts
    /// as its batch's share of a whole batch.
    fn scaled(&self, step: &Step, images: usize, moves: bool) -> Step {
        let share = (self.held + images) as f32 / self.feed.loader().batch_size() as f32;
        let scale = if moves && self.held > 0 && !self.sums { share } else { 1.0 };
        Step { loss_scale: step.loss_scale * scale, ..*step }
    }

    fn compute(&mut self, images: usize, step: &Step, moves: bool) -> Result<()> {
        let batch = self.feed.take(images, step)?;
        self.pass(&batch, step, moves)
    }

    /// Takes a step on a batch of one's own, launch by launch.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn step_on(&mut self, batch: &Batch, step: &Step) -> Result<()> {
        let step = self.scaled(step, batch.labels.len(), true);
        self.pass(batch, &step, true)
    }

    /// [`Engine::accumulate`] on a batch of one's own, launch by launch.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn accumulate_on(&mut self, batch: &Batch, step: &Step) -> Result<()> {
        self.pass(batch, step, false)
    }

    fn pass(&mut self, batch: &Batch, step: &Step, moves: bool) -> Result<()> {
        let images = batch.labels.len();
        let alone = moves && self.held == 0;
        let share = match (self.sums, alone) {
            (true, _) => images as f64,
            (false, true) => 1.0,
            (false, false) => images as f64 / self.feed.loader().batch_size() as f64,
        };
        let weight = self.grads.start(batch.images.device(), share)?;
        let mut cx = self.model.train(*step).seeded(weight.clone());
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
        if self.held > 0 {
            self.grads.keep();
        }
        cx.backward(&loss, weight, Some(&mut self.grads))?;
        if let Device::Cuda(cuda) = batch.images.device() {
            cuda.join()?;
        }
        if !moves {
            self.held += images;
            return Ok(());
        }
        self.held = 0;
        self.grads.used(|grads| self.optimizer.step(&mut self.model.params, grads))?;
        match &mut self.average {
            Some(average) => average.update(&self.model, step),
            None => Ok(()),
        }
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

    /// By what losses are scaled, and how many steps have moved nothing as a gradient overflowed; `None` unless gradients
    /// are f16. On a CUDA device this waits for the steps.
    ///
    /// # Errors
    /// [`Error::Device`] if the device, or a step, failed.
    pub fn loss_scale(&self) -> Result<Option<(f32, u64)>> {
        self.grads.scaling().map(|s| s.read()).transpose()
    }

    /// Loss and accuracy on the images of `data`, with the averaged weights where an average is kept.
    ///
    /// # Errors
    /// As [`evaluate`].
    pub fn evaluate(&mut self, data: &Loader) -> Result<Evaluation> {
        // Apart, as the network is borrowed.
        let loss = std::mem::replace(&mut self.loss, Box::new(|scores, _, _| Ok(scores.clone())));
        let found = self.with_room(|engine| {
            engine.averaged(|model| evaluate(model, &mut data.feed(false), &*loss, &mut |_| Ok(())))
        });
        self.loss = loss;
        found
    }

    /// Steps after which to ask for their results: many where that means to wait for the device.
    pub(super) fn patience(&self) -> usize {
        if can_record(self.device()) { RING } else { 1 }
    }
}

/// Whether steps can be recorded: on a CUDA device, unless each launch is to be waited for.
fn can_record(device: &Device) -> bool {
    matches!(device, Device::Cuda(cuda) if !cuda.options().sync_launches)
}
