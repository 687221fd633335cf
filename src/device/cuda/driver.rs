//! What a CUDA device must be able to do, whether it is a GPU or the emulated one.

use super::launch::{Arg, Kernel, Launch, TensorMap};
use super::tensor_map::TensorMapSpec;
use crate::error::Result;
use std::time::Duration;

/// An address in a device's memory.
pub type Address = u64;

/// What is known about a device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Info {
    /// Its name, as the vendor gives it.
    pub name: String,
    /// Its architecture: 90 for `sm_90`; 0 for the emulated device, unless it was told another.
    pub arch: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory: usize,
    /// Bytes of L2 cache; 0 where there is none, or it is not told.
    pub l2_bytes: usize,
}

/// A line of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// The main one, from which the others begin and where they meet.
    Main,
    /// One beside it, by its number: behind what that line and the main one have so far.
    Beside(usize),
    /// One of its own, behind a point of the recording.
    Behind(Point),
}

/// A point of a recording, by a number of the driver's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point(pub usize);

/// A device's driver: memory, one stream of work, capture. All work goes to one stream, in order; only what is recorded may lie
/// beside it ([`Driver::line`]).
pub trait Driver: Send + Sync {
    /// What is known about the device.
    fn info(&self) -> &Info;

    /// Memory of `bytes` bytes, aligned to 256; `None` if there is not enough.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    fn alloc(&self, bytes: usize) -> Result<Option<Address>>;

    /// Gives memory back.
    ///
    /// # Safety
    /// `address` came from [`Driver::alloc`] with these `bytes`, and nothing uses it any more.
    unsafe fn free(&self, address: Address, bytes: usize);

    /// Copies from the host; the slice may be reused on return.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    ///
    /// # Safety
    /// `to` is the start of as many bytes of this device's memory.
    unsafe fn write(&self, to: Address, bytes: &[u8]) -> Result<()>;

    /// Copies to the host, once all work before it is done.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device, or work before this, fails.
    ///
    /// # Safety
    /// `from` is the start of as many bytes of this device's memory.
    unsafe fn read(&self, from: Address, bytes: &mut [u8]) -> Result<()>;

    /// Copies within the device.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    ///
    /// # Safety
    /// Both are starts of `bytes` bytes of this device's memory that do not overlap.
    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()>;

    /// Sets bytes to zero.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    ///
    /// # Safety
    /// `at` is the start of `bytes` bytes of this device's memory.
    unsafe fn zero(&self, at: Address, bytes: usize) -> Result<()>;

    /// Launches a kernel.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the kernel cannot be compiled or launched.
    ///
    /// # Safety
    /// `args` are those of the kernel, in order, and what they say of the memory is true.
    unsafe fn launch(&self, kernel: &'static Kernel, launch: &Launch, args: &[Arg<'_>]) -> Result<()>;

    /// What TMA needs to know of a tensor, as this device's driver writes it.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] if a rule of the driver's is broken, [`crate::Error::Device`] if it fails.
    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap>;

    /// Waits until all work is done.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device, or the work, failed.
    fn sync(&self) -> Result<()>;

    /// From here on launches, copies within the device and zeroes are recorded and not run.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    fn begin_capture(&self) -> Result<()>;

    /// Which line of a recording what follows belongs to. The main one waits for none of the others before [`Driver::join`].
    /// Without a recording there is one line.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    fn line(&self, line: Line) -> Result<()>;

    /// Where a recording is: behind all that its lines have so far.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    fn point(&self) -> Result<Point>;

    /// What follows in a recording waits for all lines.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    fn join(&self) -> Result<()>;

    /// Ends the recording.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if what was recorded cannot be replayed.
    fn end_capture(&self) -> Result<Box<dyn Graph>>;

    /// How long launches have waited for their kernels to be compiled and loaded.
    fn loading(&self) -> Duration {
        Duration::ZERO
    }

    /// Makes these kernels ready, so that no launch has to. `say` is told, in a line
    /// each, what will take a while and what the user should know.
    ///
    /// # Errors
    /// [`crate::Error::Device`] when one does not compile or load.
    fn prepare(&self, kernels: &[&'static Kernel], say: &mut dyn FnMut(&str)) -> Result<()> {
        let _ = (kernels, say);
        Ok(())
    }

    /// Free and total bytes of memory.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    fn memory(&self) -> Result<(usize, usize)>;

    /// The device's time for the work that `work` hands it.
    ///
    /// # Errors
    /// Whatever `work` reports; [`crate::Error::Device`] if the device fails.
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration>;
}

/// Work that was recorded once and can be run again.
pub trait Graph: Send {
    /// Runs it.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    fn replay(&self) -> Result<()>;

    /// How many kernels it launches.
    fn launches(&self) -> usize;
}
