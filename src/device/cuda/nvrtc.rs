//! From a kernel's source to machine code (CUBIN) for one architecture, with NVRTC.
//!
//! CUBIN, not PTX: `ptxas` runs inside NVRTC, so that a mistake in inline assembly is found here, on
//! any machine, and not when a GPU loads the kernel; and the log has registers and spills.

use super::arch::Arch;
use super::cache::{Cache, CompiledCode};
use super::chain::{self, NvrtcLibrary};
use super::launch::{Kernel, Source};
use super::libnvrtc;
use crate::dtype::DType;
use crate::error::{Error, Result};
use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::PathBuf;

/// Lines of the compiler's log that an error shows.
const MOST_LINES: usize = 60;

/// What is compiled at once: the kernels of a file that have one storage type and one architecture.
/// Kernels that are no templates are in every unit of their file.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    /// The file.
    pub source: &'static Source,
    /// The storage type; none where the file has no template.
    pub dtype: Option<DType>,
    /// What to compile for.
    pub arch: Arch,
}

impl Unit {
    /// The unit of a kernel on a GPU that `arch` is compiled for.
    pub fn of(kernel: &Kernel, arch: Arch) -> Self {
        let dtype = kernel.dtype.or_else(|| kernel.source.kernels().find_map(|k| k.dtype));
        Unit { source: kernel.source, dtype, arch: kernel.arch.unwrap_or(arch) }
    }

    /// Its kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &'static Kernel> {
        let (dtype, specific) = (self.dtype, self.arch.specific.then_some(self.arch));
        self.source.kernels().filter(move |k| k.dtype.is_none() || (k.dtype == dtype && k.arch == specific))
    }
}

impl PartialEq for Unit {
    fn eq(&self, other: &Self) -> bool {
        (self.source.stem, self.dtype, self.arch) == (other.source.stem, other.dtype, other.arch)
    }
}

/// Compiles kernels and keeps the results on disk.
#[derive(Debug)]
pub struct Compiler {
    nvrtc: &'static NvrtcLibrary,
    headers: &'static [(&'static str, &'static str)],
    cache: Cache,
}

impl Compiler {
    /// A compiler with the user's cache ([`Cache::default_folder`]).
    /// `headers` are the files, by name and text, that kernels include.
    ///
    /// # Errors
    /// [`Error::Device`] when there is no NVRTC.
    pub fn new(headers: &'static [(&'static str, &'static str)]) -> Result<Self> {
        Self::with_cache(headers, Some(Cache::default_folder()))
    }

    /// A compiler with its cache in `folder`, or without one.
    ///
    /// # Errors
    /// [`Error::Device`] when there is no NVRTC.
    pub fn with_cache(headers: &'static [(&'static str, &'static str)], folder: Option<PathBuf>) -> Result<Self> {
        let nvrtc = chain::nvrtc()?;
        // Without its second file NVRTC compiles nothing. Better said now than at the first launch.
        if nvrtc.builtins.is_none() {
            let arch = Arch::new(nvrtc.archs.iter().copied().max().unwrap_or(80));
            compile("probe.cu", "__global__ void probe() {}", &[], &[], &options(arch))?;
        }
        Ok(Compiler { nvrtc, headers, cache: Cache::new(folder) })
    }

    /// The NVRTC in use.
    pub fn nvrtc(&self) -> &'static NvrtcLibrary {
        self.nvrtc
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The code of a unit, and whether it came out of the cache; else it is compiled.
    ///
    /// # Errors
    /// [`Error::Device`] when it does not compile, with file, line and the compiler's own words.
    pub fn module(&self, unit: &Unit) -> Result<(CompiledCode, bool)> {
        match self.cache.get(&self.key(unit)) {
            Some(code) => Ok((code, true)),
            None => self.rebuild(unit).map(|code| (code, false)),
        }
    }

    /// Compiles, whatever the cache has, and replaces what it has.
    ///
    /// # Errors
    /// As for [`module`](Self::module).
    pub fn rebuild(&self, unit: &Unit) -> Result<CompiledCode> {
        let names: Vec<&str> = unit.kernels().map(|k| k.name).collect();
        let file = format!("kernels/{}.cu", unit.source.stem);
        let code = compile(&file, unit.source.text, self.headers, &names, &options(unit.arch))?;
        self.cache.put(&self.key(unit), &code);
        Ok(code)
    }

