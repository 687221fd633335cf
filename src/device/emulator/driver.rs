//! The emulated device as a [`Driver`]: memory is the host's, work runs when it is handed over.

use super::recording::{Owned, Recording, Work};
use super::{Follow, Order, Region, TraceEvent, run, run_checked, run_traced};
use crate::device::cpu::free_memory;
use crate::device::cuda::{Address, Arg, Driver, Graph, Info, Kernel, Launch, Line, Point, TensorMap, TensorMapSpec};
use crate::error::{Error, Result};
use std::alloc::Layout;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How kernels are run.
#[derive(Clone, Debug)]
pub struct EmulatorOptions {
    /// The order of the threads.
    pub order: Order,
    /// Whether every access is checked; a finding is an error. Some thirty times slower.
    pub checked: bool,
    /// What to trace, if anything; it implies `checked`.
    pub trace: Option<TraceOptions>,
    /// Bytes of memory; [`None`] for all of the host's.
    pub memory: Option<usize>,
    /// The architecture whose own kernels it runs too: 90 for those of `sm_90a`; 0 for none.
    pub arch: u32,
}

impl Default for EmulatorOptions {
    fn default() -> Self {
        EmulatorOptions { order: Order::Forward, checked: false, trace: None, memory: None, arch: 0 }
    }
}

/// What to trace.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    /// The name of a family of kernels, or how a kernel's begins if no family has it; its first launch
    /// is traced.
    pub kernel: String,
    /// A block and some of its threads.
    pub follow: Follow,
    /// Where the trace goes.
    pub traced: Arc<Mutex<Traced>>,
}

impl TraceOptions {
    fn means(&self, kernel: &Kernel) -> bool {
        let whole = kernel.source.families.iter().any(|family| family.name == self.kernel);
        if whole { kernel.family == self.kernel } else { kernel.name.starts_with(&self.kernel) }
    }
}

/// The trace of a launch.
#[derive(Clone, Debug, Default)]
pub struct Traced {
    /// The kernel's name; empty before its launch.
    pub kernel: &'static str,
    /// What the threads did, in the order in which they did it.
    pub events: Vec<TraceEvent>,
}

/// The emulated device.
pub(crate) struct Emulated {
    info: Info,
    options: EmulatorOptions,
    in_use: Mutex<usize>,
    recording: Mutex<Option<Recording>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Alignment of memory, as CUDA's.
const ALIGN: usize = 256;

/// Bytes between two pieces of memory, so that the checker can tell a stray access from one to the
/// next piece.
const GAP: usize = 64;

impl Emulated {
    /// A device of its own.
    pub(crate) fn new(options: EmulatorOptions) -> Self {
        let info = Info {
            name: "emulated CUDA device".into(),
            arch: options.arch,
            multiprocessors: rayon::current_num_threads() as u32,
            memory: options.memory.or_else(free_memory).unwrap_or(0),
            l2_bytes: 0,
        };
        Emulated { info, options, in_use: Mutex::new(0), recording: Mutex::new(None) }
    }

    /// Records work if a capture is under way.
    fn record(&self, work: impl FnOnce() -> Work) -> bool {
        match lock(&self.recording).as_mut() {
            Some(recording) => {
                recording.push(work());
                true
            }
            None => false,
        }
    }
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes + GAP, ALIGN).ok()
}

fn failed(problem: String) -> Error {
    let remedy = "this is a bug in a kernel; please report it with the command that led to it".into();
    Error::Device { device: "emulated".into(), problem, remedy }
}

/// Runs a kernel with arguments whose memory is there.
///
/// # Safety
/// As for [`Driver::launch`].
pub(super) unsafe fn execute(
    options: &EmulatorOptions,
    kernel: &'static Kernel,
    launch: &Launch,
    args: &[Owned],
) -> Result<()> {
    let mut args = args.to_vec();
    let mut regions: Vec<Region> = args
        .iter()
        .filter_map(|arg| match *arg {
            Owned::Memory { name, address, bytes, writable } => {
                Some(Region { name, start: address as usize, bytes, writable })
            }
            Owned::Value(_) => None,
        })
        .collect();
    // Tensors that the kernel knows by a map alone.
    regions.extend(args.iter().filter_map(|arg| {
        let Owned::Value(value) = arg else { return None };
        let map = super::map::Map::among(bytemuck::cast_slice(value))?;
        Some(Region { name: "tensor", start: map.address, bytes: map.extent(), writable: true })
    }));
    let pointers: Vec<*mut c_void> = args
        .iter_mut()
        .map(|arg| match arg {
            Owned::Memory { address, .. } => std::ptr::from_mut(address).cast(),
            Owned::Value(value) => value.as_mut_ptr().cast(),
        })
        .collect();
    let problem = |what: &str| failed(format!("kernel `{}`: {what}", kernel.name));
    let [plain, checked] = kernel.thunks.ok_or_else(|| problem("is not compiled for the emulated device"))?;
    let launch = super::Call {
        kernel: kernel.name,
        plain,
        checked,
        specific: kernel.arch.is_some(),
        grid: launch.grid,
        block: launch.block,
        cluster: launch.cluster,
        shared: launch.shared,
        args: &pointers,
    };
    let order = options.order;
    let wanted = |t: &&TraceOptions| t.means(kernel) && lock(&t.traced).kernel.is_empty();
    let traced = options.trace.as_ref().filter(wanted);
    let report = if let Some(trace) = traced {
        // SAFETY: the caller's promise.
        let (events, report) = unsafe { run_traced(&launch, order, &regions, &trace.follow) };
        *lock(&trace.traced) = Traced { kernel: kernel.name, events };
        report
    } else if options.checked || options.trace.is_some() {
        // SAFETY: the caller's promise.
        unsafe { run_checked(&launch, order, &regions) }
    } else {
        // SAFETY: the caller's promise.
        return unsafe { run(&launch, order) }.map_err(|fault| failed(fault.to_string()));
    };
    let report = report.map_err(|fault| failed(fault.to_string()))?;
    if report.findings.is_empty() {
        return Ok(());
    }
    let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    Err(failed(findings.join("\n")))
}

