//! The pool of a CUDA device's memory: what is returned is handed out again for the next request
//! of exactly that size.

use super::driver::{Address, Driver};
use crate::device::MemoryStats;
use crate::error::{Error, Result};
use std::collections::HashMap;

/// Free blocks by their size in bytes.
type Free = HashMap<usize, Vec<Address>>;

/// The pool. During a capture blocks move among the captured work alone: the graph will write to
/// them at every replay, so they stay its own until it is dropped.
#[derive(Default)]
pub(super) struct Pool {
    free: Free,
    capture: Option<Free>,
    /// What was returned while lines of a capture go on side by side: one may still use what another returns.
    held: Option<Vec<(usize, Address)>>,
    closed: bool,
    stats: MemoryStats,
}

impl Pool {
    pub(super) fn stats(&self) -> MemoryStats {
        self.stats
    }

    /// A block of `bytes` bytes.
    pub(super) fn alloc(&mut self, driver: &dyn Driver, bytes: usize) -> Result<Address> {
        if self.closed {
            return Err(Error::Internal("memory for work that goes back behind a point of a recording".into()));
        }
        let take = |free: &mut Free| free.get_mut(&bytes).and_then(Vec::pop);
        let recycled = self.capture.as_mut().and_then(take).or_else(|| take(&mut self.free));
        let address = match recycled {
            Some(address) => address,
            None => {
                self.stats.allocations += 1;
                self.fresh(driver, bytes)?
            }
        };
        self.stats.in_use += bytes;
        self.stats.peak = self.stats.peak.max(self.stats.in_use);
        Ok(address)
    }

    fn fresh(&mut self, driver: &dyn Driver, bytes: usize) -> Result<Address> {
        if let Some(address) = driver.alloc(bytes)? {
            return Ok(address);
        }
        // What nobody uses now may be what is missing. Not during a capture: the device may not be
        // waited for then.
        if self.capture.is_none() {
            driver.sync()?;
            self.release(driver);
            if let Some(address) = driver.alloc(bytes)? {
                return Ok(address);
            }
        }
        let (free, total) = driver.memory()?;
        Err(Error::OutOfMemory {
            device: driver.info().name.clone(),
            need: bytes,
            in_use: self.stats.in_use,
            peak: self.stats.peak,
            free,
            total,
            remedy: "use a smaller batch (--batch-size), or fewer channels or features".into(),
        })
    }

    /// Takes a block back.
    pub(super) fn give(&mut self, address: Address, bytes: usize) {
        self.stats.in_use -= bytes;
        if let Some(held) = &mut self.held {
            held.push((bytes, address));
            return;
        }
        self.capture.as_mut().unwrap_or(&mut self.free).entry(bytes).or_default().push(address);
    }

    /// Gives all free blocks back to the device.
    pub(super) fn release(&mut self, driver: &dyn Driver) {
        for (bytes, blocks) in self.free.drain() {
            for address in blocks {
                // SAFETY: the block came from this driver with this size, and nobody has it.
                unsafe { driver.free(address, bytes) };
            }
        }
    }

    pub(super) fn is_capturing(&self) -> bool {
        self.capture.is_some()
    }

    pub(super) fn begin_capture(&mut self) {
        self.capture = Some(Free::new());
    }

    /// From here on no block is handed out twice, until the lines of a capture have met.
    pub(super) fn hold(&mut self) {
        self.held.get_or_insert_default();
    }

    /// Whether blocks are refused from here on.
    pub(super) fn close(&mut self, closed: bool) {
        self.closed = closed;
    }

    /// Bytes of what was returned since.
    pub(super) fn held(&self) -> usize {
        self.held.iter().flatten().map(|(bytes, _)| bytes).sum()
    }

    pub(super) fn let_go(&mut self) {
        for (bytes, address) in self.held.take().unwrap_or_default() {
            self.capture.as_mut().unwrap_or(&mut self.free).entry(bytes).or_default().push(address);
        }
    }

    /// The blocks that the captured work uses among itself.
    pub(super) fn end_capture(&mut self) -> HashMap<usize, Vec<Address>> {
        self.let_go();
        self.capture.take().unwrap_or_default()
    }

    /// Takes the blocks of a graph back that is gone.
    pub(super) fn adopt(&mut self, blocks: HashMap<usize, Vec<Address>>) {
        for (bytes, addresses) in blocks {
            self.free.entry(bytes).or_default().extend(addresses);
        }
    }
}
