//! A run of a recipe: its epochs and schedule, what is told of it, saved of it, and gone on from.

use super::checkpoint::{Checkpoint, Position};
use super::diagnose::{check_last_batch, check_memory, non_finite, non_finite_parameter, with_last_checkpoint};
use super::engine::Engine;
use super::evaluate::{Evaluation, evaluate_views, unless};
use super::events::{EpochReport, Event, Limits, Observer, Outcome, Spent, StepReport};
use super::measures::Measures;
use super::run::RunDir;
use super::saver::{Place, Saver, State};
use super::watch::Watch;
use crate::data::loader::Loader;
use crate::data::{Dataset, Split, Splits, Views};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::formats::file;
use crate::nn::Loaded;
use crate::optim::Point;
use crate::recipes::{Recipe, Reduction};
use crate::step::Step;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A recipe's run: the engine, and where it stands.
pub struct Trainer {
    pub(super) recipe: Recipe,
    /// What takes the steps.
    pub engine: Engine,
    pub(super) train: Loader,
    measures: Measures,
    pub(super) position: Position,
    saver: Saver,
    /// Where the time of its runs has gone.
    pub spent: Spent,
    /// Steps whose numbers are still on the device.
    pending: Vec<StepReport>,
    /// The step and the epoch of the latest checkpoint, counted from 1.
    saved: Option<(u64, u32)>,
}

impl Trainer {
    /// A fresh network for a recipe and its data.
    ///
    /// # Errors
    /// [`Error::Model`] and [`Error::Config`] if the recipe does not fit the data.
    pub fn new(recipe: Recipe, splits: Splits, device: &Device) -> Result<Self> {
        recipe.check()?;
        let Splits { train, validation, test } = recipe.data.split(splits)?;
        let image = recipe.data.image([train.height, train.width, train.channels]);
        recipe.tta.check(image)?;
        let (mut model, precision) = (recipe.model(image, device)?, recipe.precision);
        let classes = train.classes.len();
        if model.output.dims() != [classes] {
            return Err(Error::config(
                "layers",
                format!("the network ends with {}, and the data has {classes} classes", model.output),
                format!("end it with `flatten` and `fc {classes}`"),
            ));
        }
        check_last_batch(&model, train.len(), recipe.batch_size, recipe.drop_last)?;
        check_memory(&model, recipe.batch_size.min(train.len()))?;
        let (all, transform) = (Arc::new(train), recipe.data.transform(recipe.augment));
        let train = Loader::transformed(all.clone(), recipe.batch_size, &transform, device)?;
        let train = train.drop_last(recipe.drop_last)?.with_precision(precision);
        let transform = recipe.data.transform(recipe.augment.in_evaluation());
        let (validation, test, device) = (validation.map(Arc::new), Arc::new(test), device.clone());
        let batch_size = Measures::batch_size_for(&device, recipe.batch_size.min(all.len()));
        let mut measures =
            Measures { train: all, validation, test, transform, device, precision, batch_size, feed: None };
        measures.feed(measures.split())?;
        let spent = Spent { whitening: measures.whiten(&mut model)?, ..Spent::default() };
        recipe.optimizer.group(&mut model.params)?;
        model.freeze(&recipe.freeze)?;
        let optimizer = recipe.optimizer.build(&model.params)?;
        let loss = recipe.loss.with(recipe.label_smoothing);
        let mut engine = Engine::new(model, optimizer, train.feed(recipe.shuffle), loss)?;
        if recipe.ema.is_some() {
            engine.keep_average()?;
        }
        engine.sum_losses(recipe.reduction == Reduction::Sum);
        let (position, saver) = (Position::default(), Saver::new());
        Ok(Trainer { recipe, engine, train, measures, position, saver, spent, pending: Vec::new(), saved: None })
    }

    /// How far it has come.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The images that it is measured on.
    pub fn test_data(&self) -> &Dataset {
        &self.measures.test
    }

