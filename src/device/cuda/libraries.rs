//! Finding and loading `libcuda` (the driver) and `libnvrtc` (the compiler), and saying what is
//! missing.
//!
//! cudarc opens both libraries by name when the first of their functions is called, and panics when
//! a library or a function is not there. So everything is proved here first: the library is opened
//! from the loader's path, else by its absolute path and never closed, after which the loader hands
//! the same one to cudarc by its name (SONAME); then every function that this crate calls is looked
//! up in the very library that cudarc has taken.

use super::places::{self, Place, Surroundings};
use crate::error::{Error, Result};
use cudarc::{driver, nvrtc as rtc};
use libloading::Library;
use std::error::Error as _;
use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Every function of `libcuda` that this crate calls; a test holds the sources against it.
pub(super) const DRIVER_FUNCTIONS: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
];

/// Every function of `libnvrtc` that this crate calls.
pub(super) const NVRTC_FUNCTIONS: &[&str] = &[
    "nvrtcCompileProgram",
    "nvrtcCreateProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetCUBIN",
    "nvrtcGetCUBINSize",
    "nvrtcGetErrorString",
    "nvrtcGetNumSupportedArchs",
    "nvrtcGetProgramLog",
    "nvrtcGetProgramLogSize",
    "nvrtcGetSupportedArchs",
    "nvrtcVersion",
];

const INSTALL_DRIVER: &str = "install NVIDIA's driver (https://www.nvidia.com/drivers; it brings libcuda.so.1), \
     or train with `--device cpu`";
const INSTALL_NVRTC: &str = "`pip install nvidia-cuda-nvrtc` (CUDA 13) or `pip install nvidia-cuda-nvrtc-cu12` (CUDA 12), \
     or install the CUDA toolkit; no environment variable is needed";

/// A GPU that the driver reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuName {
    /// As the driver calls it.
    pub name: String,
    /// Its architecture: 90 for `sm_90`.
    pub arch: u32,
}

/// The driver, loaded and initialised.
#[derive(Clone, Debug)]
pub struct DriverLibrary {
    /// The file, where the system tells.
    pub path: Option<PathBuf>,
    /// The newest CUDA that it supports.
    pub version: (i32, i32),
    /// Its GPUs, in the driver's order; at least one.
    pub gpus: Vec<GpuName>,
}

/// NVRTC, loaded.
#[derive(Clone, Debug)]
pub struct NvrtcLibrary {
    /// The file, where the system tells.
    pub path: Option<PathBuf>,
    /// Its version.
    pub version: (i32, i32),
    /// The architectures it compiles for: 90 for `sm_90`.
    pub archs: Vec<u32>,
    /// Its second file, with the built-in functions; `None`: not found beside it nor by the loader.
    pub builtins: Option<PathBuf>,
    /// The kind of place where it was found.
    pub place: &'static str,
}

impl NvrtcLibrary {
    /// The architecture to compile for so that a GPU of architecture `arch` can run it: `arch`
    /// itself, or else the next older of its family, whose machine code it runs too.
    pub fn target(&self, arch: u32) -> Option<u32> {
        self.archs.iter().copied().filter(|&a| a <= arch && a / 10 == arch / 10).max()
    }
}

/// Why something cannot be used, and how to mend it.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) problem: String,
    pub(super) remedy: String,
}

impl Fault {
    fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Fault { problem: problem.into(), remedy: remedy.into() }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Error::Device { device: "cuda".into(), problem: fault.problem, remedy: fault.remedy }
    }
}

/// Loads the driver and asks it for its GPUs; the answer is kept.
///
/// # Errors
/// [`Error::Device`] when there is no driver, or none that works, or no GPU.
pub fn driver() -> Result<&'static DriverLibrary> {
    driver_or_fault().map_err(|fault| fault.clone().into())
}

/// Loads NVRTC, the first that fits the driver and its GPUs where there are any; the answer is kept.
///
/// # Errors
/// [`Error::Device`] when there is none, or none that fits.
pub fn nvrtc() -> Result<&'static NvrtcLibrary> {
    nvrtc_or_fault().map_err(|fault| fault.clone().into())
}

pub(super) fn driver_or_fault() -> Result<&'static DriverLibrary, &'static Fault> {
    static DRIVER: OnceLock<Result<DriverLibrary, Fault>> = OnceLock::new();
    DRIVER.get_or_init(|| with_surroundings(load_driver)).as_ref()
}

