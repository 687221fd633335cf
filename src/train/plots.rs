//! A run's figures, drawn again after each epoch.

use super::events::{Event, Observer};
use super::history::History;
use super::run::RunDir;
use crate::error::{Error, Result};
use std::path::PathBuf;

/// Draws `figures/loss.svg`, `accuracy.svg` and `lr.svg` in a run's folder after each epoch.
pub struct Plots {
    folder: PathBuf,
    name: String,
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
    pub fn open(run: &RunDir, name: &str, reported: Option<f64>, warn: impl Fn(&Error) + 'static) -> Result<Self> {
        let (folder, history) = (run.path().join("figures"), History::read(run)?);
        Ok(Plots { folder, name: name.to_string(), reported, history, warn: Some(Box::new(warn)) })
    }

    fn draw(&self) -> Result<()> {
        std::fs::create_dir_all(&self.folder).map_err(Error::io("make the folder", &self.folder))?;
        for (name, svg) in self.history.figures(&self.name, self.reported) {
            // Renamed into place, so that who looks on while it trains sees a whole figure.
            let (path, new) = (self.folder.join(format!("{name}.svg")), self.folder.join(format!("{name}.svg.new")));
            std::fs::write(&new, svg).map_err(Error::io("write", &new))?;
            std::fs::rename(&new, &path).map_err(Error::io("replace", &path))?;
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
                if let Err(e) = self.draw()
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
