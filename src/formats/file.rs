//! Opening what a user names. A pipe, a device or a folder in place of a file is an error, and is not waited for.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::Read;
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
}
