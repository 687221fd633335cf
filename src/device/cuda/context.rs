//! A GPU's context and its one stream, and the words for what goes wrong on it.
//!
//! Everything here is at cudarc's `sys` level. Its own buffers and streams (`CudaSlice`,
//! `CudaStream`) are not used, so neither is their event tracking: it records two events per buffer
//! and launch to order several streams, and one stream needs no ordering. It would also stand in the
//! way of capturing a graph.

use super::launch::{Address, Kernel};
use super::libcuda::{self, DriverLibrary};
use super::nvrtc::Unit;
use crate::error::{Error, Result};
use cudarc::driver::sys::{self, CUcontext, CUdevice, CUevent, CUmodule, CUresult, CUstream};
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Results that mean that a kernel went wrong. After one of them every call fails until the process
/// ends (the driver's documentation calls the context "inconsistent").
const FAULTS: [u32; 13] = [214, 220, 226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721];

const OLD_ERROR: &str = "start the program again: a GPU that failed stays unusable for the process";
const NAME_IT: &str =
    "run again with `--sync-launches --no-graph`: it waits after each kernel and names the one that failed";
const REPORT_IT: &str =
    "this is a bug in the kernel or in its launch; please report it with the command that led to it";

/// A device's primary context and one stream on it. Usable from every thread.
pub(super) struct Context {
    pub(super) device: CUdevice,
    raw: CUcontext,
    pub(super) stream: CUstream,
    /// The least and the greatest that a launch can have.
    pub(super) priorities: [i32; 2],
    /// Wait after every launch.
    pub(super) sync_each_launch: AtomicBool,
    /// Loaded code. It is here so that a graph keeps it alive.
    pub(super) modules: Mutex<Vec<Module>>,
    /// Nanoseconds for which launches have waited for their kernels.
    loading: AtomicU64,
    last: Mutex<Last>,
    fault: OnceLock<String>,
    ring: Mutex<Option<Ring>>,
}

/// What was launched last.
#[derive(Clone, Copy)]
enum Last {
    Nothing,
    Kernel(&'static Kernel),
    Graph { launches: usize },
}

/// A unit of code that the driver has loaded.
pub(super) struct Module {
    pub(super) raw: CUmodule,
    pub(super) unit: Unit,
    /// The name of each kernel in the source, and in the code.
    pub(super) names: Vec<(String, String)>,
}

// SAFETY: handles of the driver belong to the process, not to a thread; a thread makes the context
// current (`enter`) before it uses them, and the driver has its own locks.
unsafe impl Send for Context {}
// SAFETY: as above; what changes here is behind locks.
unsafe impl Sync for Context {}

impl Context {
    /// Opens the device of this number, in the driver's order.
    pub(super) fn open(driver: &DriverLibrary, ordinal: usize) -> Result<Self> {
        if ordinal >= driver.gpus.len() {
            let list = driver.gpus.iter().enumerate().map(|(i, g)| format!("{i}: {}", g.name)).collect::<Vec<_>>();
            return Err(Error::Device {
                device: "cuda".into(),
                problem: format!("there is no GPU {ordinal}; there are {}", list.join(", ")),
                remedy: format!("give a number from 0 to {}", driver.gpus.len() - 1),
            });
        }
        let mut out = Context {
            device: 0,
            raw: std::ptr::null_mut(),
            stream: std::ptr::null_mut(),
            priorities: [0; 2],
            sync_each_launch: AtomicBool::new(false),
            modules: Mutex::default(),
            loading: AtomicU64::new(0),
            last: Mutex::new(Last::Nothing),
            fault: OnceLock::new(),
            ring: Mutex::new(None),
        };
        // SAFETY: `chain::driver` saw that every function is there and initialised the driver; the
        // pointer is to a field of a live value.
        let result = unsafe { sys::cuDeviceGet(&mut out.device, ordinal as i32) };
        out.check("opening the GPU", result)?;
        // SAFETY: as above.
        let result = unsafe { sys::cuDevicePrimaryCtxRetain(&mut out.raw, out.device) };
        out.check("opening the GPU", result)?;
        out.enter()?;
        let [least, greatest] = &mut out.priorities;
        // SAFETY: the pointers are to live integers.
        let result = unsafe { sys::cuCtxGetStreamPriorityRange(least, greatest) };
        out.check("asking for priorities", result)?;
        // An explicit stream, which does not wait for the default one.
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: as above.
        let result = unsafe { sys::cuStreamCreate(&mut out.stream, flags) };
        out.check("making a stream", result)?;
        Ok(out)
    }

    /// Makes the context this thread's current one.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained until `self` is dropped.
        self.check("entering the context", unsafe { sys::cuCtxSetCurrent(self.raw) })
    }

