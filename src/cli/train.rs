//! `tilework train`: from a recipe to a trained network.

use super::progress::{Progress, seconds};
use super::report::{self, Seen};
use super::signals::{exit_code, stop_flag};
use super::{Data, Out, TrainArgs, absolute, count, counted, describe, note, per_class};
use crate::data::Split;
use crate::error::{Error, Result};
use crate::recipes::Recipe;
use crate::train::run::{Config, RunInfo, git_commit};
use crate::train::{
    CsvLog, EpochReport, Limits, Observer, Outcome, Plots, RunDir, Spent, Summary, TensorBoard, Tested, Trainer,
    checkpoint,
};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// A run that is ready to start.
struct Session {
    config: Config,
    run: RunDir,
    trainer: Trainer,
    data: String,
    device: String,
    /// Held as long as the session lasts.
    _lock: Option<File>,
}

pub(super) fn run(args: &TrainArgs, mut out: Out) -> Result<ExitCode> {
    let session = match &args.resume {
        Some(path) => resume(args, path)?,
        None => fresh(args)?,
    };
    session.train(args, &mut out)
}

/// The recipe's values that the options replace.
pub(super) fn overrides(args: &TrainArgs) -> Vec<String> {
    let mut set = args.set.values.clone();
    set.extend(args.epochs.map(|n| format!("epochs={n}")));
    set.extend(args.batch_size.map(|n| format!("batch_size={n}")));
    set.extend(args.precision.as_ref().map(|p| format!("precision={p}")));
    set.extend(args.lr.map(|x| format!("optimizer.lr={x:?}")));
    set.extend(args.seed.map(|n| format!("seed={n}")));
    set.extend(args.no_shuffle.then(|| "shuffle=false".to_string()));
    set
}

/// A new run. Everything that can be wrong is found before its folder is made.
fn fresh(args: &TrainArgs) -> Result<Session> {
    let recipe = Recipe::load(&args.recipe, &overrides(args))?;
    recipe.check_warmup()?;
    let data = Data::open(&recipe.data, args.data.as_deref())?;
    let classes = data.splits.train.classes.clone();
    let (device, device_name) = args.machine.device()?;
    let mut trainer = Trainer::new(recipe.clone(), data.splits, &device)?;
    let describe = describe(recipe.data.source, &trainer, data.path.as_deref());
    if args.no_graph {
        trainer.engine.without_graph();
    }
    let init = start_from(&mut trainer, &recipe, args.init.as_deref())?;
    let own: Vec<String> = recipe.other_rates().map(|(key, _)| key).filter(|key| key.starts_with("phases")).collect();
    if args.lr.is_some() && !own.is_empty() && !args.set.values.iter().any(|set| set.starts_with("phases")) {
        note(&format!("note: --lr leaves these rates as they are, and --set changes them: {}", own.join(", ")));
    }
    let images = trainer.splits().0.len();
    if recipe.batch_size > images {
        note(&format!(
            "note: the batch is larger than the {} training images: each step takes all of them",
            count(images)
        ));
    }
    let name = Recipe::run_name(&args.recipe);
    let config = Config {
        run: RunInfo {
            name: name.clone(),
            tilework: env!("CARGO_PKG_VERSION").to_string(),
            git_commit: git_commit(),
            device: device.name().to_string(),
            threads: args.machine.threads(),
            data: data.path,
            init: init.map(absolute).transpose()?,
            image: Some(trainer.image()),
            classes,
        },
        recipe,
    };
    let run = RunDir::create(&args.out, &name)?;
    if let Err(e) = config.write(&run) {
        // An empty folder helps nobody; the error that matters is the one above.
        let _ = std::fs::remove_dir(run.path());
        return Err(e);
    }
    let _lock = lock(&run)?;
    Ok(Session { config, run, trainer, data: describe, device: device_name, _lock })
}

