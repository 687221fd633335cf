//! The CPU: pooled host memory, parallel loops over fixed pieces, and the matrix product.

mod gemm;
mod parallel;
mod simd;

pub use gemm::{Mat, MatMut, gemm};
pub use parallel::{MACS, add_rows, for_pieces, for_rows, map_reduce};
pub(crate) use simd::vectorised;
pub use simd::{Level, has_fma, level};

use super::MemoryStats;
use crate::dtype::Element;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A cache line, the unit of host memory: every buffer starts on one.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line([u8; 64]);

#[derive(Default)]
struct Pool {
    /// Free blocks by their size in lines.
    free: HashMap<usize, Vec<Vec<Line>>>,
    stats: MemoryStats,
}

/// Handle of the CPU device: its memory pool.
#[derive(Clone, Default)]
pub struct Cpu {
    pool: Arc<Mutex<Pool>>,
}

impl Cpu {
    fn pool(&self) -> MutexGuard<'_, Pool> {
        // The pool's invariants hold between any two statements, so a poisoned lock is still good.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stats(&self) -> MemoryStats {
        self.pool().stats
    }

    pub(super) fn alloc(&self, bytes: usize) -> Result<HostMemory> {
        let size = bytes.div_ceil(size_of::<Line>());
        let recycled = {
            let mut pool = self.pool();
            let found = pool.free.get_mut(&size).and_then(Vec::pop);
            pool.stats.allocations += u64::from(found.is_none());
            found
        };
        #[allow(unused_mut)]
        let mut lines = match recycled {
            Some(lines) => lines,
            None => bytemuck::allocation::try_zeroed_vec(size).map_err(|()| self.out_of_memory(bytes))?,
        };
        {
            let stats = &mut self.pool().stats;
            stats.in_use += size * size_of::<Line>();
            stats.peak = stats.peak.max(stats.in_use);
        }
        // NaN in every float: an op that leaves an element unwritten shows in the tests.
        #[cfg(debug_assertions)]
        lines.fill(Line([0xFF; 64]));
        Ok(HostMemory { lines, cpu: self.clone() })
    }

    /// Zeros outside of the pool.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeros<T: bytemuck::Zeroable>(len: usize) -> Result<Vec<T>> {
        let failed = |()| Cpu::default().out_of_memory(len.saturating_mul(size_of::<T>()));
        bytemuck::allocation::try_zeroed_vec(len).map_err(failed)
    }

    fn out_of_memory(&self, need: usize) -> Error {
        let MemoryStats { in_use, peak, .. } = self.stats();
        let free = free_memory().unwrap_or(0);
        Error::OutOfMemory {
            device: "cpu".into(),
            need,
            in_use,
            peak,
            free,
            total: in_use + free,
            remedy: "use a smaller batch (--batch-size), or raise the process's memory limit (ulimit -v)".into(),
        }
    }

    /// Working memory for `len` elements, of unspecified contents; it returns to the pool when dropped.
    ///
    /// Ends the process, as any failed allocation of the standard library does, if there is no
    /// memory: loops on many threads have no way to report it.
    pub fn scratch<T: Element>(&self, len: usize) -> Scratch<T> {
        let bytes = len * size_of::<T>();
        let failed = |_| std::alloc::handle_alloc_error(std::alloc::Layout::new::<Line>());
        Scratch { block: self.alloc(bytes).unwrap_or_else(failed), len, element: PhantomData }
    }

    /// Makes sure that the pool holds as many pieces of scratch memory as `pieces` of work can use
    /// at a time: how many do run at a time varies, and allocations must not.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn reserve<T: Element>(&self, len: usize, pieces: usize) -> Result<()> {
        // What is looked at in every step costs time, and small pieces are no danger.
        const LARGE: usize = 1 << 30;
        let (lanes, bytes) = (pieces.min(rayon::current_num_threads()), len.saturating_mul(size_of::<T>()));
        let there = self.pool().free.get(&bytes.div_ceil(size_of::<Line>())).map_or(0, Vec::len);
        let more = bytes.saturating_mul(lanes.saturating_sub(there));
        if more > LARGE && free_memory().is_some_and(|free| more > free) {
            return Err(self.out_of_memory(more));
        }
        let all: Result<Vec<HostMemory>> = (0..lanes).map(|_| self.alloc(bytes)).collect();
        all.map(drop)
    }
}

/// Working memory of an op: a slice that belongs to the pool.
pub struct Scratch<T> {
    block: HostMemory,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(self.block.lines())[..self.len]
    }
}

impl<T: Element> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(self.block.lines_mut())[..self.len]
    }
}

impl PartialEq for Cpu {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pool, &other.pool)
    }
}

/// Bytes of memory that can be had without swapping, where the system tells (Linux).
pub(super) fn free_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<usize>().ok()? * 1024)
}

/// A piece of host memory that returns to its pool when dropped.
pub(super) struct HostMemory {
    lines: Vec<Line>,
    cpu: Cpu,
}

impl HostMemory {
    pub(super) fn lines(&self) -> &[Line] {
        &self.lines
    }

    pub(super) fn lines_mut(&mut self) -> &mut [Line] {
        &mut self.lines
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        let mut pool = self.cpu.pool();
        pool.stats.in_use -= lines.len() * size_of::<Line>();
        pool.free.entry(lines.len()).or_default().push(lines);
    }
}

#[cfg(test)]
mod tests {
    use crate::device::Device;
    use crate::dtype::DType;

    #[test]
    fn the_pool_hands_out_what_was_returned() {
        let device = Device::cpu();
        for _ in 0..3 {
            let a = device.alloc(DType::F32, 1000).unwrap();
            let b = device.alloc(DType::F64, 500).unwrap();
            assert_eq!((a.len(), b.len()), (1000, 500));
            assert_eq!(device.memory().in_use, 2 * 4032);
        }
        let stats = device.memory();
        assert_eq!((stats.allocations, stats.in_use, stats.peak), (2, 0, 2 * 4032));
    }

    #[test]
    fn a_buffer_knows_its_type() {
        let mut b = Device::cpu().alloc(DType::F32, 3).unwrap();
        b.zero().unwrap();
        assert_eq!(b.host::<f32>().unwrap(), [0.0; 3]);
        assert!(b.host::<f64>().unwrap_err().to_string().contains("f32"));
    }
}
