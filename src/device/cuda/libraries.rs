//! Finding and loading `libcuda` (the driver) and `libnvrtc` (the compiler), and saying what is
//! missing.
//!
//! cudarc opens both libraries by name when the first of their functions is called, and panics when
//! a library or a function is not there. So everything is proved here first: the library is opened
//! from the loader's path, else by its absolute path and never closed, after which the loader hands
//! the same one to cudarc by its name (SONAME); then every function that this crate calls is looked
//! up in the very library that cudarc has taken.

use super::libcuda::driver_or_why;
pub use super::libcuda::{DriverLibrary, GpuName, driver};
pub use super::libnvrtc::{NvrtcLibrary, nvrtc};
use super::libnvrtc::{no_builtins, nvrtc_or_why};
use super::places::Surroundings;
use crate::error::Error;
use libloading::Library;
use std::error::Error as _;
use std::path::{Path, PathBuf};

/// Why something cannot be used, and how to mend it.
#[derive(Clone, Debug)]
pub(super) struct Unusable {
    pub(super) problem: String,
    pub(super) remedy: String,
}

impl Unusable {
    pub(super) fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Unusable { problem: problem.into(), remedy: remedy.into() }
    }
}

impl From<Unusable> for Error {
    fn from(why: Unusable) -> Self {
        Error::Device { device: "cuda".into(), problem: why.problem, remedy: why.remedy }
    }
}

pub(super) fn with_surroundings<T>(work: impl FnOnce(&Surroundings<'_>) -> T) -> T {
    let here = std::env::current_dir().unwrap_or_default();
    work(&Surroundings { env: &|key| std::env::var_os(key), home: std::env::home_dir(), here, root: "/".into() })
}

/// Opens a library and keeps it for the rest of the process.
pub(super) fn open(file: &Path) -> Result<Library, String> {
    // SAFETY: opening a library runs its initialisers. These are NVIDIA's, made to be opened so, and
    // whoever can put another file in these places can run any code as this user anyway.
    unsafe { Library::new(file) }.map_err(|e| e.source().map_or_else(|| e.to_string(), ToString::to_string))
}

/// The first of cudarc's names for a library that the loader finds; what is there but does not load
/// is added to `broken`.
pub(super) fn open_by_name(names: &[&str], broken: &mut Vec<String>) -> Option<Library> {
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
pub(super) fn lacks(library: &Library, functions: &'static str) -> Option<&'static str> {
    // SAFETY: the symbol is only looked up, not called.
    functions.split(' ').find(|name| unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err())
}

/// The file of a library that has one of these functions.
pub(super) fn file_of(library: &Library, functions: &str) -> Option<PathBuf> {
    // SAFETY: the symbol is only looked up, not called.
    let address =
        |name: &str| unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.ok().map(|f| *f as usize);
    let address = functions.split(' ').find_map(address)?;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        let hex = |s| usize::from_str_radix(s, 16).ok();
        (hex(from)?..hex(to)?).contains(&address).then(|| line.find('/').map(|at| PathBuf::from(&line[at..])))?
    })
}

pub(super) fn broken_note(broken: &[String]) -> String {
    broken.first().map_or_else(String::new, |e| format!(" (there is one that cannot be loaded: {e})"))
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
    let bad =
        |what, why: &Unusable| Link { what, ok: false, found: why.problem.clone(), remedy: Some(why.remedy.clone()) };
    let good = |what, found: String| Link { what, ok: true, found, remedy: None };
    let mut out = Vec::new();
    match driver_or_why() {
        Ok(d) => {
            out.push(good("driver", format!("supports CUDA {}.{}{}", d.version.0, d.version.1, at(&d.path))));
            out.extend(d.gpus.iter().enumerate().map(|(i, g)| good("gpu", format!("{i}: {} (sm_{})", g.name, g.arch))));
        }
        Err(why) => out.push(bad("driver", why)),
    }
    match nvrtc_or_why() {
        Ok(n) => {
            out.push(good("nvrtc", format!("{}.{}{} ({})", n.version.0, n.version.1, at(&n.path), n.place)));
            if n.builtins.is_none() {
                out.push(bad("nvrtc", &no_builtins(n)));
            }
        }
        Err(why) => out.push(bad("nvrtc", why)),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::{libcuda::DRIVER_FUNCTIONS, libnvrtc::NVRTC_FUNCTIONS};
    use super::*;

    /// The functions whose names begin so and that a source calls through cudarc or looks up itself.
    fn called<'a>(sources: &[&'a str], before: &[&str], prefix: &str) -> Vec<&'a str> {
        let mut names: Vec<&str> = Vec::new();
        for source in sources {
            // Not in the tests of the source.
            let source = source.split("#[cfg(test)]").next().unwrap_or_default();
            for mark in before {
                names.extend(source.split(mark).skip(1).filter_map(|rest| {
                    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
                    let (name, after) = rest.split_at(end);
                    let big = name.strip_prefix(prefix)?.starts_with(|c: char| c.is_ascii_uppercase());
                    (big && after.starts_with(['(', '"'])).then_some(name)
                }));
            }
        }
        names.sort_unstable();
        names.dedup();
        names
    }

    /// A function that is called and was not looked up before would make cudarc panic.
    #[test]
    fn every_function_that_is_called_is_looked_up_first() {
        let sources = [
            include_str!("libcuda.rs"),
            include_str!("libnvrtc.rs"),
            include_str!("context.rs"),
            include_str!("gpu.rs"),
        ];
        let marks = ["sys::", "(b\"", "get(\""];
        let sorted = |list: &'static str| {
            let mut list: Vec<&str> = list.split(' ').collect();
            list.sort_unstable();
            list
        };
        assert_eq!(called(&sources, &marks, "cu"), sorted(DRIVER_FUNCTIONS));
        let sources = [include_str!("libnvrtc.rs"), include_str!("nvrtc.rs")];
        assert_eq!(called(&sources, &marks, "nvrtc"), sorted(NVRTC_FUNCTIONS));
    }

    #[test]
    fn a_library_that_is_there_is_told_from_one_that_is_not() {
        let tmp = tempfile::tempdir().unwrap();
        let file = tmp.path().join("libjunk.so");
        std::fs::write(&file, "junk").unwrap();
        let mut broken = Vec::new();
        assert!(open_by_name(&["surely-no-such-library"], &mut broken).is_none() && broken.is_empty());
        assert!(open(&file).unwrap_err().contains("libjunk.so"));
        assert!(report().iter().all(|link| link.ok || link.remedy.is_some()));
    }
}
