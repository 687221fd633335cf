//! Checkpoints: a folder with `model.safetensors` (the state dict), `optimizer.safetensors` where
//! training can go on, and `manifest.json` with every file's size and sha256. Where a moving average
//! of the weights is kept, `model.safetensors` is the average, and `trained.safetensors` what it is of.
//!
//! A checkpoint is replaced as a whole: the new one is written beside the old (`last.new`), synced,
//! and swapped in by renames. Whatever moment the program or the machine dies at, one complete
//! checkpoint is there, and [`load`] finds it.

use crate::error::{Error, Result};
use crate::formats::file;
use crate::nn::state::{StateDict, deserialize, serialize};
use crate::optim::EarlyStopping;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

pub(super) const MODEL: &str = "model.safetensors";
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
pub(super) const TRAINED: &str = "trained.safetensors";
const MANIFEST: &str = "manifest.json";

/// How far a run has come. With the seed this is all there is to know: randomness is a function of
/// the position, so a resumed run goes on bit for bit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Whole epochs done.
    pub epoch: u32,
    /// Steps done, over the whole run.
    pub step: u64,
    /// Steps of the current epoch done.
    pub batch: usize,
    /// Images of the current epoch so far.
    pub images: usize,
    /// Sum of their losses.
    pub loss_sum: f64,
    /// How many were classified right.
    pub correct: usize,
    /// Seconds spent on them.
    pub seconds: f64,
    /// The best accuracy so far, on the validation set where there is one, else on the test set.
    pub best_accuracy: Option<f64>,
    /// For early stopping: the accuracy that is to be bettered, and the epochs since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<(f64, u32)>,
}

impl Position {
    /// Whether the patience of early stopping is at its end.
    pub fn waited_long_enough(&self, early: Option<EarlyStopping>) -> bool {
        let waited = self.waiting.map_or(0, |(_, epochs)| epochs);
        early.is_some_and(|early| waited >= early.patience)
    }
}

/// A training state: the network's numbers, the optimizer's, and the position in the run.
#[derive(Debug, PartialEq)]
pub struct Checkpoint {
    /// The state dict: of the averaged network, where an average is kept.
    pub model: StateDict,
    /// Then that of the network that is trained.
    pub trained: Option<StateDict>,
    /// The optimizer's arenas; `None` for a checkpoint that is for evaluation only.
    pub optimizer: Option<StateDict>,
    /// How far the run had come.
    pub position: Position,
}

/// What is written. In format 1 the optimizer's arenas had the weights behind a flattened image in another order.
const FORMAT: u32 = 2;

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    tilework: String,
    position: Position,
    files: BTreeMap<String, FileInfo>,
}

#[derive(Clone, Serialize, Deserialize)]
struct FileInfo {
    bytes: u64,
    sha256: String,
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir)(e)),
        _ => Ok(()),
    }
}

/// `last.new` beside `last`.
fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    dir.with_file_name(name)
}

/// Saves a checkpoint as folder `dir`, replacing the one that is there.
///
/// # Errors
/// [`Error::Io`]; then the checkpoint that was there is still there.
pub fn save(dir: &Path, checkpoint: &Checkpoint) -> Result<()> {
    let parts = [
        (MODEL, Some(&checkpoint.model)),
        (OPTIMIZER, checkpoint.optimizer.as_ref()),
        (TRAINED, checkpoint.trained.as_ref()),
    ];
    let contents = parts.into_iter().filter_map(|(name, entries)| Some(Contents::new(name, entries?)));
    let contents = contents.collect::<Result<Vec<_>>>()?;
    replace(dir, &contents.iter().collect::<Vec<_>>(), &checkpoint.position)
}

/// A file of a checkpoint, ready to be written: to several checkpoints if need be.
pub(super) struct Contents {
    name: &'static str,
    bytes: Vec<u8>,
    info: FileInfo,
}

impl Contents {
    /// Of the file [`MODEL`], [`OPTIMIZER`] or [`TRAINED`].
    pub(super) fn new(name: &'static str, entries: &StateDict) -> Result<Self> {
        let bytes = serialize(entries)?;
        let info = FileInfo { bytes: bytes.len() as u64, sha256: sha256(&bytes) };
        Ok(Contents { name, bytes, info })
    }
}

/// Makes the checkpoint `dir` one of these files, replacing the one that is there.
pub(super) fn replace(dir: &Path, contents: &[&Contents], position: &Position) -> Result<()> {
    let (new, old) = (beside(dir, ".new"), beside(dir, ".old"));
    // After a crash between the two renames the only complete checkpoint is beside: put it back first.
    recover(dir)?;
    let written = write_all(&new, contents, position);
    if written.is_err() {
        let _ = fs::remove_dir_all(&new);
        return written;
    }
    remove_dir(&old)?;
    if dir.exists() {
        fs::rename(dir, &old).map_err(Error::io("move", dir))?;
    }
    fs::rename(&new, dir).map_err(Error::io("move", &new))?;
    if let Some(parent) = dir.parent() {
        file::sync_dir(parent)?;
    }
    remove_dir(&old)
}

