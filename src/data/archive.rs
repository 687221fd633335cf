//! Reading CIFAR from the `.tar.gz` as it was downloaded, without unpacking it to disk.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use flate2::read::GzDecoder;

use super::cifar::{Assembly, LAYOUTS, Layout, ReadError};
use super::{Source, Splits, grouped};
use crate::formats::file;
use crate::{Error, Result};

/// More than this is not unpacked: the official archives hold less than 200 MB.
const UNPACKED_LIMIT: u64 = 2 << 30;

/// Counts what passes through.
struct Counter<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counter<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.count.set(self.count.get() + n as u64);
        Ok(n)
    }
}

/// An opened archive and how far its reading has got.
struct Stream<'a> {
    path: &'a Path,
    size: u64,
    packed: Rc<Cell<u64>>,
    unpacked: Rc<Cell<u64>>,
    /// The entry being read.
    entry: String,
}

/// Whether the file begins like a gzip file or a tar archive.
pub(super) fn is_archive(path: &Path) -> Result<bool> {
    let mut head = Vec::new();
    let file = file::open(path, "open")?;
    file.take(512).read_to_end(&mut head).map_err(Error::io("read", path))?;
    Ok(is_gzip(&head) || is_tar(&head))
}

fn is_gzip(head: &[u8]) -> bool {
    head.starts_with(&[0x1f, 0x8b])
}

fn is_tar(head: &[u8]) -> bool {
    head.get(257..262) == Some(b"ustar")
}

/// The layout of the first file with images in the archive.
pub(super) fn sniff(path: &Path) -> Result<&'static Layout> {
    let mut found = None;
    walk(path, &mut |name, _, _| {
        found = LAYOUTS.iter().find(|l| l.parts.contains(&name));
        Ok(found.is_none())
    })?;
    found.ok_or_else(|| {
        Error::file(
            path,
            "none of the files of CIFAR-10 or CIFAR-100 is in this archive",
            "get the official one with `tilework data fetch cifar10` (or cifar100)",
        )
    })
}

/// Reads a data set from the archive in one pass.
pub(super) fn load(path: &Path, layout: &Layout, source: Source) -> Result<Splits> {
    let mut assembly = Assembly::new(layout, source);
    walk(path, &mut |name, size, from| assembly.take(name, size, from).map(|_| true))?;
    assembly.finish(path)
}

/// What [`walk`] calls for each regular file, with name, size and contents; false ends the walk.
type Visit<'v> = dyn FnMut(&str, u64, &mut dyn Read) -> Result<bool, ReadError> + 'v;

fn walk(path: &Path, visit: &mut Visit<'_>) -> Result<()> {
    let file = file::open(path, "open")?;
    let size = file.metadata().map_err(Error::io("read", path))?.len();
    let mut stream = Stream { path, size, packed: Rc::default(), unpacked: Rc::default(), entry: String::new() };
    walk_stream(file, &mut stream, visit).map_err(|fault| stream.error(fault))
}

fn walk_stream(file: File, stream: &mut Stream<'_>, visit: &mut Visit<'_>) -> Result<(), ReadError> {
    let mut packed = BufReader::with_capacity(1 << 18, Counter { inner: file, count: stream.packed.clone() });
    let gzip = is_gzip(io::BufRead::fill_buf(&mut packed)?);
    let unpacked: Box<dyn Read> = if gzip { Box::new(GzDecoder::new(packed)) } else { Box::new(packed) };
    let counted = Counter { inner: unpacked, count: stream.unpacked.clone() };
    let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 16, counted.take(UNPACKED_LIMIT)));
    // Raw: extension headers are entries like any other, so that none is read into memory whole.
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let size = entry.size();
        let name = path.rsplit('/').next().unwrap_or_default().to_string();
        stream.entry = path;
        if !visit(&name, size, &mut entry)? {
            return Ok(());
        }
        stream.entry.clear();
    }
    // The checksum comes after the last entry.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}

