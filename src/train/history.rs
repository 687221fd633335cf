//! What a run has told so far, read back from its CSV files.

use super::checkpoint::Position;
use super::events::{EpochReport, StepReport};
use super::run::RunDir;
use crate::data::Split;
use crate::error::{Error, Result};
use crate::figures::Chart;
use std::path::Path;

/// Points of a line through losses that scatter.
const TREND: usize = 80;

/// A row of `steps.csv`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepRow {
    /// The step, counted from 1.
    pub step: u64,
    /// The epoch, counted from 1.
    pub epoch: u32,
    /// Its learning rate.
    pub lr: f32,
    /// The mini-batch's mean loss.
    pub loss: f32,
}

/// A row of `metrics.csv`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EpochRow {
    /// The epoch, counted from 1.
    pub epoch: u32,
    /// Mean loss over the epoch.
    pub train_loss: f64,
    /// Share classified right over the epoch.
    pub train_accuracy: f64,
    /// Loss on the validation set after it, or on the test set where there is none.
    pub loss: f64,
    /// Accuracy there, as a share.
    pub accuracy: f64,
    /// Seconds of training.
    pub seconds: f64,
}

/// The steps and epochs of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Per step.
    pub steps: Vec<StepRow>,
    /// Per epoch.
    pub epochs: Vec<EpochRow>,
    /// What was evaluated after each epoch.
    pub split: Split,
}

impl From<&StepReport> for StepRow {
    fn from(s: &StepReport) -> Self {
        StepRow { step: s.step, epoch: s.epoch, lr: s.lr as f32, loss: s.loss as f32 }
    }
}

impl From<&EpochReport> for EpochRow {
    fn from(e: &EpochReport) -> Self {
        EpochRow {
            epoch: e.epoch,
            train_loss: e.train_loss,
            train_accuracy: e.train_accuracy,
            loss: e.held_out.loss,
            accuracy: e.held_out.accuracy,
            seconds: e.seconds,
        }
    }
}

/// The columns of these names, row by row; the last row may have been cut. No file is no row.
fn rows<const N: usize>(path: &Path, names: [&str; N]) -> Result<Vec<[f64; N]>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    let mut lines = text.split_inclusive('\n').filter_map(|l| l.strip_suffix('\n'));
    let Some(head) = lines.next() else { return Ok(Vec::new()) };
    let bad = |problem: String| Error::file(path, problem, "restore the file as the run wrote it");
    let mut at = [0; N];
    for (at, name) in at.iter_mut().zip(names) {
        let place = head.split(',').position(|h| h == name);
        *at = place.ok_or_else(|| bad(format!("it has no column `{name}`")))?;
    }
    let row = |(i, line): (usize, &str)| {
        let cells: Vec<&str> = line.split(',').collect();
        let mut row = [0.0; N];
        for (value, &at) in row.iter_mut().zip(&at) {
            let number = cells.get(at).and_then(|c| c.parse().ok());
            *value = number.ok_or_else(|| bad(format!("line {}: `{line}` is no row of numbers", i + 2)))?;
        }
        Ok(row)
    };
    lines.enumerate().map(row).collect()
}

/// What the loss and accuracy after each epoch are of, by the file's first line.
fn split_of(path: &Path) -> Result<Split> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.lines().next().is_some_and(|head| head.split(',').any(|h| h == "val_loss")) => {
            Ok(Split::Validation)
        }
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("read", path)(e)),
        _ => Ok(Split::Test),
    }
}

