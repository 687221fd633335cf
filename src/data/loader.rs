//! Batches: the images of an epoch in their order.
//!
//! A [`Loader`] is a data set cut into batches, a [`Feed`] serves them. On the CPU a worker thread prepares them
//! ahead; on a CUDA device the data set lies in the device's memory and a kernel makes each batch.

pub use super::augment::{Augment, Border, Outside};
pub use super::batch::{Batch, Transform};

use super::Dataset;
use super::batch::{Maker, Resident};
use crate::device::{Buffer, Device};
use crate::dtype::{DType, Precision};
use crate::error::{Error, Result};
use crate::rng::stream;
use crate::step::Step;
use crate::tensor::Tensor;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

/// Images that the worker prepares at a time, at least: waking a thread costs more than a small batch.
const GROUP: usize = 256;
/// Groups that wait in the queue. One more is being filled and one is being used.
const QUEUE: usize = 1;

/// A data set as batches.
#[derive(Clone)]
pub struct Loader {
    data: Arc<Dataset>,
    batch_size: usize,
    /// Whether an epoch ends with its last whole batch.
    drop_last: bool,
    maker: Maker,
    device: Device,
    /// The data set in the device's memory, on a CUDA device.
    resident: Option<Arc<Resident>>,
    /// What images are stored in, on a CUDA device.
    precision: Precision,
}

impl Loader {
    /// Batches of `batch_size` images; the last one of an epoch may be smaller.
    ///
    /// # Errors
    /// [`Error::Config`] for a batch size of 0, an empty data set, or as many means and deviations
    /// as there are no channels; [`Error::OutOfMemory`] if the data set does not fit the device.
    pub fn new(data: Arc<Dataset>, batch_size: usize, mean: &[f32], std: &[f32], device: &Device) -> Result<Self> {
        let transform = Transform { mean: mean.to_vec(), std: std.to_vec(), ..Transform::default() };
        Loader::transformed(data, batch_size, &transform, device)
    }

    /// The same with random changes to the images, or enlarged.
    ///
    /// # Errors
    /// As [`Loader::new`]; [`Error::Config`] for a change that such images cannot have.
    pub fn transformed(data: Arc<Dataset>, batch_size: usize, transform: &Transform, device: &Device) -> Result<Self> {
        if batch_size == 0 {
            return Err(Error::config("batch_size", "0 images per batch", "use at least 1"));
        }
        if data.is_empty() {
            return Err(Error::config("data", format!("{} has no images", data.name), "use another data set"));
        }
        transform.check(&data)?;
        let maker = Maker::new(transform, &data);
        let resident = match device {
            Device::Cpu(_) => None,
            Device::Cuda(cuda) => Some(Arc::new(Resident::new(&data, &maker, cuda)?)),
        };
        let (batch_size, device, drop_last) = (batch_size.min(1 << 24), device.clone(), false);
        Ok(Loader { data, batch_size, drop_last, maker, device, resident, precision: Precision::F32 })
    }

    /// With images of this precision; on the CPU they are f32.
    pub fn with_precision(self, precision: Precision) -> Self {
        Loader { precision, ..self }
    }

    /// With `drop_last` each epoch leaves out the images at its end that fill no batch.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no whole batch.
    pub fn drop_last(self, drop_last: bool) -> Result<Self> {
        if drop_last && self.data.len() < self.batch_size {
            let problem = format!("{} images fill no batch of {}", self.data.len(), self.batch_size);
            return Err(Error::config("drop_last", problem, "use a smaller batch, or leave drop_last out"));
        }
        Ok(Loader { drop_last, ..self })
    }

    /// The data set.
    pub fn data(&self) -> &Dataset {
        &self.data
    }

    /// Height, width and channels of the images in a batch.
    pub fn image(&self) -> [usize; 3] {
        let [h, w] = self.maker.output();
        [h, w, self.data.channels]
    }

    /// Images in a batch; the last one of an epoch may have fewer.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Batches in an epoch.
    pub fn batches(&self) -> usize {
        match self.drop_last {
            true => self.data.len() / self.batch_size,
            false => self.data.len().div_ceil(self.batch_size),
        }
    }

