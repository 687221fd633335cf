//! Guards the layout: modules use only what lies below them, and every file can be read in one sitting.

use std::path::{Path, PathBuf};

/// The modules of the crate, from the ground up. Each uses those before it, and none after it.
const ORDER: [&str; 19] = [
    "error", "formats", "shape", "dtype", "rng", "step", "device", "kernels", "tensor", "params", "autograd", "ops",
    "nn", "optim", "data", "recipes", "figures", "train", "cli",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { out.extend(files(&path)) } else { out.push(path) }
    }
    out
}

/// The modules that a source names with `crate::`, comments left out.
fn used(text: &str) -> impl Iterator<Item = &str> {
    let code = text.lines().map(str::trim_start).filter(|l| !l.starts_with("//"));
    code.flat_map(|l| l.split("crate::").skip(1)).filter_map(|rest| {
        let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c == '_')).unwrap_or(rest.len());
        ORDER.iter().find(|m| **m == &rest[..end]).copied()
    })
}

#[test]
fn no_module_reaches_up() {
    let src = root().join("src");
    let mut seen = std::collections::BTreeSet::new();
    for path in files(&src).into_iter().filter(|p| p.extension().is_some_and(|e| e == "rs")) {
        let first = path.strip_prefix(&src).unwrap().components().next().unwrap();
        let module = first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_string();
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let place = |m: &str| ORDER.iter().position(|o| *o == m).unwrap_or_else(|| panic!("{m} is not in ORDER"));
        let text = std::fs::read_to_string(&path).unwrap();
        for other in used(&text) {
            assert!(place(other) <= place(&module), "{} uses `{other}`, which lies above it", path.display());
        }
        seen.insert(module);
    }
    assert_eq!(seen.len(), ORDER.len(), "ORDER names a module that is not there");
}

#[test]
fn every_file_can_be_read_in_one_sitting() {
    // Where, and the most lines of code, and of unit tests beside it.
    let places = [("src", 440, 100), ("kernels", 440, 0), ("tests", 510, 0), ("benches", 440, 0), ("examples", 110, 0)];
    for (folder, most, most_tests) in places {
        let folder = root().join(folder);
        let all = if folder.exists() { files(&folder) } else { Vec::new() };
        for path in all.into_iter().filter(|p| p.extension().is_some_and(|e| e != "json")) {
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let (code, tests) = text.split_once("#[cfg(test)]\nmod tests {").unwrap_or((&text, ""));
            let (code, tests) = (code.lines().count(), tests.lines().count());
            assert!(code <= most && tests <= most_tests, "{}: {code} lines, {tests} of tests", path.display());
        }
    }
}