fn write_all(dir: &Path, contents: &[&Contents], position: &Position) -> Result<()> {
    remove_dir(dir)?;
    fs::create_dir(dir).map_err(Error::io("make the folder", dir))?;
    let mut files = BTreeMap::new();
    for Contents { name, bytes, info } in contents {
        file::write_synced(&dir.join(name), bytes)?;
        files.insert(name.to_string(), info.clone());
    }
    let tilework = env!("CARGO_PKG_VERSION").to_string();
    let manifest = Manifest { format: FORMAT, tilework, position: position.clone(), files };
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::Internal(format!("manifest: {e}")))?;
    // Last, so that a folder with a manifest is complete.
    file::write_synced(&dir.join(MANIFEST), &text)?;
    file::sync_dir(dir)
}

/// A complete checkpoint that a crash left beside the place of one, where that is empty.
fn left_beside(dir: &Path) -> Option<(PathBuf, Checkpoint)> {
    if dir.exists() {
        return None;
    }
    // The new one was complete before the old one was moved away.
    [beside(dir, ".new"), beside(dir, ".old")].into_iter().find_map(|path| read(&path).ok().map(|found| (path, found)))
}

/// Puts a checkpoint in its place that a crash left beside it.
fn recover(dir: &Path) -> Result<()> {
    match left_beside(dir) {
        Some((path, _)) => fs::rename(&path, dir).map_err(Error::io("move", &path)),
        None => Ok(()),
    }
}

/// Loads the checkpoint in folder `dir`, every byte checked. Nothing on the disk changes: another
/// process may be saving in the same place.
///
/// # Errors
/// [`Error::File`] naming the file, the bytes expected and got; [`Error::Io`].
pub fn load(dir: &Path) -> Result<Checkpoint> {
    // What was replaced in the midst of reading looks damaged: once more.
    load_once(dir).or_else(|_| load_once(dir))
}

fn load_once(dir: &Path) -> Result<Checkpoint> {
    if let Some((_, found)) = left_beside(dir) {
        return Ok(found);
    }
    if !dir.exists() {
        return Err(Error::file(
            dir,
            "there is no such checkpoint",
            "train further: a checkpoint is saved at the end of each epoch and on Ctrl-C",
        ));
    }
    read(dir)
}

/// What to do about a checkpoint that is damaged: it depends on what else the run has.
fn remedy(dir: &Path) -> String {
    let run = file::folder_of(dir).display();
    if dir.file_name().is_some_and(|name| name == "best") {
        return format!(
            "restore it from a copy, or use the run's other checkpoint: `tilework eval {run} --which last`; \
             `tilework train --resume {run}` needs that one only"
        );
    }
    match dir.with_file_name("best").exists() {
        true => format!(
            "restore it from a copy; without one, the best network so far can still be evaluated with \
             `tilework eval {run} --which best`, and a new run can start from its weights with \
             --init {run}/best/{MODEL}"
        ),
        false => "restore it from a copy, or start the run anew".to_string(),
    }
}

/// How far a run had come at a checkpoint, by its manifest alone; none where none can be read.
pub fn position(dir: &Path) -> Option<Position> {
    let text = fs::read(dir.join(MANIFEST)).ok()?;
    serde_json::from_slice::<Manifest>(&text).ok().map(|manifest| manifest.position)
}

fn read(dir: &Path) -> Result<Checkpoint> {
    let damaged = |path: &Path, problem: String| Error::file(path, problem, remedy(dir));
    let contents = |path: &Path| {
        file::read(path, "read").map_err(|e| match e {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                damaged(path, "is missing from the checkpoint".into())
            }
            e => e,
        })
    };
    let path = dir.join(MANIFEST);
    let text = contents(&path)?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|e| damaged(&path, format!("not a manifest ({} bytes: {e})", text.len())))?;
    if !(1..=FORMAT).contains(&manifest.format) {
        return Err(Error::file(
            &path,
            format!("format {}, and this program reads up to format {FORMAT}", manifest.format),
            "use the program that wrote it",
        ));
    }
    let entries = |name: &str| -> Result<Option<StateDict>> {
        let Some(info) = manifest.files.get(name) else { return Ok(None) };
        let path = dir.join(name);
        let bytes = contents(&path)?;
        if bytes.len() as u64 != info.bytes {
            return Err(damaged(&path, format!("expected {} bytes, got {}", info.bytes, bytes.len())));
        }
        let sum = sha256(&bytes);
        if sum != info.sha256 {
            return Err(damaged(&path, format!("expected sha256 {}, got {sum}", info.sha256)));
        }
        deserialize(&bytes, &path).map(Some)
    };
    let model = entries(MODEL)?.ok_or_else(|| damaged(&path, format!("it lists no {MODEL}")))?;
    let trained = entries(TRAINED)?;
    let optimizer = if manifest.format == FORMAT { entries(OPTIMIZER)? } else { None };
    Ok(Checkpoint { model, trained, optimizer, position: manifest.position })
}

#[cfg(test)]
#[path = "../../tests/unit/checkpoint.rs"]
mod tests;
