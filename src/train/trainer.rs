//! The training loop.

mod bench;

use super::checkpoint::{Checkpoint, Position};
use super::diagnose::{check_last_batch, check_memory};
use super::evaluate::{Evaluation, evaluate};
use super::events::{EpochReport, Event, Observer, StepReport};
use super::metrics::{Metrics, RING};
use super::run::RunDir;
use super::saver::{Place, Saver, State};
use crate::autograd::{Ctx, Var};
use crate::data::Splits;
use crate::data::loader::{Augment, Batch, Batches, Loader};
use crate::device::Device;
use crate::device::cuda::Captured;
use crate::error::{Error, Result};
use crate::nn::Model;
use crate::nn::state::Entry;
use crate::optim::Optimizer;
use crate::params::ParamGrads;
use crate::recipes::Recipe;
use crate::step::{Rate, Step};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Images per step of an evaluation.
const EVAL_BATCH: usize = 250;

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
}

/// A network in training.
pub struct Trainer {
    recipe: Recipe,
    /// The network.
    pub model: Model,
    optimizer: Box<dyn Optimizer>,
    grads: ParamGrads,
    train: Loader,
    test: Loader,
    pub(super) device: Device,
    pub(super) position: Position,
    saver: Saver,
    metrics: Metrics,
    /// Steps whose numbers are still on the device.
    pending: Vec<StepReport>,
    replay: Replay,
    /// Bytes that are in use whatever the batch.
    pub(super) fixed: usize,
}

/// Recording a step on a CUDA device, to replay it from then on.
#[derive(Default)]
struct Replay {
    enabled: bool,
    /// Steps of a whole batch that ran launch by launch.
    warm: u32,
    step: Option<Captured>,
}

/// Steps that run before one is recorded: after them every buffer that a step takes is in the pool.
const WARM_UP: u32 = 2;

/// Where a step's batch comes from.
enum Feed {
    /// The loader's thread.
    Host(Box<Batches>),
    /// The loader's kernel, at the step's place.
    Resident,
}

impl Trainer {
    /// A fresh network for a recipe and its data.
    ///
    /// # Errors
    /// [`Error::Model`] and [`Error::Config`] if the recipe does not fit the data.
    pub fn new(recipe: Recipe, splits: Splits, device: &Device) -> Result<Self> {
        recipe.check()?;
        let Splits { train, test } = splits;
        let model = Model::build(&recipe.layers, [train.height, train.width, train.channels], device, recipe.seed)?;
        let classes = train.classes.len();
        if model.output().dims() != [classes] {
            return Err(Error::config(
                "layers",
                format!("the network ends with {}, and the data has {classes} classes", model.output()),
                format!("end it with `flatten` and `fc {classes}`"),
            ));
        }
        check_last_batch(&model, train.len(), recipe.batch_size)?;
        check_memory(&model, recipe.batch_size.min(train.len()))?;
        let (mean, std) = (&recipe.data.mean, &recipe.data.std);
        let loader = |data, batch, augment| Loader::augmented(Arc::new(data), batch, mean, std, augment, device);
        Ok(Trainer {
            train: loader(train, recipe.batch_size, recipe.augment)?,
            test: loader(test, EVAL_BATCH, Augment::default())?,
            optimizer: recipe.optimizer.build(&model.params)?,
            grads: model.params.grads()?,
            device: device.clone(),
            position: Position::default(),
            saver: Saver::new(),
            metrics: Metrics::new(device)?,
            fixed: device.memory().in_use,
            pending: Vec::new(),
            replay: Replay { enabled: can_replay(device), ..Replay::default() },
            model,
            recipe,
        })
    }

    /// Launches every kernel of every step, instead of recording a step and replaying it. The
    /// numbers are the same.
    pub fn without_graph(&mut self) {
        self.replay = Replay::default();
    }

    /// How far it has come.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Steps in an epoch.
    pub fn batches(&self) -> usize {
        self.train.batches()
    }

