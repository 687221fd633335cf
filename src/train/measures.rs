//! What a run's network is measured on: the parts of its data, one at a time on the device.

use crate::data::batch::Transform;
use crate::data::loader::{Augment, Feed, Loader};
use crate::data::{Dataset, Split};
use crate::device::Device;
use crate::dtype::Precision;
use crate::error::{Error, Result};
use crate::nn::{Model, WHITEN_IMAGES};
use crate::step::Step;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Images per batch of an evaluation: a processor is as fast as with more.
const EVAL_BATCH: usize = 250;

/// The parts of the data, as an evaluation sees them.
pub(super) struct Measures {
    pub(super) train: Arc<Dataset>,
    pub(super) validation: Option<Arc<Dataset>>,
    pub(super) test: Arc<Dataset>,
    /// What is done to their images.
    pub(super) transform: Transform,
    pub(super) device: Device,
    pub(super) precision: Precision,
    /// Images per batch.
    pub(super) batch_size: usize,
    /// The one that was measured last.
    pub(super) feed: Option<(Split, Feed)>,
}

impl Measures {
    /// Images per batch of an evaluation, in a run that trains on a device with batches of so many. A GPU has more work at once with
    /// many, and there is memory for as many as it trains on.
    pub(super) fn batch_size_for(device: &Device, training: usize) -> usize {
        match device {
            Device::Cpu(_) => EVAL_BATCH,
            Device::Cuda(_) => EVAL_BATCH.max(training),
        }
    }

    /// From now on takes no more images at once than need be, as there is little memory; whether it took more.
    pub(super) fn take_fewer(&mut self) -> bool {
        let more = self.batch_size > EVAL_BATCH;
        if more {
            (self.batch_size, self.feed) = (EVAL_BATCH, None);
        }
        more
    }

    /// What is measured after each epoch: the validation set, or the test set where there is none.
    pub(super) fn split(&self) -> Split {
        if self.validation.is_some() { Split::Validation } else { Split::Test }
    }

    /// A part of the data.
    pub(super) fn data(&self, split: Split) -> Result<&Arc<Dataset>> {
        match split {
            Split::Train => Ok(&self.train),
            Split::Test => Ok(&self.test),
            Split::Validation => self.validation.as_ref().ok_or_else(|| {
                let remedy =
                    "a recipe with data.validation = 1000 holds out 1,000 training images; or take the test set";
                Error::config("validation", "no images were held out for validation", remedy)
            }),
        }
    }

    /// Makes the network's first weights from the first training images, if it asks for that, and says how long it took.
    pub(super) fn whiten(&self, model: &mut Model) -> Result<Duration> {
        if !model.whitens() {
            return Ok(Duration::ZERO);
        }
        let start = Instant::now();
        let plain = Transform { augment: Augment::default(), ..self.transform.clone() };
        let count = self.train.len().min(WHITEN_IMAGES);
        let images = Loader::transformed(self.train.clone(), count, &plain, &Device::cpu())?;
        model.whiten(&images.feed(false).batch(&Step::default())?.images)?;
        Ok(start.elapsed())
    }

    /// A part of the data as batches.
    pub(super) fn feed(&mut self, split: Split) -> Result<&mut Feed> {
        let feed = match self.feed.take() {
            Some(made) if made.0 == split => made,
            other => {
                // Its memory is free for the next.
                drop(other);
                let data = self.data(split)?.clone();
                let loader = Loader::transformed(data, self.batch_size, &self.transform, &self.device)?;
                (split, loader.with_precision(self.precision).feed(false))
            }
        };
        Ok(&mut self.feed.insert(feed).1)
    }
}