impl History {
    /// Reads a run's `steps.csv` and `metrics.csv`, as far as they go.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] if they are no CSV files of a run.
    pub fn read(run: &RunDir) -> Result<Self> {
        let steps = rows(&run.path().join("steps.csv"), ["step", "epoch", "lr", "loss"])?;
        let step = |[step, epoch, lr, loss]: [f64; 4]| StepRow {
            step: step as u64,
            epoch: epoch as u32,
            lr: lr as f32,
            loss: loss as f32,
        };
        let metrics = run.path().join("metrics.csv");
        let split = split_of(&metrics)?;
        let (loss, accuracy) = (format!("{}_loss", split.column()), format!("{}_accuracy", split.column()));
        let columns = ["epoch", "train_loss", "train_accuracy", &loss, &accuracy, "seconds"];
        let epochs = rows(&metrics, columns)?;
        let epoch = |[epoch, train_loss, train_accuracy, loss, accuracy, seconds]: [f64; 6]| EpochRow {
            epoch: epoch as u32,
            train_loss,
            train_accuracy,
            loss,
            accuracy,
            seconds,
        };
        let (steps, epochs) = (steps.into_iter().map(step).collect(), epochs.into_iter().map(epoch).collect());
        Ok(History { steps, epochs, split })
    }

    /// Whole epochs, by the latest checkpoint; all rows if there is none.
    pub fn whole(&self, at: Option<&Position>) -> u32 {
        at.map_or(self.epochs.len() as u32, |at| at.epoch)
    }

    /// Of so many whole epochs the one with the best accuracy, the first of equals. (The row of an epoch that was cut short
    /// by a limit of steps counts for nothing: the run's `best` is not chosen by it either.)
    pub fn best(&self, whole: u32) -> Option<&EpochRow> {
        self.epochs
            .iter()
            .filter(|e| e.epoch <= whole)
            .reduce(|best, e| if e.accuracy > best.accuracy { e } else { best })
    }

    /// One of an epoch's numbers over the epochs.
    pub fn by_epoch(&self, value: impl Fn(&EpochRow) -> f64) -> Vec<[f64; 2]> {
        self.epochs.iter().map(|e| [f64::from(e.epoch), value(e)]).collect()
    }

    /// One of an epoch's numbers at its last step.
    fn by_last_step(&self, value: impl Fn(&EpochRow) -> f64) -> Vec<[f64; 2]> {
        let last = |epoch| self.steps.partition_point(|s| s.epoch <= epoch).checked_sub(1).map(|i| self.steps[i].step);
        self.epochs.iter().map(|e| [last(e.epoch).map_or(f64::NAN, |s| s as f64), value(e)]).collect()
    }

    /// A run's figures: the name of each, and its SVG. `reported` is the accuracy that the recipe's source gives, in
    /// percent.
    pub fn figures(&self, name: &str, reported: Option<f64>) -> [(&'static str, String); 3] {
        let steps = |value: fn(&StepRow) -> f32| -> Vec<[f64; 2]> {
            self.steps.iter().map(|s| [s.step as f64, f64::from(value(s))]).collect()
        };
        let (each, stretch) = (steps(|s| s.loss), self.steps.len().div_ceil(TREND));
        let middle =
            |part: &[[f64; 2]]| [part[part.len() / 2][0], part.iter().map(|p| p[1]).sum::<f64>() / part.len() as f64];
        let trend: Vec<[f64; 2]> = each.chunks(stretch.max(1)).map(middle).collect();
        let mut loss = Chart::new(format!("{name}: loss"), "step", "mean loss of an image")
            .faint("training, each mini-batch", each);
        if stretch > 1 {
            loss = loss.line(format!("training, mean of {stretch} steps"), trend);
        }
        let loss = loss.line(self.split.to_string(), self.by_last_step(|e| e.loss));
        let mut accuracy = Chart::new(format!("{name}: accuracy"), "epoch", "accuracy in percent")
            .line("training, before each update", self.by_epoch(|e| e.train_accuracy * 100.0))
            .line(self.split.to_string(), self.by_epoch(|e| e.accuracy * 100.0));
        if let Some(percent) = reported {
            accuracy = accuracy.mark(percent, format!("reported by the source, {percent} %"));
        }
        let rate = Chart::new(format!("{name}: learning rate"), "step", "learning rate").line("", steps(|s| s.lr));
        [("loss", loss.svg()), ("accuracy", accuracy.svg()), ("lr", rate.svg())]
    }
}
