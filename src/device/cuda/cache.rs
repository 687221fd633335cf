//! Compiled kernels on disk: one file per kernel file, options and compiler version.
//!
//! A file is the code and the compiler's log with a checksum at its end, written under another name
//! and then renamed: processes can share the folder, and what a crash or a bad disk leaves is
//! noticed, thrown away and compiled anew.

use super::resources::{self, Resources};
use sha2::{Digest, Sha256};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// What is kept of a compilation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledCode {
    /// The machine code.
    pub cubin: Vec<u8>,
    /// The name of each kernel in the source, and in the code.
    pub names: Vec<(String, String)>,
    /// The log of NVRTC and ptxas: warnings, and each kernel's resources.
    pub log: String,
}

impl CompiledCode {
    /// The resources of each kernel, from the log.
    pub fn resources(&self) -> Vec<Resources> {
        let mut all = resources::parse(&self.log);
        for r in &mut all {
            if let Some((name, _)) = self.names.iter().find(|n| n.1 == r.kernel) {
                r.kernel.clone_from(name);
            }
        }
        all
    }
}

/// A folder of compiled kernels, or none.
#[derive(Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
    notes: Mutex<Vec<String>>,
}

const MAGIC: &[u8; 8] = b"tw-cubin";
const HEAD: usize = MAGIC.len() + 8;
const SUM: usize = 32;

impl Cache {
    /// `$TILEWORK_CACHE`, else `$XDG_CACHE_HOME/tilework/kernels`, else `~/.cache/tilework/kernels`,
    /// else a folder in the system's temporary folder.
    pub fn default_folder() -> PathBuf {
        default_folder_from(&|key| env::var_os(key), env::home_dir())
    }

    /// A cache in `folder`, which need not exist; without one nothing is kept.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Cache { folder, notes: Mutex::default() }
    }

    /// The folder.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// What the user should know: the folder cannot be written, an entry was damaged. Each is said
    /// once, and taken out by this call.
    pub fn take_notes(&self) -> Vec<String> {
        // The notes of a thread that panicked are as good as any.
        std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The name of the entry that all these parts together make: 64 hexadecimal digits.
    pub fn key(parts: &[&str]) -> String {
        let mut sum = Sha256::new();
        for part in parts {
            // The length first, so that text cannot move from one part to the next unnoticed.
            sum.update((part.len() as u64).to_le_bytes());
            sum.update(part);
        }
        sum.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The entry of this name if it is there and whole.
    pub fn get(&self, key: &str) -> Option<CompiledCode> {
        let path = self.path(key)?;
        let bytes = fs::read(&path).ok()?;
        let entry = decode(key, &bytes);
        if entry.is_none() {
            self.note(format!("{} was damaged; it is compiled anew", path.display()));
        }
        entry
    }

    /// Whether there is an entry of this name. It may turn out to be damaged.
    pub fn has(&self, key: &str) -> bool {
        self.path(key).is_some_and(|path| path.is_file())
    }

    /// Keeps an entry; where that fails there is a note, and the program goes on.
    pub fn put(&self, key: &str, entry: &CompiledCode) {
        let (Some(path), Some(folder)) = (self.path(key), &self.folder) else { return };
        let write = || {
            fs::create_dir_all(folder)?;
            let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(folder)?;
            file.write_all(&encode(key, entry))?;
            file.persist(&path).map_err(|e| e.error)?;
            std::io::Result::Ok(())
        };
        if let Err(e) = write() {
            let text = format!("kernels are compiled anew at every start: cannot write {}: {e}", folder.display());
            let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
            if !notes.contains(&text) {
                notes.push(text);
            }
        }
    }

    fn note(&self, text: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{key}.cubin")))
    }
}

fn default_folder_from(env: &dyn Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> PathBuf {
    let set = |key: &str| env(key).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(folder) = set("TILEWORK_CACHE") {
        return folder;
    }
    // The XDG rule: a relative path is to be ignored.
    let xdg = set("XDG_CACHE_HOME").filter(|p| p.is_absolute());
    let cache = xdg.or_else(|| home.filter(|h| !h.as_os_str().is_empty()).map(|h| h.join(".cache")));
    cache.unwrap_or_else(env::temp_dir).join("tilework").join("kernels")
}

/// magic, length of the code (u64, little-endian), code, a line for each name, an empty line, log,
/// SHA-256 of the key and all before.
fn encode(key: &str, entry: &CompiledCode) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + entry.cubin.len() + entry.log.len() + SUM);
    let names: String = entry.names.iter().map(|(name, lowered)| format!("{name}\t{lowered}\n")).collect();
    bytes.extend(MAGIC);
    bytes.extend((entry.cubin.len() as u64).to_le_bytes());
    bytes.extend(&entry.cubin);
    bytes.extend([names.as_str(), "\n", &entry.log].concat().as_bytes());
    let sum = checksum(key, &bytes);
    bytes.extend(sum);
    bytes
}