impl Driver for Emulated {
    fn info(&self) -> &Info {
        &self.info
    }

    fn alloc(&self, bytes: usize) -> Result<Option<Address>> {
        let mut in_use = lock(&self.in_use);
        let Some(layout) = layout(bytes).filter(|_| self.options.memory.is_none_or(|m| *in_use + bytes <= m)) else {
            return Ok(None);
        };
        // SAFETY: the layout's size is not 0.
        let memory = unsafe { std::alloc::alloc_zeroed(layout) };
        // NaN in every float, so that tests see an element that no kernel has written. Else `Cuda` sees to that.
        if cfg!(debug_assertions) && lock(&self.recording).is_some() && !memory.is_null() {
            // SAFETY: so many bytes have just been allocated.
            unsafe { std::ptr::write_bytes(memory, 0xFF, bytes) };
        }
        *in_use += bytes;
        Ok((!memory.is_null()).then_some(memory as Address))
    }

    unsafe fn free(&self, address: Address, bytes: usize) {
        if let Some(layout) = layout(bytes) {
            *lock(&self.in_use) -= bytes;
            // SAFETY: `alloc` gave this address with this layout, as the caller promises.
            unsafe { std::alloc::dealloc(address as *mut u8, layout) };
        }
    }

    unsafe fn write(&self, to: Address, bytes: &[u8]) -> Result<()> {
        if lock(&self.recording).is_some() {
            return Err(Error::Internal("the host wrote to the device while a step was being recorded".into()));
        }
        // SAFETY: the caller's promise; the host's slice and device memory are apart.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    unsafe fn read(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        if lock(&self.recording).is_some() {
            return Err(Error::Internal("the host read the device while a step was being recorded".into()));
        }
        // SAFETY: the caller's promise; the host's slice and device memory are apart.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        if !self.record(|| Work::Copy { to, from, bytes }) {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        }
        Ok(())
    }

    unsafe fn zero(&self, at: Address, bytes: usize) -> Result<()> {
        if !self.record(|| Work::Zero { at, bytes }) {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
        }
        Ok(())
    }

    unsafe fn launch(&self, kernel: &'static Kernel, launch: &Launch, args: &[Arg<'_>]) -> Result<()> {
        let args: Vec<Owned> = args.iter().map(Owned::of).collect();
        if lock(&self.recording).is_some() {
            self.record(|| Work::Launch { kernel, launch: *launch, args });
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { execute(&self.options, kernel, launch, &args) }
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap> {
        super::map::encode(spec)
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn begin_capture(&self) -> Result<()> {
        *lock(&self.recording) = Some(Recording::default());
        Ok(())
    }

    fn line(&self, line: Line) -> Result<()> {
        lock(&self.recording).as_mut().map_or(Ok(()), |recording| recording.turn(line))
    }

    fn point(&self) -> Result<Point> {
        Ok(lock(&self.recording).as_mut().map_or(Point(0), Recording::point))
    }

    fn join(&self) -> Result<()> {
        if let Some(recording) = lock(&self.recording).as_mut() {
            recording.join();
        }
        Ok(())
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>> {
        let recording = lock(&self.recording).take().unwrap_or_default();
        Ok(Box::new(recording.finish(self.options.clone())))
    }

    fn memory(&self) -> Result<(usize, usize)> {
        let free = match self.options.memory {
            Some(memory) => memory - *lock(&self.in_use),
            None => free_memory().unwrap_or(0),
        };
        Ok((free, self.info.memory))
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed())
    }
}
