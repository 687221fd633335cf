//! Where NVIDIA's libraries may lie: folders, in the order in which they are searched.
//!
//! Nothing is run to find them (no `python`, no `nvcc`): the folders that the usual installers make
//! are listed and looked into.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// The surroundings in which a search takes place; tests have their own.
pub(super) struct Surroundings<'a> {
    /// Reads an environment variable.
    pub(super) env: &'a dyn Fn(&str) -> Option<OsString>,
    /// The user's home folder.
    pub(super) home: Option<PathBuf>,
    /// The working folder.
    pub(super) here: PathBuf,
    /// The root of the file system.
    pub(super) root: PathBuf,
}

/// A kind of place and its folders, the preferred one first.
#[derive(Debug)]
pub(super) struct Place {
    /// What it is, for the report.
    pub(super) kind: &'static str,
    /// Folders that may hold a library; those that do not exist are left out.
    pub(super) folders: Vec<PathBuf>,
}

/// Inside `site-packages`: the folders of NVIDIA's wheels for CUDA 13 and CUDA 12.
const WHEELS: [&str; 2] = ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"];

/// Below a toolkit: where its libraries are, by distribution and processor.
const TOOLKIT: [&str; 4] = ["lib64", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "lib"];

/// Below the home folder: where conda's installers put themselves.
const CONDAS: [&str; 7] =
    ["miniconda3", "anaconda3", "miniforge3", "mambaforge", "micromamba", ".conda", "opt/miniconda3"];

/// The folders that may hold NVRTC, beside those that the loader searches by itself.
pub(super) fn nvrtc(at: &Surroundings<'_>) -> Vec<Place> {
    let set = |key: &str| (at.env)(key).filter(|v| !v.is_empty()).map(PathBuf::from);
    let system = |path: &str| at.root.join(path);

    let mut toolkits: Vec<PathBuf> = ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(set).collect();
    toolkits.push(system("usr/local/cuda"));
    toolkits.extend(children(&system("usr/local"), "cuda-"));
    toolkits.extend([system("opt/cuda"), system("usr/lib/cuda")]);
    let toolkits = toolkits.iter().flat_map(|t| TOOLKIT.map(|sub| t.join(sub))).collect();

    let mut condas: Vec<PathBuf> = set("CONDA_PREFIX").into_iter().collect();
    let mut bases: Vec<PathBuf> = at.home.iter().flat_map(|h| CONDAS.map(|name| h.join(name))).collect();
    bases.push(system("opt/conda"));
    for base in bases {
        condas.push(base.clone());
        condas.extend(children(&base.join("envs"), ""));
    }
    let condas = condas.iter().flat_map(|c| [vec![c.join("lib")], wheels(c)].concat()).collect();

    let mut virtuals: Vec<PathBuf> = set("VIRTUAL_ENV").into_iter().collect();
    virtuals.extend([".venv", "venv"].map(|name| at.here.join(name)));

    let mut prefixes: Vec<PathBuf> = at.home.iter().map(|h| h.join(".local")).collect();
    // A Python that is on the path brings its own site-packages: <prefix>/bin/python3.
    if let Some(path) = (at.env)("PATH") {
        for dir in std::env::split_paths(&path).filter(|d| d.is_absolute() && d.join("python3").exists()) {
            let real = dir.join("python3").canonicalize().ok();
            let real = real.as_deref().and_then(Path::parent).unwrap_or(&dir);
            prefixes.extend([dir.as_path(), real].iter().filter_map(|bin| bin.parent()).map(Path::to_path_buf));
        }
    }
    prefixes.extend(["usr/local", "usr"].map(system));

    let from = |prefixes: &[PathBuf]| prefixes.iter().flat_map(|p| wheels(p)).collect();
    [
        ("CUDA toolkit", toolkits),
        ("conda environment", condas),
        ("virtual environment", from(&virtuals)),
        ("pip's site-packages", from(&prefixes)),
    ]
    .map(|(kind, folders)| Place { kind, folders: existing(folders) })
    .into()
}

/// The folders where drivers' installers put `libcuda.so.1` when the loader does not search them.
pub(super) fn driver(at: &Surroundings<'_>) -> Vec<Place> {
    let folders = [
        "usr/lib/wsl/lib",
        "usr/local/nvidia/lib64",
        "run/opengl-driver/lib",
        "usr/lib/x86_64-linux-gnu",
        "usr/lib/aarch64-linux-gnu",
        "usr/lib64",
        "usr/lib64/nvidia",
        "usr/lib/nvidia",
    ];
    let folders = folders.iter().map(|f| at.root.join(f)).collect();
    vec![Place { kind: "driver's folder", folders: existing(folders) }]
}

