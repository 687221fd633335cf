//! Numbers of a network that training changes and no gradient moves, such as running statistics.
//! They lie beside the parameters, by the keys of the state dict.

use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Names a tensor of [`Buffers`]. The default names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferId(usize);

impl Default for BufferId {
    fn default() -> Self {
        BufferId(usize::MAX)
    }
}

/// The buffers of a network, in the order of its layers. A forward pass may change them through a
/// shared reference.
#[derive(Debug, Default)]
pub struct Buffers {
    tensors: Vec<(String, Mutex<Tensor>)>,
    counters: Vec<Counter>,
}

/// A count of training batches.
#[derive(Debug)]
pub struct Counter {
    /// Its key in the state dict.
    pub key: String,
    /// The batches so far.
    pub count: AtomicI64,
    /// Whether it stays as it is.
    pub frozen: bool,
}

impl Buffers {
    /// Adds a tensor.
    pub fn add(&mut self, key: String, value: Tensor) -> BufferId {
        self.tensors.push((key, Mutex::new(value)));
        BufferId(self.tensors.len() - 1)
    }

    /// Adds a counter of training batches, at zero; a frozen one stays as it is.
    pub fn add_counter(&mut self, key: String, frozen: bool) {
        self.counters.push(Counter { key, count: AtomicI64::new(0), frozen });
    }

    /// A tensor, locked until the guard is dropped.
    ///
    /// # Errors
    /// [`Error::Internal`] for an id of another network.
    pub fn get(&self, id: BufferId) -> Result<MutexGuard<'_, Tensor>> {
        let (_, tensor) = self.tensors.get(id.0).ok_or_else(|| Error::Internal(format!("no buffer {id:?}")))?;
        Ok(tensor.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Its key in the state dict.
    ///
    /// # Errors
    /// [`Error::Internal`] for an id of another network.
    pub fn key(&self, id: BufferId) -> Result<&str> {
        let buffer = self.tensors.get(id.0).map(|(key, _)| key.as_str());
        buffer.ok_or_else(|| Error::Internal(format!("no buffer {id:?}")))
    }

    /// Counts a training batch.
    pub fn count_batch(&self) {
        self.counters.iter().filter(|c| !c.frozen).for_each(|c| _ = c.count.fetch_add(1, Ordering::Relaxed));
    }

    /// The counters' values.
    pub(crate) fn counts(&self) -> Vec<i64> {
        self.counters.iter().map(|c| c.count.load(Ordering::Relaxed)).collect()
    }

    /// Sets them back.
    pub(crate) fn set_counts(&self, counts: &[i64]) {
        self.counters.iter().zip(counts).for_each(|(c, &n)| c.count.store(n, Ordering::Relaxed));
    }

    /// The tensors with their keys, each locked while it is looked at.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, MutexGuard<'_, Tensor>)> {
        self.tensors.iter().map(|(key, t)| (key.as_str(), t.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// The counters.
    pub fn counters(&self) -> &[Counter] {
        &self.counters
    }
}
