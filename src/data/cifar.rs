//! CIFAR-10 and CIFAR-100: the layouts of the files, and putting them together.
//!
//! Binary version: records of one label byte (CIFAR-10) or two (CIFAR-100: coarse, fine) and 3,072
//! pixel bytes: the red, green and blue planes, each row by row. Python version: one pickled
//! dictionary per file, with the same planes in an array of one row per image. Both come out NHWC.
//!
//! Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and
//! <https://www.cs.toronto.edu/~kriz/cifar.html>.

use std::io::{self, Read};
use std::path::Path;

use super::{Dataset, Source, Splits, grouped, names};
use crate::formats::pickle::Pickle;
use crate::{Error, Result};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const PIXELS: usize = 3 * PLANE;
/// Longest name file that is read.
const NAMES_LIMIT: u64 = 64 * 1024;

/// One way in which one of the two data sets is stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// CIFAR-100, not CIFAR-10.
    pub(super) hundred: bool,
    /// The Python version, not the binary one.
    pub(super) python: bool,
    /// Name of the official folder.
    pub(super) folder: &'static str,
    /// Name of the official archive.
    pub(super) archive: &'static str,
    /// The files with images; the last is the test split.
    pub(super) parts: &'static [&'static str],
    /// Images in each train file, and in the test file.
    pub(super) records: (usize, usize),
}

/// The four official layouts, the binary ones first: they are read faster.
pub(super) static LAYOUTS: [Layout; 4] = [
    Layout {
        hundred: false,
        python: false,
        folder: "cifar-10-batches-bin",
        archive: "cifar-10-binary.tar.gz",
        parts: &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
            "test_batch.bin",
        ],
        records: (10_000, 10_000),
    },
    Layout {
        hundred: false,
        python: true,
        folder: "cifar-10-batches-py",
        archive: "cifar-10-python.tar.gz",
        parts: &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"],
        records: (10_000, 10_000),
    },
    Layout {
        hundred: true,
        python: false,
        folder: "cifar-100-binary",
        archive: "cifar-100-binary.tar.gz",
        parts: &["train.bin", "test.bin"],
        records: (50_000, 10_000),
    },
    Layout {
        hundred: true,
        python: true,
        folder: "cifar-100-python",
        archive: "cifar-100-python.tar.gz",
        parts: &["train", "test"],
        records: (50_000, 10_000),
    },
];

impl Layout {
    /// Whether this layout holds the data of `source`.
    pub(super) fn serves(&self, source: Source) -> bool {
        match source {
            Source::Shapes | Source::ImageFolder => false,
            Source::Cifar10 => !self.hundred,
            Source::Cifar100 | Source::Cifar100Coarse => self.hundred,
        }
    }

    /// The source that this layout holds, with fine labels.
    pub(super) fn source(&self) -> Source {
        if self.hundred { Source::Cifar100 } else { Source::Cifar10 }
    }

    /// What to do about a broken file.
    pub(super) fn remedy(&self) -> String {
        format!("get the data anew with `tilework data fetch {}`, or unpack the archive again", self.source())
    }

    /// The file with the class names, and the key of the names in it where it is a pickle.
    fn names_file(&self, source: Source) -> (&'static str, &'static str) {
        match (self.python, source) {
            (false, Source::Cifar100) => ("fine_label_names.txt", ""),
            (false, Source::Cifar100Coarse) => ("coarse_label_names.txt", ""),
            (false, _) => ("batches.meta.txt", ""),
            (true, Source::Cifar100) => ("meta", "fine_label_names"),
            (true, Source::Cifar100Coarse) => ("meta", "coarse_label_names"),
            (true, _) => ("batches.meta", "label_names"),
        }
    }
}

/// What is wrong with one file: the reader failed, or the contents are not as they should be.
#[derive(Debug)]
pub(super) enum ReadError {
    Io(io::Error),
    Bad(String),
}

/// Zeros; an error where memory runs out.
fn zeros(bytes: usize) -> Result<Vec<u8>, ReadError> {
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(bytes).map_err(io::Error::from)?;
    zeros.resize(bytes, 0);
    Ok(zeros)
}

impl From<io::Error> for ReadError {
    fn from(e: io::Error) -> Self {
        ReadError::Io(e)
    }
}

