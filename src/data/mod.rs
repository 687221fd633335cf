//! Data sets: where the images come from.
//!
//! A [`Source`] names a data set; [`open`] turns it into [`Splits`]: all images of both splits as
//! bytes in memory, NHWC, as they are in the file. Normalisation and augmentation come later, in
//! the loader.
//!
//! - [`shapes`]: generated, needs no file.
//! - [`cifar`]: CIFAR-10 and CIFAR-100, binary or Python version, unpacked or still a `.tar.gz`.
//! - `folder`: image folders, PNG and JPEG files in a folder for each class; with the feature `cli`.
//! - [`fetch`]: downloads the archives.
//!
//! ```
//! use tilework::data::{self, Source};
//! let splits = data::open(Source::Shapes, None, None, 0)?;
//! assert_eq!(splits.train.len(), 10_000);
//! assert_eq!(splits.train.image(0).len(), 32 * 32 * 3);
//! # Ok::<(), tilework::Error>(())
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::{Error, Result};

mod archive;
pub mod augment;
pub mod batch;
pub mod cifar;
#[cfg(feature = "cli")]
pub mod fetch;
#[cfg(feature = "cli")]
pub mod folder;
mod info;
pub mod loader;
mod locate;
mod names;
#[cfg(feature = "cli")]
pub(crate) mod picture;
pub mod shapes;
mod split;
mod views;

pub use info::describe;
pub use locate::{default_dir, detect, find};
pub use split::Split;
pub use views::Views;

/// One split of a data set: images and their labels, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The source and the split, as in `cifar10 test`.
    pub name: String,
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Values per pixel.
    pub channels: usize,
    /// All images, NHWC.
    pub images: Vec<u8>,
    /// One label per image, 0 to `classes.len() - 1`.
    pub labels: Vec<i32>,
}

/// An empty list with room for the bytes of a data set's images; an error where memory runs out.
fn room(bytes: usize, name: &str) -> Result<Vec<u8>> {
    let mut images = Vec::new();
    let full = |e| Error::io("hold in memory the images of", Path::new(name))(std::io::Error::from(e));
    images.try_reserve_exact(bytes).map_err(full)?;
    Ok(images)
}

impl Dataset {
    /// How many images there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image at all.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Bytes of one image.
    pub fn image_len(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Image `i`, HWC; empty when there is no such image.
    pub fn image(&self, i: usize) -> &[u8] {
        let n = self.image_len();
        i.checked_mul(n).and_then(|at| self.images.get(at..at.checked_add(n)?)).unwrap_or(&[])
    }
}

/// The splits of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Splits {
    /// What a network is trained on.
    pub train: Dataset,
    /// What choices are made by, if anything is held out for that; see [`Splits::hold_out`].
    pub validation: Option<Dataset>,
    /// What it is measured on.
    pub test: Dataset,
}

/// A data set that Tilework knows by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Generated images of ten shapes; see [`shapes`].
    Shapes,
    /// CIFAR-10: 50,000 + 10,000 images of 32×32, 10 classes.
    Cifar10,
    /// CIFAR-100 with its 100 fine labels.
    Cifar100,
    /// CIFAR-100 with its 20 coarse labels.
    Cifar100Coarse,
    /// A folder of images of any classes: `train/CLASS/*.png` and `test/CLASS/*.png`.
    ImageFolder,
}

impl Source {
    /// Every source.
    pub const ALL: [Source; 5] =
        [Source::Shapes, Source::Cifar10, Source::Cifar100, Source::Cifar100Coarse, Source::ImageFolder];

    /// The name used in recipes and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Source::Shapes => "shapes",
            Source::Cifar10 => "cifar10",
            Source::Cifar100 => "cifar100",
            Source::Cifar100Coarse => "cifar100-coarse",
            Source::ImageFolder => "image-folder",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Source {
    type Err = Error;

    /// # Errors
    /// [`Error::Config`] for a name that is none of [`Source::ALL`].
    fn from_str(s: &str) -> Result<Self> {
        Source::ALL.into_iter().find(|source| source.name() == s).ok_or_else(|| {
            Error::config(
                "data",
                format!("there is no data set `{s}`"),
                "use one of shapes, cifar10, cifar100, cifar100-coarse, image-folder",
            )
        })
    }
}

/// Reads a data set into memory.
///
/// `path` may be the official folder, a folder that holds it, or the `.tar.gz`. Without a path,
/// CIFAR is looked for where [`find`] looks. `size` matters to [`Source::ImageFolder`] only: height and width that its
/// images are resized to. `seed` matters to [`Source::Shapes`] only.
///
/// # Errors
/// [`Error::Config`] when nothing is found or `path` holds another data set, [`Error::File`] for a
/// file that is missing, cut, too long or damaged, [`Error::Io`] when the system refuses to read.
pub fn open(source: Source, path: Option<&Path>, size: Option<usize>, seed: u64) -> Result<Splits> {
    match (source, path) {
        (Source::Shapes, None) => Ok(shapes::generate(seed, shapes::TRAIN, shapes::TEST)),
        (Source::Shapes, Some(path)) => Err(Error::config(
            "data",
            format!("`shapes` is generated and reads no files, but the path {} was given", path.display()),
            "leave out the path, or name the data set that it holds",
        )),
        #[cfg(feature = "cli")]
        (Source::ImageFolder, _) => folder::open(&find(source, path)?, size),
        #[cfg(not(feature = "cli"))]
        (Source::ImageFolder, _) => {
            let remedy = "build with it: it brings the decoders";
            Err(Error::config("data", format!("images are read with the feature `cli` ({size:?})"), remedy))
        }
        _ => locate::open_cifar(source, path),
    }
}

/// A number with thousands separated, for messages.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Places named in a message, one per line.
fn listed(places: &[PathBuf]) -> String {
    places.iter().map(|p| format!("\n    {}", p.display())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for source in Source::ALL {
            assert_eq!(source.to_string().parse::<Source>().unwrap(), source);
            assert_eq!(serde_json::to_string(&source).unwrap(), format!("\"{source}\""));
        }
        let e = "cifar".parse::<Source>().unwrap_err().to_string();
        assert!(e.contains("`cifar`") && e.contains("cifar100-coarse"), "{e}");
    }

    #[test]
    fn shapes_takes_no_path() {
        let e = open(Source::Shapes, Some(Path::new("x")), None, 0).unwrap_err();
        assert!(matches!(e, Error::Config { .. }), "{e}");
    }

    #[test]
    fn an_image_that_is_not_there_is_empty() {
        let d = shapes::generate(0, 3, 1).train;
        assert_eq!((d.len(), d.image(2).len(), d.image(3).len(), d.image(usize::MAX).len()), (3, 3072, 0, 0));
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1000, 30_730_000].map(grouped), ["0", "999", "1,000", "30,730,000"]);
    }
}
