//! A run's figures and the numbers of its last epoch, written again after each epoch.

use super::events::{EpochReport, Event, Observer};
use super::history::History;
use super::run::RunDir;
use crate::error::{Error, Result};
use crate::formats::file;
use crate::recipes::Recipe;
use serde::{Deserialize, Serialize};

/// `summary.json`: what is not in the CSV files and does not need the data to be found out again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The epoch, counted from 1.
    pub epoch: u32,
    /// Trainable numbers of the network.
    pub parameters: usize,
    /// Each class's name and accuracy after the epoch, as a share: on the validation set, or else the test set.
    pub per_class: Vec<(String, f64)>,
    /// Of a finished run with a validation set: the best checkpoint on the test set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Tested>,
}

/// A checkpoint on the test set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    /// Mean loss of an image.
    pub loss: f64,
    /// Share classified right.
    pub accuracy: f64,
}

impl Summary {
    /// Reads a run's `summary.json`, if it has one.
    ///
    /// # Errors
    /// [`Error::File`] if it is none.
    pub fn read(run: &RunDir) -> Result<Option<Self>> {
        let path = run.path().join("summary.json");
        let Ok(text) = std::fs::read_to_string(&path) else { return Ok(None) };
        let bad = |e: serde_json::Error| Error::file(&path, e.to_string(), "remove it: a resumed run writes it again");
        serde_json::from_str(&text).map(Some).map_err(bad)
    }

    /// Writes a run's `summary.json`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, run: &RunDir) -> Result<()> {
        let text = serde_json::to_string(self).map_err(|e| Error::Internal(format!("summary to JSON: {e}")))?;
        file::write(&run.path().join("summary.json"), text.as_bytes())
    }
}

type Warn = Box<dyn Fn(&Error)>;

/// Draws `figures/loss.svg`, `accuracy.svg` and `lr.svg` in a run's folder after each epoch, and writes `summary.json`.
pub struct Plots {
    run: RunDir,
    parameters: usize,
    reported: Option<f64>,
    history: History,
    /// Told once what keeps figures from being drawn; the run goes on.
    warn: Option<Warn>,
}

impl Plots {
    /// For a run whose CSV files are open: what they hold so far is drawn too. `warn` is told of a failure to draw,
    /// the first time.
    ///
    /// # Errors
    /// As [`History::read`].
    pub fn open(run: &RunDir, recipe: &Recipe, parameters: usize, warn: impl Fn(&Error) + 'static) -> Result<Self> {
        let (run, history) = (run.clone(), History::read(run)?);
        Ok(Plots { run, parameters, reported: recipe.reported, history, warn: Some(Box::new(warn)) })
    }

    fn draw(&self, report: &EpochReport) -> Result<()> {
        let folder = self.run.path().join("figures");
        std::fs::create_dir_all(&folder).map_err(Error::io("make the folder", &folder))?;
        let (epoch, parameters, per_class) = (report.epoch, self.parameters, report.held_out.per_class.clone());
        Summary { epoch, parameters, per_class, test: None }.write(&self.run)?;
        let name = self.run.path().file_name().unwrap_or_default().to_string_lossy();
        for (figure, svg) in self.history.figures(&name, self.reported) {
            file::write(&folder.join(format!("{figure}.svg")), svg.as_bytes())?;
        }
        Ok(())
    }
}

impl Observer for Plots {
    fn notice(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Step(s) => self.history.steps.push(s.into()),
            Event::EpochEnded(e) => {
                self.history.epochs.push((*e).into());
                if let Err(e) = self.draw(e)
                    && let Some(warn) = self.warn.take()
                {
                    warn(&e);
                }
            }
            _ => {}
        }
        Ok(())
    }
}
