//! The CUDA device: one stream of kernels, on a GPU or on the emulated device.
//!
//! [`Cuda`] is the handle: a [`Driver`], a pool of its memory, and the [`Step`] that kernels
//! read. Everything above it is the same for both drivers; the only difference between a GPU and
//! the emulated device is who runs the kernels.

mod arch;
pub mod cache;
pub mod chain;
mod context;
mod driver;
pub mod gpu;
mod graph;
mod launch;
mod libcuda;
mod libnvrtc;
mod libraries;
mod lines;
pub mod nvrtc;
mod places;
mod pool;
mod recording;
pub mod resources;
mod tensor_map;
mod timing;

pub use arch::Arch;
pub use driver::{Address, Driver, Graph, Info, Line, Point};
pub use launch::{
    Arg, BLOCK, Family, In, Kernel, KernelType, Launch, MULTIPROCESSORS, MappedTensor, Order, Out, Source, TensorMap,
    Thunk, Tile,
};
pub(crate) use launch::{magic, null, with_kernel_type};
pub(in crate::device) use lines::Lines;
pub use recording::Captured;
pub use tensor_map::{Swizzle, TensorMapBox, TensorMapSpec};
pub use timing::Timing;

use super::MemoryStats;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::step::Step;
use pool::Pool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Handle of a CUDA device.
#[derive(Clone)]
pub struct Cuda {
    inner: Arc<Inner>,
}

/// What can be chosen about a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// Convolution with the patches laid out in memory, instead of found as they are needed.
    pub explicit_conv: bool,
    /// Each layer by kernels of its own, also where those of one could compute the next too; gradients of biases before
    /// batch-norms are added up.
    pub no_fuse: bool,
    /// The tile of all matrix products by name, instead of the one that suits their sizes: for tests. One with tensor maps is
    /// for those whose sizes allow it. The weight gradient in front of a max-pool may still be cut in strips.
    pub tile: Option<&'static str>,
    /// Wait after each launch, so that the kernel that fails is known.
    pub sync_launches: bool,
    /// No more blocks than this in kernels that stride over their elements: for tests, whose tensors
    /// would fit into one stride of a full grid.
    pub max_blocks: Option<u32>,
}

struct Inner {
    driver: Box<dyn Driver>,
    emulated: bool,
    options: CudaOptions,
    pool: Mutex<Pool>,
    /// Where kernels read the step's state.
    state: Address,
    /// What is there.
    current: Mutex<Step>,
    /// The launches so far, if they are being timed.
    profile: Mutex<Option<Vec<Timing>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these guard is whole between any two statements, so a poisoned lock is still good.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cuda {
    /// A device over a driver.
    ///
    /// # Errors
    /// [`Error::Device`] if the device refuses its first work.
    pub fn new(driver: Box<dyn Driver>, emulated: bool, options: CudaOptions) -> Result<Self> {
        let current = Step::default();
        let mut pool = Pool::default();
        let state = pool.alloc(driver.as_ref(), size_of::<Step>())?;
        // SAFETY: the block has the state's size.
        unsafe { driver.write(state, bytemuck::bytes_of(&current))? };
        let inner = Inner {
            driver,
            emulated,
            options,
            pool: Mutex::new(pool),
            state,
            current: Mutex::new(current),
            profile: Mutex::new(None),
        };
        Ok(Cuda { inner: Arc::new(inner) })
    }

    /// Makes kernels ready, so that no step has to wait for one to be compiled. `say` is told, in a
    /// line each, what will take a while and what the user should know.
    ///
    /// # Errors
    /// [`Error::Device`] when one does not compile.
    pub fn prepare(&self, kernels: &[&'static Kernel], say: &mut dyn FnMut(&str)) -> Result<()> {
        self.driver().prepare(kernels, say)
    }

    /// How long launches have waited for their kernels to be compiled and loaded.
    pub fn loading(&self) -> Duration {
        self.driver().loading()
    }

    /// Whether it is the emulated device.
    pub fn is_emulated(&self) -> bool {
        self.inner.emulated
    }

    /// What was chosen about it.
    pub fn options(&self) -> CudaOptions {
        self.inner.options
    }

    /// What is known about the device.
    pub fn info(&self) -> &Info {
        self.inner.driver.info()
    }

    /// Counters of the memory pool.
    pub fn stats(&self) -> MemoryStats {
        lock(&self.inner.pool).stats()
    }

    /// Bytes of the device's memory that nobody has: what the pool keeps for later does not count.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn free_memory(&self) -> Result<usize> {
        Ok(self.inner.driver.memory()?.0)
    }

    /// A tensor with what TMA needs to know of it. Its memory must be there as long as launches use the map.
    ///
    /// # Errors
    /// As for [`Driver::tensor_map`].
    pub fn tensor_map(&self, spec: &TensorMapSpec) -> Result<MappedTensor> {
        self.driver().tensor_map(spec).map(|map| MappedTensor { spec: spec.clone(), map })
    }

    pub(super) fn alloc(&self, bytes: usize) -> Result<DeviceMemory> {
        let bytes = bytes.max(1);
        let address = lock(&self.inner.pool).alloc(self.driver(), bytes)?;
        let block = DeviceMemory { address, bytes, cuda: self.clone() };
        // NaN in every float: a kernel that leaves an element unwritten shows in the tests. Not in a
        // capture, which holds the work of a step and nothing else.
        #[cfg(debug_assertions)]
        if self.inner.emulated && !lock(&self.inner.pool).is_capturing() {
            // SAFETY: the block was just made for these bytes.
            unsafe { self.driver().write(address, &vec![0xFF; bytes])? };
        }
        Ok(block)
    }

    fn driver(&self) -> &dyn Driver {
        self.inner.driver.as_ref()
    }

    /// Sets the state that kernels read from here on. Outside a capture, a copy of a few bytes in
    /// the stream's order; nothing if it is there already.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn set_step(&self, state: &Step) -> Result<()> {
        let mut current = lock(&self.inner.current);
        if *current != *state {
            // SAFETY: the block has the state's size.
            unsafe { self.driver().write(self.inner.state, bytemuck::bytes_of(state))? };
            *current = *state;
        }
        Ok(())
    }