    /// Goes on from a checkpoint with an optimizer state. `path` is for errors.
    ///
    /// # Errors
    /// [`Error::File`] if the checkpoint is not one of this recipe's.
    pub fn restore(&mut self, checkpoint: Checkpoint, path: &Path) -> Result<()> {
        let bad =
            |problem: String| Error::file(path, problem, "resume from the folder `last` of a run of the same recipe");
        let saved = checkpoint.optimizer.ok_or_else(|| bad("it has no optimizer state".into()))?;
        let (p, batches) = (&checkpoint.position, self.train.batches());
        let steps = u64::from(p.epoch) * batches as u64 + p.batch as u64;
        if p.batch > batches || p.step != steps {
            let at = format!("step {}, {} epochs and {} batches of {batches}", p.step, p.epoch, p.batch);
            return Err(bad(format!("its position is no position of this run: {at}")));
        }
        self.model.load_state_dict(&checkpoint.model, path)?;
        let mut state = self.optimizer.state();
        if state.len() != saved.len() {
            return Err(bad(format!("its optimizer has {} states, the recipe's {}", saved.len(), state.len())));
        }
        for (name, buffer) in &mut state {
            let values = saved.get(*name).and_then(Entry::to_f32);
            let values = values
                .filter(|v| v.len() == buffer.len())
                .ok_or_else(|| bad(format!("its optimizer state `{name}` does not fit")))?;
            buffer.write(0, &values)?;
        }
        self.position = checkpoint.position;
        Ok(())
    }

    /// Takes over weights to start from.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`].
    pub fn init_from(&mut self, path: &Path) -> Result<()> {
        let bytes = std::fs::read(path).map_err(Error::io("read the weights", path))?;
        self.model.load_state_dict(&crate::nn::state::deserialize(&bytes, path)?, path)?;
        match self.non_finite_parameter()? {
            None => Ok(()),
            Some(key) => Err(Error::file(
                path,
                format!("`{key}` holds numbers that are not finite"),
                "save the weights again from a network that works",
            )),
        }
    }

    /// Begins to save the state as it is: as `last`, and as `best` before it if it is the best so far.
    fn save(&mut self, run: &RunDir, best: bool, observers: &mut [&mut dyn Observer]) -> Result<()> {
        self.saved(true, observers)?;
        let places: Vec<Place> = [("best", true), ("last", false)]
            .into_iter()
            .filter(|(_, is_best)| best || !is_best)
            .map(|(name, is_best)| (run.path().join(name), is_best))
            .collect();
        places.iter().try_for_each(|(path, _)| tell(observers, &Event::Saving { path }))?;
        let host = &self.saver.host;
        let optimizer = self.optimizer.state().into_iter().map(|(name, b)| Ok((name, b.to_host(host)?)));
        let optimizer = optimizer.collect::<Result<_>>()?;
        let state = State { model: self.model.snapshot(host)?, optimizer, position: self.position.clone() };
        self.saver.start(state, places)
    }

    /// Tells the observers what has been saved by now, or, with `wait`, when it is.
    fn saved(&mut self, wait: bool, observers: &mut [&mut dyn Observer]) -> Result<()> {
        let saved = self.saver.saved(wait)?;
        saved.iter().try_for_each(|(path, best)| tell(observers, &Event::Saved { path, best: *best }))
    }

    /// Runs to the recipe's last epoch, `limits`, or until `stop` is set; then the step in progress
    /// is finished and everything is saved in `run`. A thread saves while training goes on; on return it has ended.
    ///
    /// # Errors
    /// [`Error::NonFinite`] if the loss becomes infinite or NaN; [`Error::Io`] if saving failed, with the first step
    /// after that; whatever the ops or the observers report.
    pub fn run(
        &mut self,
        run: &RunDir,
        limits: Limits,
        stop: &AtomicBool,
        observers: &mut [&mut dyn Observer],
    ) -> Result<Outcome> {
        let outcome = self.train_epochs(run, limits, stop, observers);
        let saved = self.saved(true, observers);
        let outcome = outcome.map_err(|e| with_last_checkpoint(e, run))?;
        saved.map(|()| outcome)
    }

