//! Finding CIFAR on disk: which folder or archive, and what is in it.

use std::env;
use std::ffi::OsString;
use std::io::{BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use super::cifar::{Assembly, LAYOUTS, Layout, ReadError};
use super::{Source, Splits, archive, listed};
use crate::formats::file;
use crate::{Error, Result};

/// A folder or archive that holds a data set.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    layout: &'static Layout,
    archive: bool,
}

/// Where `tilework data fetch` puts what it downloads: `$TILEWORK_DATA`, else
/// `$XDG_CACHE_HOME/tilework`, else `~/.cache/tilework`, else `./data`.
pub fn default_dir() -> PathBuf {
    default_dir_from(&|key| env::var_os(key), env::home_dir())
}

/// Reads an environment variable; tests have their own.
type Env<'a> = dyn Fn(&str) -> Option<OsString> + 'a;

fn set(env: &Env<'_>, key: &str) -> Option<PathBuf> {
    env(key).filter(|v| !v.is_empty()).map(PathBuf::from)
}

fn default_dir_from(env: &Env<'_>, home: Option<PathBuf>) -> PathBuf {
    set(env, "TILEWORK_DATA").unwrap_or_else(|| cache_dir(env, home))
}

fn cache_dir(env: &Env<'_>, home: Option<PathBuf>) -> PathBuf {
    // The XDG rule: a relative path is to be ignored.
    let xdg = set(env, "XDG_CACHE_HOME").filter(|p| p.is_absolute());
    let cache = xdg.or_else(|| home.filter(|h| !h.as_os_str().is_empty()).map(|h| h.join(".cache")));
    cache.map_or_else(|| PathBuf::from("data"), |c| c.join("tilework"))
}