    /// Height, width and channels of the images that the network takes.
    pub fn image(&self) -> [usize; 3] {
        self.train.image()
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
        let (p, batches) = (&checkpoint.position, self.train.batches());
        let steps = u64::from(p.epoch) * batches as u64 + p.batch as u64;
        let between = p.batch % self.recipe.accumulate != 0 && p.batch != batches;
        if p.batch > batches || p.step != steps || between {
            let at = format!("step {}, {} epochs and {} batches of {batches}", p.step, p.epoch, p.batch);
            return Err(bad(format!("its position is no position of this run: {at}")));
        }
        self.engine.restore(&checkpoint, path)?;
        self.position = checkpoint.position;
        self.saved = Some((self.position.step, self.position.epoch));
        Ok(())
    }

    /// Takes over weights to start from, safetensors or `.pth`: all of them, but for the head of a recipe with
    /// `[pretrained]`.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`].
    pub fn init_from(&mut self, path: &Path) -> Result<Loaded> {
        let bytes = file::read(path, "read the weights")?;
        let head = self.recipe.pretrained.as_ref().map_or(&[][..], |p| &p.head);
        let loaded = self.engine.model.load_pretrained(crate::nn::state::deserialize(&bytes, path)?, head, path)?;
        match non_finite_parameter(&self.engine.model)? {
            None => Ok(loaded),
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
        let start = Instant::now();
        let places = [("best", true), ("last", false)].into_iter().skip(usize::from(!best));
        let places: Vec<Place> = places.map(|(name, best)| (run.path().join(name), best)).collect();
        places.iter().try_for_each(|(path, _)| tell(observers, &Event::Saving { path }))?;
        let numbers = self.engine.snapshot(&self.saver.host)?;
        // The last update's weights have had no loss yet, or none that shows it: a good checkpoint is not replaced by them.
        if let Some(key) = numbers.non_finite()? {
            let origin = format!("the last update left the parameter {key} not finite");
            return Err(non_finite(f64::NAN, self.position.step, self.position.epoch, origin));
        }
        self.saved = Some((self.position.step, self.position.epoch));
        self.saver.start(State { numbers, position: self.position.clone() }, places)?;
        self.spent.saving += start.elapsed();
        Ok(())
    }

    /// Tells the observers what has been saved by now, or, with `wait`, when it is.
    fn saved(&mut self, wait: bool, observers: &mut [&mut dyn Observer]) -> Result<()> {
        let saved = self.saver.saved(wait, &mut self.spent.saving)?;
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
        let outcome = outcome.map_err(|e| with_last_checkpoint(e, run, self.saved))?;
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
        while !self.is_over(limits) {
            if self.waited_long_enough() {
                return Ok(Outcome::StoppedEarly);
            }
            let Position { epoch, batch: done, seconds, .. } = self.position;
            tell(observers, &Event::EpochStarted { epoch: epoch + 1, epochs, done, batches })?;
            let watch = Watch::start(&self.measures.device);
            let mut stopped = false;
            // It ends after an update, never between batches whose gradients are added up.
            while self.position.batch < batches && !(self.updated() && (stopped || self.position.step >= limit)) {
                self.saved(false, observers)?;
                self.step()?;
                stopped = stop.load(Ordering::Relaxed);
                let last = self.position.batch == batches || self.position.step >= limit;
                if last || stopped || self.pending.len() == self.engine.patience() {
                    self.report(observers)?;
                }
            }
            let took = watch.read();
            self.spent.train(took);
            self.position.seconds = seconds + took.work.as_secs_f64();
            if stopped || !self.finish_epoch(run, stop, observers)? {
                self.save(run, false, observers)?;
                return Ok(Outcome::Stopped);
            }
        }
        Ok(Outcome::Finished)
    }

    /// Takes the next step. Its numbers are still to be fetched.
    fn step(&mut self) -> Result<()> {
        let Position { epoch, step, batch, .. } = self.position;
        let (images, batches, here) = (self.train.images(batch), self.train.batches(), self.here(batch)?);
        let last = (batch + 1) % self.recipe.accumulate == 0 || batch + 1 == batches;
        if last {
            self.engine.step(&here)?
        } else {
            self.engine.accumulate(&here)?
        }
        let (step, epoch, batch) = (step + 1, epoch + 1, batch + 1);
        (self.position.step, self.position.batch) = (step, batch);
        self.pending.push(StepReport {
            step,
            epoch,
            batch,
            batches,
            images,
            lr: here.rates[0].lr,
            loss: 0.0,
            correct: 0,
        });
        Ok(())
    }

    /// Whether the last batch ended with an update.
    fn updated(&self) -> bool {
        let batch = self.position.batch;
        batch.is_multiple_of(self.recipe.accumulate) || batch == self.train.batches()
    }

    /// The step at a batch of the current epoch.
    fn at(&self, batch: usize) -> Step {
        let (Recipe { seed, batch_size, epochs, accumulate, .. }, p) = (&self.recipe, &self.position);
        let updates = self.train.batches().div_ceil(*accumulate);
        let point = Point { epoch: p.epoch, epochs: *epochs, batch: batch / accumulate, batches: updates };
        let before = u64::from(p.epoch) * updates as u64 + point.batch as u64;
        let (batch_offset, held) = ((batch * batch_size) as u32, p.step.saturating_sub(before));
        self.recipe.at(Step { seed: *seed, epoch: p.epoch, step: p.step, held, batch_offset, ..Step::default() }, point)
    }

    /// The step at a batch of the current epoch, for an engine in which those rest that move no more.
    pub(super) fn here(&mut self, batch: usize) -> Result<Step> {
        let step = self.at(batch);
        self.engine.rest(self.recipe.at_rest(&step))?;
        Ok(step)
    }

    /// Whether nothing is left to do up to the recipe's last epoch or a limit: no step, nor the evaluation of an epoch
    /// that was stopped behind its last step.
    pub fn is_over(&self, limits: Limits) -> bool {
        let Position { epoch, step, batch, .. } = self.position;
        let waits = batch == self.train.batches();
        epoch >= self.recipe.epochs || !waits && limits.max_steps.is_some_and(|limit| step >= limit)
    }

    /// Whether the recipe's patience is at its end.
    pub fn waited_long_enough(&self) -> bool {
        self.position.waited_long_enough(self.recipe.early_stopping)
    }

    /// Evaluates, after the last epoch by the recipe's views, reports and saves; false if it was asked to stop before it
    /// had evaluated.
    fn finish_epoch(&mut self, run: &RunDir, stop: &AtomicBool, observers: &mut [&mut dyn Observer]) -> Result<bool> {
        let watch = Watch::start(&self.measures.device);
        let split = self.measures.split();
        let total = self.measures.data(split)?.len();
        let mut progress = |done| {
            tell(observers, &Event::Evaluating { done, total })?;
            unless(stop)
        };
        let last = self.position.epoch + 1 >= self.recipe.epochs;
        let views = if last { self.recipe.tta } else { Views::One };
        let held_out = match self.evaluate_by(views, split, &mut progress) {
            Err(_) if stop.load(Ordering::Relaxed) => return Ok(false),
            found => found?,
        };
        self.spent.evaluate(watch.read());
        if !held_out.loss.is_finite() {
            let origin = format!("its loss on the {split} set, after the epoch's last update");
            return Err(non_finite(held_out.loss, self.position.step, self.position.epoch, origin));
        }
        let lr = self.at(self.position.batch.saturating_sub(1)).rates[0].lr;
        let p = &mut self.position;
        // Cut short by a step limit, the epoch is not over: going on from here takes its other
        // batches, and what counts as best must not depend on where a run was cut.
        let whole = p.batch >= self.train.batches();
        let best = whole && p.best_accuracy.is_none_or(|b| held_out.accuracy > b);
        let report = EpochReport {
            epoch: p.epoch + 1,
            train_loss: p.loss_sum / p.images as f64,
            train_accuracy: p.correct as f64 / p.images as f64,
            lr,
            seconds: p.seconds,
            images_per_second: p.images as f64 / p.seconds,
            split,
            held_out,
        };
        if best {
            p.best_accuracy = Some(report.held_out.accuracy);
        }
        if let Some(early) = self.recipe.early_stopping.filter(|_| whole) {
            let accuracy = report.held_out.accuracy;
            p.waiting = Some(match p.waiting {
                Some((best, epochs)) if accuracy <= best + early.min_delta / 100.0 => (best, epochs + 1),
                _ => (accuracy, 0),
            });
        }
        if whole {
            let Position { epoch, step, best_accuracy, waiting, .. } = *p;
            *p = Position { epoch: epoch + 1, step, best_accuracy, waiting, ..Position::default() };
        }
        tell(observers, &Event::EpochEnded(&report))?;
        self.save(run, best, observers).map(|()| true)
    }

    /// Fetches the pending steps' numbers, checks them and tells the observers.
    fn report(&mut self, observers: &mut [&mut dyn Observer]) -> Result<()> {
        let Some(first) = self.pending.first() else { return Ok(()) };
        let numbers = self.engine.results(first.step - 1, self.pending.len())?;
        for (mut report, (loss, correct)) in std::mem::take(&mut self.pending).into_iter().zip(numbers) {
            if !loss.is_finite() {
                let origin = match non_finite_parameter(&self.engine.model)? {
                    Some(key) => format!("by now the parameter {key} is not finite either"),
                    None => "the parameters are finite again".into(),
                };
                return Err(non_finite(loss, report.step, self.position.epoch, origin));
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

    /// What is evaluated after each epoch, and what the best checkpoint is chosen by: the validation set, or the test
    /// set where there is none.
    pub fn split(&self) -> Split {
        self.measures.split()
    }

    /// The training images without those held out, the validation and the test set.
    pub fn splits(&self) -> (&Dataset, Option<&Dataset>, &Dataset) {
        let Measures { train, validation, test, .. } = &self.measures;
        (train, validation.as_deref(), test)
    }

    /// A part of the data's loss and accuracy by the recipe's views, with the averaged weights where an average is kept.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such part; else as [`evaluate_views`].
    pub fn evaluate(&mut self, split: Split, progress: &mut dyn FnMut(usize) -> Result<()>) -> Result<Evaluation> {
        self.evaluate_by(self.recipe.tta, split, progress)
    }

    fn evaluate_by(
        &mut self,
        views: Views,
        split: Split,
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Evaluation> {
        let Trainer { engine, measures, recipe, .. } = self;
        let loss = recipe.loss.with(0.0);
        with_room(engine, measures, |engine, measures| {
            let feed = measures.feed(split)?;
            engine.averaged(|model| evaluate_views(model, feed, views, &loss, progress))
        })
    }

    /// The test set's loss and accuracy with a checkpoint of this recipe's, whose path is for errors. The network that
    /// is trained stays as it is. It is an error once `stop` is set.
    ///
    /// # Errors
    /// [`Error::File`] if it is another network's; else as [`evaluate_views`].
    pub fn test(&mut self, checkpoint: &Checkpoint, path: &Path, stop: &AtomicBool) -> Result<Evaluation> {
        let Trainer { engine, measures, recipe, train, .. } = self;
        let (watch, loss) = (Watch::start(&measures.device), recipe.loss.with(0.0));
        let found = with_room(engine, measures, |_, measures| {
            let mut model = recipe.model(train.image(), &measures.device)?;
            model.load_state_dict(&checkpoint.model, path)?;
            evaluate_views(&model, measures.feed(Split::Test)?, recipe.tta, &loss, &mut |_| unless(stop))
        });
        self.spent.evaluate(watch.read());
        found
    }
}

/// Calls `measure`, if it runs out of memory once more with fewer images at once, and then without what recorded steps keep.
fn with_room<R>(
    engine: &mut Engine,
    measures: &mut Measures,
    mut measure: impl FnMut(&mut Engine, &mut Measures) -> Result<R>,
) -> Result<R> {
    engine.with_room(|engine| match measure(engine, measures) {
        Err(Error::OutOfMemory { .. }) if measures.take_fewer() => measure(engine, measures),
        found => found,
    })
}

fn tell(observers: &mut [&mut dyn Observer], event: &Event<'_>) -> Result<()> {
    observers.iter_mut().try_for_each(|o| o.notice(event))
}
