//! Opening `libcuda` (the driver) and `libnvrtc` (the compiler).
//!
//! cudarc opens both libraries by name when the first of their functions is called, and panics when
//! a library or a function is not there. So everything is proved here first: the library is opened
//! from the loader's path, else by its absolute path and never closed, after which the loader hands
//! the same one to cudarc by its name (SONAME); then every function that this crate calls is looked
//! up in the very library that cudarc has taken.

use super::places::Surroundings;
use crate::error::Error;
use libloading::Library;
use std::error::Error as _;
use std::path::{Path, PathBuf};

/// Why something cannot be used, and how to mend it.
#[derive(Clone, Debug)]
pub(super) struct Missing {
    pub(super) problem: String,
    pub(super) remedy: String,
}

impl Missing {
    pub(super) fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Missing { problem: problem.into(), remedy: remedy.into() }
    }
}

impl From<Missing> for Error {
    fn from(missing: Missing) -> Self {
        Error::Device { device: "cuda".into(), problem: missing.problem, remedy: missing.remedy }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_there_is_told_from_one_that_is_not() {
        let tmp = tempfile::tempdir().unwrap();
        let file = tmp.path().join("libjunk.so");
        std::fs::write(&file, "junk").unwrap();
        let mut broken = Vec::new();
        assert!(open_by_name(&["surely-no-such-library"], &mut broken).is_none() && broken.is_empty());
        assert!(open(&file).unwrap_err().contains("libjunk.so"));
    }
}