    /// An error unless the driver was content.
    pub(super) fn check(&self, doing: &str, result: CUresult) -> Result<()> {
        if result == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(self.failure(doing, result as u32)) }
    }

    /// The error for a result of the driver.
    pub(super) fn failure(&self, doing: &str, code: u32) -> Error {
        let text = libcuda::error_text(code);
        let error = |problem, remedy: &str| Error::Device { device: "cuda".into(), problem, remedy: remedy.into() };
        if let Some(fault) = self.fault.get() {
            return error(format!("the GPU failed earlier: {fault}"), OLD_ERROR);
        }
        if !FAULTS.contains(&code) {
            let remedy = match code {
                2 => "use a smaller batch, or end the other programs on the GPU",
                46 | 101 => "another program holds the GPU, or it is not for computing: see `nvidia-smi`",
                900..=908 => "run again with `--no-graph`, and please report it",
                _ => "see whether `nvidia-smi` works, and `tilework doctor`",
            };
            return error(format!("{doing}: {text}"), remedy);
        }
        let last = match *lock(&self.last) {
            Last::Nothing => None,
            Last::Kernel(kernel) => Some(in_words(kernel)),
            Last::Graph { launches } => Some(format!("a graph of {launches} launches")),
        };
        let (problem, remedy) = match last {
            Some(kernel) if self.sync_each_launch.load(Relaxed) => (format!("{kernel} failed: {text}"), REPORT_IT),
            Some(kernel) => (format!("a kernel failed: {text}; the last one launched was {kernel}"), NAME_IT),
            None => (format!("{doing}: {text}"), NAME_IT),
        };
        let _ = self.fault.set(problem.clone());
        error(problem, remedy)
    }

    /// Notes what was launched last, for the message when it fails.
    pub(super) fn launched(&self, what: &'static Kernel) {
        *lock(&self.last) = Last::Kernel(what);
    }

    /// Does what a launch, on the host, waits for: compiling and loading its kernel.
    pub(super) fn count_loading<R>(&self, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = work();
        self.loading.fetch_add(start.elapsed().as_nanos() as u64, Relaxed);
        result
    }

    /// How long launches have waited for that.
    pub(super) fn loading(&self) -> Duration {
        Duration::from_nanos(self.loading.load(Relaxed))
    }

    /// A launch's attributes, for clusters of a size; `line`: for recorded work, whether it belongs to the main line.
    pub(super) fn attributes(&self, [x, y, z]: [u32; 3], line: Option<bool>) -> Vec<sys::CUlaunchAttribute> {
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        // What all else waits for goes first: blocks of other lines take what multiprocessors it leaves.
        let [least, greatest] = self.priorities;
        let priority = line.map(|is_main| {
            let value = sys::CUlaunchAttributeValue { priority: if is_main { greatest } else { least } };
            attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PRIORITY, value)
        });
        // GPUs before sm_90 know no clusters, not even of one block.
        let cluster = ([x, y, z] != [1; 3]).then(|| {
            let size = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
            let value = sys::CUlaunchAttributeValue { clusterDim: size };
            attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, value)
        });
        priority.into_iter().chain(cluster).collect()
    }

    /// As [`launched`](Self::launched), for a graph.
    pub(super) fn launched_graph(&self, launches: usize) {
        *lock(&self.last) = Last::Graph { launches };
    }

    /// Waits until the stream has done all its work.
    pub(super) fn sync(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream lives as long as `self`.
        self.check("waiting for the GPU", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// An event, destroyed when dropped.
    pub(super) fn event(&self, flags: sys::CUevent_flags_enum) -> Result<CudaEvent> {
        let mut event = CudaEvent(std::ptr::null_mut());
        // SAFETY: the pointer is to a live handle.
        self.check("making an event", unsafe { sys::cuEventCreate(&mut event.0, flags as u32) })?;
        Ok(event)
    }

    /// Puts the event behind all work that the stream has so far.
    pub(super) fn record(&self, event: &CudaEvent) -> Result<()> {
        // SAFETY: event and stream are alive.
        self.check("recording an event", unsafe { sys::cuEventRecord(event.0, self.stream) })
    }

    /// Waits until the stream has come to the event.
    pub(super) fn wait(&self, event: &CudaEvent) -> Result<()> {
        // SAFETY: the event is alive.
        self.check("waiting for the GPU", unsafe { sys::cuEventSynchronize(event.0) })
    }

    /// The time between two events that have both been reached.
    pub(super) fn elapsed(&self, from: &CudaEvent, to: &CudaEvent) -> Result<Duration> {
        // Not through cudarc: its bindings for CUDA 13 have only `cuEventElapsedTime_v2`, which
        // drivers before 12.8 lack. All drivers have this one.
        type Elapsed = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> CUresult;
        let mut ms = 0f32;
        // SAFETY: the function was seen to be there, with this type in CUDA's documentation; the events
        // are alive.
        let result = unsafe {
            let elapsed = sys::culib().get::<Elapsed>(b"cuEventElapsedTime");
            elapsed.map(|f| f(&mut ms, from.0, to.0)).unwrap_or(CUresult::CUDA_ERROR_NOT_FOUND)
        };
        self.check("reading the time", result)?;
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }

    /// Copies host memory to the device behind the stream's work. The slice may be changed on return.
    ///
    /// An asynchronous copy from ordinary (pageable) memory is not safe for that, and not fast: CUDA
    /// only promises that it "might be synchronous", where it stages the bytes it "may synchronize with
    /// the stream", which would stall the host until all queued steps are done, and where the GPU reads
    /// pageable memory itself it may still be reading on return. So the bytes are staged here, in a ring
    /// of page-locked slots: from those a copy is always asynchronous, and the host waits only when it
    /// is a whole ring ahead of the GPU.
    ///
    /// # Safety
    /// `to` must be the address of at least `bytes.len()` bytes of this device.
    pub(super) unsafe fn write(&self, to: Address, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        let mut ring = lock(&self.ring);
        if ring.is_none() {
            *ring = Some(Ring::new(self)?);
        }
        let Some(ring) = ring.as_mut() else { return Ok(()) };
        for (i, chunk) in bytes.chunks(SLOT).enumerate() {
            let at = ring.next;
            ring.next = (at + 1) % SLOTS;
            if ring.used[at] {
                self.wait(&ring.done[at])?;
            }
            // SAFETY: the slot is SLOT bytes long, and the copy that read it last is done; the caller
            // vouches for the device's side.
            let result = unsafe {
                let slot = ring.memory.add(at * SLOT);
                slot.copy_from_nonoverlapping(chunk.as_ptr(), chunk.len());
                let to = to + (i * SLOT) as u64;
                sys::cuMemcpyHtoDAsync_v2(to, slot.cast::<c_void>(), chunk.len(), self.stream)
            };
            self.check("copying to the GPU", result)?;
            self.record(&ring.done[at])?;
            ring.used[at] = true;
        }
        Ok(())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Errors are of no use here: after a fault every one of these calls fails.
        if self.raw.is_null() || self.enter().is_err() {
            return;
        }
        if !self.stream.is_null() {
            // SAFETY: the stream was made in `open`; ring, modules and stream go when its work is done,
            // and each once.
            unsafe {
                sys::cuStreamSynchronize(self.stream);
                *lock(&self.ring) = None;
                for module in lock(&self.modules).drain(..) {
                    sys::cuModuleUnload(module.raw);
                }
                sys::cuStreamDestroy_v2(self.stream);
            }
        }
        // SAFETY: retained in `open`, released once.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A kernel in words.
pub(super) fn in_words(kernel: &Kernel) -> String {
    format!("kernel `{}` (kernels/{}.cu)", kernel.name, kernel.source.stem)
}

/// The lock, also after a panic elsewhere: what is behind these locks is valid at every moment.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An event of the driver.
pub(super) struct CudaEvent(CUevent);

impl Drop for CudaEvent {
    fn drop(&mut self) {
        // SAFETY: made by cuEventCreate and destroyed once; the driver allows it while it is pending.
        unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// Bytes of one slot, and how many there are: 4 MiB of page-locked memory.
const SLOT: usize = 512 << 10;
const SLOTS: usize = 8;

/// Page-locked memory through which all writes go, used in turn.
struct Ring {
    memory: *mut u8,
    /// Reached when the copy out of the slot is done.
    done: Vec<CudaEvent>,
    used: [bool; SLOTS],
    next: usize,
}

impl Ring {
    fn new(context: &Context) -> Result<Self> {
        let mut memory = std::ptr::null_mut();
        // SAFETY: the pointer is to a live variable.
        context.check("reserving page-locked memory", unsafe { sys::cuMemHostAlloc(&mut memory, SLOT * SLOTS, 0) })?;
        let mut ring = Ring { memory: memory.cast(), done: Vec::new(), used: [false; SLOTS], next: 0 };
        for _ in 0..SLOTS {
            ring.done.push(context.event(sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING)?);
        }
        Ok(ring)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: made by cuMemHostAlloc and freed once; the stream was synchronised before.
        unsafe { sys::cuMemFreeHost(self.memory.cast()) };
    }
}
