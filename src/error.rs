//! The one error type of the library.
//!
//! Every variant says what was wrong, where, and what to do about it. The binary prints the
//! `Display` text as it stands.

use std::path::{Path, PathBuf};

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in Tilework.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An op or layer was given a tensor it cannot take.
    #[error("{op}: expected {expected}, got {got}\n  remedy: {remedy}")]
    Shape {
        /// The op or layer.
        op: &'static str,
        /// What it takes.
        expected: String,
        /// What it was given.
        got: String,
        /// How to mend it.
        remedy: String,
    },

    /// A network cannot be built: the table of its layers so far, with the bad one marked.
    #[error("layer {layer} (`{spec}`): {problem}\n\n{table}\n  remedy: {remedy}")]
    Model {
        /// Index of the layer, as in the state dict.
        layer: String,
        /// The layer as it was written.
        spec: String,
        /// What is wrong.
        problem: String,
        /// The layers before it with their output shapes, and a mark at this one.
        table: String,
        /// How to mend it.
        remedy: String,
    },

    /// A setting (recipe key, option, layer text) has a value that cannot be used.
    #[error("{what}: {problem}\n  remedy: {remedy}")]
    Config {
        /// The key or option.
        what: String,
        /// What is wrong with it.
        problem: String,
        /// How to mend it.
        remedy: String,
    },

    /// A file is there but its contents are not what they should be.
    #[error("{}: {problem}\n  remedy: {remedy}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        problem: String,
        /// How to mend it.
        remedy: String,
    },

    /// The operating system refused to read or write.
    #[error("cannot {action} {}: {source}{}", path.display(), io_remedy(source))]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's own word.
        source: std::io::Error,
    },

    /// A device cannot be used or refused an operation.
    #[error("device {device}: {problem}\n  remedy: {remedy}")]
    Device {
        /// The device's name.
        device: String,
        /// What is wrong.
        problem: String,
        /// How to mend it.
        remedy: String,
    },

    /// A device has not enough memory.
    #[error(
        "device {device}: out of memory: {} more are needed; {} are in use (at most so far {}), {} of {} free\n  remedy: {remedy}",
        mib(*need), mib(*in_use), mib(*peak), mib(*free), mib(*total)
    )]
    OutOfMemory {
        /// The device's name.
        device: String,
        /// Bytes that were asked for.
        need: usize,
        /// Bytes that this program uses.
        in_use: usize,
        /// The most it has used.
        peak: usize,
        /// Bytes that are free.
        free: usize,
        /// Bytes that the device has.
        total: usize,
        /// How to mend it.
        remedy: String,
    },

    /// A download did not end well.
    #[error("download of {url} failed: {problem}\n  remedy: {remedy}")]
    Download {
        /// What was being fetched.
        url: String,
        /// What happened.
        problem: String,
        /// How to mend it.
        remedy: String,
    },

    /// The loss became infinite or NaN.
    #[error("the loss became {loss} at step {step} (epoch {epoch}); {origin}\n  {saved}\n  remedy: {remedy}")]
    NonFinite {
        /// The loss, `NaN` or `inf`.
        loss: f64,
        /// The step, counted from 1 over the whole run.
        step: u64,
        /// The epoch, counted from 1.
        epoch: u32,
        /// The first layer or parameter that was not finite.
        origin: String,
        /// Where the last good checkpoint is.
        saved: String,
        /// How to mend it.
        remedy: String,
    },

    /// The engine broke one of its own rules: a bug in Tilework.
    #[error(
        "internal error: {0}\n  remedy: this is a bug in tilework; please report it with the command that led to it"
    )]
    Internal(String),
}

fn mib(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn io_remedy(e: &std::io::Error) -> &'static str {
    use std::io::ErrorKind as K;
    match e.kind() {
        K::NotFound => "\n  remedy: check the path",
        K::PermissionDenied => "\n  remedy: check the permissions, or choose another folder",
        K::StorageFull | K::QuotaExceeded => {
            "\n  remedy: free some disk space, or choose another folder with --out; what was saved before is untouched"
        }
        K::AlreadyExists | K::NotADirectory => "\n  remedy: a file is in the way of a folder: choose another path",
        K::OutOfMemory => {
            "\n  remedy: the data lies whole in memory: end other programs, or raise a limit (`ulimit -v`)"
        }
        K::IsADirectory => "\n  remedy: this is a folder: give the path of a file",
        K::InvalidData => "\n  remedy: this is not a text file: check the path",
        K::ReadOnlyFilesystem => "\n  remedy: choose a folder that can be written with --out",
        _ => "",
    }
}

/// The name among `known` that someone who wrote `word` most likely meant, if one is close.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let scored = known.into_iter().map(|name| (strsim::osa_distance(&word, &name.to_lowercase()), name));
    let (changes, name) = scored.min_by_key(|(changes, _)| *changes)?;
    // Up to a third of the letters, and two in a short word.
    (changes <= (name.chars().count() / 3).max(2).min(name.chars().count() - 1)).then_some(name)
}

impl Error {
    /// An [`Error::Shape`].
    pub fn shape(
        op: &'static str,
        expected: impl Into<String>,
        got: impl std::fmt::Display,
        remedy: impl Into<String>,
    ) -> Self {
        Error::Shape { op, expected: expected.into(), got: got.to_string(), remedy: remedy.into() }
    }

    /// An [`Error::Config`].
    pub fn config(what: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Error::Config { what: what.into(), problem: problem.into(), remedy: remedy.into() }
    }

    /// An [`Error::File`].
    pub fn file(path: impl Into<PathBuf>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Error::File { path: path.into(), problem: problem.into(), remedy: remedy.into() }
    }

    /// Turns an [`std::io::Error`] into an [`Error::Io`]; for `map_err`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }
}
