//! Batches: the images of an epoch in their order.
//!
//! On the CPU a worker thread prepares them ahead; on a CUDA device the data set lies in the
//! device's memory and a kernel makes each batch.

pub use super::batch::{Augment, Batch, Border};

use super::Dataset;
use super::batch::{Maker, Resident};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::rng::stream;
use crate::step::Step;
use crate::tensor::Tensor;
use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Images that the worker prepares at a time, at least: waking a thread costs more than a small batch.
const GROUP: usize = 256;
/// Groups that wait in the queue. One more is being filled and one is being used.
const QUEUE: usize = 1;

/// Serves the batches of a data set.
#[derive(Clone)]
pub struct Loader {
    data: Arc<Dataset>,
    batch_size: usize,
    maker: Maker,
    device: Device,
    /// The data set in the device's memory, on a CUDA device.
    resident: Option<Arc<Mutex<Resident>>>,
}

impl Loader {
    /// Batches of `batch_size` images; the last one of an epoch may be smaller.
    ///
    /// # Errors
    /// [`Error::Config`] for a batch size of 0, an empty data set, or as many means and deviations
    /// as there are no channels; [`Error::OutOfMemory`] if the data set does not fit the device.
    pub fn new(data: Arc<Dataset>, batch_size: usize, mean: &[f32], std: &[f32], device: &Device) -> Result<Self> {
        Loader::augmented(data, batch_size, mean, std, Augment::default(), device)
    }

    /// The same with random changes to the images.
    ///
    /// # Errors
    /// As [`Loader::new`]; [`Error::Config`] for a change that such images cannot have.
    pub fn augmented(
        data: Arc<Dataset>,
        batch_size: usize,
        mean: &[f32],
        std: &[f32],
        augment: Augment,
        device: &Device,
    ) -> Result<Self> {
        if batch_size == 0 {
            return Err(Error::config("batch_size", "0 images per batch", "use at least 1"));
        }
        if data.is_empty() {
            return Err(Error::config("data", format!("{} has no images", data.name), "use another data set"));
        }
        if [mean.len(), std.len()] != [data.channels; 2]
            || std.iter().any(|s| s.is_nan() || *s <= 0.0)
            || mean.iter().any(|m| !m.is_finite())
        {
            return Err(Error::config(
                "data.mean, data.std",
                format!("{mean:?} and {std:?} for images of {} channels", data.channels),
                "give one finite mean and one positive deviation per channel",
            ));
        }
        augment.check([data.height, data.width])?;
        let maker = Maker::new(mean, std, augment);
        let resident = match device {
            Device::Cpu(_) => None,
            Device::Cuda(cuda) => Some(Arc::new(Mutex::new(Resident::new(&data, &maker, cuda)?))),
        };
        Ok(Loader { data, batch_size: batch_size.min(1 << 24), maker, device: device.clone(), resident })
    }

    /// The data set.
    pub fn data(&self) -> &Dataset {
        &self.data
    }

    /// Batches in an epoch.
    pub fn batches(&self) -> usize {
        self.data.len().div_ceil(self.batch_size)
    }

    /// The order of an epoch: a permutation by (seed, epoch), or the files' order.
    pub fn order(&self, shuffle: bool, state: &Step) -> Vec<u32> {
        match shuffle {
            false => (0..self.data.len() as u32).collect(),
            true => state.epoch_stream(stream::SHUFFLE).permutation(self.data.len()),
        }
    }

    /// Images in batch `number` of an epoch.
    pub fn images(&self, number: usize) -> usize {
        self.batch_size.min(self.data.len().saturating_sub(number * self.batch_size))
    }

    /// The images at `positions` of the epoch's order, of which the first is number `first`.
    fn group(&self, positions: &[u32], first: usize, state: &Step) -> Result<Batch> {
        let d = &self.data;
        let mut images = Tensor::empty(&self.device, DType::F32, [positions.len(), d.height, d.width, d.channels])?;
        let mut labels = Tensor::empty(&self.device, DType::I32, [positions.len()])?;
        let out = images.host_mut::<f32>()?.chunks_exact_mut(d.image_len());
        for (at, ((&i, out), label)) in positions.iter().zip(out).zip(labels.host_mut::<i32>()?).enumerate() {
            self.maker.image(d, i as usize, first + at, state, out);
            *label = i32::from(d.labels[i as usize]);
        }
        Ok(Batch { images, labels })
    }

    /// Serves the batches from number `first` on, in the given order. Random changes are drawn from
    /// the seed and the epoch in `state`.
    ///
    /// # Errors
    /// [`Error::Io`] if the system gives no thread; [`Error::Device`] if the device fails.
    pub fn epoch(&self, order: Vec<u32>, state: &Step, first: usize) -> Result<Batches> {
        let batch = self.batch_size;
        let start = (first * batch).min(order.len());
        let left = (order.len() - start).div_ceil(batch);
        let feed = match &self.resident {
            Some(resident) => {
                self.begin(&order)?;
                Feed::Resident { resident: resident.clone(), state: *state, at: start, end: order.len() }
            }
            None => Feed::Worker { receive: self.worker(order, *state, start)?, group: None, at: 0..0 },
        };
        Ok(Batches { feed, batch, left })
    }

    /// Whether the data set lies in the device's memory, so that [`Loader::make`] works.
    pub fn is_resident(&self) -> bool {
        self.resident.is_some()
    }

