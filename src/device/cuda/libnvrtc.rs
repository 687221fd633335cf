//! `libnvrtc`, the compiler: loading the one that fits the driver and its GPUs.

use super::arch::Arch;
use super::libcuda::{DriverLibrary, driver_or_missing};
use super::libraries::{Missing, broken_note, file_of, lacks, open, open_by_name, with_surroundings};
use super::places::{self, Place, Surroundings};
use crate::error::Result;
use cudarc::nvrtc::sys;
use libloading::Library;
use std::ffi::c_int;
use std::path::PathBuf;
use std::sync::OnceLock;

/// Every function of `libnvrtc` that this crate calls.
pub(super) const NVRTC_FUNCTIONS: &str = "nvrtcAddNameExpression nvrtcCompileProgram nvrtcCreateProgram nvrtcDestroyProgram nvrtcGetCUBIN \
    nvrtcGetCUBINSize nvrtcGetErrorString nvrtcGetLoweredName nvrtcGetNumSupportedArchs nvrtcGetProgramLog \
    nvrtcGetProgramLogSize nvrtcGetSupportedArchs nvrtcVersion";

const INSTALL_NVRTC: &str = "`pip install nvidia-cuda-nvrtc` (CUDA 13) or `pip install nvidia-cuda-nvrtc-cu12` (CUDA 12), \
     or install the CUDA toolkit; no environment variable is needed";

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
    pub fn target(&self, arch: u32) -> Option<Arch> {
        self.archs.iter().copied().filter(|&a| a <= arch && a / 10 == arch / 10).max().map(Arch::new)
    }
}

/// Loads NVRTC, the first that fits the driver and its GPUs where there are any; the answer is kept.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) when there is none, or none that fits.
pub fn nvrtc() -> Result<&'static NvrtcLibrary> {
    nvrtc_or_missing().map_err(|missing| missing.clone().into())
}

pub(super) fn nvrtc_or_missing() -> Result<&'static NvrtcLibrary, &'static Missing> {
    static NVRTC: OnceLock<Result<NvrtcLibrary, Missing>> = OnceLock::new();
    NVRTC.get_or_init(|| with_surroundings(|at| load_nvrtc(at, driver_or_missing().ok()))).as_ref()
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
fn unfit(found: &NvrtcLibrary, driver: &DriverLibrary) -> Option<Missing> {
    let ((major, minor), (newest, _)) = (found.version, driver.version);
    if major > newest {
        return Some(Missing::new(
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
        return Some(Missing::new(
            format!("NVRTC {major}.{minor} cannot compile for {} (sm_{}){known}", gpu.name, gpu.arch),
            format!("{INSTALL_NVRTC}: a version that knows the GPU"),
        ));
    }
    None
}

fn load_nvrtc(at: &Surroundings<'_>, driver: Option<&DriverLibrary>) -> Result<NvrtcLibrary, Missing> {
    let mut broken = Vec::new();
    let (mut misfit, mut half) = (None, None);
    let by_name = open_by_name(&["nvrtc"], &mut broken).map(|library| (library, "the loader's path"));
    let places = places::nvrtc(at);
    let files = places.iter().flat_map(|p| p.folders.iter().flat_map(|f| places::nvrtc_files(f)).map(|f| (f, p.kind)));
    let opened = files.map(|(file, kind)| open(&file).map(|library| (library, kind)));
    for opened in by_name.into_iter().map(Ok).chain(opened) {
        let Candidate { library, mut found } = match opened.and_then(|(library, kind)| candidate(library, kind)) {
            Ok(candidate) => candidate,
            Err(e) => {
                broken.push(e);
                continue;
            }
        };
        if let Some(missing) = driver.and_then(|d| unfit(&found, d)) {
            misfit.get_or_insert(missing);
            continue;
        }
        found.builtins = load_builtins(&found);
        if found.builtins.is_none() {
            // Taken only if there is no whole one.
            half.get_or_insert(Candidate { library, found });
            continue;
        }
        drop(half);
        return taken_by_cudarc(Candidate { library, found });
    }
    if let Some(candidate) = half {
        return taken_by_cudarc(candidate);
    }
    Err(misfit.unwrap_or_else(|| {
        let (note, looked) = (broken_note(&broken), looked_in(&places));
        let text = format!("libnvrtc, NVIDIA's run-time compiler, was not found{note}; looked in {looked}");
        Missing::new(text, INSTALL_NVRTC)
    }))
}

fn looked_in(places: &[Place]) -> String {
    let mut kinds = vec!["the loader's path"];
    kinds.extend(places.iter().map(|p| p.kind));
    kinds.join(", ")
}

/// Keeps the library that was chosen, and makes sure that it is the one that cudarc takes.
fn taken_by_cudarc(chosen: Candidate) -> Result<NvrtcLibrary, Missing> {
    let Candidate { library, found } = chosen;
    // Never closed: cudarc finds it by its name, and its code is run until the process ends.
    std::mem::forget(library);
    // SAFETY: as in `open`.
    if !unsafe { sys::is_culib_present() } {
        return Err(Missing::new("libnvrtc was loaded, but under a name that is not its own", INSTALL_NVRTC));
    }
    // SAFETY: a library of this name was just seen to be there.
    let library = unsafe { sys::culib() };
    let path = file_of(library, NVRTC_FUNCTIONS);
    if path == found.path {
        return Ok(found);
    }
    let show = |p: &Option<PathBuf>| p.as_ref().map_or_else(|| "libnvrtc".to_string(), |p| p.display().to_string());
    Err(Missing::new(
        format!("the loader puts {} before {}, which is the one that fits", show(&path), show(&found.path)),
        "take the first one's folder out of LD_LIBRARY_PATH, or uninstall it",
    ))
}

/// NVRTC's second file is missing.
pub(super) fn no_builtins(nvrtc: &NvrtcLibrary) -> Missing {
    let (major, minor) = nvrtc.version;
    Missing::new(
        format!("libnvrtc-builtins.so.{major}.{minor}, the second file of NVRTC, was not found beside it"),
        format!("install NVRTC anew, whole: {INSTALL_NVRTC}"),
    )
}
