//! The engine's numbers: copied to be saved, and taken over from what was saved.

use super::checkpoint::Checkpoint;
use super::engine::Engine;
use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::nn::state::{Array, Snapshot};
use std::path::Path;

/// A copy of the numbers in host memory.
pub(super) struct Numbers {
    /// The network to be used: the averaged one, where an average is kept.
    pub(super) model: Snapshot,
    /// Then the one that is trained.
    pub(super) trained: Option<Snapshot>,
    /// The optimizer's arenas.
    pub(super) optimizer: Vec<(&'static str, Buffer)>,
}

impl Engine {
    /// A copy of the numbers in the memory of `host`, a CPU device.
    pub(super) fn snapshot(&mut self, host: &Device) -> Result<Numbers> {
        let optimizer = self.optimizer.state().into_iter().map(|(name, b)| Ok((name, b.to_host(host)?)));
        Ok(Numbers {
            optimizer: optimizer.collect::<Result<_>>()?,
            trained: self.average.as_ref().map(|_| self.model.snapshot(host)).transpose()?,
            model: self.averaged(|model| model.snapshot(host))?,
        })
    }

    /// Takes over a checkpoint's numbers. `path` is for errors.
    pub(super) fn restore(&mut self, saved: &Checkpoint, path: &Path) -> Result<()> {
        let bad =
            |problem| Err(Error::file(path, problem, "resume from the folder `last` of a run of the same recipe"));
        match (&self.average, &saved.trained) {
            (None, None) => self.model.load_state_dict(&saved.model, path)?,
            (Some(_), Some(trained)) => {
                self.averaged(|average| average.load_state_dict(&saved.model, path))?;
                self.model.load_state_dict(trained, path)?;
            }
            (None, Some(_)) => return bad("it has a moving average of the weights, and the recipe has none".into()),
            (Some(_), None) => return bad("it has no moving average of the weights, and the recipe has one".into()),
        }
        let Some(optimizer) = &saved.optimizer else { return bad("it has no optimizer state".into()) };
        let mut state = self.optimizer.state();
        if state.len() != optimizer.len() {
            return bad(format!("its optimizer has {} states, the recipe's {}", optimizer.len(), state.len()));
        }
        for (name, buffer) in &mut state {
            match optimizer.get(*name).and_then(Array::to_f32).filter(|v| v.len() == buffer.len()) {
                Some(values) => buffer.write(0, &values)?,
                None => return bad(format!("its optimizer state `{name}` does not fit")),
            }
        }
        Ok(())
    }
}