    /// Step number `number` of a run over this data: its epoch, and where its batch begins. Rates are yet to be given.
    pub fn step(&self, number: u64) -> Step {
        let batches = self.batches() as u64;
        let (epoch, batch_offset) = ((number / batches) as u32, (number % batches) as u32 * self.batch_size as u32);
        Step { step: number, epoch, batch_offset, ..Step::default() }
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
        let [h, w] = self.maker.output();
        let mut images = Tensor::empty(&self.device, DType::F32, [positions.len(), h, w, d.channels])?;
        let mut labels = Tensor::empty(&self.device, DType::I32, [positions.len()])?;
        let out = images.host_mut::<f32>()?.chunks_exact_mut(h * w * d.channels);
        for (at, ((&i, out), label)) in positions.iter().zip(out).zip(labels.host_mut::<i32>()?).enumerate() {
            self.maker.image(d, i as usize, first + at, state, out);
            *label = d.labels[i as usize];
        }
        Ok(Batch { images, labels })
    }

    /// Serves the batches: in an order of its own for each epoch with `shuffle`, else in the files' order.
    pub fn feed(&self, shuffle: bool) -> Feed {
        Feed { loader: self.clone(), shuffle, epoch: None, order: Arc::default(), on_device: None, worker: None }
    }

    /// Starts the thread that prepares groups of batches, from position `start` of the order on.
    fn worker(&self, order: Arc<Vec<u32>>, step: Step, start: usize) -> Result<Worker> {
        let per_group = GROUP.div_ceil(self.batch_size) * self.batch_size;
        let (send, receive) = sync_channel(QUEUE);
        let loader = self.clone();
        let work = move || {
            for (i, positions) in order[start..].chunks(per_group).enumerate() {
                // The receiver is gone when the run stops early.
                if send.send(loader.group(positions, start + i * per_group, &step)).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("loader".into())
            .spawn(work)
            .map_err(Error::io("start a thread", "loader".as_ref()))?;
        Ok(Worker { receive, group: None, at: 0..0, next: start })
    }
}

/// Serves the batch of any step: best one after the other, as they are prepared.
pub struct Feed {
    loader: Loader,
    shuffle: bool,
    /// Seed and epoch of the order.
    epoch: Option<(u64, u32)>,
    order: Arc<Vec<u32>>,
    /// The order on a CUDA device.
    on_device: Option<Buffer>,
    worker: Option<Worker>,
}

/// The thread that prepares batches, from the side that takes them.
struct Worker {
    receive: Receiver<Result<Batch>>,
    group: Option<Batch>,
    /// The positions of the group that have not been served.
    at: Range<usize>,
    /// The position in the epoch's order that they begin at.
    next: usize,
}

impl Feed {
    /// What it serves.
    pub fn loader(&self) -> &Loader {
        &self.loader
    }

    /// The batch of a step: from the image at its `batch_offset` and `first_image` on, in the order of its seed and
    /// epoch, as many as there are up to the batch size.
    ///
    /// # Errors
    /// [`Error::Config`] if the epoch has no such image; [`Error::Io`] if the system gives no thread;
    /// [`Error::Device`] if the device fails.
    pub fn batch(&mut self, step: &Step) -> Result<Batch> {
        let n = self.seek(step)?;
        self.take(n, step)
    }

    /// What is left to the host for a step's batch; the images that it has.
    pub(crate) fn seek(&mut self, step: &Step) -> Result<usize> {
        let at = (step.batch_offset + step.first_image) as usize;
        let left = self.loader.data.len().saturating_sub(at);
        if left == 0 {
            let problem = format!("image {at} of an epoch of {}", self.loader.data.len());
            return Err(Error::config("batch_offset", problem, "begin the next epoch"));
        }
        if self.epoch != Some((step.seed, step.epoch)) {
            self.worker = None;
            self.order = Arc::new(self.loader.order(self.shuffle, step));
            if self.loader.resident.is_some() {
                let order: Vec<i32> = self.order.iter().map(|&i| i as i32).collect();
                let buffer = match self.on_device.take() {
                    Some(buffer) => buffer,
                    None => self.loader.device.alloc(DType::I32, order.len())?,
                };
                self.on_device.insert(buffer).write(0, &order)?;
            }
            self.epoch = Some((step.seed, step.epoch));
        }
        if self.loader.resident.is_none() && self.worker.as_ref().is_none_or(|w| w.next != at) {
            self.worker = None;
            self.worker = Some(self.loader.worker(self.order.clone(), *step, at)?);
        }
        Ok(self.loader.batch_size.min(left))
    }

    /// The `n` images that [`Feed::seek`] has found. On a CUDA device it can be recorded.
    pub(crate) fn take(&mut self, n: usize, step: &Step) -> Result<Batch> {
        match (&self.loader.resident, &self.on_device, &mut self.worker) {
            (Some(resident), Some(order), _) => resident.make(order, n, self.loader.precision.dtype(), step),
            (None, _, Some(worker)) => worker.take(n),
            _ => Err(Error::Internal("a batch that was not looked for".into())),
        }
    }
}

impl Worker {
    fn take(&mut self, n: usize) -> Result<Batch> {
        if self.at.is_empty() {
            // Given back before the next is taken, so that the pool has it for the thread.
            self.group = None;
            let group = self.receive.recv();
            let group = group.map_err(|_| Error::Internal("the loader's thread ended early".into()))??;
            self.at = 0..group.labels.len();
            self.group = Some(group);
        }
        let start = self.at.start;
        self.at.start += n;
        self.next += n;
        let group = self.group.as_ref().ok_or_else(|| Error::Internal("no group of batches".into()))?;
        Ok(Batch { images: group.images.narrow(start, n)?, labels: group.labels.narrow(start, n)? })
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
            labels: (0..images).map(|i| (i % 2) as i32).collect(),
        };
        Loader::new(Arc::new(data), batch, &[0.5; 3], &[0.25; 3], &Device::cpu()).unwrap()
    }

    /// The first byte of each image, batch by batch from number `first` on.
    fn served(feed: &mut Feed, epoch: u32, first: usize) -> Vec<Vec<i32>> {
        let byte = |v: f32| ((v * 0.25 + 0.5) * 255.0).round() as i32;
        let firsts = |b: Batch| b.images.host::<f32>().unwrap().chunks(6).map(|p| byte(p[0])).collect();
        let l = feed.loader().clone();
        let step = |b: usize| Step { epoch, batch_offset: (b * l.batch_size) as u32, ..Step::default() };
        (first..l.batches()).map(|b| firsts(feed.batch(&step(b)).unwrap())).collect()
    }

    #[test]
    fn every_image_is_served_once_and_the_last_batch_is_kept() {
        let l = loader(11, 4);
        assert_eq!(l.batches(), 3);
        let in_order = served(&mut l.feed(false), 0, 0);
        assert_eq!(in_order, [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9, 10]]);
        let mut feed = l.feed(true);
        for epoch in [0, 1, 0] {
            let order = l.order(true, &Step { epoch, ..Step::default() });
            let all = served(&mut feed, epoch, 0);
            assert_eq!(all.concat().iter().map(|&v| v as u32).collect::<Vec<_>>(), order);
            // From any batch on, the same batches follow, in a feed that was elsewhere and in a new one.
            assert_eq!(served(&mut feed, epoch, 1), all[1..]);
            assert_eq!(served(&mut l.feed(true), epoch, 2), all[2..]);
        }
        let e = feed.batch(&Step { batch_offset: 11, ..Step::default() }).unwrap_err().to_string();
        assert!(e.contains("image 11 of an epoch of 11"), "{e}");
    }

