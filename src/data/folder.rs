//! Image folders: a data set as files, `train/CLASS/*.png` and `test/CLASS/*.png`.
//!
//! The layout of torchvision's `ImageFolder`. Classes are the folders in `train`, sorted by name. Images are PNG or JPEG,
//! in the order of their names; grey ones get three equal channels, and transparency is dropped. Names that begin with a
//! dot are passed over.

use super::{Dataset, Splits, picture, room};
use crate::error::{Error, Result};
use image::RgbImage;
use rayon::prelude::*;
use std::fs;
use std::path::Path;

/// The longest side that images are resized to.
const LONGEST: usize = 4096;

/// Reads the images of both splits, resized to `size` pixels each way if given: bilinear and with antialias, as
/// torchvision's `resize(image, [size, size], antialias=True)`.
///
/// # Errors
/// [`Error::File`] for a file that is no image, or a folder without classes or images; [`Error::Config`] for images of
/// different sizes without `size`; [`Error::Io`] when the system refuses to read.
pub fn open(path: &Path, size: Option<usize>) -> Result<Splits> {
    if let Some(n) = size.filter(|n| !(1..=LONGEST).contains(n)) {
        return Err(Error::config("data.size", format!("{n} pixels"), format!("use 1 to {LONGEST}")));
    }
    let (train, test) = (path.join("train"), path.join("test"));
    let classes = folders(&train)?;
    if classes.is_empty() {
        return Err(Error::file(&train, "no classes", "make a folder for each class, with its images in it"));
    }
    if let Some(other) = folders(&test)?.iter().find(|name| classes.binary_search(name).is_err()) {
        return Err(Error::file(test.join(other), "a class that is not in train", "name it as in train, or remove it"));
    }
    let train = split(&train, &classes, size, None)?;
    let test = split(&test, &classes, size, Some([train.height, train.width]))?;
    Ok(Splits { train, validation: None, test })
}

/// The names in a folder, sorted, but hidden ones.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("read the folder", folder))? {
        let entry = entry.map_err(Error::io("read the folder", folder))?;
        let name = entry.file_name().into_string();
        let name = name.map_err(|_| Error::file(entry.path(), "its name is no text (UTF-8)", "rename it"))?;
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The folders among them: files beside them are no classes.
fn folders(folder: &Path) -> Result<Vec<String>> {
    let mut names = names(folder)?;
    names.retain(|name| folder.join(name).is_dir());
    Ok(names)
}

/// One split; its images must have the height and width of the other's.
fn split(folder: &Path, classes: &[String], size: Option<usize>, like: Option<[usize; 2]>) -> Result<Dataset> {
    let mut files = Vec::new();
    for (label, class) in (0..).zip(classes) {
        let class = folder.join(class);
        if class.exists() {
            files.extend(names(&class)?.into_iter().map(|name| (class.join(name), label)));
        }
    }
    let name = format!("image-folder {}", folder.file_name().unwrap_or_default().to_string_lossy());
    let decoded = files.par_iter().map(|(path, _)| decode(path, size)).collect::<Vec<_>>();
    let bytes = decoded.iter().flatten().map(|image| image.len()).sum();
    let mut images = room(bytes, &name)?;
    let mut like = like.map(|sides| (sides, None));
    for ((path, _), image) in files.iter().zip(decoded) {
        let image = image?;
        let sides = [image.height() as usize, image.width() as usize];
        let (want, first) = like.get_or_insert((sides, Some(path)));
        if sides != *want {
            let first = first.map_or_else(|| "those in train".to_string(), |p| format!("{}", p.display()));
            let problem =
                format!("{} pixels high and {} wide; {first}: {} and {}", sides[0], sides[1], want[0], want[1]);
            let remedy = "images of different sizes need one that all are resized to: --set data.size=64, with data info --size 64";
            return Err(Error::config(path.display().to_string(), problem, remedy));
        }
        images.extend_from_slice(&image);
    }
    let Some(([height, width], _)) = like.filter(|_| !files.is_empty()) else {
        return Err(Error::file(folder, "no images", "put PNG or JPEG files into the folders of the classes"));
    };
    Ok(Dataset {
        name,
        classes: classes.to_vec(),
        height,
        width,
        channels: 3,
        images,
        labels: files.into_iter().map(|(_, label)| label).collect(),
    })
}