    fn resident(&self) -> Result<MutexGuard<'_, Resident>> {
        let resident = self.resident.as_ref();
        let resident = resident.ok_or_else(|| Error::Internal("this loader's data set is on the host".into()))?;
        Ok(resident.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets the order in which [`Loader::make`] takes the images.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails; [`Error::Internal`] if the data set is on the host.
    pub fn begin(&self, order: &[u32]) -> Result<()> {
        self.resident()?.set_order(order)
    }

    /// The `n` images from the step's [`Step::batch_offset`] and [`Step::first_image`] on. It is one
    /// launch, with nothing in it that changes from step to step.
    ///
    /// # Errors
    /// As [`Loader::begin`].
    pub fn make(&self, n: usize, step: &Step) -> Result<Batch> {
        self.resident()?.make(n, step)
    }

    /// Starts the thread that prepares groups of batches.
    fn worker(&self, order: Vec<u32>, state: Step, start: usize) -> Result<Receiver<Result<Batch>>> {
        let per_group = GROUP.div_ceil(self.batch_size) * self.batch_size;
        let (send, receive) = sync_channel(QUEUE);
        let loader = self.clone();
        let work = move || {
            for (i, positions) in order[start..].chunks(per_group).enumerate() {
                // The receiver is gone when the run stops early.
                if send.send(loader.group(positions, start + i * per_group, &state)).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("loader".into())
            .spawn(work)
            .map_err(Error::io("start a thread", "loader".as_ref()))?;
        Ok(receive)
    }
}

/// The rest of an epoch's batches.
pub struct Batches {
    feed: Feed,
    batch: usize,
    left: usize,
}

/// Where batches come from.
enum Feed {
    /// A thread prepares groups of them.
    Worker {
        receive: Receiver<Result<Batch>>,
        group: Option<Batch>,
        /// The positions of the group that have not been served.
        at: Range<usize>,
    },
    /// A kernel makes them; `at` is the position of the next image.
    Resident { resident: Arc<Mutex<Resident>>, state: Step, at: usize, end: usize },
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        match &mut self.feed {
            Feed::Resident { resident, state, at, end } => {
                let n = self.batch.min(*end - *at);
                let here = Step { batch_offset: *at as u32, ..*state };
                *at += n;
                Some(resident.lock().unwrap_or_else(PoisonError::into_inner).make(n, &here))
            }
            Feed::Worker { receive, group, at } => {
                if at.start >= at.end {
                    // Given back before the next is taken, so that the pool has it for the worker.
                    *group = None;
                    match receive.recv() {
                        Ok(Ok(next)) => {
                            *at = 0..next.labels.len();
                            *group = Some(next);
                        }
                        Ok(Err(e)) => return Some(Err(e)),
                        Err(_) => return Some(Err(Error::Internal("the loader's thread ended early".into()))),
                    }
                }
                let n = self.batch.min(at.len());
                let start = at.start;
                at.start += n;
                let group = group.as_ref()?;
                let part =
                    || Ok(Batch { images: group.images.narrow(start, n)?, labels: group.labels.narrow(start, n)? });
                Some(part())
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loader(images: usize, batch: usize) -> Loader {
        let data = Dataset {
            name: "test".into(),
            classes: vec!["a".into(), "b".into()],
            height: 1,
            width: 2,
            channels: 3,
            images: (0..images * 6).map(|i| (i / 6) as u8).collect(),
            labels: (0..images).map(|i| (i % 2) as u8).collect(),
        };
        Loader::new(Arc::new(data), batch, &[0.5; 3], &[0.25; 3], &Device::cpu()).unwrap()
    }

    fn served(l: &Loader, order: Vec<u32>, first: usize) -> Vec<Vec<i32>> {
        let byte = |v: f32| ((v * 0.25 + 0.5) * 255.0).round() as i32;
        let firsts = |b: Batch| b.images.host::<f32>().unwrap().chunks(6).map(|p| byte(p[0])).collect();
        l.epoch(order, &Step::default(), first).unwrap().map(|b| firsts(b.unwrap())).collect()
    }

    #[test]
    fn every_image_is_served_once_and_the_last_batch_is_kept() {
        let l = loader(11, 4);
        assert_eq!(l.batches(), 3);
        let in_order = served(&l, l.order(false, &Step::default()), 0);
        assert_eq!(in_order, [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9, 10]]);
        let order = l.order(true, &Step::default());
        let all = served(&l, order.clone(), 0);
        assert_eq!(all.concat().iter().map(|&v| v as u32).collect::<Vec<_>>(), order);
        // From any batch on, the same batches follow.
        assert_eq!(served(&l, order.clone(), 1), all[1..]);
        assert_eq!(served(&l, order, 3), Vec::<Vec<i32>>::new());
    }

    #[test]
    fn groups_hold_whole_batches() {
        let l = loader(200, 60);
        let sizes: Vec<_> = served(&l, (0..200).collect(), 0).iter().map(Vec::len).collect();
        assert_eq!(sizes, [60, 60, 60, 20]);
    }

    #[test]
    fn an_abandoned_epoch_ends_its_thread() {
        let l = loader(100_000 % 256 + 4000, 4);
        let mut b = l.epoch(l.order(false, &Step::default()), &Step::default(), 0).unwrap();
        assert!(b.next().unwrap().is_ok());
        drop(b);
    }

    #[test]
    fn settings_are_checked() {
        let data = loader(1, 1).data;
        assert!(Loader::new(data.clone(), 0, &[0.5; 3], &[0.5; 3], &Device::cpu()).is_err());
        assert!(Loader::new(data.clone(), 1, &[0.5; 1], &[0.5; 3], &Device::cpu()).is_err());
        assert!(Loader::new(data, 1, &[0.5; 3], &[0.5, 0.0, 0.5], &Device::cpu()).is_err());
    }
}