    #[test]
    fn the_last_batch_can_be_dropped() {
        let l = loader(11, 4).drop_last(true).unwrap();
        assert_eq!((l.batches(), l.step(3).epoch, l.step(3).batch_offset), (2, 1, 4));
        assert_eq!(served(&mut l.feed(false), 0, 0), [[0, 1, 2, 3], [4, 5, 6, 7]]);
        let e = loader(3, 4).drop_last(true).err().unwrap().to_string();
        assert!(e.contains("3 images fill no batch of 4") && e.contains("remedy"), "{e}");
    }

    #[test]
    fn groups_hold_whole_batches() {
        let sizes: Vec<_> = served(&mut loader(200, 60).feed(false), 0, 0).iter().map(Vec::len).collect();
        assert_eq!(sizes, [60, 60, 60, 20]);
    }

    #[test]
    fn an_abandoned_epoch_ends_its_thread() {
        let mut feed = loader(100_000 % 256 + 4000, 4).feed(false);
        assert!(feed.batch(&Step::default()).is_ok());
        drop(feed);
    }

    #[test]
    fn settings_are_checked() {
        let data = loader(1, 1).data;
        assert!(Loader::new(data.clone(), 0, &[0.5; 3], &[0.5; 3], &Device::cpu()).is_err());
        assert!(Loader::new(data.clone(), 1, &[0.5; 1], &[0.5; 3], &Device::cpu()).is_err());
        assert!(Loader::new(data, 1, &[0.5; 3], &[0.5, 0.0, 0.5], &Device::cpu()).is_err());
    }
}