    fn train_epochs(
        &mut self,
        run: &RunDir,
        limits: Limits,
        stop: &AtomicBool,
        observers: &mut [&mut dyn Observer],
    ) -> Result<Outcome> {
        let (epochs, batches) = (self.recipe.epochs, self.train.batches());
        let limit = limits.max_steps.unwrap_or(u64::MAX);
        while self.position.epoch < epochs && self.position.step < limit {
            let lr = self.recipe.schedule.at(self.recipe.optimizer.lr(), self.position.epoch, epochs);
            let epoch = self.position.epoch;
            let started = Event::EpochStarted { epoch: epoch + 1, epochs, done: self.position.batch, batches };
            tell(observers, &started)?;
            let rate = Rate { lr, ..self.recipe.optimizer.rate() };
            let state = Step { seed: self.recipe.seed, epoch, ..Step::default() }.rate(rate);
            let order = self.train.order(self.recipe.shuffle, &state);
            let before = self.position.seconds;
            let start = Instant::now();
            let mut feed = self.feed(order, &state)?;
            while self.position.batch < batches {
                let images = self.train.images(self.position.batch);
                let offset = self.position.batch * self.recipe.batch_size;
                let state = Step { step: self.position.step, batch_offset: offset as u32, ..state };
                self.saved(false, observers)?;
                self.step(&mut feed, images, &state).map_err(|e| self.advise(e, images))?;
                let p = &mut self.position;
                p.step += 1;
                p.batch += 1;
                let (step, batch) = (p.step, p.batch);
                self.pending.push(StepReport {
                    step,
                    epoch: epoch + 1,
                    batch,
                    batches,
                    images,
                    lr,
                    loss: 0.0,
                    correct: 0,
                });
                let stopped = stop.load(Ordering::Relaxed);
                if step >= limit || stopped || batch == batches || self.pending.len() == self.patience() {
                    self.report(observers)?;
                }
                if step >= limit {
                    break;
                }
                if stopped {
                    self.position.seconds = before + start.elapsed().as_secs_f64();
                    self.save(run, false, observers)?;
                    return Ok(Outcome::Stopped);
                }
            }
            self.position.seconds = before + start.elapsed().as_secs_f64();
            if self.finish_epoch(lr, run, stop, observers)? == Outcome::Stopped {
                return Ok(Outcome::Stopped);
            }
        }
        Ok(Outcome::Finished)
    }

    /// Evaluates, reports and saves. Asked to stop meanwhile, it saves the epoch as not yet evaluated.
    fn finish_epoch(
        &mut self,
        lr: f64,
        run: &RunDir,
        stop: &AtomicBool,
        observers: &mut [&mut dyn Observer],
    ) -> Result<Outcome> {
        let total = self.test.data().len();
        let loss = self.recipe.loss;
        let mut progress = |done| {
            tell(observers, &Event::Evaluating { done, total })?;
            match stop.load(Ordering::Relaxed) {
                true => Err(Error::Internal("an evaluation was stopped".into())),
                false => Ok(()),
            }
        };
        let test = match evaluate(&mut self.model, &self.test, loss, &mut progress) {
            Err(_) if stop.load(Ordering::Relaxed) => {
                self.save(run, false, observers)?;
                return Ok(Outcome::Stopped);
            }
            test => test?,
        };
        if !test.loss.is_finite() {
            let origin = "its loss on the test set, after the epoch's last update".to_string();
            return Err(self.non_finite(test.loss, self.position.step, origin));
        }
        let p = &mut self.position;
        // Cut short by a step limit, the epoch is not over: going on from here takes its other
        // batches, and what counts as best must not depend on where a run was cut.
        let whole = p.batch >= self.train.batches();
        let best = whole && p.best_accuracy.is_none_or(|b| test.accuracy > b);
        let report = EpochReport {
            epoch: p.epoch + 1,
            train_loss: p.loss_sum / p.images as f64,
            train_accuracy: p.correct as f64 / p.images as f64,
            lr,
            seconds: p.seconds,
            images_per_second: p.images as f64 / p.seconds,
            test,
        };
        if best {
            p.best_accuracy = Some(report.test.accuracy);
        }
        if whole {
            let Position { epoch, step, best_accuracy, .. } = *p;
            *p = Position { epoch: epoch + 1, step, best_accuracy, ..Position::default() };
        }
        tell(observers, &Event::EpochEnded(&report))?;
        self.save(run, best, observers)?;
        Ok(Outcome::Finished)
    }

    /// The batches from the position on.
    fn feed(&self, order: Vec<u32>, state: &Step) -> Result<Feed> {
        if self.train.is_resident() {
            self.train.begin(&order)?;
            return Ok(Feed::Resident);
        }
        Ok(Feed::Host(Box::new(self.train.epoch(order, state, self.position.batch)?)))
    }

    /// Steps after which their numbers are fetched: where that means waiting for the device, many.
    fn patience(&self) -> usize {
        match self.device {
            Device::Cpu(_) => 1,
            Device::Cuda(_) if can_replay(&self.device) => RING,
            // Where each launch is waited for, so is each step's loss.
            Device::Cuda(_) => 1,
        }
    }