impl Stream<'_> {
    fn error(&self, fault: ReadError) -> Error {
        let remedy = "get the archive anew with `tilework data fetch cifar10` (or cifar100)";
        match fault {
            ReadError::Bad(problem) => Error::file(self.path.join(&self.entry), problem, remedy),
            ReadError::Io(e) => {
                let what = match e.kind() {
                    _ if self.unpacked.get() >= UNPACKED_LIMIT => "is far too large for CIFAR".to_string(),
                    io::ErrorKind::UnexpectedEof => "the archive is cut off".to_string(),
                    _ => format!("the archive is damaged ({e})"),
                };
                let at = if self.entry.is_empty() { String::new() } else { format!(", in `{}`", self.entry) };
                let (packed, size) = (grouped(self.packed.get()), grouped(self.size));
                let unpacked = grouped(self.unpacked.get());
                let problem = format!("{what}: read {packed} of the {size} bytes of the file, {unpacked} unpacked{at}");
                Error::file(self.path, problem, remedy)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cifar::tests::{SMALL, files};
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn tar(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("cifar-100-binary/{name}"), &bytes[..]).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut gz = GzEncoder::new(Vec::new(), Compression::default());
        gz.write_all(bytes).unwrap();
        gz.finish().unwrap()
    }

    fn saved(bytes: &[u8]) -> tempfile::TempPath {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file.into_temp_path()
    }

    #[test]
    fn packed_or_not_the_data_is_the_same() {
        let plain = tar(&files());
        let (a, b) = (saved(&plain), saved(&gzip(&plain)));
        assert!(is_archive(&a).unwrap() && is_archive(&b).unwrap());
        assert_eq!(sniff(&b).unwrap().folder, "cifar-100-binary");
        let a = load(&a, &SMALL, Source::Cifar100).unwrap();
        assert_eq!(a, load(&b, &SMALL, Source::Cifar100).unwrap());
        assert_eq!((a.train.labels, a.test.labels), (vec![3, 4], vec![5]));
    }

    #[test]
    fn cut_anywhere_is_an_error_that_tells_how_far() {
        let whole = gzip(&tar(&files()));
        for n in (0..whole.len()).step_by(7) {
            let path = saved(&whole[..n]);
            let e = load(&path, &SMALL, Source::Cifar100).unwrap_err().to_string();
            assert!(e.contains(&path.display().to_string()), "{e}");
            if n > 20 {
                assert!(e.contains(&format!("the archive is cut off: read {n} of the {n} bytes")), "{n}: {e}");
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let mut bytes = gzip(&tar(&files()));
        let crc = bytes.len() - 6;
        bytes[crc] ^= 1;
        let e = load(&saved(&bytes), &SMALL, Source::Cifar100).unwrap_err().to_string();
        assert!(e.contains("damaged"), "{e}");
    }

    #[test]
    fn claimed_sizes_cost_nothing() {
        // A header that claims a terabyte, for a file that is wanted and for one that is not.
        for (name, word) in [("train.bin", "expected 6,148 bytes, got 1,099,511,627,776"), ("other", "unexpected EOF")]
        {
            let mut header = tar::Header::new_gnu();
            header.set_path(name).unwrap();
            header.set_size(1 << 40);
            header.set_entry_type(tar::EntryType::Regular);
            header.set_cksum();
            let bytes = [&header.as_bytes()[..], &[0; 4096]].concat();
            let e = load(&saved(&gzip(&bytes)), &SMALL, Source::Cifar100).unwrap_err().to_string();
            assert!(e.contains(word), "{e}");
        }
    }

    #[test]
    fn other_archives_are_refused() {
        let e = sniff(&saved(&gzip(&tar(&[("cat.png", vec![1; 10])])))).unwrap_err().to_string();
        assert!(e.contains("none of the files"), "{e}");
        assert!(!is_archive(&saved(b"hello")).unwrap());
    }
}