/// The key is part of the sum: a file that was renamed is no entry.
fn checksum(key: &str, bytes: &[u8]) -> [u8; SUM] {
    Sha256::new().chain_update(key).chain_update(bytes).finalize().into()
}

fn decode(key: &str, bytes: &[u8]) -> Option<CompiledCode> {
    let (bytes, sum) = bytes.split_last_chunk::<SUM>()?;
    if checksum(key, bytes) != *sum {
        return None;
    }
    let rest = bytes.strip_prefix(MAGIC)?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (cubin, text) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let (mut names, mut text) = (Vec::new(), str::from_utf8(text).ok()?);
    loop {
        let (line, rest) = text.split_once('\n')?;
        text = rest;
        match line.split_once('\t') {
            Some((name, lowered)) => names.push((name.to_string(), lowered.to_string())),
            None => return Some(CompiledCode { cubin: cubin.to_vec(), names, log: text.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> CompiledCode {
        let names = vec![("a<float>".into(), "_Z1aIfEvv".into()), ("b".into(), "_Z1bv".into())];
        CompiledCode { cubin: (0..=255).collect(), names, log: "ptxas info\nof two lines".into() }
    }

    #[test]
    fn the_folder_follows_the_environment() {
        let folder = |vars: &[(&str, &str)], home: Option<&str>| {
            let env = |key: &str| vars.iter().find(|v| v.0 == key).map(|v| OsString::from(v.1));
            default_folder_from(&env, home.map(PathBuf::from))
        };
        let all = [("TILEWORK_CACHE", "/t"), ("XDG_CACHE_HOME", "/x")];
        assert_eq!(folder(&all, Some("/h")), Path::new("/t"));
        assert_eq!(folder(&all[1..], Some("/h")), Path::new("/x/tilework/kernels"));
        assert_eq!(folder(&[("XDG_CACHE_HOME", "x")], Some("/h")), Path::new("/h/.cache/tilework/kernels"));
        assert_eq!(folder(&[("TILEWORK_CACHE", "")], Some("/h")), Path::new("/h/.cache/tilework/kernels"));
        assert_eq!(folder(&[], None), env::temp_dir().join("tilework/kernels"));
    }

    #[test]
    fn a_key_is_made_of_parts_and_their_borders() {
        let keys = [
            Cache::key(&["12.9", "ab", "c"]),
            Cache::key(&["12.9", "a", "bc"]),
            Cache::key(&["13.0", "ab", "c"]),
            Cache::key(&["12.9", "abc"]),
            Cache::key(&["12.9", "ab", "c", ""]),
        ];
        assert!(keys.iter().all(|k| k.len() == 64));
        assert_eq!(keys.iter().collect::<std::collections::HashSet<_>>().len(), keys.len());
    }

    #[test]
    fn a_cut_flipped_or_foreign_entry_is_noticed() {
        let tmp = tempfile::tempdir().unwrap();
        let cache = Cache::new(Some(tmp.path().join("new/kernels")));
        let key = Cache::key(&["k"]);
        assert!(cache.get(&key).is_none() && !cache.has(&key));
        cache.put(&key, &entry());
        assert!(cache.get(&key) == Some(entry()) && cache.has(&key));
        assert!(cache.take_notes().is_empty());
        let path = cache.path(&key).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            assert_eq!(decode(&key, &flipped), None, "byte {at}");
            assert_eq!(decode(&key, &whole[..at]), None, "length {at}");
        }
        assert_eq!(decode(&Cache::key(&["other"]), &whole), None);
        fs::write(&path, &whole[..100]).unwrap();
        assert_eq!(cache.get(&key), None);
        assert!(cache.take_notes()[0].contains("was damaged"));
        cache.put(&key, &entry());
        assert_eq!(cache.get(&key), Some(entry()));
        // Nothing is left of what was written on the way.
        assert_eq!(fs::read_dir(cache.folder().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn without_a_folder_that_can_be_written_there_is_one_note() {
        let tmp = tempfile::tempdir().unwrap();
        // A file in the way stops even root.
        fs::write(tmp.path().join("file"), "").unwrap();
        let cache = Cache::new(Some(tmp.path().join("file/kernels")));
        for key in ["a", "b"] {
            cache.put(key, &entry());
            assert_eq!(cache.get(key), None);
        }
        let notes = cache.take_notes();
        assert!(notes.len() == 1 && notes[0].contains("cannot write"), "{notes:?}");
        let none = Cache::new(None);
        none.put("a", &entry());
        assert!(none.get("a").is_none() && none.take_notes().is_empty());
    }

    #[test]
    fn many_writers_of_one_entry_leave_a_whole_one() {
        let tmp = tempfile::tempdir().unwrap();
        std::thread::scope(|s| {
            for _ in 0..8 {
                s.spawn(|| {
                    let cache = Cache::new(Some(tmp.path().to_path_buf()));
                    for _ in 0..20 {
                        cache.put("k", &entry());
                        assert_eq!(cache.get("k"), Some(entry()));
                    }
                    assert!(cache.take_notes().is_empty());
                });
            }
        });
    }
}
