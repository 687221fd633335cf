//! `steps.csv` and `metrics.csv`, for others to read.

use super::events::{Event, Observer};
use super::run::RunDir;
use crate::data::Split;
use crate::error::{Error, Result};
use crate::formats::file;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const STEPS: &str = "step,epoch,lr,loss";
/// How long a row may wait in memory.
const FLUSH: Duration = Duration::from_secs(1);

/// Writes a row of `steps.csv` per step and a row of `metrics.csv` per epoch.
pub struct CsvLog {
    steps: Csv,
    metrics: Csv,
    notes: Vec<String>,
    flushed: Instant,
}

struct Csv {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Csv {
    /// Opens a file and keeps its rows up to the one whose first column is `last`; later rows are
    /// of steps that a resumed run takes again.
    ///
    /// What is found wrong is added to `notes`.
    fn open(path: PathBuf, header: &str, last: u64, notes: &mut Vec<String>) -> Result<Self> {
        let before = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        // A row that was cut, by a full disk or a kill, has no end of line.
        let row = |line: &&str| {
            line.ends_with('\n')
                && line.split(',').next().and_then(|n| n.parse::<u64>().ok()).is_some_and(|n| n <= last)
        };
        let kept = before.split_inclusive('\n').skip(1).take_while(row);
        let text: String = [header, "\n"].into_iter().chain(kept).collect();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (had, keeps) = (before.lines().count().saturating_sub(1), text.lines().count() as u64 - 1);
        if !before.is_empty() && !before.ends_with('\n') {
            notes.push(format!("{name} ends in the middle of a row, which is dropped"));
        }
        if keeps < last {
            notes.push(format!("{name} has {keeps} of the {last} rows up to the checkpoint: the others are lost"));
        } else if had as u64 > keeps {
            notes.push(format!("{name}: {} rows after the checkpoint are dropped, and come again", had as u64 - keeps));
        }
        if text != before {
            file::write_durably(&path, text.as_bytes())?;
        }
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io("open", &path))?;
        Ok(Csv { file: BufWriter::new(file), path })
    }

    fn row(&mut self, row: std::fmt::Arguments<'_>) -> Result<()> {
        writeln!(self.file, "{row}").map_err(Error::io("write", &self.path))
    }

    fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(Error::io("write", &self.path))
    }
}

impl CsvLog {
    /// Opens the files of a run that has done `steps` steps and `epochs` whole epochs; rows beyond
    /// are dropped. `split` is what the run evaluates after each epoch.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(run: &RunDir, steps: u64, epochs: u32, split: Split) -> Result<Self> {
        let at = |name: &str| -> PathBuf { Path::new(run.path()).join(name) };
        let mut notes = Vec::new();
        let name = split.column();
        let metrics =
            format!("epoch,train_loss,train_accuracy,{name}_loss,{name}_accuracy,lr,seconds,images_per_second");
        Ok(CsvLog {
            steps: Csv::open(at("steps.csv"), STEPS, steps, &mut notes)?,
            metrics: Csv::open(at("metrics.csv"), &metrics, u64::from(epochs), &mut notes)?,
            notes,
            flushed: Instant::now(),
        })
    }

    /// What was found wrong with the files of a run that goes on: rows that were cut, lost or dropped.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

impl Observer for CsvLog {
    fn notice(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Step(s) => {
                // Shortest text that reads back as the same f32.
                self.steps.row(format_args!("{},{},{},{}", s.step, s.epoch, s.lr as f32, s.loss as f32))?;
                if s.step % 64 == 0 && self.flushed.elapsed() > FLUSH {
                    self.flushed = Instant::now();
                    self.steps.flush()?;
                }
            }
            Event::EpochEnded(e) => {
                self.metrics.row(format_args!(
                    "{},{},{},{},{},{},{:.3},{:.1}",
                    e.epoch,
                    e.train_loss,
                    e.train_accuracy,
                    e.held_out.loss,
                    e.held_out.accuracy,
                    e.lr as f32,
                    e.seconds,
                    e.images_per_second
                ))?;
                self.metrics.flush()?;
                self.steps.flush()?;
            }
            // Before the checkpoint, so that a run that goes on from it finds every row up to it.
            Event::Saving { .. } => {
                self.steps.flush()?;
                self.metrics.flush()?;
            }
            Event::EpochStarted { .. } | Event::Evaluating { .. } | Event::Saved { .. } => {}
        }
        Ok(())
    }
}
