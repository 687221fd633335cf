//! Files that a user names. One is read only if it is a file: a pipe, a device or a folder is an error, and is not waited
//! for. One is written as a whole or not at all, and not where a folder is.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use tempfile::TempPath;

/// Opens a file; `doing` is for errors: "read the recipe".
///
/// # Errors
/// [`Error::Io`] if it cannot be opened; [`Error::File`] if it is no regular file.
pub(crate) fn open(path: &Path, doing: &'static str) -> Result<File> {
    // Asked before it is opened: opening a pipe waits for someone to write to it.
    let kind = fs::metadata(path).map_err(Error::io(doing, path))?;
    match (kind.is_file(), kind.is_dir()) {
        (true, _) => File::open(path).map_err(Error::io(doing, path)),
        (_, true) => Err(not_a_file(path)),
        _ => Err(Error::file(
            path,
            "it is a pipe, a socket or a device, and should be a file",
            "write what comes out of it to a file, and give that",
        )),
    }
}

/// The error for a path that is a folder and should be a file.
fn not_a_file(path: &Path) -> Error {
    Error::file(path, "it is a folder, and should be a file", "give the path of a file")
}

/// Checks that a file can come to be at a path: before there is much work to lose.
///
/// # Errors
/// [`Error::File`] if a folder is there, or its own folder is not.
pub(crate) fn check_file(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(not_a_file(path));
    }
    match path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
        Some(folder) => {
            Err(Error::file(path, format!("there is no folder {}", folder.display()), "make the folder first"))
        }
        None => Ok(()),
    }
}

/// Checks that files can be written into the folder at a path, which may still have to be made.
///
/// # Errors
/// [`Error::File`] if it is no folder.
pub(crate) fn check_folder(path: &Path) -> Result<()> {
    if path.is_dir() || !path.exists() {
        return Ok(());
    }
    let remedy = "give the path of a folder; it is made if it is not there";
    Err(Error::file(path, "it is a file, and should be a folder", remedy))
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
/// [`Error::Io`]; [`Error::File`] if a folder is there.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    check_file(path)?;
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
    sync_dir(folder_of(path))
}

/// The folder that a path is in; of a bare name the current one.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// An empty file `NAME.XXXXXX.tmp` in the folder of `path`, of a name that no other process has. It is removed when it is
/// dropped, and has the permissions of any new file.
fn beside(path: &Path) -> std::io::Result<TempPath> {
    let mut prefix = path.file_name().unwrap_or_default().to_owned();
    prefix.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".tmp");
    // By itself it would be the user's alone; the umask takes away what new files must not have.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    Ok(builder.tempfile_in(folder_of(path))?.into_temp_path())
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
    let written = beside(&target).map_err(Error::io("create", path)).and_then(|new| {
        write(&new)?;
        old.as_ref().map_or(Ok(()), |p| fs::set_permissions(&new, p.clone())).map_err(Error::io("write", path))?;
        new.persist(&target).map_err(|e| Error::io("replace", path)(e.error))
    });
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
    fn a_folder_is_no_file_and_a_file_no_folder() {
        let dir = tempfile::tempdir().unwrap();
        for e in [write(dir.path(), b"x"), check_file(dir.path())] {
            let e = e.unwrap_err().to_string();
            assert!(e.contains("it is a folder, and should be a file") && e.contains("remedy"), "{e}");
        }
        let path = dir.path().join("x");
        assert!(check_file(&path).is_ok() && check_folder(&path).is_ok() && check_folder(dir.path()).is_ok());
        write(&path, b"x").unwrap();
        let e = check_folder(&path).unwrap_err().to_string();
        assert!(e.contains("it is a file, and should be a folder") && e.contains("remedy"), "{e}");
    }

    /// Each while another is half written.
    #[test]
    fn writers_of_one_file_do_not_mix() {
        let dir = tempfile::tempdir().unwrap();
        let (path, both) = (dir.path().join("x"), std::sync::Barrier::new(2));
        let writer = |letter: u8| {
            let half = |new: &Path| {
                fs::write(new, vec![letter; 100]).unwrap();
                both.wait();
                assert_eq!(fs::read(new).unwrap(), vec![letter; 100]);
                both.wait();
                Ok(())
            };
            replace(&path, half).unwrap();
        };
        std::thread::scope(|s| [b'a', b'b'].map(|letter| s.spawn(move || writer(letter))).map(|t| t.join().unwrap()));
        let bytes = fs::read(&path).unwrap();
        assert!(bytes == [b'a'; 100] || bytes == [b'b'; 100]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_those_of_any_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let [ours, plain] = ["ours", "plain"].map(|name| dir.path().join(name));
        write(&ours, b"").unwrap();
        fs::write(&plain, b"").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
        fs::set_permissions(&ours, fs::Permissions::from_mode(0o640)).unwrap();
        write(&ours, b"again").unwrap();
        assert_eq!(mode(&ours) & 0o777, 0o640);
    }

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.svg");
        write(&path, b"old").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(read(&path, "read").unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // It cannot be written to its end, so the old one stays, alone.
        let full = |new: &Path| {
            fs::write(new, b"new").unwrap();
            Err(Error::Internal("planned".into()))
        };
        assert!(replace(&path, full).is_err());
        assert_eq!(read(&path, "read").unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
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