/// Starts from the weights of `--init` or else of the recipe, if there are any: where they are from.
pub(super) fn start_from<'a>(
    trainer: &mut Trainer,
    recipe: &'a Recipe,
    init: Option<&'a Path>,
) -> Result<Option<&'a Path>> {
    let path = match (init, &recipe.pretrained) {
        (Some(path), _) => path,
        (None, Some(pretrained)) => pretrained.file()?,
        (None, None) => return Ok(None),
    };
    let loaded = trainer.init_from(path)?;
    note(&format!("weights from {}: {loaded}", path.display()));
    Ok(Some(path))
}

/// A run that goes on.
fn resume(args: &TrainArgs, path: &Path) -> Result<Session> {
    let run = RunDir::open(path)?;
    let before = Config::read(&run)?;
    let mut config = before.clone();
    if let Some(epochs) = args.epochs {
        config.recipe.epochs = epochs;
    }
    let source = config.recipe.data.source;
    let data = Data::reopen(&config, args.data.as_deref())?;
    let (device, device_name) = args.machine.device()?;
    let mut trainer = Trainer::new(config.recipe.clone(), data.splits, &device)?;
    let describe = describe(source, &trainer, data.path.as_deref());
    if args.no_graph {
        trainer.engine.without_graph();
    }
    config.run.data = data.path;
    let mut _lock = lock(&run)?;
    let last = run.path().join("last");
    match checkpoint::load(&last) {
        Ok(saved) => trainer.restore(saved, &last)?,
        // Killed before anything was saved: there is nothing to lose by starting over. What is
        // damaged is reported.
        Err(_) if !last.exists() && !run.path().join("last.old").exists() => {
            note("note: nothing was saved yet, so the run starts from its beginning");
            if let Some(path) = &config.run.init {
                trainer.init_from(path)?;
            }
        }
        Err(e) => return Err(e),
    }
    if trainer.is_over(Limits { max_steps: args.max_steps }) || trainer.waited_long_enough() {
        config.recipe.epochs = before.recipe.epochs;
    }
    if config != before {
        config.write(&run)?;
        // The lock was on the file that this one replaced.
        _lock = lock(&run)?;
    }
    Ok(Session { config, run, trainer, data: describe, device: device_name, _lock })
}