    /// Whether the cache has the code of a unit.
    pub fn is_cached(&self, unit: &Unit) -> bool {
        self.cache.has(&self.key(unit))
    }

    /// The cache's name for a unit.
    fn key(&self, unit: &Unit) -> String {
        let version = format!("nvrtc {}.{}", self.nvrtc.version.0, self.nvrtc.version.1);
        let options = options(unit.arch);
        let mut parts = vec![version.as_str(), unit.source.stem, unit.source.text];
        parts.extend(options.iter().map(String::as_str));
        parts.extend(unit.kernels().map(|k| k.name));
        parts.extend(self.headers.iter().flat_map(|(name, text)| [*name, *text]));
        Cache::key(&parts)
    }
}

/// NVRTC's options for an architecture.
fn options(arch: Arch) -> Vec<String> {
    vec![
        format!("--gpu-architecture={arch}"),
        "--std=c++17".into(),
        "-lineinfo".into(),
        // Generic lambdas are the device's like all else.
        "--device-as-default-execution-space".into(),
        // Two options: joined by a comma, ptxas takes neither.
        "--ptxas-options=-v".into(),
        "--ptxas-options=--warn-on-spills".into(),
    ]
}

/// A program of NVRTC, destroyed when dropped.
struct Program(nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by nvrtcCreateProgram, and destroyed once.
        unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

/// Compiles the kernels `names` of `text`, called `file` in messages, with headers that exist in
/// memory only.
fn compile(
    file: &str,
    text: &str,
    headers: &[(&str, &str)],
    names: &[&str],
    options: &[String],
) -> Result<CompiledCode> {
    chain::nvrtc()?;
    let c = |s: &str| CString::new(s).map_err(|_| Error::Internal(format!("{file} or a header of it has a NUL byte")));
    let (c_text, c_file) = (c(text)?, c(file)?);
    let texts = headers.iter().map(|h| c(h.1)).collect::<Result<Vec<_>>>()?;
    let files = headers.iter().map(|h| c(h.0)).collect::<Result<Vec<_>>>()?;
    let expressions = names.iter().map(|n| c(n)).collect::<Result<Vec<_>>>()?;
    let options = options.iter().map(|o| c(o)).collect::<Result<Vec<_>>>()?;
    let pointers = |v: &[CString]| v.iter().map(|s| s.as_ptr()).collect::<Vec<*const c_char>>();
    let (p_texts, p_files, p_options) = (pointers(&texts), pointers(&files), pointers(&options));

    let mut program = Program(std::ptr::null_mut());
    // SAFETY: `chain::nvrtc` saw that every function is there; the strings end in NUL and outlive
    // the call; the arrays have the lengths given.
    let created = unsafe {
        sys::nvrtcCreateProgram(
            &mut program.0,
            c_text.as_ptr(),
            c_file.as_ptr(),
            headers.len() as c_int,
            p_texts.as_ptr(),
            p_files.as_ptr(),
        )
    };
    if created != nvrtcResult::NVRTC_SUCCESS {
        // Nothing was made, so nothing is to be destroyed.
        std::mem::forget(program);
        return Err(failure(file, created, ""));
    }
    for expression in &expressions {
        // SAFETY: the program was made above and is not compiled yet; the string ends in NUL.
        let added = unsafe { sys::nvrtcAddNameExpression(program.0, expression.as_ptr()) };
        if added != nvrtcResult::NVRTC_SUCCESS {
            return Err(failure(file, added, ""));
        }
    }
    // SAFETY: the program was made above; strings and array as before.
    let done = unsafe { sys::nvrtcCompileProgram(program.0, p_options.len() as c_int, p_options.as_ptr()) };
    let log = log_of(&program);
    if done != nvrtcResult::NVRTC_SUCCESS {
        return Err(failure(file, done, &log));
    }
    let mut size = 0;
    // SAFETY: the program was compiled above.
    let sized = unsafe { sys::nvrtcGetCUBINSize(program.0, &mut size) };
    let mut cubin = vec![0u8; size];
    // SAFETY: the buffer has the size that NVRTC asked for.
    let got = unsafe { sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()) };
    let mut results = vec![sized, got];
    let lowered = names.iter().zip(&expressions).map(|(name, expression)| {
        let mut lowered = std::ptr::null();
        // SAFETY: the program was compiled above with this name.
        let result = unsafe { sys::nvrtcGetLoweredName(program.0, expression.as_ptr(), &mut lowered) };
        results.push(result);
        if lowered.is_null() {
            return (name.to_string(), String::new());
        }
        // SAFETY: the text ends in NUL and lives as long as the program.
        let lowered = unsafe { CStr::from_ptr(lowered) }.to_string_lossy().into_owned();
        (name.to_string(), lowered)
    });
    let names = lowered.collect();
    match results.into_iter().find(|&r| r != nvrtcResult::NVRTC_SUCCESS) {
        None if !cubin.is_empty() => Ok(CompiledCode { cubin, names, log }),
        None => Err(failure(file, nvrtcResult::NVRTC_ERROR_INTERNAL_ERROR, &log)),
        Some(code) => Err(failure(file, code, &log)),
    }
}

