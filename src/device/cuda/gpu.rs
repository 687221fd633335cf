//! The real GPU: [`Driver`] over NVIDIA's driver, through cudarc.

use super::arch::Arch;
use super::chain;
use super::context::{Context, Module, in_words, lock};
use super::driver::{Driver, Graph, Info, Line, Point};
use super::graph::{CapturedGraph, Node, ends, go_on_behind};
use super::launch::{Address, Arg, Kernel, Launch, TensorMap};
use super::lines::Lines;
use super::nvrtc::{Compiler, Unit};
use super::tensor_map::{self, TensorMapSpec};
use crate::error::{Error, Result};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUfunction, CUresult};
use rayon::prelude::*;
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// How to open a GPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct GpuOptions {
    /// Which one, in the driver's order.
    pub ordinal: usize,
    /// Wait after every launch, so that an error names its kernel. Slow.
    pub sync_each_launch: bool,
}

/// A GPU, its compiler and the kernels that it has loaded.
pub struct Gpu {
    info: Info,
    /// The most shared memory that a block may have, in bytes.
    shared_per_block: u32,
    compiler: Compiler,
    /// What to compile for: the GPU's own architecture, or the next older of its family.
    target: Arch,
    /// By `Kernel::index`.
    functions: Vec<OnceLock<Function>>,
    capturing: AtomicBool,
    captured: AtomicUsize,
    lines: Mutex<Lines<Node>>,
    context: Arc<Context>,
}

#[derive(Debug)]
struct Function {
    raw: CUfunction,
    /// Bytes of static shared memory.
    fixed: u32,
    /// The dynamic shared memory that it was last allowed, in bytes.
    allowed: AtomicU32,
}

// SAFETY: handles of the driver belong to the process, not to a thread.
unsafe impl Send for Function {}
// SAFETY: as above; the handle itself never changes.
unsafe impl Sync for Function {}

/// Shared memory, static and dynamic together, that a block may have without asking.
const UNASKED: u32 = 48 << 10;
/// More arguments than any kernel has.
const MOST_ARGS: usize = 64;