/// Keeps other processes from training in the same folder, as long as the file is open.
fn lock(run: &RunDir) -> Result<Option<File>> {
    let path = run.path().join("config.toml");
    let file = File::open(&path).map_err(Error::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(Error::file(
            run.path(),
            "another process is training in this folder",
            "wait until it has ended, or stop it with Ctrl-C",
        )),
        // A file system without locks.
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

impl Session {
    fn train(mut self, args: &TrainArgs, out: &mut Out) -> Result<ExitCode> {
        let epochs = self.config.recipe.epochs;
        let at = self.trainer.position().clone();
        let total = (u64::from(epochs) * self.trainer.batches() as u64).min(args.max_steps.unwrap_or(u64::MAX));
        out.print(&self.header())?;
        let limits = Limits { max_steps: args.max_steps };
        if self.trainer.is_over(limits) || self.trainer.waited_long_enough() {
            // Stopped while the test set was evaluated, which comes last.
            if self.trainer.split() != Split::Test && Summary::read(&self.run)?.is_some_and(|s| s.test.is_none()) {
                let stop = stop_flag(Progress::new(total, args.log_every, at.best_accuracy).lines())?;
                return self.finish(None, &stop, out);
            }
            let (steps, epochs) = (counted(at.step as usize, "step"), counted(at.epoch as usize, "epoch"));
            let text = format!("the run is finished: {steps}, {epochs}\n");
            let more = match self.trainer.waited_long_enough() {
                false => "to go on, give more with --epochs or --max-steps\n".to_string(),
                true => {
                    let config = self.run.path().join("config.toml");
                    format!("early stopping has ended it; to go on, raise its patience in {}\n", config.display())
                }
            };
            return out.print(&(text + &more)).map(|()| ExitCode::SUCCESS);
        }
        let mut csv = CsvLog::open(&self.run, at.step, at.epoch, self.trainer.split())?;
        csv.notes().iter().for_each(|n| note(&format!("note: {n}")));
        let mut progress = Progress::new(total, args.log_every, at.best_accuracy);
        let (lines, parameters) = (progress.lines(), self.trainer.engine.model.params.count());
        let warn = move |e: &Error| lines.print(&format!("warning: no figures: {e}"));
        let mut plots = Plots::open(&self.run, &self.config.recipe, parameters, warn)?;
        let stop = stop_flag(progress.lines())?;
        let wanted = args.tensorboard || TensorBoard::is_kept(&self.run)?;
        let mut board = wanted.then(|| TensorBoard::open(&self.run, at.step)).transpose()?;
        let mut observers: Vec<&mut dyn Observer> = vec![&mut csv, &mut progress, &mut plots];
        observers.extend(board.as_mut().map(|b| b as &mut dyn Observer));
        let outcome = self.trainer.run(&self.run, limits, &stop, &mut observers);
        progress.clear();
        let go_on = format!("tilework train --resume {}", self.run.path().display());
        match outcome {
            Ok(how @ (Outcome::Finished | Outcome::StoppedEarly)) => {
                if how == Outcome::StoppedEarly {
                    let patience = self.config.recipe.early_stopping.map_or(0, |e| e.patience);
                    out.print(&format!("\nstopped early: no better accuracy for {patience} epochs\n"))?;
                }
                self.finish(progress.last.as_ref(), &stop, out)
            }
            Ok(Outcome::Stopped) => {
                let step = count(self.trainer.position().step as usize);
                out.print(&format!("stopped and saved after step {step}\ngo on with: {go_on}\n"))?;
                Ok(ExitCode::from(exit_code()))
            }
            Err(e) => {
                let numbers = matches!(e, Error::NonFinite { .. });
                if !numbers && self.run.path().join("last").exists() {
                    note(&format!("note: go on from the last checkpoint with: {go_on}"));
                }
                Err(e)
            }
        }
    }

    fn header(&self) -> String {
        let Recipe { about, epochs, batch_size, seed, optimizer, precision, .. } = &self.config.recipe;
        let at = self.trainer.position();
        let macs: usize = self.trainer.engine.model.layers.iter().map(|l| l.macs).sum();
        let resumed = match at.step {
            0 => String::new(),
            step => format!(", goes on after step {}", count(step as usize)),
        };
        let stored = if precision.is_f32() { String::new() } else { format!(", in {precision}") };
        let epochs = counted(*epochs as usize, "epoch");
        format!(
            "recipe    {}{}{about}\n\
             data      {}\n\
             device    {}\n\
             network   {} parameters, {} multiply-adds an image\n\
             training  {epochs} of {} of {batch_size} images, learning rate {}, seed {seed}{stored}\n\
             run       {}{resumed}\n",
            self.config.run.name,
            if about.is_empty() { "" } else { ": " },
            self.data,
            self.device,
            count(self.trainer.engine.model.params.count()),
            count(macs),
            counted(self.trainer.batches(), "step"),
            optimizer.lr(),
            self.run.path().display(),
        )
    }

    /// Prints the results of a run whose last epoch is over, or that it was stopped before there are any.
    fn finish(&mut self, last: Option<&EpochReport>, stop: &AtomicBool, out: &mut Out) -> Result<ExitCode> {
        if let Some(text) = self.results(last, stop)? {
            return out.print(&text).map(|()| ExitCode::SUCCESS);
        }
        let go_on = format!("tilework train --resume {}", self.run.path().display());
        out.print(&format!("stopped before the test set was evaluated; all epochs are saved\ngo on with: {go_on}\n"))?;
        Ok(ExitCode::from(exit_code()))
    }

    /// What the last epoch's report, or with a validation set an evaluation of the test set, says. None if it is stopped.
    fn results(&mut self, last: Option<&EpochReport>, stop: &AtomicBool) -> Result<Option<String>> {
        // There is no best one before the end of an epoch.
        let (best, folders) = match self.trainer.position().best_accuracy {
            Some(best) => (Some(best * 100.0), "best/, last/"),
            None => (None, "last/"),
        };
        let whole = self.trainer.position().epoch >= self.config.recipe.epochs;
        let (test, chosen, name, step) = if self.trainer.split() == Split::Test {
            let Some(last) = last else { return Ok(Some(String::new())) };
            (
                last.held_out.clone(),
                best.map_or_else(String::new, |b| format!(", best {b:.2} %")),
                "last",
                self.trainer.position().step,
            )
        } else {
            let (name, why) = match best {
                Some(b) => ("best", format!(", chosen by the validation set: {b:.2} %")),
                None => ("last", String::new()),
            };
            let folder = self.run.path().join(name);
            let saved = checkpoint::load(&folder)?;
            let test = match self.trainer.test(&saved, &folder, stop) {
                Err(_) if stop.load(Ordering::Relaxed) => return Ok(None),
                test => test?,
            };
            if let Some(mut summary) = Summary::read(&self.run)? {
                summary.test = Some(Tested { loss: test.loss, accuracy: test.accuracy });
                summary.write(&self.run)?;
            }
            (test, format!(" of the checkpoint {name}{why}"), name, saved.position.step)
        };
        let path = self.run.path().display();
        let cut = match whole || self.trainer.waited_long_enough() {
            true => String::new(),
            false => {
                let (step, all) =
                    (self.trainer.position().step, self.trainer.batches() * self.config.recipe.epochs as usize);
                let (step, all) = (count(step as usize), count(all));
                format!(
                    "\nended by --max-steps after {step} of {all} steps\ngo on with: tilework train --resume {path}\n"
                )
            }
        };
        let reported = self.config.recipe.reported.filter(|_| cut.is_empty());
        let reported = report::beside_reported(reported, test.accuracy);
        let reported = reported.map_or_else(String::new, |text| text + "\n");
        let html = report::place(&self.run);
        let seen = Seen {
            found: &test,
            images: self.trainer.test_data(),
            parameters: self.trainer.engine.model.params.count(),
            checkpoint: format!("{name} (step {})", count(step as usize)),
        };
        let see = match report::write(&self.run, &self.config, Some(&seen), &html) {
            Ok(()) => format!("see it:        {}\n", html.display()),
            Err(e) => format!("warning: no report: {e}\n"),
        };
        let spent = told(&self.trainer.spent);
        let scale = self.trainer.engine.loss_scale()?.map_or(String::new(), |(scale, skipped)| {
            let steps = count(self.trainer.position().step as usize);
            format!("loss scale     {scale}, {} of {steps} steps skipped\n", count(skipped as usize))
        });
        Ok(Some(format!(
            "\n{}\ntest accuracy  {:.2} %{chosen}\n{reported}time           {spent}\n{scale}{cut}\n\
             everything is in {path}: config.toml, metrics.csv, steps.csv, {folders}\n\
             {see}evaluate it:   tilework eval {path}\n",
            per_class(&test.per_class),
            test.accuracy * 100.0,
        )))
    }
}

/// Where the time went, what took none at all left out of what few runs have.
fn told(spent: &Spent) -> String {
    let Spent { whitening, loading, training, evaluation, saving } = *spent;
    let first =
        [(whitening, "whitening"), (loading, "loading kernels")].into_iter().filter(|(time, _)| !time.is_zero());
    let all = first.chain([(training, "training"), (evaluation, "evaluation"), (saving, "waiting for saves")]);
    all.map(|(time, what)| format!("{} {what}", seconds(time.as_secs_f64()))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn time_is_told() {
        let (ms, mut spent) =
            (Duration::from_millis, Spent { training: Duration::from_millis(12_340), ..Spent::default() });
        assert_eq!(told(&spent), "12.3 s training, 0.00 s evaluation, 0.00 s waiting for saves");
        (spent.whitening, spent.loading, spent.evaluation) = (ms(170), ms(60), ms(1239));
        let want =
            "0.17 s whitening, 0.06 s loading kernels, 12.3 s training, 1.24 s evaluation, 0.00 s waiting for saves";
        assert_eq!(told(&spent), want);
    }
}