/// The places where CIFAR is looked for when no path is given.
fn default_places(env: &Env<'_>, home: Option<PathBuf>) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = set(env, "TILEWORK_DATA").into_iter().collect();
    for place in [PathBuf::from("data"), cache_dir(env, home)] {
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// The folder or archive that [`open`](super::open) would read.
///
/// With a `path`: that folder, an official folder or archive in it, or the archive itself. Without:
/// the first of `$TILEWORK_DATA`, `./data` and the user's cache ([`default_dir`]) that holds one.
///
/// # Errors
/// [`Error::Config`] when nothing is found, naming the places, when `path` holds another data set,
/// or for [`Source::Shapes`], which has no files; [`Error::Io`] when the path cannot be read.
pub fn find(source: Source, path: Option<&Path>) -> Result<PathBuf> {
    if source == Source::ImageFolder {
        let Some(path) = path else {
            let remedy = "give the folder that holds `train` and `test` with `--data DIR`";
            return Err(Error::config("data", "an image folder is looked for nowhere by itself", remedy));
        };
        path.metadata().map_err(Error::io("open", path))?;
        if !is_image_folder(path) {
            let remedy = "an image folder has train/CLASS/*.png and test/CLASS/*.png";
            return Err(Error::config(
                path.display().to_string(),
                "the folders `train` and `test` are not here",
                remedy,
            ));
        }
        return Ok(path.into());
    }
    locate(source, path).map(|found| found.path)
}

/// Tells which data sets a folder or archive holds, from its contents: at least one.
///
/// CIFAR-100 is reported as [`Source::Cifar100`]: both kinds of labels are in the same files.
///
/// # Errors
/// [`Error::Config`] when it holds none, [`Error::Io`] when it cannot be read, [`Error::File`] for a damaged archive.
pub fn detect(path: &Path) -> Result<Vec<Source>> {
    let mut found: Vec<Source> = Vec::new();
    if is_image_folder(path) {
        return Ok(vec![Source::ImageFolder]);
    }
    for source in [Source::Cifar10, Source::Cifar100] {
        if search(path, source)?.is_some() {
            found.push(source);
        }
    }
    if found.is_empty() { Err(nothing_at(path)) } else { Ok(found) }
}

pub(super) fn open_cifar(source: Source, path: Option<&Path>) -> Result<Splits> {
    let Found { path, layout, archive } = locate(source, path)?;
    if archive { archive::load(&path, layout, source) } else { load_folder(&path, layout, source) }
}

/// Whether `path` has the folders of both splits.
fn is_image_folder(path: &Path) -> bool {
    path.join("train").is_dir() && path.join("test").is_dir()
}

fn locate(source: Source, path: Option<&Path>) -> Result<Found> {
    if source == Source::Shapes {
        return Err(Error::config("data", "`shapes` is generated and has no files", "name cifar10 or cifar100"));
    }
    if let Some(path) = path {
        if let Some(found) = search(path, source)? {
            return Ok(found);
        }
        // Nothing of that name: say so when it is the other data set.
        return Err(match detect(path) {
            Ok(others) => {
                let other = others[0];
                Error::config(
                    path.display().to_string(),
                    format!("this is {other}, but {source} was asked for"),
                    format!("name the data set {other}, or give the path of {source}"),
                )
            }
            Err(e) => e,
        });
    }
    let places = default_places(&|key| env::var_os(key), env::home_dir());
    for place in &places {
        if place.exists()
            && let Some(found) = search(place, source)?
        {
            return Ok(found);
        }
    }
    Err(not_found(source, &places))
}

fn not_found(source: Source, places: &[PathBuf]) -> Error {
    let fetched = if source == Source::Cifar100Coarse { Source::Cifar100 } else { source };
    Error::config(
        "data",
        format!("{source} is not on this machine; looked in{}", listed(places)),
        format!("run `tilework data fetch {fetched}`, or give the folder or .tar.gz with `--data PATH`"),
    )
}

fn nothing_at(path: &Path) -> Error {
    Error::config(
        path.display().to_string(),
        "holds neither CIFAR-10 nor CIFAR-100, nor the image folders `train` and `test`",
        "give a folder as it comes out of an official archive, a folder that holds one, or the .tar.gz itself; \
         `tilework data fetch cifar10` downloads it",
    )
}

/// Looks for a data set at `path` itself and one level below.
fn search(path: &Path, source: Source) -> Result<Option<Found>> {
    let metadata = path.metadata().map_err(Error::io("open", path))?;
    let layouts = || LAYOUTS.iter().filter(|l| l.serves(source));
    if !metadata.is_dir() {
        if !archive::is_archive(path)? {
            return Ok(None);
        }
        let layout = archive::sniff(path)?;
        return Ok(layout.serves(source).then(|| Found { path: path.into(), layout, archive: true }));
    }
    let holds = |dir: &Path, layout: &Layout| layout.parts.iter().any(|p| dir.join(p).is_file());
    for layout in layouts() {
        if holds(path, layout) {
            return Ok(Some(Found { path: path.into(), layout, archive: false }));
        }
    }
    for layout in layouts() {
        let dir = path.join(layout.folder);
        if holds(&dir, layout) {
            return Ok(Some(Found { path: dir, layout, archive: false }));
        }
    }
    for layout in layouts() {
        let file = path.join(layout.archive);
        if file.is_file() {
            return Ok(Some(Found { path: file, layout, archive: true }));
        }
    }
    Ok(None)
}

fn load_folder(dir: &Path, layout: &Layout, source: Source) -> Result<Splits> {
    let mut assembly = Assembly::new(layout, source);
    let (needed, names) = assembly.files();
    for name in needed.iter().chain([&names]) {
        let path = dir.join(name);
        let file = match file::open(&path, "open") {
            Ok(file) => file,
            Err(Error::Io { source: e, .. }) if e.kind() == ErrorKind::NotFound => {
                if *name == names {
                    continue;
                }
                return Err(Error::file(&path, format!("is missing, a part of {}", layout.folder), layout.remedy()));
            }
            Err(e) => return Err(e),
        };
        let size = file.metadata().map_err(Error::io("read", &path))?.len();
        let mut reader = BufReader::with_capacity(1 << 18, file);
        assembly.take(name, size, &mut reader).map_err(|fault| match fault {
            ReadError::Bad(problem) => Error::file(&path, problem, layout.remedy()),
            ReadError::Io(e) => Error::io("read", &path)(e),
        })?;
    }
    assembly.finish(dir)
}

#[cfg(test)]
mod tests {
    use super::super::cifar::tests::{SMALL, files};
    use super::*;
    use std::fs;

    fn env_of<'a>(pairs: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        move |key| pairs.iter().find(|(k, _)| *k == key).map(|(_, v)| OsString::from(v))
    }

    #[test]
    fn default_folders() {
        let home = Some(PathBuf::from("/home/me"));
        let dir = |pairs: &[(&str, &str)]| default_dir_from(&env_of(pairs), home.clone());
        assert_eq!(dir(&[]), Path::new("/home/me/.cache/tilework"));
        assert_eq!(dir(&[("XDG_CACHE_HOME", "/c")]), Path::new("/c/tilework"));
        assert_eq!(dir(&[("XDG_CACHE_HOME", "c")]), Path::new("/home/me/.cache/tilework"));
        assert_eq!(dir(&[("XDG_CACHE_HOME", "/c"), ("TILEWORK_DATA", "/d")]), Path::new("/d"));
        assert_eq!(default_dir_from(&env_of(&[]), None), Path::new("data"));
        let places = default_places(&env_of(&[("TILEWORK_DATA", "/d")]), home.clone());
        assert_eq!(places, ["/d", "data", "/home/me/.cache/tilework"].map(PathBuf::from));
        assert_eq!(default_places(&env_of(&[]), home), ["data", "/home/me/.cache/tilework"].map(PathBuf::from));
        let e = not_found(Source::Cifar100Coarse, &places).to_string();
        assert!(e.contains("/home/me/.cache/tilework") && e.contains("data fetch cifar100`"), "{e}");
    }

    #[test]
    fn folders_are_told_by_their_contents() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path();
        assert!(matches!(detect(root).unwrap_err(), Error::Config { .. }));
        assert!(matches!(detect(&root.join("no")).unwrap_err(), Error::Io { .. }));
        // An image folder has `train` and `test` too, but as folders.
        fs::create_dir_all(root.join("pictures/train")).unwrap();
        assert!(detect(&root.join("pictures")).is_err());
        let renamed = root.join("renamed");
        fs::create_dir_all(&renamed).unwrap();
        fs::write(renamed.join("test"), "").unwrap();
        assert_eq!(detect(&renamed).unwrap(), [Source::Cifar100]);
        assert_eq!(find(Source::Cifar100Coarse, Some(&renamed)).unwrap(), renamed);
        let e = find(Source::Cifar10, Some(&renamed)).unwrap_err().to_string();
        assert!(e.contains("this is cifar100, but cifar10 was asked for"), "{e}");
        // One level down, the unpacked folder comes before the archive.
        fs::write(root.join("cifar-10-python.tar.gz"), "").unwrap();
        assert_eq!(find(Source::Cifar10, Some(root)).unwrap(), root.join("cifar-10-python.tar.gz"));
        fs::create_dir(root.join("cifar-10-batches-py")).unwrap();
        fs::write(root.join("cifar-10-batches-py/test_batch"), "").unwrap();
        assert_eq!(find(Source::Cifar10, Some(root)).unwrap(), root.join("cifar-10-batches-py"));
        assert_eq!(detect(root).unwrap(), [Source::Cifar10]);
        fs::write(root.join("cifar-100-binary.tar.gz"), "").unwrap();
        assert_eq!(detect(root).unwrap(), [Source::Cifar10, Source::Cifar100]);
        fs::write(root.join("text"), "hello").unwrap();
        assert!(detect(&root.join("text")).is_err());
        assert!(find(Source::Shapes, None).is_err());
    }

    #[test]
    fn a_folder_is_read_or_its_fault_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        for (name, bytes) in files() {
            fs::write(tmp.path().join(name), bytes).unwrap();
        }
        let splits = load_folder(tmp.path(), &SMALL, Source::Cifar100).unwrap();
        assert_eq!(splits.train.classes[splits.train.labels[0] as usize], "bear");
        let error = || load_folder(tmp.path(), &SMALL, Source::Cifar100).unwrap_err().to_string();
        fs::write(tmp.path().join("fine_label_names.txt"), "one\ntwo\n").unwrap();
        assert!(error().contains("fine_label_names.txt: expected the names of 100 classes, got 2"), "{}", error());
        fs::remove_file(tmp.path().join("fine_label_names.txt")).unwrap();
        fs::write(tmp.path().join("test.bin"), "short").unwrap();
        assert!(error().contains("test.bin: expected 3,074 bytes, got 5"), "{}", error());
        fs::remove_file(tmp.path().join("test.bin")).unwrap();
        assert!(
            error().contains("test.bin: is missing") && error().contains("remedy: get the data anew"),
            "{}",
            error()
        );
    }
}
