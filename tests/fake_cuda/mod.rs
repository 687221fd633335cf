//! Builds the fake `libcuda` and `libnvrtc` of this folder with the machine's C compiler.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A temporary folder of fake libraries, each kind in a folder of its own.
pub(crate) struct Fakes(tempfile::TempDir);

impl Fakes {
    /// Builds them; `None` where there is no C compiler, which is a failure where it is required.
    pub(crate) fn build() -> Option<Self> {
        let cc = std::env::var("CC").unwrap_or_else(|_| "cc".into());
        if Command::new(&cc).arg("--version").output().is_err() {
            let required = std::env::var("TILEWORK_REQUIRE").unwrap_or_default();
            let required = required.split(',').any(|word| ["compiler", "emulator"].contains(&word));
            assert!(!required, "TILEWORK_REQUIRE has compiler or emulator, and there is no `{cc}`");
            println!("skipped: no C compiler");
            return None;
        }
        let fakes = Fakes(tempfile::tempdir().unwrap());
        let make = |folder: &str, source: &str, name: &str, soname: &str, flags: &[&str]| {
            let folder = fakes.path(folder);
            fs::create_dir_all(&folder).unwrap();
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_cuda").join(source);
            let mut command = Command::new(&cc);
            command.args(["-shared", "-fPIC", "-O1", "-fvisibility=hidden", "-Wl,-soname"]);
            command.arg(format!("-Wl,{soname}")).args(flags).arg("-o").arg(folder.join(soname)).arg(source);
            let out = command.output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            // Also under the name that is tried first, so that a real library is never met before it.
            symlink(soname, folder.join(name)).unwrap();
        };
        make("cuda", "cuda.c", "libcuda.so", "libcuda.so.1", &[]);
        make("cuda-cut", "cuda.c", "libcuda.so", "libcuda.so.1", &["-DTRUNCATED"]);
        make("nvrtc", "nvrtc.c", "libnvrtc.so", "libnvrtc.so.12", &[]);
        fs::create_dir(fakes.path("nvrtc-alone")).unwrap();
        // Only that it is there counts for the builtins, not what is in it.
        for copy in ["nvrtc/libnvrtc-builtins.so.12.9", "nvrtc-alone/libnvrtc.so.12", "nvrtc-alone/libnvrtc.so"] {
            fs::copy(fakes.path("nvrtc/libnvrtc.so.12"), fakes.path(copy)).unwrap();
        }
        make("nvrtc-cut", "nvrtc.c", "libnvrtc.so", "libnvrtc.so.12", &["-DTRUNCATED"]);
        for (folder, name) in [("cuda-bad", "libcuda.so"), ("nvrtc-bad", "libnvrtc.so")] {
            fs::create_dir_all(fakes.path(folder)).unwrap();
            for end in ["", ".1", ".12", ".13"] {
                fs::write(fakes.path(folder).join(format!("{name}{end}")), "this is no library").unwrap();
            }
        }
        Some(fakes)
    }

    /// A file or folder in the temporary folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Lets a command find these folders' libraries, and nothing of this user's.
    pub(crate) fn hide_others(&self, command: &mut Command, folders: &[&str]) {
        let home = self.path("home");
        fs::create_dir_all(&home).unwrap();
        for key in ["CUDA_PATH", "CUDA_HOME", "CONDA_PREFIX", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES", "TILEWORK_CACHE"] {
            command.env_remove(key);
        }
        let path = std::env::join_paths(folders.iter().map(|f| self.path(f))).unwrap();
        command
            .env("LD_LIBRARY_PATH", path)
            .env("PATH", &home)
            .env("HOME", &home)
            .env("XDG_CACHE_HOME", home.join("cache"));
        command.current_dir(&home);
    }
}
