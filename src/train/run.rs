//! The folder of a run: `runs/<recipe>-NNN`, never overwritten.

use super::checkpoint::{self, Position};
use crate::error::{Error, Result};
use crate::formats::file;
use crate::recipes::Recipe;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A run's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

/// `config.toml`: the recipe with everything resolved, and where it came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// About the run.
    pub run: RunInfo,
    /// The recipe; as a recipe file of its own it trains the same network.
    pub recipe: Recipe,
}

/// About a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunInfo {
    /// The recipe's name.
    pub name: String,
    /// The program's version.
    pub tilework: String,
    /// The git commit of the folder that the run was started in, if it is a checkout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_commit: Option<String>,
    /// `cpu`.
    pub device: String,
    /// Threads.
    pub threads: usize,
    /// Where the data was found, if not embedded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Weights that the run started from, if given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Height, width and channels of the images that the network takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<[usize; 3]>,
    /// The names of the classes, in the order of the network's outputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
}

impl Config {
    /// Reads `config.toml`.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`].
    pub fn read(run: &RunDir) -> Result<Self> {
        let path = run.path.join("config.toml");
        let text = file::read_text(&path, "read")?;
        let config: Config = toml::from_str(&text).map_err(|e| {
            Error::file(
                &path,
                e.to_string().trim_end(),
                "undo the change or restore the file from a copy: only the start of a run and a --resume with new \
                 --epochs or --data write it",
            )
        })?;
        config.recipe.check()?;
        Ok(config)
    }

    /// Writes `config.toml`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, run: &RunDir) -> Result<()> {
        let text = toml::to_string(self).map_err(|e| Error::Internal(format!("config to TOML: {e}")))?;
        file::write_durably(&run.path.join("config.toml"), text.as_bytes())
    }
}

/// The commit that is checked out here, with `-dirty` if tracked files differ from it.
pub fn git_commit() -> Option<String> {
    let git = |args: &[&str]| Command::new("git").args(args).output().ok().filter(|o| o.status.success());
    let commit = String::from_utf8(git(&["rev-parse", "HEAD"])?.stdout).ok()?.trim().to_string();
    let clean = git(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|o| o.stdout.is_empty());
    Some(if clean { commit } else { format!("{commit}-dirty") })
}

impl RunDir {
    /// How far the run had come at its latest checkpoint, if there is one that can be read.
    pub fn position(&self) -> Option<Position> {
        checkpoint::position(&self.path.join("last"))
    }

    /// Makes the next free folder `<parent>/<name>-NNN`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be made; [`Error::File`] if `parent` is a file.
    pub fn create(parent: &Path, name: &str) -> Result<Self> {
        file::check_folder(parent)?;
        std::fs::create_dir_all(parent).map_err(Error::io("make the folder", parent))?;
        let taken = |entry: &std::fs::DirEntry| -> Option<u32> {
            entry.file_name().to_str()?.strip_prefix(name)?.strip_prefix('-')?.parse().ok()
        };
        let entries = std::fs::read_dir(parent).map_err(Error::io("read the folder", parent))?;
        let mut number = entries.flatten().filter_map(|e| taken(&e)).max().unwrap_or(0);
        loop {
            number = number.saturating_add(1);
            let path = parent.join(format!("{name}-{number:03}"));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(RunDir { path }),
                // Another run took the number in the meantime.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && number < u32::MAX => {}
                Err(e) => return Err(Error::io("make the folder", &path)(e)),
            }
        }
    }

    /// An existing run's folder.
    ///
    /// # Errors
    /// [`Error::File`] if there is no `config.toml` in it.
    pub fn open(path: &Path) -> Result<Self> {
        if path.join("config.toml").is_file() {
            return Ok(RunDir { path: path.to_path_buf() });
        }
        let problem = if path.is_dir() { "no run: it has no config.toml" } else { "there is no such folder" };
        Err(Error::file(path, problem, "give the folder of a run, such as runs/quickstart-001"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_up_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let next = || RunDir::create(&dir.path().join("runs"), "a").unwrap().path().file_name().unwrap().to_owned();
        assert_eq!([next(), next()], ["a-001", "a-002"]);
        std::fs::create_dir(dir.path().join("runs/a-099")).unwrap();
        std::fs::create_dir(dir.path().join("runs/a-b-200")).unwrap();
        assert_eq!(next(), "a-100");
        assert!(RunDir::open(dir.path()).unwrap_err().to_string().contains("config.toml"));
    }
}