/// The files `libnvrtc.so.N` in a folder, the newest version first.
pub(super) fn nvrtc_files(folder: &Path) -> Vec<PathBuf> {
    let version = |name: &str| name.strip_prefix("libnvrtc.so.").and_then(|v| v.parse::<u32>().ok());
    let mut files: Vec<(u32, PathBuf)> =
        names(folder).into_iter().filter_map(|name| version(&name).map(|v| (v, folder.join(&name)))).collect();
    files.sort_by(|a, b| b.cmp(a));
    files.into_iter().map(|(_, path)| path).collect()
}

/// NVIDIA's wheels in every `site-packages` of a Python prefix, the newest Python first.
fn wheels(prefix: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for lib in ["lib", "lib64"] {
        for python in children(&prefix.join(lib), "python3") {
            for site in ["site-packages", "dist-packages"] {
                out.extend(WHEELS.map(|wheel| python.join(site).join(wheel)));
            }
        }
    }
    out
}

fn existing(folders: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = Vec::new();
    // The same folder is often there under two names (lib64 → lib): look into it once.
    let mut seen = Vec::new();
    for folder in folders {
        let Ok(real) = folder.canonicalize() else { continue };
        if real.is_dir() && !seen.contains(&real) {
            seen.push(real);
            out.push(folder);
        }
    }
    out
}

/// The folders in `folder` whose name begins with `prefix`, the newest version first.
fn children(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<(Vec<u32>, String)> = names(folder)
        .into_iter()
        .filter(|name| name.starts_with(prefix))
        .map(|name| (name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect(), name))
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, name)| folder.join(name)).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, file: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    #[test]
    fn every_installer_is_found_in_order() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path();
        let files = [
            "mine/lib64/libnvrtc.so.12",
            "usr/local/cuda-12.4/lib64/libnvrtc.so.12",
            "usr/local/cuda-13.0/targets/x86_64-linux/lib/libnvrtc.so.13",
            "opt/cuda/lib64/libnvrtc.so.13",
            "conda/lib/libnvrtc.so.12",
            "home/miniconda3/envs/torch/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "active/lib/python3.11/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "work/.venv/lib/python3.9/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "work/.venv/lib/python3.13/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "home/.local/lib/python3.10/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "python/lib/python3.14/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "usr/local/lib/python3.10/dist-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "usr/lib/python3/dist-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
        ];
        // Written backwards: the order on disk must not matter.
        for file in files.iter().rev().chain(["python/bin/python3", "usr/bin/nothing"].iter()) {
            put(root, file);
        }
        let env = |key: &str| match key {
            "CUDA_HOME" => Some(root.join("mine").into_os_string()),
            "CUDA_PATH" => Some(OsString::new()),
            "CONDA_PREFIX" => Some(root.join("conda").into_os_string()),
            "VIRTUAL_ENV" => Some(root.join("active").into_os_string()),
            "PATH" => std::env::join_paths([root.join("usr/bin"), root.join("python/bin")]).ok(),
            _ => None,
        };
        let at = Surroundings {
            env: &env,
            home: Some(root.join("home")),
            here: root.join("work"),
            root: root.to_path_buf(),
        };
        let places = nvrtc(&at);
        let found: Vec<PathBuf> = places.iter().flat_map(|p| &p.folders).flat_map(|f| nvrtc_files(f)).collect();
        assert_eq!(found, sorted_like(root, &files), "{places:#?}");
        assert_eq!(places.len(), 4);
    }

    /// Within a virtual environment the newer Python comes first; the rest is as listed.
    fn sorted_like(root: &Path, files: &[&str]) -> Vec<PathBuf> {
        let mut files = files.to_vec();
        // cuda-13.0 before cuda-12.4, Python 3.13 before 3.9.
        files.swap(1, 2);
        files.swap(7, 8);
        files.iter().map(|f| root.join(f)).collect()
    }

    #[test]
    fn the_newest_library_of_a_folder_comes_first_and_others_are_left_alone() {
        let tmp = tempfile::tempdir().unwrap();
        let names =
            ["libnvrtc.so.9", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.alt.so.12", "libnvrtc-builtins.so.12.9"];
        for name in names.iter().chain(&["libnvrtc.so", "libnvrtc.so.12.9.86"]) {
            put(tmp.path(), name);
        }
        let found = nvrtc_files(tmp.path());
        let expected = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.9"].map(|n| tmp.path().join(n));
        assert_eq!(found, expected);
        assert!(nvrtc_files(&tmp.path().join("nowhere")).is_empty());
    }

    #[test]
    fn an_empty_machine_has_no_places() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().to_path_buf();
        let at = Surroundings { env: &|_| None, home: None, here: root.clone(), root };
        assert!(nvrtc(&at).iter().chain(&driver(&at)).all(|p| p.folders.is_empty()));
    }
}
