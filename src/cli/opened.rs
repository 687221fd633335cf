//! The data that a command is given, or a run had.

use super::{absolute, count, note};
use crate::data::{Source, Splits};
use crate::error::{Error, Result};
use crate::recipes::DataSpec;
use crate::train::Trainer;
use crate::train::run::Config;
use std::path::{Path, PathBuf};

/// A data set in memory and where it was.
pub(super) struct Data {
    pub(super) path: Option<PathBuf>,
    pub(super) splits: Splits,
}

impl Data {
    pub(super) fn open(spec: &DataSpec, path: Option<&Path>) -> Result<Self> {
        Data::sized(spec.source, spec.size, path)
    }

    pub(super) fn sized(source: Source, size: Option<usize>, path: Option<&Path>) -> Result<Self> {
        let path = match (source, path) {
            (Source::Shapes, path) => path.map(Path::to_path_buf),
            (source, path) => Some(absolute(&crate::data::find(source, path)?)?),
        };
        // Always the same shapes: a run's seed is about the network, and runs can be compared.
        let splits = crate::data::open(source, path.as_deref(), size, 0)?;
        for (part, data) in [("training", &splits.train), ("test", &splits.test)] {
            let mut seen = vec![false; data.classes.len()];
            for &label in &data.labels {
                if let Some(seen) = seen.get_mut(label as usize) {
                    *seen = true;
                }
            }
            let lacking = data.classes.iter().zip(&seen).filter(|(_, seen)| !**seen);
            let lacking: Vec<&str> = lacking.map(|(class, _)| class.as_str()).collect();
            if !lacking.is_empty() {
                note(&format!("note: no {part} images of {}", lacking.join(", ")));
            }
        }
        Ok(Data { path, splits })
    }

    /// The data of a run: at the path given now, where it was then, or in the default places. An error if its classes are
    /// not the run's.
    pub(super) fn reopen(config: &Config, given: Option<&Path>) -> Result<Self> {
        let then = config.run.data.as_deref();
        let lost = then.filter(|then| given.is_none() && !then.exists());
        let data = match (Data::open(&config.recipe.data, given.or(then.filter(|_| lost.is_none()))), lost) {
            (Err(e), Some(lost)) => {
                let lost = lost.display();
                let problem = format!("{lost}, where the run had it from, is not there; and in the usual places: {e}");
                return Err(Error::config("data", problem, "say with --data where it is now"));
            }
            (data, _) => data?,
        };
        if let (Some(lost), Some(path)) = (lost, &data.path) {
            note(&format!("note: {} is not there any more; the data is from {}", lost.display(), path.display()));
        }
        let (ours, theirs) = (&config.run.classes, &data.splits.train.classes);
        let differs = (0..ours.len().max(theirs.len())).find(|&i| ours.get(i) != theirs.get(i));
        if let Some(i) = differs.filter(|_| !ours.is_empty()) {
            let name = |classes: &[String]| classes.get(i).map_or("missing".into(), |name| format!("`{name}`"));
            let problem = format!("class {i} is {}, and {} in the run", name(theirs), name(ours));
            let remedy = "give the data that it was trained on with --data, with the names that its classes had";
            return Err(Error::config("data", problem, remedy));
        }
        Ok(data)
    }
}

/// A trainer's data, of which `path` is the place.
pub(super) fn describe(source: Source, trainer: &Trainer, path: Option<&Path>) -> String {
    let (train, validation, test) = trainer.splits();
    let validation = validation.map_or_else(|| " and".into(), |v| format!(", {} validation and", count(v.len())));
    format!(
        "{source}, {} training{validation} {} test images of {}x{}x{}, {} classes{}",
        count(train.len()),
        count(test.len()),
        train.height,
        train.width,
        train.channels,
        train.classes.len(),
        path.map_or_else(|| " (generated)".into(), |p| format!("\n          {}", p.display())),
    )
}
