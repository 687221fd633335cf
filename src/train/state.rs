//! The engine's numbers: copied to be saved, and taken over from what was saved.

use super::checkpoint::Checkpoint;
use super::engine::Engine;
use super::metrics::Metrics;
use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::nn::state::{Array, Snapshot};
use crate::tensor::Tensor;
use std::path::Path;
use std::sync::atomic::Ordering;

/// A copy of the numbers in host memory.
pub(super) struct Numbers {
    /// The network to be used: the averaged one, where an average is kept.
    pub(super) model: Snapshot,
    /// Then the one that is trained.
    pub(super) trained: Option<Snapshot>,
    /// The optimizer's arenas.
    pub(super) optimizer: Vec<(&'static str, Buffer)>,
}

impl Numbers {
    /// The first parameter with a number that is not finite.
    pub(super) fn non_finite(&self) -> Result<Option<String>> {
        let of = |s: &Snapshot| s.non_finite_parameter();
        match &self.trained {
            Some(trained) => Ok(of(trained)?.or(of(&self.model)?)),
            None => of(&self.model),
        }
    }
}

/// All that steps change, kept aside in host memory, to be put back as it was.
pub(super) struct Kept {
    arenas: Vec<Buffer>,
    buffers: Vec<Vec<f32>>,
    counters: Vec<i64>,
    metrics: Metrics,
}

impl Kept {
    /// A copy of an engine's numbers.
    pub(super) fn of(engine: &mut Engine) -> Result<Self> {
        if engine.held > 0 {
            let problem = "there are gradients that have been added up and not used".to_string();
            return Err(Error::config("the engine's state", problem, "take a step that moves the parameters first"));
        }
        let host = Device::cpu();
        let (mut arenas, mut buffers) = (Vec::new(), Vec::new());
        engine.each(
            |b| {
                arenas.push(b.to_host(&host)?);
                Ok(())
            },
            |t| {
                buffers.push(t.to_vec()?);
                Ok(())
            },
        )?;
        let counters = engine.model.buffers.counters().iter().map(|c| c.count.load(Ordering::Relaxed)).collect();
        Ok(Kept { arenas, buffers, counters, metrics: engine.metrics.to_host(&host)? })
    }

    /// Puts everything back.
    pub(super) fn restore(self, engine: &mut Engine) -> Result<()> {
        let (mut arenas, mut buffers) = (self.arenas.iter(), self.buffers.iter());
        engine.each(
            |b| arenas.next().map_or(Ok(()), |kept| b.write(0, kept.host::<f32>()?)),
            |t| {
                let (buffer, range) = t.buffer_mut()?;
                buffers.next().map_or(Ok(()), |kept| buffer.write(range.start, kept))
            },
        )?;
        for (counter, kept) in engine.model.buffers.counters().iter().zip(self.counters) {
            counter.count.store(kept, Ordering::Relaxed);
        }
        engine.metrics.take_over(&self.metrics)?;
        engine.held = 0;
        Ok(())
    }
}

impl Engine {
    /// Calls `arena` on each arena of numbers that steps change, and `tensor` on each other tensor, in a fixed order.
    fn each(
        &mut self,
        mut arena: impl FnMut(&mut Buffer) -> Result<()>,
        mut tensor: impl FnMut(&mut Tensor) -> Result<()>,
    ) -> Result<()> {
        arena(self.model.params.values_mut()?)?;
        self.optimizer_state().into_iter().try_for_each(|(_, b)| arena(b))?;
        self.model.buffers.tensors().try_for_each(|(_, mut t)| tensor(&mut t))?;
        let Some(average) = &mut self.average else { return Ok(()) };
        arena(&mut average.values)?;
        average.buffers.iter_mut().try_for_each(tensor)
    }
}

impl Engine {
    /// What updates remember: the optimizer's arenas, and the state of loss scaling.
    fn optimizer_state(&mut self) -> Vec<(&'static str, &mut Buffer)> {
        let scaling = self.grads.scaling_mut().map(|s| ("loss_scale", s.state()));
        self.optimizer.state().into_iter().chain(scaling).collect()
    }

    /// A copy of the numbers in the memory of `host`, a CPU device.
    pub(super) fn snapshot(&mut self, host: &Device) -> Result<Numbers> {
        let optimizer = self.optimizer_state().into_iter().map(|(name, b)| Ok((name, b.to_host(host)?)));
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
        let Some(optimizer) = &saved.optimizer else { return bad("it has no optimizer state of this version".into()) };
        let mut state = self.optimizer_state();
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
