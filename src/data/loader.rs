//! Batches: the images of an epoch in their order, normalised, prepared ahead on a worker thread.

use super::Dataset;
use crate::autograd::StepState;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::rng::{Stream, stream};
use crate::tensor::Tensor;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

/// Images that the worker prepares at a time, at least: waking a thread costs more than a small batch.
const GROUP: usize = 256;
/// Groups that wait in the queue. One more is being filled and one is being used.
const QUEUE: usize = 1;

/// A mini-batch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Normalised pixels, `[n, h, w, c]`.
    pub images: Tensor,
    /// Class indices, `[n]`, `i32`.
    pub labels: Tensor,
}

/// How bytes become numbers: `(byte / 255 - mean) / std`, per channel.
#[derive(Clone, Debug)]
pub struct Normalise {
    /// For each channel, the number for each byte.
    table: Vec<[f32; 256]>,
}

impl Normalise {
    /// The table for per-channel means and standard deviations, in units of [0, 1].
    pub fn new(mean: &[f32], std: &[f32]) -> Self {
        let row = |(&m, &s): (&f32, &f32)| std::array::from_fn(|byte| (byte as f32 / 255.0 - m) / s);
        Normalise { table: mean.iter().zip(std).map(row).collect() }
    }

    fn apply(&self, bytes: &[u8], out: &mut [f32]) {
        match self.table.as_slice() {
            [r, g, b] => {
                for (out, px) in out.as_chunks_mut::<3>().0.iter_mut().zip(bytes.as_chunks::<3>().0) {
                    *out = [r[usize::from(px[0])], g[usize::from(px[1])], b[usize::from(px[2])]];
                }
            }
            table => {
                let channels = table.iter().cycle();
                out.iter_mut().zip(bytes).zip(channels).for_each(|((o, &b), row)| *o = row[usize::from(b)]);
            }
        }
    }
}

/// Serves the batches of a data set.
#[derive(Clone)]
pub struct Loader {
    data: Arc<Dataset>,
    batch_size: usize,
    normalise: Normalise,
    device: Device,
}

impl Loader {
    /// Batches of `batch_size` images; the last one of an epoch may be smaller.
    ///
    /// # Errors
    /// [`Error::Config`] for a batch size of 0, an empty data set, or as many means and deviations
    /// as there are no channels.
    pub fn new(data: Arc<Dataset>, batch_size: usize, mean: &[f32], std: &[f32], device: &Device) -> Result<Self> {
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
        let normalise = Normalise::new(mean, std);
        Ok(Loader { data, batch_size: batch_size.min(1 << 24), normalise, device: device.clone() })
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
    pub fn order(&self, shuffle: bool, state: &StepState) -> Vec<u32> {
        match shuffle {
            false => (0..self.data.len() as u32).collect(),
            true => Stream { seed: state.seed, epoch: state.epoch, step: 0, id: stream::SHUFFLE }
                .permutation(self.data.len()),
        }
    }

    /// The images at `positions` of `order`.
    fn group(&self, order: &[u32]) -> Result<Batch> {
        let d = &self.data;
        let mut images = Tensor::empty(&self.device, DType::F32, [order.len(), d.height, d.width, d.channels])?;
        let mut labels = Tensor::empty(&self.device, DType::I32, [order.len()])?;
        let out = images.host_mut::<f32>()?.chunks_exact_mut(d.image_len());
        for ((&i, out), label) in order.iter().zip(out).zip(labels.host_mut::<i32>()?) {
            self.normalise.apply(d.image(i as usize), out);
            *label = i32::from(d.labels[i as usize]);
        }
        Ok(Batch { images, labels })
    }

    /// Serves the batches from number `first` on, in the given order, prepared by a worker thread.
    ///
    /// # Errors
    /// [`Error::Io`] if the system gives no thread.
    pub fn epoch(&self, order: Vec<u32>, first: usize) -> Result<Batches> {
        let batch = self.batch_size;
        let per_group = GROUP.div_ceil(batch) * batch;
        let (send, receive) = sync_channel(QUEUE);
        let start = (first * batch).min(order.len());
        let total = (order.len() - start).div_ceil(batch);
        let loader = self.clone();
        let work = move || {
            for positions in order[start..].chunks(per_group) {
                // The receiver is gone when the run stops early.
                if send.send(loader.group(positions)).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("loader".into())
            .spawn(work)
            .map_err(Error::io("start a thread", "loader".as_ref()))?;
        Ok(Batches { receive, batch, group: None, at: 0..0, left: total })
    }
}

/// The rest of an epoch's batches.
pub struct Batches {
    receive: Receiver<Result<Batch>>,
    batch: usize,
    group: Option<Batch>,
    /// The positions of the group that have not been served.
    at: Range<usize>,
    left: usize,
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        if self.at.is_empty() {
            // Given back before the next is taken, so that the pool has it for the worker.
            self.group = None;
            match self.receive.recv() {
                Ok(Ok(group)) => {
                    self.at = 0..group.labels.len();
                    self.group = Some(group);
                }
                Ok(Err(e)) => return Some(Err(e)),
                Err(_) => return Some(Err(Error::Internal("the loader's thread ended early".into()))),
            }
        }
        let n = self.batch.min(self.at.len());
        let start = self.at.start;
        self.at.start += n;
        let group = self.group.as_ref()?;
        let part = || Ok(Batch { images: group.images.narrow(start, n)?, labels: group.labels.narrow(start, n)? });
        Some(part())
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
        l.epoch(order, first).unwrap().map(|b| firsts(b.unwrap())).collect()
    }

    #[test]
    fn every_image_is_served_once_and_the_last_batch_is_kept() {
        let l = loader(11, 4);
        assert_eq!(l.batches(), 3);
        let in_order = served(&l, l.order(false, &StepState::default()), 0);
        assert_eq!(in_order, [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9, 10]]);
        let order = l.order(true, &StepState::default());
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
    fn numbers_are_torchvision_s() {
        let n = Normalise::new(&[0.5, 0.0, 0.25], &[0.5, 1.0, 0.5]);
        let mut out = [0.0; 3];
        n.apply(&[255, 51, 0], &mut out);
        assert_eq!(out, [1.0, 0.2, -0.5]);
    }

    #[test]
    fn an_abandoned_epoch_ends_its_thread() {
        let l = loader(100_000 % 256 + 4000, 4);
        let mut b = l.epoch(l.order(false, &StepState::default()), 0).unwrap();
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
