//! Steps outside of any run, for benches and tools.

use super::{Feed, Trainer};
use crate::data::loader::Batch;
use crate::error::{Error, Result};
use crate::step::Step;

impl Trainer {
    /// The next step, at the rate that the run starts from.
    fn first_step(&self) -> Step {
        let base = Step { seed: self.recipe.seed, step: self.position.step, ..Step::default() };
        base.rate(self.recipe.optimizer.rate())
    }

    /// One step on a batch outside of any run; for benches. The mini-batch's loss.
    ///
    /// # Errors
    /// As [`Trainer::run`].
    pub fn step_once(&mut self, batch: &Batch) -> Result<f64> {
        let state = self.first_step();
        self.compute_on(batch, &state)?;
        self.position.step += 1;
        Ok(self.metrics.take(self.position.step - 1, 1)?[0].0)
    }

    /// `n` steps outside of any run, as a run makes them: on a CUDA device each batch is made there
    /// from the resident data, and after a few steps a recorded step is replayed, unless
    /// [`Trainer::without_graph`] was called. Nothing is read back, so that on return the last steps
    /// may still be under way: time the call with [`Cuda::time`](crate::device::cuda::Cuda::time), or
    /// wait with [`Cuda::sync`](crate::device::cuda::Cuda::sync).
    ///
    /// The images come in the files' order, whole batches only, over and over. Each call first sets
    /// that order, a small copy to the device, so many steps a call are measured best. No loss is
    /// looked at: one that is not finite goes unnoticed on a CUDA device.
    ///
    /// # Errors
    /// [`Error::Config`] if the data does not fill a batch; else as [`Trainer::run`].
    pub fn bench_steps(&mut self, n: usize) -> Result<()> {
        let images = self.recipe.batch_size;
        let whole = self.train.data().len() / images;
        if whole == 0 {
            let problem = format!("{images} images a batch, and the data has {}", self.train.data().len());
            return Err(Error::config("batch_size", problem, "use a smaller batch, or more data"));
        }
        let base = self.first_step();
        let order = self.train.order(false, &base);
        let mut feed = None;
        for _ in 0..n {
            let at = self.position.step as usize % whole;
            self.position.batch = at;
            let mut now = match feed.take() {
                // The loader's thread has served what the whole batches of an epoch are.
                Some(Feed::Host(_)) if at == 0 => self.feed(order.clone(), &base)?,
                Some(feed) => feed,
                None => self.feed(order.clone(), &base)?,
            };
            let state = Step { step: self.position.step, batch_offset: (at * images) as u32, ..base };
            self.step(&mut now, images, &state)?;
            feed = Some(now);
            self.position.step += 1;
        }
        Ok(())
    }

    /// The first batch of the training data in the files' order.
    ///
    /// # Errors
    /// As [`Loader::epoch`](crate::data::loader::Loader::epoch).
    pub fn first_batch(&self) -> Result<Batch> {
        let order = self.train.order(false, &Step::default());
        self.train
            .epoch(order, &Step::default(), 0)?
            .next()
            .unwrap_or_else(|| Err(Error::Internal("a data set without a batch".into())))
    }
}