    /// Fetches the pending steps' numbers, checks them and tells the observers.
    fn report(&mut self, observers: &mut [&mut dyn Observer]) -> Result<()> {
        let Some(first) = self.pending.first() else { return Ok(()) };
        let numbers = self.metrics.take(first.step - 1, self.pending.len())?;
        for (mut report, (loss, correct)) in std::mem::take(&mut self.pending).into_iter().zip(numbers) {
            if !loss.is_finite() {
                let origin = match self.non_finite_parameter()? {
                    Some(key) => format!("by now the parameter {key} is not finite either"),
                    None => "the parameters are finite again".into(),
                };
                return Err(self.non_finite(loss, report.step, origin));
            }
            (report.loss, report.correct) = (loss, correct);
            let p = &mut self.position;
            p.images += report.images;
            p.correct += correct;
            p.loss_sum += loss * report.images as f64;
            tell(observers, &Event::Step(report))?;
        }
        Ok(())
    }

    /// One step on the next `images` images: launch by launch, or by replaying a recorded one.
    fn step(&mut self, feed: &mut Feed, images: usize, state: &Step) -> Result<()> {
        self.device.set_step(state)?;
        let whole = images == self.recipe.batch_size;
        let Device::Cuda(cuda) = self.device.clone() else { return self.compute(feed, images, state) };
        if !self.replay.enabled || !whole || self.replay.warm < WARM_UP {
            self.replay.warm += u32::from(whole);
            return self.compute(feed, images, state);
        }
        if let Some(step) = &self.replay.step {
            step.replay()?;
            // What a forward pass counts on the host.
            return self.model.count_batch();
        }
        let recorded = cuda.capture(|| self.compute(feed, images, state))?;
        recorded.replay()?;
        self.replay.step = Some(recorded);
        Ok(())
    }

    /// Forward, backward, update, numbers noted.
    fn compute(&mut self, feed: &mut Feed, images: usize, state: &Step) -> Result<()> {
        let batch = match feed {
            Feed::Resident => self.train.make(images, state)?,
            Feed::Host(batches) => batches.next().unwrap_or_else(|| Err(Error::Internal("too few batches".into())))?,
        };
        self.compute_on(&batch, state)
    }

    fn compute_on(&mut self, batch: &Batch, state: &Step) -> Result<()> {
        let mut cx = Ctx::train(&self.device).with_params(&self.model.params).at(*state);
        let scores = self.model.net.forward(&Var::constant(batch.images.clone()), &mut cx)?;
        let loss = self.recipe.loss.of(&scores, &batch.labels, self.recipe.label_smoothing, &mut cx)?;
        // Where reading the loss costs nothing it is checked before it does any harm.
        if let Device::Cpu(_) = self.device {
            let value = loss.value().item()?;
            if !value.is_finite() {
                drop(cx);
                let origin = self.find_non_finite(batch, state)?;
                return Err(self.non_finite(value, self.position.step + 1, origin));
            }
        }
        self.metrics.record(loss.value(), scores.value(), &batch.labels, state)?;
        drop(scores);
        cx.backward_loss(&loss, Some(&mut self.grads))?;
        self.optimizer.step(&mut self.model.params, &self.grads)
    }

    /// The test set's loss and accuracy.
    ///
    /// # Errors
    /// As [`evaluate`].
    pub fn evaluate(&mut self, progress: &mut dyn FnMut(usize) -> Result<()>) -> Result<Evaluation> {
        evaluate(&mut self.model, &self.test, self.recipe.loss, progress)
    }
}

/// Whether steps can be recorded: on a CUDA device, unless each launch is to be waited for.
fn can_replay(device: &Device) -> bool {
    matches!(device, Device::Cuda(cuda) if !cuda.options().sync_launches)
}

/// Adds to an error where the last good checkpoint is.
fn with_last_checkpoint(e: Error, run: &RunDir) -> Error {
    let Error::NonFinite { loss, step, epoch, origin, remedy, .. } = e else { return e };
    let last = run.path().join("last");
    let saved = match last.exists() {
        true => format!("the last good checkpoint is {}", last.display()),
        false => "there is no checkpoint yet".into(),
    };
    Error::NonFinite { loss, step, epoch, origin, saved, remedy }
}

fn tell(observers: &mut [&mut dyn Observer], event: &Event<'_>) -> Result<()> {
    observers.iter_mut().try_for_each(|o| o.notice(event))
}
