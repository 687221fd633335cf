//! The chain from the program to the GPU: driver, GPU, compiler; what of it is there, and what is missing.

use super::libcuda::driver_or_missing;
pub use super::libcuda::{DriverLibrary, GpuName, driver};
pub use super::libnvrtc::{NvrtcLibrary, nvrtc};
use super::libnvrtc::{no_builtins, nvrtc_or_missing};
use super::libraries::Missing;
use std::path::PathBuf;

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
    let bad = |what, missing: &Missing| Link {
        what,
        ok: false,
        found: missing.problem.clone(),
        remedy: Some(missing.remedy.clone()),
    };
    let good = |what, found: String| Link { what, ok: true, found, remedy: None };
    let mut out = Vec::new();
    match driver_or_missing() {
        Ok(d) => {
            out.push(good("driver", format!("supports CUDA {}.{}{}", d.version.0, d.version.1, at(&d.path))));
            out.extend(d.gpus.iter().enumerate().map(|(i, g)| good("gpu", format!("{i}: {} (sm_{})", g.name, g.arch))));
        }
        Err(missing) => out.push(bad("driver", missing)),
    }
    match nvrtc_or_missing() {
        Ok(n) => {
            out.push(good("nvrtc", format!("{}.{}{} ({})", n.version.0, n.version.1, at(&n.path), n.place)));
            if n.builtins.is_none() {
                out.push(bad("nvrtc", &no_builtins(n)));
            }
        }
        Err(missing) => out.push(bad("nvrtc", missing)),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::{libcuda::DRIVER_FUNCTIONS, libnvrtc::NVRTC_FUNCTIONS};
    use super::report;

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
            include_str!("graph.rs"),
            include_str!("tensor_map.rs"),
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
    fn what_is_missing_has_a_remedy() {
        assert!(report().iter().all(|link| link.ok || link.remedy.is_some()));
    }
}
