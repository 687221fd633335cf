//! Steps outside of any run, for benches.

use super::trainer::Trainer;
use crate::data::loader::Batch;
use crate::error::{Error, Result};
use crate::step::Step;

impl Trainer {
    /// One step on a batch outside of any run; for benches. The mini-batch's loss.
    ///
    /// # Errors
    /// As [`Engine::step`](super::Engine::step).
    pub fn step_once(&mut self, batch: &Batch) -> Result<f64> {
        let step = self.here(0)?;
        self.engine.step_on(batch, &step)?;
        self.position.step += 1;
        Ok(self.engine.results(step.step, 1)?[0].0)
    }

    /// `n` steps outside of any run, as a run makes them, over the whole batches of the first epoch again and again.
    /// Nothing is read back, so that on return the last steps may still be under way on a CUDA device: time the call
    /// with [`Cuda::time`](crate::device::cuda::Cuda::time), or wait with [`Device::sync`](crate::device::Device::sync). No loss is looked at.
    ///
    /// # Errors
    /// [`Error::Config`] if the data does not fill a batch; else as [`Engine::step`](super::Engine::step).
    pub fn bench_steps(&mut self, n: usize) -> Result<()> {
        let (images, all) = (self.recipe.batch_size, self.train.data().len());
        if all < images {
            let problem = format!("{images} images a batch, and the data has {all}");
            return Err(Error::config("batch_size", problem, "use a smaller batch, or more data"));
        }
        for _ in 0..n {
            let batch = self.position.step as usize % (all / images);
            let step = self.here(batch)?;
            self.engine.step(&step)?;
            self.position.step += 1;
        }
        Ok(())
    }

    /// The first batch of the training data in the files' order.
    ///
    /// # Errors
    /// As [`Feed::batch`](crate::data::loader::Feed::batch).
    pub fn first_batch(&self) -> Result<Batch> {
        self.train.feed(false).batch(&Step::default())
    }
}
