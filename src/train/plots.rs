//! A run's figures and the numbers of its last epoch, written again after each epoch.

use super::events::{EpochReport, Event, Observer};
use super::history::History;
use super::run::RunDir;
use crate::error::{Error, Result};
use crate::recipes::Recipe;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// `summary.json`: what is not in the CSV files and does not need the data to be found out again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The epoch, counted from 1.
    pub epoch: u32,
    /// Trainable numbers of the network.
    pub parameters: usize,
    /// Each class's name and test accuracy after the epoch, as a share.
    pub per_class: Vec<(String, f64)>,
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
}

/// Draws `figures/loss.svg`, `accuracy.svg` and `lr.svg` in a run's folder after each epoch, and writes `summary.json`.
pub struct Plots {
    folder: PathBuf,
    name: String,
    parameters: usize,
    reported: Option<f64>,
    history: History,
    /// Told once what keeps figures from being drawn; the run goes on.
    warn: Option<Box<dyn Fn(&Error)>>,
}

impl Plots {
    /// For a run whose CSV files are open: what they hold so far is drawn too. `warn` is told of a failure to draw,
    /// the first time.
    ///
    /// # Errors
    /// As [`History::read`].
    pub fn open(run: &RunDir, recipe: &Recipe, parameters: usize, warn: impl Fn(&Error) + 'static) -> Result<Self> {
        let (folder, history) = (run.path().join("figures"), History::read(run)?);
        let name = run.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Plots { folder, name, parameters, reported: recipe.reported, history, warn: Some(Box::new(warn)) })
    }

    fn draw(&self, report: &EpochReport) -> Result<()> {
        std::fs::create_dir_all(&self.folder).map_err(Error::io("make the folder", &self.folder))?;
        let (epoch, parameters, per_class) = (report.epoch, self.parameters, report.test.per_class.clone());
        let text = serde_json::to_string(&Summary { epoch, parameters, per_class })
            .map_err(|e| Error::Internal(format!("summary to JSON: {e}")))?;
        put(&self.folder.with_file_name("summary.json"), &text)?;
        for (name, svg) in self.history.figures(&self.name, self.reported) {
            put(&self.folder.join(format!("{name}.svg")), &svg)?;
        }
        Ok(())
    }
}

/// Writes a file and renames it into place, so that who looks on while it trains sees a whole one.
fn put(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text).map_err(Error::io("write", &new))?;
    std::fs::rename(&new, path).map_err(Error::io("replace", path))
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