/// Images and labels of one file.
type Part = (Vec<u8>, Vec<i32>);

/// A data set being put together from its files, which may come in any order.
pub(super) struct Assembly<'a> {
    layout: &'a Layout,
    source: Source,
    parts: Vec<Option<Part>>,
    classes: Vec<String>,
}

impl<'a> Assembly<'a> {
    pub(super) fn new(layout: &'a Layout, source: Source) -> Self {
        let classes = match source {
            Source::Cifar100 => names::CIFAR100_FINE.map(String::from).to_vec(),
            Source::Cifar100Coarse => names::CIFAR100_COARSE.map(String::from).to_vec(),
            _ => names::CIFAR10.map(String::from).to_vec(),
        };
        Assembly { layout, source, parts: layout.parts.iter().map(|_| None).collect(), classes }
    }

    /// The files to read: those that must be there, then the one that may be missing.
    pub(super) fn files(&self) -> (&'static [&'static str], &'static str) {
        (self.layout.parts, self.layout.names_file(self.source).0)
    }

    /// Takes a file of which the folder or archive says that it has `size` bytes. Files that are of
    /// no use are passed over; returns whether this one was used.
    pub(super) fn take(&mut self, name: &str, size: u64, from: &mut dyn Read) -> Result<bool, ReadError> {
        let (names, key) = self.layout.names_file(self.source);
        if name == names {
            self.classes = self.read_names(key, size, from)?;
        } else if let Some(i) = self.layout.parts.iter().position(|p| *p == name) {
            let (train, test) = self.layout.records;
            let records = if i + 1 < self.parts.len() { train } else { test };
            let part = if self.layout.python {
                self.read_python(records, size, from)?
            } else {
                self.read_binary(records, size, from)?
            };
            if let Some(slot) = self.parts.get_mut(i) {
                *slot = Some(part);
            }
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// The finished splits; `at` is the folder or archive that all files came from.
    pub(super) fn finish(self, at: &Path) -> Result<Splits> {
        let Assembly { layout, source, parts, classes } = self;
        let mut train: Part = (Vec::new(), Vec::new());
        let mut test: Part = (Vec::new(), Vec::new());
        for (i, (part, name)) in parts.into_iter().zip(layout.parts).enumerate() {
            let (images, labels) = part.ok_or_else(|| {
                Error::file(at, format!("`{name}` is missing, a part of {}", layout.folder), layout.remedy())
            })?;
            let split = if i + 1 < layout.parts.len() { &mut train } else { &mut test };
            if split.1.is_empty() {
                *split = (images, labels);
            } else {
                split.0.try_reserve(images.len()).map_err(|e| Error::io("read", at)(e.into()))?;
                split.0.extend(images);
                split.1.extend(labels);
            }
        }
        let dataset = |split: &str, (images, labels): Part| Dataset {
            name: format!("{source} {split}"),
            classes: classes.clone(),
            height: SIDE,
            width: SIDE,
            channels: 3,
            images,
            labels,
        };
        Ok(Splits { train: dataset("train", train), validation: None, test: dataset("test", test) })
    }

    /// Every label of a record: its name, how many classes it has, whether it is the one asked for.
    fn labels(&self) -> Vec<(&'static str, u8, bool)> {
        match self.source {
            Source::Cifar10 | Source::Shapes | Source::ImageFolder => vec![("labels", 10, true)],
            _ => {
                let fine = self.source == Source::Cifar100;
                vec![("coarse_labels", 20, !fine), ("fine_labels", 100, fine)]
            }
        }
    }

    fn read_binary(&self, records: usize, size: u64, from: &mut dyn Read) -> Result<Part, ReadError> {
        let kinds = self.labels();
        let mut record = vec![0; kinds.len() + PIXELS];
        let expected = (records * record.len()) as u64;
        if size != expected {
            let (expected, size) = (grouped(expected), grouped(size));
            return Err(ReadError::Bad(format!("expected {expected} bytes, got {size}")));
        }
        let mut images = zeros(records * PIXELS)?;
        let mut labels = Vec::with_capacity(records);
        for (n, image) in images.chunks_exact_mut(PIXELS).enumerate() {
            from.read_exact(&mut record)?;
            let (heads, planes) = record.split_at(kinds.len());
            for (&head, &(kind, classes, wanted)) in heads.iter().zip(&kinds) {
                let label = check_label(kind, n, head.into(), classes)?;
                if wanted {
                    labels.push(label);
                }
            }
            interleave(planes, image);
        }
        Ok((images, labels))
    }

    fn read_python(&self, records: usize, size: u64, from: &mut dyn Read) -> Result<Part, ReadError> {
        // Escaped text, the most wasteful of the pickle formats, takes up to four times the bytes.
        let limit = (records * (PIXELS + 64)) as u64 * 4 + (1 << 20);
        let bytes = read_bounded(size, limit, from)?;
        let pickle = Pickle::parse(&bytes).map_err(ReadError::Bad)?;
        let data = pickle.matrix("data", records, PIXELS).map_err(ReadError::Bad)?;
        let mut images = zeros(data.len())?;
        for (planes, image) in data.chunks_exact(PIXELS).zip(images.chunks_exact_mut(PIXELS)) {
            interleave(planes, image);
        }
        let mut labels = Vec::with_capacity(records);
        for (kind, classes, wanted) in self.labels() {
            let values = pickle.integers(kind).map_err(ReadError::Bad)?;
            if values.len() != records {
                let (records, got) = (grouped(records as u64), grouped(values.len() as u64));
                return Err(ReadError::Bad(format!("expected {records} `{kind}`, got {got}")));
            }
            for (n, value) in values.into_iter().enumerate() {
                let label = check_label(kind, n, value, classes)?;
                if wanted {
                    labels.push(label);
                }
            }
        }
        Ok((images, labels))
    }

    fn read_names(&self, key: &str, size: u64, from: &mut dyn Read) -> Result<Vec<String>, ReadError> {
        let bytes = read_bounded(size, NAMES_LIMIT, from)?;
        let names: Vec<String> = if self.layout.python {
            Pickle::parse(&bytes).and_then(|p| p.strings(key)).map_err(ReadError::Bad)?
        } else {
            let text = String::from_utf8_lossy(&bytes);
            text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect()
        };
        let expected = self.classes.len();
        if names.len() != expected {
            return Err(ReadError::Bad(format!("expected the names of {expected} classes, got {}", names.len())));
        }
        Ok(names)
    }
}

fn check_label(kind: &str, record: usize, label: i64, classes: u8) -> Result<i32, ReadError> {
    i32::try_from(label).ok().filter(|l| (0..i32::from(classes)).contains(l)).ok_or_else(|| {
        let kind = kind.trim_end_matches('s').replace('_', " ");
        ReadError::Bad(format!("record {record} has {kind} {label}, which must be 0 to {}", classes - 1))
    })
}

/// Three planes to one image, HWC.
fn interleave(planes: &[u8], image: &mut [u8]) {
    let (red, rest) = planes.split_at(PLANE.min(planes.len()));
    let (green, blue) = rest.split_at(PLANE.min(rest.len()));
    for (((pixel, r), g), b) in image.chunks_exact_mut(3).zip(red).zip(green).zip(blue) {
        pixel.copy_from_slice(&[*r, *g, *b]);
    }
}

/// All of a file of at most `limit` bytes. Memory grows with what is really there.
fn read_bounded(size: u64, limit: u64, from: &mut dyn Read) -> Result<Vec<u8>, ReadError> {
    if size > limit {
        return Err(ReadError::Bad(format!("expected at most {} bytes, got {}", grouped(limit), grouped(size))));
    }
    let mut bytes = Vec::new();
    from.take(size).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != size {
        let (size, got) = (grouped(size), grouped(bytes.len() as u64));
        return Err(ReadError::Bad(format!("expected {size} bytes, got {got}")));
    }
    Ok(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A CIFAR-100 layout with two train images and one test image.
    pub(in crate::data) static SMALL: Layout = Layout { records: (2, 1), ..LAYOUTS_100 };
    const LAYOUTS_100: Layout = Layout {
        hundred: true,
        python: false,
        folder: "cifar-100-binary",
        archive: "cifar-100-binary.tar.gz",
        parts: &["train.bin", "test.bin"],
        records: (0, 0),
    };

    /// One record: coarse 19 − n, fine n, pixel bytes that tell plane and place.
    pub(in crate::data) fn record(n: u8) -> Vec<u8> {
        let mut r = vec![19 - n, n];
        r.extend((0..PIXELS).map(|i| ((i / PLANE) * 80 + i % PLANE % 80) as u8));
        r
    }

    pub(in crate::data) fn files() -> Vec<(&'static str, Vec<u8>)> {
        vec![("train.bin", [record(3), record(4)].concat()), ("test.bin", record(5))]
    }

    fn problem(fault: ReadError) -> String {
        match fault {
            ReadError::Bad(p) => p,
            ReadError::Io(e) => panic!("{e}"),
        }
    }

    #[test]
    fn planes_become_pixels_and_the_label_asked_for_is_kept() {
        for (source, train, test) in [(Source::Cifar100, [3, 4], 5), (Source::Cifar100Coarse, [16, 15], 14)] {
            let mut a = Assembly::new(&SMALL, source);
            // The test file first: an archive has its own order.
            for (name, bytes) in files().iter().rev() {
                assert!(a.take(name, bytes.len() as u64, &mut &bytes[..]).unwrap());
            }
            assert!(!a.take("readme.html", 1 << 60, &mut &[][..]).unwrap());
            let s = a.finish(Path::new("x")).unwrap();
            assert_eq!(s.train.images.len(), 2 * PIXELS);
            assert_eq!(&s.test.images[..6], [0, 80, 160, 1, 81, 161]);
            assert_eq!(s.test.image(0)[3 * 1023..], [63, 143, 223]);
            assert_eq!((s.train.labels, s.test.labels), (train.to_vec(), vec![test]));
        }
    }

    #[test]
    fn sizes_labels_and_missing_files_are_told() {
        let mut a = Assembly::new(&SMALL, Source::Cifar100);
        for size in [0, 6147, 6149, u64::MAX] {
            let p = problem(a.take("train.bin", size, &mut io::repeat(0)).unwrap_err());
            assert_eq!(p, format!("expected 6,148 bytes, got {}", grouped(size)));
        }
        let mut bad = [record(3), record(4)].concat();
        bad[3074] = 20;
        let p = problem(a.take("train.bin", 6148, &mut &bad[..]).unwrap_err());
        assert_eq!(p, "record 1 has coarse label 20, which must be 0 to 19");
        bad[3074] = 0;
        bad[3075] = 100;
        let p = problem(a.take("train.bin", 6148, &mut &bad[..]).unwrap_err());
        assert_eq!(p, "record 1 has fine label 100, which must be 0 to 99");
        assert!(matches!(a.take("train.bin", 6148, &mut &bad[..50]).unwrap_err(), ReadError::Io(_)));
        assert!(a.take("test.bin", 3074, &mut &record(1)[..]).unwrap());
        let e = a.finish(Path::new("here")).unwrap_err().to_string();
        assert!(e.contains("here: `train.bin` is missing") && e.contains("data fetch cifar100"), "{e}");
    }

    #[test]
    fn names_come_from_the_file_where_there_is_one() {
        let mut a = Assembly::new(&LAYOUTS[0], Source::Cifar10);
        assert_eq!(a.classes[9], "truck");
        let text = b"a\nb\r\nc\nd\ne\nf\ng\nh\ni\n j\n\n";
        a.take("batches.meta.txt", text.len() as u64, &mut &text[..]).unwrap();
        assert_eq!(a.classes.concat(), "abcdefghij");
        let p = problem(a.take("batches.meta.txt", 2, &mut &b"a\n"[..]).unwrap_err());
        assert_eq!(p, "expected the names of 10 classes, got 1");
        let p = problem(a.take("batches.meta.txt", 1 << 40, &mut io::repeat(b'a')).unwrap_err());
        assert!(p.starts_with("expected at most"), "{p}");
    }

    #[test]
    fn official_sizes() {
        for layout in LAYOUTS.iter().filter(|l| !l.python) {
            let (train, test) = layout.records;
            let record = if layout.hundred { 3074 } else { 3073 };
            let want = if layout.hundred { (153_700_000, 30_740_000) } else { (30_730_000, 30_730_000) };
            assert_eq!((train * record, test * record), want);
        }
    }
}