fn log_of(program: &Program) -> String {
    let mut size = 0;
    // SAFETY: the program is alive, and the buffer has the size that NVRTC asks for.
    unsafe {
        if sys::nvrtcGetProgramLogSize(program.0, &mut size) != nvrtcResult::NVRTC_SUCCESS || size == 0 {
            return String::new();
        }
        let mut log = vec![0u8; size];
        sys::nvrtcGetProgramLog(program.0, log.as_mut_ptr().cast());
        let end = log.iter().position(|&b| b == 0).unwrap_or(log.len());
        String::from_utf8_lossy(&log[..end]).into_owned()
    }
}

fn failure(file: &str, code: nvrtcResult, log: &str) -> Error {
    if code == nvrtcResult::NVRTC_ERROR_BUILTIN_OPERATION_FAILURE
        && let Ok(nvrtc) = chain::nvrtc()
    {
        return libnvrtc::no_builtins(nvrtc).into();
    }
    // SAFETY: NVRTC returns a constant text for every code.
    let text = unsafe { sys::nvrtcGetErrorString(code) };
    let name = if text.is_null() {
        format!("NVRTC error {}", code as u32)
    } else {
        // SAFETY: as above: not null, and NUL-terminated.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    let (place, remedy) = match first_error(log) {
        Some((at, line)) => (format!("{at}, line {line}"), format!("mend {at} and build again")),
        None if code == nvrtcResult::NVRTC_ERROR_INVALID_OPTION => (
            file.to_string(),
            "this NVRTC is too old for the GPU: `pip install nvidia-cuda-nvrtc` brings a new one".to_string(),
        ),
        None => {
            (file.to_string(), "see the compiler's message; `tilework doctor` shows which NVRTC this is".to_string())
        }
    };
    // A mistake in a header can make hundreds of lines; the first ones have the cause.
    let lines: Vec<&str> = log.trim().lines().take(MOST_LINES).collect();
    let log = if lines.is_empty() { String::new() } else { format!("\n{}", lines.join("\n")) };
    Error::Device { device: "cuda".into(), problem: format!("{place}: {name}{log}"), remedy }
}

/// File and line of the first `file(line): error` in a log.
fn first_error(log: &str) -> Option<(String, u32)> {
    log.lines().find_map(|line| {
        let (at, rest) = line.split_once("): ")?;
        let (file, number) = at.rsplit_once('(')?;
        let kind = rest.trim_start();
        let bad = ["error", "catastrophic error"].iter().any(|k| kind.starts_with(k));
        // Headers are given by their bare names.
        let folder = if file.ends_with(".cuh") { "kernels/" } else { "" };
        bad.then(|| number.parse().ok().map(|n| (format!("{folder}{file}"), n)))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_has_file_and_line() {
        let log =
            "kernels/relu.cu(3): warning #177-D: variable\ncommon.cuh(12): error: identifier \"q\" is undefined\n";
        assert_eq!(first_error(log), Some(("kernels/common.cuh".into(), 12)));
        assert_eq!(first_error("kernels/a.cu(7): catastrophic error: no file"), Some(("kernels/a.cu".into(), 7)));
        assert_eq!(first_error("ptxas fatal   : Unresolved extern function 'f'"), None);
    }
}