impl Gpu {
    /// Opens a GPU. `kernels` is their number (`Kernel::index` is below it), `headers` the
    /// files they include. Kernels are compiled, or taken from the cache, at their first launch.
    ///
    /// # Errors
    /// [`Error::Device`] when driver, GPU or NVRTC are missing or do not work.
    pub fn new(options: GpuOptions, kernels: usize, headers: &'static [(&'static str, &'static str)]) -> Result<Self> {
        let driver = chain::driver()?;
        let context = Context::open(driver, options.ordinal)?;
        context.sync_each_launch.store(options.sync_each_launch, Relaxed);
        let told = |what| -> Result<u32> {
            let mut value = 0;
            // SAFETY: the pointer is to a live integer, the device was opened above.
            context.check("asking the GPU", unsafe { sys::cuDeviceGetAttribute(&mut value, what, context.device) })?;
            Ok(value.max(0) as u32)
        };
        let mut memory = 0;
        // SAFETY: as above.
        context.check("asking the GPU", unsafe { sys::cuDeviceTotalMem_v2(&mut memory, context.device) })?;
        // Some drivers do not tell these.
        let maybe = |what| told(what).unwrap_or(0);
        let gpu = &driver.gpus[options.ordinal];
        let info = Info {
            name: gpu.name.clone(),
            arch: gpu.arch,
            multiprocessors: told(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory,
            l2_bytes: maybe(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE) as usize,
        };
        let compiler = Compiler::new(headers)?;
        let target = compiler.nvrtc().target(info.arch).ok_or_else(|| Error::Device {
            device: "cuda".into(),
            problem: format!("NVRTC cannot compile for {} (sm_{})", info.name, info.arch),
            remedy: "`pip install nvidia-cuda-nvrtc` brings a version that knows more GPUs".into(),
        })?;
        Ok(Gpu {
            info,
            shared_per_block: maybe(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
            compiler,
            target,
            functions: (0..kernels).map(|_| OnceLock::new()).collect(),
            capturing: AtomicBool::new(false),
            captured: AtomicUsize::new(0),
            lines: Mutex::default(),
            context: Arc::new(context),
        })
    }

    /// The compiler, with its notes and its cache.
    pub fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    /// The loaded function of a kernel.
    fn function(&self, kernel: &'static Kernel) -> Result<&Function> {
        let cell = self.functions.get(kernel.index);
        let cell =
            cell.ok_or_else(|| Error::Internal(format!("{} is not in the table of kernels", in_words(kernel))))?;
        if let Some(function) = cell.get() {
            return Ok(function);
        }
        let find = || lock(&self.context.modules).iter().find_map(|module| self.find(module, kernel));
        let function = self.context.count_loading(|| match find() {
            Some(function) => function,
            None => {
                self.load(Unit::of(kernel, self.target))?;
                find().ok_or_else(|| Error::Internal(format!("{} is not in its unit", in_words(kernel))))?
            }
        })?;
        Ok(cell.get_or_init(|| function))
    }

    /// The function of a kernel, if this module has it.
    fn find(&self, module: &Module, kernel: &'static Kernel) -> Option<Result<Function>> {
        let name = module.names.iter().find(|n| n.0 == kernel.name && module.unit.source.stem == kernel.source.stem)?;
        Some(CString::new(name.1.as_str()).map_err(|e| Error::Internal(e.to_string())).and_then(|name| {
            let doing = format!("loading {}", in_words(kernel));
            let (mut raw, mut fixed) = (std::ptr::null_mut(), 0);
            // SAFETY: the module is loaded, the name ends in NUL, the pointer is to a live handle.
            let found = unsafe { sys::cuModuleGetFunction(&mut raw, module.raw, name.as_ptr()) };
            self.context.check(&doing, found)?;
            let what = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
            // SAFETY: as above.
            self.context.check(&doing, unsafe { sys::cuFuncGetAttribute(&mut fixed, what, raw) })?;
            Ok(Function { raw, fixed: fixed.max(0) as u32, allowed: AtomicU32::new(0) })
        }))
    }

    /// Compiles a unit and loads it. Code out of the cache that the driver does not take is compiled
    /// anew, once. Two threads that load one unit at once keep both: either serves.
    fn load(&self, unit: Unit) -> Result<()> {
        let (mut code, mut cached) = self.compiler.module(&unit)?;
        loop {
            let mut raw = std::ptr::null_mut();
            // SAFETY: the image is a whole CUBIN, which carries its own length.
            match unsafe { sys::cuModuleLoadData(&mut raw, code.cubin.as_ptr().cast()) } {
                CUresult::CUDA_SUCCESS => {
                    lock(&self.context.modules).push(Module { raw, unit, names: code.names });
                    return Ok(());
                }
                // Invalid image, PTX or source; no binary for this GPU; unsupported version.
                refused if cached && [200, 209, 218, 222, 300].contains(&(refused as u32)) => {
                    (code, cached) = (self.compiler.rebuild(&unit)?, false);
                }
                refused => {
                    let doing = format!("loading kernels/{}.cu", unit.source.stem);
                    return Err(self.context.failure(&doing, refused as u32));
                }
            }
        }
    }

    /// Lets a kernel have this much dynamic shared memory.
    fn allow(&self, function: &Function, kernel: &'static Kernel, dynamic: u32) -> Result<()> {
        if dynamic + function.fixed <= UNASKED || dynamic <= function.allowed.load(Relaxed) {
            return Ok(());
        }
        // Under a lock, so that two threads cannot leave the smaller of two sizes behind.
        let _one = lock(&self.context.modules);
        let what = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let most = dynamic.max(function.allowed.load(Relaxed));
        // SAFETY: the function is loaded.
        let result = unsafe { sys::cuFuncSetAttribute(function.raw, what, most as i32) };
        let doing = format!(
            "giving {} {dynamic} bytes of dynamic shared memory beside {} static ones (a block of this GPU may have {})",
            in_words(kernel),
            function.fixed,
            self.shared_per_block,
        );
        self.context.check(&doing, result)?;
        function.allowed.store(most, Relaxed);
        Ok(())
    }

    /// Refuses what would be recorded into a graph with the host's addresses, or break the recording.
    fn not_capturing(&self, what: &str) -> Result<()> {
        if self.capturing.load(Relaxed) {
            return Err(Error::Internal(format!("{what} while a graph is being captured")));
        }
        Ok(())
    }
}

impl Driver for Gpu {
    fn info(&self) -> &Info {
        &self.info
    }

    fn alloc(&self, bytes: usize) -> Result<Option<Address>> {
        self.context.enter()?;
        let mut address = 0;
        // SAFETY: the pointer is to a live integer. The driver refuses a size of zero.
        match unsafe { sys::cuMemAlloc_v2(&mut address, bytes.max(1)) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
            result => self.context.check("reserving memory", result).map(|()| Some(address)),
        }
    }

    unsafe fn free(&self, address: Address, _bytes: usize) {
        if self.context.enter().is_ok() {
            // SAFETY: the caller vouches that the address came from `alloc` and is not used any more. An
            // error can only be an older one, which is reported where it can be returned.
            unsafe { sys::cuMemFree_v2(address) };
        }
    }

    unsafe fn write(&self, to: Address, bytes: &[u8]) -> Result<()> {
        self.not_capturing("a write from the host")?;
        // SAFETY: the caller vouches for the address.
        unsafe { self.context.write(to, bytes) }
    }

    unsafe fn read(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        self.not_capturing("a read by the host")?;
        self.context.enter()?;
        let (to, size, stream) = (bytes.as_mut_ptr().cast::<c_void>(), bytes.len(), self.context.stream);
        if size == 0 {
            return self.context.sync();
        }
        // SAFETY: the caller vouches for the device's side; the slice is alive until the stream has been
        // waited for, below, whatever this call returned.
        let queued = unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, size, stream) };
        let done = self.context.sync();
        self.context.check("copying from the GPU", queued).and(done)
    }

    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        self.context.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller vouches for both addresses.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.context.stream) };
        self.context.check("copying on the GPU", result)
    }

    unsafe fn zero(&self, at: Address, bytes: usize) -> Result<()> {
        self.context.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller vouches for the address.
        let result = unsafe { sys::cuMemsetD8Async(at, 0, bytes, self.context.stream) };
        self.context.check("zeroing memory", result)
    }

    unsafe fn launch(&self, kernel: &'static Kernel, launch: &Launch, args: &[Arg<'_>]) -> Result<()> {
        self.context.enter()?;
        let function = self.function(kernel)?;
        self.allow(function, kernel, launch.shared)?;
        if args.len() > MOST_ARGS {
            return Err(Error::Internal(format!("{} has {} arguments", in_words(kernel), args.len())));
        }
        // The driver wants the address of each argument, and has copied them all when it returns.
        let mut pointers = [std::ptr::null_mut::<c_void>(); MOST_ARGS];
        for (pointer, arg) in pointers.iter_mut().zip(args) {
            *pointer = match arg {
                Arg::Memory { address, .. } => std::ptr::from_ref(address).cast_mut().cast(),
                Arg::Map(tensor) => std::ptr::from_ref(&tensor.map).cast_mut().cast(),
                Arg::Value(bytes) => bytes.as_ptr().cast_mut().cast(),
            };
        }
        let line = self.capturing.load(Relaxed).then(|| lock(&self.lines).is_main());
        let mut attributes = self.context.attributes(launch.cluster, line);
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        let config = sys::CUlaunchConfig {
            gridDimX: gx,
            gridDimY: gy,
            gridDimZ: gz,
            blockDimX: bx,
            blockDimY: by,
            blockDimZ: bz,
            sharedMemBytes: launch.shared,
            hStream: self.context.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: function and stream are alive; there are as many pointers as the kernel has parameters,
        // of its types, which the generated launchers see to; the caller vouches for the memory.
        let result = unsafe {
            sys::cuLaunchKernelEx(&raw const config, function.raw, pointers.as_mut_ptr(), std::ptr::null_mut())
        };
        if result != CUresult::CUDA_SUCCESS {
            let Launch { grid, block, shared, cluster, .. } = launch;
            let shape = format!("grid {grid:?}, block {block:?}, {shared} bytes shared, clusters of {cluster:?}");
            return Err(self.context.failure(&format!("launching {} ({shape})", in_words(kernel)), result as u32));
        }
        self.context.launched(kernel);
        if self.capturing.load(Relaxed) {
            self.captured.fetch_add(1, Relaxed);
        } else if self.context.sync_each_launch.load(Relaxed) {
            self.context.sync()?;
        }
        Ok(())
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap> {
        spec.check()?;
        self.context.enter()?;
        let (result, map) = tensor_map::encode(spec);
        self.context.check("making a tensor map", result).map(|()| map)
    }

    fn sync(&self) -> Result<()> {
        self.not_capturing("a wait")?;
        self.context.sync()
    }

    fn begin_capture(&self) -> Result<()> {
        self.not_capturing("a second capture was begun")?;
        self.context.enter()?;
        // Relaxed: a kernel's first launch loads its module and the pool may reserve memory; both are
        // done at once and not recorded, and in the other modes would end the capture.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive and not being captured.
        let result = unsafe { sys::cuStreamBeginCapture_v2(self.context.stream, mode) };
        self.context.check("beginning a graph", result)?;
        self.captured.store(0, Relaxed);
        *lock(&self.lines) = Lines::default();
        self.capturing.store(true, Relaxed);
        Ok(())
    }

    fn line(&self, line: Line) -> Result<()> {
        match self.capturing.load(Relaxed) {
            true => go_on_behind(&self.context, &lock(&self.lines).turn(line, ends(&self.context)?)?),
            false => Ok(()),
        }
    }

    fn point(&self) -> Result<Point> {
        match self.capturing.load(Relaxed) {
            true => Ok(lock(&self.lines).point(ends(&self.context)?)),
            false => Ok(Point(0)),
        }
    }

    fn join(&self) -> Result<()> {
        let met = match self.capturing.load(Relaxed) {
            true => lock(&self.lines).join(ends(&self.context)?),
            false => None,
        };
        met.map_or(Ok(()), |nodes| go_on_behind(&self.context, &nodes))
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>> {
        if !self.capturing.swap(false, Relaxed) {
            return Err(Error::Internal("a capture was ended that was not begun".into()));
        }
        self.context.enter()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream is being captured; the pointer is to a live handle.
        let ended = unsafe { sys::cuStreamEndCapture(self.context.stream, &mut graph) };
        self.context.check("ending a graph", ended)?;
        let launches = self.captured.load(Relaxed);
        let mut captured = CapturedGraph { context: self.context.clone(), exec: std::ptr::null_mut(), launches };
        // Each kernel has the priority that it was launched with, not the stream's.
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY.0.into();
        // SAFETY: the graph was just made; it may be destroyed once it is instantiated, and is, once.
        let made = unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&mut captured.exec, graph, flags);
            sys::cuGraphDestroy(graph);
            made
        };
        self.context.check("making a graph", made)?;
        Ok(Box::new(captured))
    }

    /// Compiles and loads in parallel; what is loaded already stays.
    fn prepare(&self, kernels: &[&'static Kernel], say: &mut dyn FnMut(&str)) -> Result<()> {
        let mut units: Vec<Unit> = Vec::new();
        let here = kernels.iter().filter(|k| k.arch.is_none_or(|a| a.number == self.info.arch));
        // Kernels of no type last: they are in any unit of their file.
        let (plain, typed): (Vec<&Kernel>, _) = here.partition(|k| k.dtype.is_none());
        for kernel in typed.into_iter().chain(plain) {
            let unit = Unit::of(kernel, self.target);
            let served = |u: &Unit| *u == unit || (kernel.dtype.is_none() && u.source.stem == unit.source.stem);
            if !units.iter().any(served) && !lock(&self.context.modules).iter().any(|m| served(&m.unit)) {
                units.push(unit);
            }
        }
        if units.iter().any(|unit| !self.compiler.is_cached(unit)) {
            say(&format!("compiling kernels for {} (first time on this machine)", self.target));
        }
        let done = units.into_par_iter().try_for_each(|unit| self.context.enter().and_then(|()| self.load(unit)));
        self.compiler.cache().take_notes().iter().for_each(|text| say(&format!("note: {text}")));
        done
    }

    fn loading(&self) -> Duration {
        self.context.loading()
    }

    fn memory(&self) -> Result<(usize, usize)> {
        self.context.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are to live integers.
        self.context.check("asking the GPU", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        self.not_capturing("a measurement")?;
        self.context.enter()?;
        let flags = sys::CUevent_flags_enum::CU_EVENT_DEFAULT;
        let (start, stop) = (self.context.event(flags)?, self.context.event(flags)?);
        self.context.record(&start)?;
        work()?;
        self.context.enter()?;
        self.context.record(&stop)?;
        self.context.wait(&stop)?;
        self.context.elapsed(&start, &stop)
    }
}