pub(super) fn nvrtc_or_fault() -> Result<&'static NvrtcLibrary, &'static Fault> {
    static NVRTC: OnceLock<Result<NvrtcLibrary, Fault>> = OnceLock::new();
    NVRTC.get_or_init(|| with_surroundings(|at| load_nvrtc(at, driver_or_fault().ok()))).as_ref()
}

fn with_surroundings<T>(work: impl FnOnce(&Surroundings<'_>) -> T) -> T {
    let here = std::env::current_dir().unwrap_or_default();
    work(&Surroundings { env: &|key| std::env::var_os(key), home: std::env::home_dir(), here, root: "/".into() })
}

/// Opens a library and keeps it for the rest of the process.
fn open(file: &Path) -> Result<Library, String> {
    // SAFETY: opening a library runs its initialisers. These are NVIDIA's, made to be opened so, and
    // whoever can put another file in these places can run any code as this user anyway.
    unsafe { Library::new(file) }.map_err(|e| e.source().map_or_else(|| e.to_string(), ToString::to_string))
}

/// The first of cudarc's names for a library that the loader finds; what is there but does not load
/// is added to `broken`.
fn open_by_name(names: &[&str], broken: &mut Vec<String>) -> Option<Library> {
    for name in names.iter().flat_map(|n| cudarc::get_lib_name_candidates(n)) {
        match open(Path::new(&name)) {
            Ok(library) => return Some(library),
            // Everything but "<name>: cannot open shared object file" means that there is a file.
            Err(e) if !cfg!(target_os = "linux") || e.starts_with(&format!("{name}: cannot open")) => {}
            Err(e) => broken.push(e),
        }
    }
    None
}

/// The first of `functions` that the library lacks.
fn lacks(library: &Library, functions: &[&'static str]) -> Option<&'static str> {
    // SAFETY: the symbol is only looked up, not called.
    functions.iter().copied().find(|name| unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err())
}

/// The file of a library that has one of these functions.
fn file_of(library: &Library, functions: &[&str]) -> Option<PathBuf> {
    // SAFETY: the symbol is only looked up, not called.
    let address =
        |name: &&str| unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.ok().map(|f| *f as usize);
    let address = functions.iter().find_map(address)?;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        let hex = |s| usize::from_str_radix(s, 16).ok();
        (hex(from)?..hex(to)?).contains(&address).then(|| line.find('/').map(|at| PathBuf::from(&line[at..])))?
    })
}

fn broken_note(broken: &[String]) -> String {
    broken.first().map_or_else(String::new, |e| format!(" (there is one that cannot be loaded: {e})"))
}

fn load_driver(at: &Surroundings<'_>) -> Result<DriverLibrary, Fault> {
    let mut broken = Vec::new();
    let mut opened = open_by_name(&["cuda", "nvcuda"], &mut broken);
    for folder in places::driver(at).iter().flat_map(|p| &p.folders) {
        let file = folder.join("libcuda.so.1");
        if opened.is_none() && file.is_file() {
            opened = open(&file).map_err(|e| broken.push(e)).ok();
        }
    }
    let Some(library) = opened else {
        return Err(Fault::new(
            format!("libcuda, NVIDIA's driver, was not found{}", broken_note(&broken)),
            INSTALL_DRIVER,
        ));
    };
    // Never closed: cudarc finds it by its name, and drivers are not made to be unloaded.
    std::mem::forget(library);
    // SAFETY: as in `open`.
    if !unsafe { driver::sys::is_culib_present() } {
        return Err(Fault::new("libcuda was loaded, but under a name that is not the driver's", INSTALL_DRIVER));
    }
    // SAFETY: a library of this name was just seen to be there.
    let library = unsafe { driver::sys::culib() };
    let path = file_of(library, DRIVER_FUNCTIONS);
    let shown = path.as_ref().map_or_else(|| "libcuda".to_string(), |p| p.display().to_string());
    if let Some(name) = lacks(library, DRIVER_FUNCTIONS) {
        let text =
            format!("{shown} has no function `{name}`: it is too old (CUDA 12.0 is needed), or no driver at all");
        return Err(Fault::new(text, INSTALL_DRIVER));
    }
    initialise(library, path, &shown)
}

/// `cuInit` and the list of GPUs. The results are read as numbers: a driver may give one that the
/// bindings' enum does not have.
fn initialise(library: &Library, path: Option<PathBuf>, shown: &str) -> Result<DriverLibrary, Fault> {
    type Init = unsafe extern "C" fn(u32) -> u32;
    type Number = unsafe extern "C" fn(*mut c_int) -> u32;
    let gone = |_| Fault::new(format!("{shown} cannot be used"), INSTALL_DRIVER);
    let (mut version, mut count) = (0, 0);
    // SAFETY: the types are those of CUDA's documentation, and the pointers are to live integers.
    let code = unsafe {
        let init = library.get::<Init>(b"cuInit").map_err(gone)?;
        let get_version = library.get::<Number>(b"cuDriverGetVersion").map_err(gone)?;
        let get_count = library.get::<Number>(b"cuDeviceGetCount").map_err(gone)?;
        // Documented to work before cuInit; the version stays zero where it does not.
        get_version(&mut version);
        let code = init(0);
        if code == 0 { get_count(&mut count) } else { code }
    };
    let version = (version / 1000, version % 1000 / 10);
    if code != 0 {
        return Err(refused(code, shown));
    }
    if version.0 < 12 {
        let text = format!("the driver ({shown}) supports CUDA {}.{}, and 12.0 is needed", version.0, version.1);
        return Err(Fault::new(text, "install a newer driver: 525 or later (https://www.nvidia.com/drivers)"));
    }
    let gpus: Vec<GpuName> = (0..count).filter_map(gpu_name).collect();
    if gpus.is_empty() {
        return Err(refused(100, shown));
    }
    Ok(DriverLibrary { path, version, gpus })
}

/// What the driver's first answer means when it is an error.
fn refused(code: u32, shown: &str) -> Fault {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES");
    match code {
        34 => Fault::new(
            format!("{shown} is the stub library of a CUDA toolkit, not a driver"),
            "install NVIDIA's driver, and take the toolkit's `stubs` folder out of LD_LIBRARY_PATH",
        ),
        100 if visible.is_ok() => Fault::new(
            format!("the driver reports no GPU; CUDA_VISIBLE_DEVICES is `{}`", visible.unwrap_or_default()),
            "unset CUDA_VISIBLE_DEVICES, or name a GPU that `nvidia-smi -L` lists",
        ),
        100 => Fault::new(
            "the driver reports no GPU",
            "see whether `nvidia-smi` lists one; a container must be started with `--gpus all`",
        ),
        35 | 36 => Fault::new(
            format!("the driver ({shown}) is too old for its libraries"),
            "install a newer driver: 525 or later (https://www.nvidia.com/drivers)",
        ),
        803 => Fault::new(
            "the driver's library and its kernel module are of different versions",
            "restart the machine: the driver was updated while it ran",
        ),
        802 => Fault::new(
            "the GPUs are not ready yet",
            "wait for the machine to finish starting; on a system with NVSwitch start nvidia-fabricmanager",
        ),
        _ => Fault::new(
            format!("the driver ({shown}) does not start: {}", error_text(code)),
            "see whether `nvidia-smi` works; restart the machine or reinstall the driver if it does not",
        ),
    }
}

/// The name and the meaning of a driver's result. Call only once the driver has been loaded.
pub(super) fn error_text(code: u32) -> String {
    type Text = unsafe extern "C" fn(u32, *mut *const c_char) -> u32;
    let ask = |function: &[u8]| {
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: the driver is loaded; the type is that of CUDA's documentation; the text that comes
        // back is the driver's own and lives as long as it does.
        unsafe {
            let f = driver::sys::culib().get::<Text>(function).ok()?;
            (f(code, &mut text) == 0 && !text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    };
    match (ask(b"cuGetErrorName"), ask(b"cuGetErrorString")) {
        (Some(name), Some(text)) => format!("{name} ({text})"),
        (Some(name), None) => name,
        _ => format!("CUDA error {code}"),
    }
}

fn gpu_name(ordinal: c_int) -> Option<GpuName> {
    use driver::sys::{self, CUdevice_attribute as A};
    let (mut device, mut major, mut minor) = (0, 0, 0);
    let mut name = [0 as c_char; 256];
    // SAFETY: the functions were seen to be there and the driver is initialised; every pointer is to a
    // live variable, and the name is cut to the length given.
    unsafe {
        sys::cuDeviceGet(&mut device, ordinal).result().ok()?;
        sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int - 1, device).result().ok()?;
        for (value, what) in [
            (&mut major, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            (&mut minor, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        ] {
            sys::cuDeviceGetAttribute(value, what, device).result().ok()?;
        }
        let name = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
        Some(GpuName { name, arch: (major * 10 + minor) as u32 })
    }
}

/// One NVRTC, opened and asked for its version.
struct Candidate {
    library: Library,
    found: NvrtcLibrary,
}

fn candidate(library: Library, place: &'static str) -> Result<Candidate, String> {
    let path = file_of(&library, NVRTC_FUNCTIONS);
    let shown = path.as_ref().map_or_else(|| "libnvrtc".to_string(), |p| p.display().to_string());
    if let Some(name) = lacks(&library, NVRTC_FUNCTIONS) {
        return Err(format!("{shown} has no function `{name}`"));
    }
    type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
    type Number = unsafe extern "C" fn(*mut c_int) -> c_int;
    let (mut major, mut minor, mut count) = (0, 0, 0);
    let mut archs: Vec<c_int> = Vec::new();
    // SAFETY: the functions were seen to be there; the types are those of NVRTC's documentation; the
    // array has the length that the library asks for.
    unsafe {
        let get = |name: &str| library.get::<Number>(name.as_bytes()).map_err(|e| e.to_string());
        library.get::<Version>(b"nvrtcVersion").map_err(|e| e.to_string())?(&mut major, &mut minor);
        if get("nvrtcGetNumSupportedArchs")?(&mut count) == 0 && count > 0 {
            archs.resize(count as usize, 0);
            get("nvrtcGetSupportedArchs")?(archs.as_mut_ptr());
        }
    }
    if major < 12 {
        return Err(format!("{shown} is NVRTC {major}.{minor}, and 12.0 is needed"));
    }
    let archs = archs.into_iter().filter_map(|a| u32::try_from(a).ok()).collect();
    let version = (major, minor);
    Ok(Candidate { library, found: NvrtcLibrary { builtins: None, path, version, archs, place } })
}

/// Loads the second file of NVRTC, which it would itself look for by name and not always find.
fn load_builtins(of: &NvrtcLibrary) -> Option<PathBuf> {
    let name = format!("libnvrtc-builtins.so.{}.{}", of.version.0, of.version.1);
    let beside = of.path.as_ref().and_then(|p| p.parent()).map(|folder| folder.join(&name));
    for file in beside.into_iter().chain([PathBuf::from(&name)]) {
        if let Ok(library) = open(&file) {
            std::mem::forget(library);
            return Some(file);
        }
    }
    None
}

/// Why this NVRTC does not do for this driver and its GPUs.
fn unfit(found: &NvrtcLibrary, driver: &DriverLibrary) -> Option<Fault> {
    let ((major, minor), (newest, _)) = (found.version, driver.version);
    if major > newest {
        return Some(Fault::new(
            format!(
                "NVRTC {major}.{minor} is newer than the driver, which supports CUDA {newest}.{}",
                driver.version.1
            ),
            format!("`pip install nvidia-cuda-nvrtc-cu{newest}`, or install a newer driver"),
        ));
    }
    let unknown = driver.gpus.iter().find(|gpu| found.target(gpu.arch).is_none());
    if unknown.is_some() && driver.gpus.iter().all(|gpu| found.target(gpu.arch).is_none()) {
        let gpu = unknown?;
        let known = match (found.archs.iter().min(), found.archs.iter().max()) {
            (Some(a), Some(b)) => format!(" (it knows sm_{a} to sm_{b})"),
            _ => String::new(),
        };
        return Some(Fault::new(
            format!("NVRTC {major}.{minor} cannot compile for {} (sm_{}){known}", gpu.name, gpu.arch),
            format!("{INSTALL_NVRTC}: a version that knows the GPU"),
        ));
    }
    None
}

fn load_nvrtc(at: &Surroundings<'_>, driver: Option<&DriverLibrary>) -> Result<NvrtcLibrary, Fault> {
    let mut broken = Vec::new();
    let mut misfit = None;
    let by_name = open_by_name(&["nvrtc"], &mut broken).map(|library| (library, "the loader's path"));
    let places = places::nvrtc(at);
    let files = places.iter().flat_map(|p| p.folders.iter().flat_map(|f| places::nvrtc_files(f)).map(|f| (f, p.kind)));
    let opened = files.filter_map(|(file, kind)| match open(&file) {
        Ok(library) => Some(Ok((library, kind))),
        Err(e) => Some(Err(e)),
    });
    for opened in by_name.into_iter().map(Ok).chain(opened) {
        let Candidate { library, mut found } = match opened.and_then(|(library, kind)| candidate(library, kind)) {
            Ok(candidate) => candidate,
            Err(e) => {
                broken.push(e);
                continue;
            }
        };
        if let Some(fault) = driver.and_then(|d| unfit(&found, d)) {
            misfit.get_or_insert(fault);
            continue;
        }
        found.builtins = load_builtins(&found);
        std::mem::forget(library);
        return taken_by_cudarc(found);
    }
    Err(misfit.unwrap_or_else(|| {
        let looked = looked_in(&places);
        let text =
            format!("libnvrtc, NVIDIA's run-time compiler, was not found{}; looked in {looked}", broken_note(&broken));
        Fault::new(text, INSTALL_NVRTC)
    }))
}

fn looked_in(places: &[Place]) -> String {
    let mut kinds = vec!["the loader's path"];
    kinds.extend(places.iter().map(|p| p.kind));
    kinds.join(", ")
}

/// Makes sure that cudarc has taken the library that was chosen.
fn taken_by_cudarc(found: NvrtcLibrary) -> Result<NvrtcLibrary, Fault> {
    // SAFETY: as in `open`.
    if !unsafe { rtc::sys::is_culib_present() } {
        return Err(Fault::new("libnvrtc was loaded, but under a name that is not its own", INSTALL_NVRTC));
    }
    // SAFETY: a library of this name was just seen to be there.
    let library = unsafe { rtc::sys::culib() };
    let path = file_of(library, NVRTC_FUNCTIONS);
    if path == found.path {
        return Ok(found);
    }
    let show = |p: &Option<PathBuf>| p.as_ref().map_or_else(|| "libnvrtc".to_string(), |p| p.display().to_string());
    Err(Fault::new(
        format!("the loader puts {} before {}, which is the one that fits", show(&path), show(&found.path)),
        "take the first one's folder out of LD_LIBRARY_PATH, or uninstall it",
    ))
}

/// One link of the chain from the program to the GPU.
#[derive(Clone, Debug)]
pub struct Link {
    /// What is looked at: `driver`, `gpu`, `nvrtc`.
    pub what: &'static str,
    /// Whether it is there and works.
    pub ok: bool,
    /// What was found, with version and path, or what is wrong.
    pub found: String,
    /// How to mend it, when it is not right.
    pub remedy: Option<String>,
}

/// The whole chain, in the order of use, for `tilework doctor`.
pub fn report() -> Vec<Link> {
    let at = |path: &Option<PathBuf>| path.as_ref().map_or_else(String::new, |p| format!(", {}", p.display()));
    let bad = |what, fault: &Fault| Link {
        what,
        ok: false,
        found: fault.problem.clone(),
        remedy: Some(fault.remedy.clone()),
    };
    let good = |what, found: String| Link { what, ok: true, found, remedy: None };
    let mut out = Vec::new();
    match driver_or_fault() {
        Ok(d) => {
            out.push(good("driver", format!("supports CUDA {}.{}{}", d.version.0, d.version.1, at(&d.path))));
            out.extend(d.gpus.iter().enumerate().map(|(i, g)| good("gpu", format!("{i}: {} (sm_{})", g.name, g.arch))));
        }
        Err(fault) => out.push(bad("driver", fault)),
    }
    match nvrtc_or_fault() {
        Ok(n) => {
            out.push(good("nvrtc", format!("{}.{}{} ({})", n.version.0, n.version.1, at(&n.path), n.place)));
            if n.builtins.is_none() {
                out.push(bad("nvrtc", &no_builtins(n)));
            }
        }
        Err(fault) => out.push(bad("nvrtc", fault)),
    }
    out
}

/// NVRTC's second file is missing.
pub(super) fn no_builtins(nvrtc: &NvrtcLibrary) -> Fault {
    let (major, minor) = nvrtc.version;
    Fault::new(
        format!("libnvrtc-builtins.so.{major}.{minor}, the second file of NVRTC, was not found beside it"),
        format!("install NVRTC anew, whole: {INSTALL_NVRTC}"),
    )
}