/// The image in a file.
fn decode(path: &Path, size: Option<usize>) -> Result<RgbImage> {
    let bad = |problem| Error::file(path, problem, "use PNG and JPEG images, and move other files away");
    if !path.is_dir() && !picture::is_named(path) {
        let ending = path.extension().unwrap_or_default().display();
        return Err(bad(format!("no image by its name, which ends in `{ending}`")));
    }
    picture::read(path, size.map(|n| [n; 2])).map_err(|e| match e {
        Error::File { problem, .. } => bad(format!("no image: {problem}")),
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, GrayImage, RgbaImage};

    /// Two classes, one of them with a grey and one with a transparent image, 5 wide and 4 high.
    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let save = |name: &str, image: DynamicImage| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            image.save(path).unwrap();
        };
        save("train/dog/1.png", GrayImage::from_pixel(5, 4, image::Luma([7])).into());
        save("train/cat/2.PNG", RgbaImage::from_pixel(5, 4, image::Rgba([1, 2, 3, 0])).into());
        save("train/cat/1.jpg", RgbImage::from_pixel(5, 4, image::Rgb([200, 200, 200])).into());
        save("test/dog/x.jpeg", RgbImage::from_pixel(5, 4, image::Rgb([90, 90, 90])).into());
        fs::write(dir.path().join("train/.DS_Store"), "").unwrap();
        dir
    }

    #[test]
    fn folders_are_classes() {
        let dir = folder();
        let Splits { train, test, .. } = open(dir.path(), None).unwrap();
        assert_eq!(
            (train.classes.join(" "), &train.labels[..], &test.labels[..]),
            ("cat dog".into(), &[0, 0, 1][..], &[1][..])
        );
        assert_eq!((train.height, train.width, train.channels), (4, 5, 3));
        assert!(train.image(0).iter().all(|v| v.abs_diff(200) < 3));
        assert_eq!((&train.image(1)[..3], &train.image(2)[..3]), (&[1, 2, 3][..], &[7; 3][..]));
        assert_eq!(open(dir.path(), Some(9)).unwrap().test.image_len(), 9 * 9 * 3);
    }

    #[test]
    fn faults_are_named() {
        let dir = folder();
        let error = || open(dir.path(), None).unwrap_err().to_string();
        let at = |name: &str| dir.path().join(name);
        RgbImage::new(6, 4).save(at("test/dog/y.png")).unwrap();
        // Beside the classes it is none.
        fs::write(at("train/notes.txt"), "no").unwrap();
        assert!(error().contains("y.png") && error().contains("data.size"), "{}", error());
        fs::write(at("train/cat/3.png"), "no").unwrap();
        assert!(error().contains("3.png: no image"), "{}", error());
        fs::rename(at("train/cat/3.png"), at("train/cat/3.txt")).unwrap();
        assert!(error().contains("3.txt: no image by its name"), "{}", error());
        fs::remove_file(at("train/cat/3.txt")).unwrap();
        fs::create_dir(at("train/cat/3.png")).unwrap();
        assert!(error().contains("it is a folder"), "{}", error());
        fs::create_dir(at("test/fox")).unwrap();
        assert!(error().contains("fox: a class that is not in train"), "{}", error());
        assert!(open(dir.path(), Some(0)).unwrap_err().to_string().contains("data.size"));
        assert!(matches!(open(&at("none"), None), Err(Error::Io { .. })));
    }

    #[test]
    fn there_may_be_more_classes_than_a_byte_can_count() {
        let dir = folder();
        for i in 0..300 {
            fs::create_dir(dir.path().join(format!("train/{i}"))).unwrap();
        }
        let train = open(dir.path(), Some(4)).unwrap().train;
        assert_eq!((train.classes.len(), train.labels.last()), (302, Some(&301)));
    }

    /// `tools/resize.py` has the same image.
    #[test]
    fn images_are_resized_as_by_torchvision() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../../tests/goldens/resize.json")).unwrap();
        let side = |name: &str| golden[name].as_u64().unwrap() as u32;
        let image = RgbImage::from_fn(side("width"), side("height"), |x, y| {
            image::Rgb([0, 1, 2].map(|c| ((37 * x + 59 * y + 83 * c + x * y) % 256) as u8))
        });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.png");
        image.save(&path).unwrap();
        for (size, want) in golden["sizes"].as_object().unwrap() {
            let got = decode(&path, Some(size.parse().unwrap())).unwrap();
            let want: Vec<u8> = serde_json::from_value(want.clone()).unwrap();
            assert_eq!(got.len(), want.len());
            let worst = got.iter().zip(&want).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(worst <= Some(1), "{size}: {worst:?}");
        }
    }
}
