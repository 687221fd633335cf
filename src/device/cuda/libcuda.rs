//! `libcuda`, the driver: loading it, and what its first answers mean.

use super::libraries::{Missing, broken_note, file_of, lacks, open, open_by_name, with_surroundings};
use super::places::{self, Surroundings};
use crate::error::Result;
use cudarc::driver::sys;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int};
use std::path::PathBuf;
use std::sync::OnceLock;

/// Every function of `libcuda` that this crate calls; a test holds the sources against it.
pub(super) const DRIVER_FUNCTIONS: &str = "cuCtxGetStreamPriorityRange cuCtxSetCurrent cuDeviceGet cuDeviceGetAttribute \
    cuDeviceGetCount cuDeviceGetName cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxRetain cuDeviceTotalMem_v2 cuDriverGetVersion cuEventCreate \
    cuEventDestroy_v2 cuEventElapsedTime cuEventRecord cuEventSynchronize cuFuncGetAttribute cuFuncSetAttribute \
    cuGetErrorName cuGetErrorString cuGraphDestroy cuGraphExecDestroy cuGraphInstantiateWithFlags cuGraphLaunch \
    cuInit cuLaunchKernelEx cuMemAlloc_v2 cuMemFreeHost cuMemFree_v2 cuMemGetInfo_v2 cuMemHostAlloc \
    cuMemcpyDtoDAsync_v2 cuMemcpyDtoHAsync_v2 cuMemcpyHtoDAsync_v2 cuMemsetD8Async cuModuleGetFunction \
    cuModuleLoadData cuModuleUnload cuStreamBeginCapture_v2 cuStreamCreate cuStreamDestroy_v2 cuStreamEndCapture \
    cuStreamGetCaptureInfo_v2 cuStreamSynchronize cuStreamUpdateCaptureDependencies cuTensorMapEncodeIm2col cuTensorMapEncodeTiled";

const INSTALL_DRIVER: &str = "install NVIDIA's driver (https://www.nvidia.com/drivers), which brings libcuda.so.1";

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

/// Loads the driver and asks it for its GPUs; the answer is kept.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) when there is no driver, or none that works, or no GPU.
pub fn driver() -> Result<&'static DriverLibrary> {
    driver_or_missing().map_err(|missing| missing.clone().into())
}

pub(super) fn driver_or_missing() -> Result<&'static DriverLibrary, &'static Missing> {
    static DRIVER: OnceLock<Result<DriverLibrary, Missing>> = OnceLock::new();
    DRIVER.get_or_init(|| with_surroundings(load_driver)).as_ref()
}

fn load_driver(at: &Surroundings<'_>) -> Result<DriverLibrary, Missing> {
    let mut broken = Vec::new();
    let mut opened = open_by_name(&["cuda", "nvcuda"], &mut broken);
    for folder in places::driver(at).iter().flat_map(|p| &p.folders) {
        let file = folder.join("libcuda.so.1");
        if opened.is_none() && file.is_file() {
            opened = open(&file).map_err(|e| broken.push(e)).ok();
        }
    }
    let Some(library) = opened else {
        return Err(Missing::new(
            format!(
                "libcuda, NVIDIA's driver, was not found in the loader's path or where drivers are installed{}",
                broken_note(&broken)
            ),
            INSTALL_DRIVER,
        ));
    };
    // Never closed: cudarc finds it by its name, and drivers are not made to be unloaded.
    std::mem::forget(library);
    // SAFETY: as in `open`.
    if !unsafe { sys::is_culib_present() } {
        return Err(Missing::new("libcuda was loaded, but under a name that is not the driver's", INSTALL_DRIVER));
    }
    // SAFETY: a library of this name was just seen to be there.
    let library = unsafe { sys::culib() };
    let path = file_of(library, DRIVER_FUNCTIONS);
    let shown = path.as_ref().map_or_else(|| "libcuda".to_string(), |p| p.display().to_string());
    if let Some(name) = lacks(library, DRIVER_FUNCTIONS) {
        let text =
            format!("{shown} has no function `{name}`: it is too old (CUDA 12.0 is needed), or no driver at all");
        return Err(Missing::new(text, INSTALL_DRIVER));
    }
    initialise(library, path, &shown)
}

/// `cuInit` and the list of GPUs. The results are read as numbers: a driver may give one that the
/// bindings' enum does not have.
fn initialise(library: &Library, path: Option<PathBuf>, shown: &str) -> Result<DriverLibrary, Missing> {
    type Init = unsafe extern "C" fn(u32) -> u32;
    type Number = unsafe extern "C" fn(*mut c_int) -> u32;
    let gone = |_| Missing::new(format!("{shown} cannot be used"), INSTALL_DRIVER);
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
        return Err(Missing::new(text, "install a newer driver: 525 or later (https://www.nvidia.com/drivers)"));
    }
    let gpus: Vec<GpuName> = (0..count).filter_map(gpu_name).collect();
    if gpus.is_empty() {
        return Err(refused(100, shown));
    }
    Ok(DriverLibrary { path, version, gpus })
}

/// What the driver's first answer means when it is an error.
fn refused(code: u32, shown: &str) -> Missing {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES");
    match code {
        34 => Missing::new(
            format!("{shown} is the stub library of a CUDA toolkit, not a driver"),
            "install NVIDIA's driver, and take the toolkit's `stubs` folder out of LD_LIBRARY_PATH",
        ),
        100 if visible.is_ok() => Missing::new(
            format!("the driver reports no GPU; CUDA_VISIBLE_DEVICES is `{}`", visible.unwrap_or_default()),
            "unset CUDA_VISIBLE_DEVICES, or name a GPU that `nvidia-smi -L` lists",
        ),
        100 => Missing::new(
            "the driver reports no GPU",
            "see whether `nvidia-smi` lists one; a container must be started with `--gpus all`",
        ),
        35 | 36 => Missing::new(
            format!("the driver ({shown}) is too old for its libraries"),
            "install a newer driver: 525 or later (https://www.nvidia.com/drivers)",
        ),
        803 => Missing::new(
            "the driver's library and its kernel module are of different versions",
            "restart the machine: the driver was updated while it ran",
        ),
        802 => Missing::new(
            "the GPUs are not ready yet",
            "wait for the machine to finish starting; on a system with NVSwitch start nvidia-fabricmanager",
        ),
        _ => Missing::new(
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
            let f = sys::culib().get::<Text>(function).ok()?;
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
    use sys::CUdevice_attribute as A;
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
