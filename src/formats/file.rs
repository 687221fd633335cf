//! Files that a user names. One is read only if it is a file: a pipe, a device or a folder is an error, and is not waited
//! for. One is written as a whole or not at all.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

/// Opens a file; `doing` is for errors: "read the recipe".
///
/// # Errors
/// [`Error::Io`] if it cannot be opened; [`Error::File`] if it is no regular file.
pub(crate) fn open(path: &Path, doing: &'static str) -> Result<File> {
    // Asked before it is opened: opening a pipe waits for someone to write to it.
    let kind = fs::metadata(path).map_err(Error::io(doing, path))?;
    match (kind.is_file(), kind.is_dir()) {
        (true, _) => File::open(path).map_err(Error::io(doing, path)),
        (_, true) => Err(Error::file(path, "it is a folder, and should be a file", "give the path of a file")),
        _ => Err(Error::file(
            path,
            "it is a pipe, a socket or a device, and should be a file",
            "write what comes out of it to a file, and give that",
        )),
    }
}

/// All bytes of a file.
///
/// # Errors
/// As [`open`].
pub(crate) fn read(path: &Path, doing: &'static str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path, doing)?.read_to_end(&mut bytes).map_err(Error::io(doing, path))?;
    Ok(bytes)
}

/// A file's text.
///
/// # Errors
/// As [`open`], and [`Error::File`] if it is no text.
pub(crate) fn read_text(path: &Path, doing: &'static str) -> Result<String> {
    let no_text = |_| Error::file(path, "it is no text (UTF-8)", "give the path of a text file");
    String::from_utf8(read(path, doing)?).map_err(no_text)
}

/// Writes a file and waits until it is on the disk.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut f = File::create(path).map_err(Error::io("create", path))?;
    f.write_all(bytes).map_err(Error::io("write", path))?;
    f.sync_all().map_err(Error::io("write", path))
}

/// Waits until a folder's names are on the disk, where a folder can be opened as a file (not on Windows).
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    match File::open(dir) {
        Ok(d) if cfg!(unix) => d.sync_all().map_err(Error::io("sync", dir)),
        _ => Ok(()),
    }
}

/// Writes a file so that at any moment either the old or the new contents are there, also where the disk is full. What is
/// no file, such as a terminal or a pipe, is written to.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return fs::write(path, bytes).map_err(Error::io("write", path));
    }
    replace(path, |new| fs::write(new, bytes).map_err(Error::io("write", path)))
}

/// The same, and waits until it is on the disk.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |new| write_synced(new, bytes))?;
    sync_dir(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Has a new file written beside `path`, and renames it into its place.
fn replace(path: &Path, write: impl Fn(&Path) -> Result<()>) -> Result<()> {
    // The file that a link points to, so that the link stays.
    let linked = || fs::read_link(path).map(|to| path.parent().unwrap_or(Path::new("")).join(to));
    let target = fs::canonicalize(path).or_else(|_| linked()).unwrap_or_else(|_| path.to_owned());
    let old = fs::metadata(&target).ok().map(|m| m.permissions());
    if old.as_ref().is_some_and(fs::Permissions::readonly) {
        return Err(Error::file(path, "it is write-protected", "allow writing to it, or give another file"));
    }
    // Always of the same name, so that what a killed process leaves is written over by the next.
    let mut new = target.clone().into_os_string();
    new.push(".tmp");
    let new = Path::new(&new);
    let written = write(new).and_then(|()| {
        old.as_ref().map_or(Ok(()), |p| fs::set_permissions(new, p.clone())).map_err(Error::io("write", path))?;
        fs::rename(new, &target).map_err(Error::io("replace", path))
    });
    if written.is_err() {
        // Best effort: the error that matters is the one above.
        let _ = fs::remove_file(new);
    }
    match written {
        // A folder in which no file may be made, with a file that may be written.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied && old.is_some() => {
            write(&target)
        }
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let e = read(dir.path(), "read").unwrap_err().to_string();
        assert!(e.contains("folder"), "{e}");
        let e = read(Path::new("/dev/zero"), "read").unwrap_err().to_string();
        assert!(cfg!(not(unix)) || e.contains("device"), "{e}");
        let path = dir.path().join("x");
        fs::write(&path, [0xFF, 0xFE]).unwrap();
        assert_eq!(read(&path, "read").unwrap(), [0xFF, 0xFE]);
        assert!(read_text(&path, "read").unwrap_err().to_string().contains("no text"));
    }

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.svg");
        write(&path, b"old").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(read(&path, "read").unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // It cannot be written beside the file, so the old one stays.
        fs::create_dir(dir.path().join("x.svg.tmp")).unwrap();
        assert!(write(&path, b"newer").is_err());
        assert_eq!(read(&path, "read").unwrap(), b"new");
        let locked = dir.path().join("locked");
        write(&locked, b"old").unwrap();
        let mut permissions = fs::metadata(&locked).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&locked, permissions).unwrap();
        assert!(write(&locked, b"new").unwrap_err().to_string().contains("write-protected"));
        write(Path::new(if cfg!(unix) { "/dev/null" } else { "NUL" }), b"gone").unwrap();
        assert!(write(&dir.path().join("no/x"), b"").is_err());
        #[cfg(unix)]
        {
            let link = dir.path().join("link");
            std::os::unix::fs::symlink("later", &link).unwrap();
            write(&link, b"through").unwrap();
            assert_eq!(fs::read(dir.path().join("later")).unwrap(), b"through");
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        }
    }
}