    /// A step for a kernel to read: what is in the device's memory from here on.
    ///
    /// # Errors
    /// As [`Cuda::set_step`]; within a capture, if it is not there already.
    pub fn step(&self, step: &Step) -> Result<In<'_, Step>> {
        self.set_step(step)?;
        Ok(In::new(self.inner.state, 1))
    }

    /// Launches the instance of a family; the generated launchers call it.
    ///
    /// # Errors
    /// [`Error::Device`] naming the kernel.
    ///
    /// # Safety
    /// As for [`Driver::launch`].
    pub(crate) unsafe fn launch(
        &self,
        family: &'static Family,
        dtype: Option<DType>,
        tile: Option<&Tile>,
        mut launch: Launch,
        args: &[Arg<'_>],
    ) -> Result<()> {
        let kernel = family.instance(dtype, tile, self.info().arch)?;
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let threads: u32 = launch.block.iter().product();
        if threads > kernel.threads {
            let problem =
                format!("{} is for blocks of {} threads, and {threads} were asked for", kernel.name, kernel.threads);
            return Err(Error::Internal(problem));
        }
        if let Some(most) = self.inner.options.max_blocks.filter(|_| launch.strides) {
            launch.grid[0] = launch.grid[0].min(most);
        }
        if let Some(timings) = lock(&self.inner.profile).as_mut() {
            // SAFETY: the caller's promise.
            timings.push(unsafe { Timing::of(self.driver(), kernel, &launch, args)? });
        }
        // SAFETY: the caller's promise.
        unsafe { self.driver().launch(kernel, &launch, args) }
    }

    /// Runs `work` once, and beside it each of its launches many times, to see what each takes.
    ///
    /// # Errors
    /// Whatever `work` reports.
    pub fn profile(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<Timing>> {
        *lock(&self.inner.profile) = Some(Vec::new());
        let result = work();
        let timings = lock(&self.inner.profile).take().unwrap_or_default();
        result.map(|()| timings)
    }

    /// The device's time for `work`.
    ///
    /// # Errors
    /// Whatever `work` reports; [`Error::Device`] if the device fails.
    pub fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        self.driver().time(work)
    }

    /// Waits until all work is done.
    ///
    /// # Errors
    /// [`Error::Device`] if the device, or the work, failed.
    pub fn sync(&self) -> Result<()> {
        self.driver().sync()
    }

    pub(super) fn write(&self, block: &mut DeviceMemory, start: usize, bytes: &[u8]) -> Result<()> {
        let to = block.at(start, bytes.len())?;
        // SAFETY: `at` has checked that the bytes lie in the block.
        unsafe { self.driver().write(to, bytes) }
    }

    pub(super) fn read(&self, block: &DeviceMemory, start: usize, bytes: &mut [u8]) -> Result<()> {
        let from = block.at(start, bytes.len())?;
        // SAFETY: `at` has checked that the bytes lie in the block.
        unsafe { self.driver().read(from, bytes) }
    }

    pub(super) fn zero(&self, block: &mut DeviceMemory, start: usize, bytes: usize) -> Result<()> {
        let at = block.at(start, bytes)?;
        // SAFETY: `at` has checked that the bytes lie in the block.
        unsafe { self.driver().zero(at, bytes) }
    }

    pub(super) fn copy(
        &self,
        to: &mut DeviceMemory,
        to_start: usize,
        from: &DeviceMemory,
        start: usize,
        bytes: usize,
    ) -> Result<()> {
        let (to, from) = (to.at(to_start, bytes)?, from.at(start, bytes)?);
        // SAFETY: `at` has checked both; two blocks do not overlap.
        unsafe { self.driver().copy(to, from, bytes) }
    }
}

impl PartialEq for Cuda {
    /// Whether both are handles of one device.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Work in flight may use the blocks; an error here has no one to tell.
        let _ = self.driver.sync();
        let pool = self.pool.get_mut().unwrap_or_else(PoisonError::into_inner);
        pool.give(self.state, size_of::<Step>());
        pool.release(self.driver.as_ref());
    }
}

/// A piece of device memory that returns to its pool when dropped. Work that uses it may still be
/// in flight then: whoever gets it next works in the same stream, so after it.
pub(super) struct DeviceMemory {
    address: Address,
    bytes: usize,
    cuda: Cuda,
}

impl DeviceMemory {
    /// The address of `bytes` bytes from `start` on.
    pub(super) fn at(&self, start: usize, bytes: usize) -> Result<Address> {
        if start + bytes > self.bytes {
            return Err(Error::Internal(format!("bytes {start}..{} of a block of {}", start + bytes, self.bytes)));
        }
        Ok(self.address + start as u64)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        lock(&self.cuda.inner.pool).give(self.address, self.bytes);
    }
}
