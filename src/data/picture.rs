//! Pictures from files: PNG and JPEG, of any size, grey or coloured, with or without transparency.

use crate::error::{Error, Result};
use crate::formats::file;
use image::imageops::{FilterType, resize};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// Whether a name ends as those of pictures do.
pub(crate) fn is_named(path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    ending.is_some_and(|e| ["png", "jpg", "jpeg"].contains(&e.as_str()))
}

/// Reads a picture in RGB and, if a height and width are given, brings it to them: as torchvision's
/// `resize(picture, [h, w], antialias=True)`, bilinear, with a filter as wide as the picture shrinks. A JPEG is turned as the
/// camera's note in it says (EXIF orientation); what is transparent keeps the colour that it has.
///
/// # Errors
/// [`Error::Io`]; [`Error::File`] for what is no picture, and no file.
pub(crate) fn read(path: &Path, size: Option<[usize; 2]>) -> Result<RgbImage> {
    if path.is_dir() {
        let remedy = "give a folder of pictures that end in .png, .jpg or .jpeg";
        return Err(Error::file(path, "it is a folder without PNG or JPEG files", remedy));
    }
    let remedy = "give a PNG or JPEG file; other formats: convert it first";
    let bytes = file::read(path, "read the picture")?;
    // The format is told from the contents: names lie. The crate's limits bound what a small file can unfold to.
    let picture = ImageReader::new(Cursor::new(&bytes)).with_guessed_format().map_err(ImageError::from);
    let picture = picture.and_then(decoded).map_err(|e| match (e, image::guess_format(&bytes)) {
        (ImageError::Limits(e), _) => {
            Error::file(path, format!("too large a picture: {e}"), "make it smaller: 10,000 pixels a side can be read")
        }
        (e, Ok(ImageFormat::Png | ImageFormat::Jpeg)) => Error::file(path, format!("a damaged picture: {e}"), remedy),
        _ => Error::file(path, "no PNG or JPEG picture", remedy),
    })?;
    let rgb = picture.into_rgb8();
    let Some([h, w]) = size.map(|sides| sides.map(|n| n as u32)) else { return Ok(rgb) };
    Ok(if rgb.dimensions() == (w, h) { rgb } else { resize(&rgb, w, h, FilterType::Triangle) })
}

/// The picture, upright.
fn decoded(reader: ImageReader<Cursor<&Vec<u8>>>) -> Result<DynamicImage, ImageError> {
    let mut decoder = reader.into_decoder()?;
    Limits::default().reserve(decoder.total_bytes())?;
    // What is noted wrongly is no reason to refuse the picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// The pictures that paths stand for: a file for itself, a folder for all PNG and JPEG files in it and in its folders,
/// by name; one without pictures for itself, which [`read`] reports.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        if !path.is_dir() {
            found.push(path.clone());
            continue;
        }
        let before = found.len();
        walk(path, &mut found)?;
        if found.len() == before {
            found.push(path.clone());
        }
    }
    Ok(found)
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut entries = entries.map_err(Error::io("read the folder", folder))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        // Links to folders are not followed, so that no circle of them is.
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&path, found)?;
        } else if is_named(&path) {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::DynamicImage;

    #[test]
    fn pictures_of_every_kind_become_rgb() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let rgb = RgbImage::from_fn(4, 2, |x, y| image::Rgb([10 * x as u8, 100 * y as u8, 7]));
        let rgb = DynamicImage::from(rgb);
        rgb.save(at("rgb.png")).unwrap();
        assert_eq!(read(&at("rgb.png"), Some([2, 4])).unwrap().as_raw(), rgb.as_bytes());
        rgb.to_rgba16().save(at("alpha.png")).unwrap();
        assert_eq!(read(&at("alpha.png"), Some([2, 4])).unwrap().as_raw(), rgb.as_bytes());
        // A name that lies about the format.
        rgb.save_with_format(at("jpeg.png"), ImageFormat::Jpeg).unwrap();
        assert_eq!(read(&at("jpeg.png"), Some([5, 3])).unwrap().as_raw().len(), 45);
        // Taken with the camera on its side: what is below on the sensor is on the left.
        let note = b"\xff\xe1\0\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let jpeg = std::fs::read(at("jpeg.png")).unwrap();
        std::fs::write(at("turned.jpg"), [&jpeg[..2], note, &jpeg[2..]].concat()).unwrap();
        let (plain, turned) = (read(&at("jpeg.png"), None).unwrap(), read(&at("turned.jpg"), None).unwrap());
        assert_eq!((turned.dimensions(), turned.get_pixel(1, 3)), ((2, 4), plain.get_pixel(3, 0)));
        std::fs::remove_file(at("turned.jpg")).unwrap();
        DynamicImage::from(image::GrayImage::from_pixel(9, 9, image::Luma([77]))).save(at("grey.PNG")).unwrap();
        assert_eq!(read(&at("grey.PNG"), Some([2, 2])).unwrap().as_raw(), &[77; 12]);
        std::fs::write(at("text.png"), "hello").unwrap();
        std::fs::write(at("gif.png"), b"GIF89a\x01\0\x01\0").unwrap();
        let whole = std::fs::read(at("rgb.png")).unwrap();
        std::fs::write(at("cut.png"), &whole[..whole.len() / 2]).unwrap();
        for (name, words) in [
            ("text.png", "no PNG or JPEG"),
            ("gif.png", "no PNG or JPEG"),
            ("cut.png", "damaged"),
            ("none.png", "none.png"),
        ] {
            let e = read(&at(name), Some([2, 2])).unwrap_err().to_string();
            assert!(e.contains(words), "{e}");
        }
        let names = find(&[dir.path().to_path_buf()]).unwrap();
        let names: Vec<_> = names.iter().filter_map(|p| p.file_name()?.to_str()).collect();
        assert_eq!(names, ["alpha.png", "cut.png", "gif.png", "grey.PNG", "jpeg.png", "rgb.png", "text.png"]);
    }

    #[test]
    fn shrinking_averages_what_it_covers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stripes.png");
        // Columns 0 and 255: a filter that skips pixels would give one of the two.
        RgbImage::from_fn(64, 64, |x, _| image::Rgb([255 * (x % 2) as u8; 3])).save(&path).unwrap();
        let small = read(&path, Some([8, 8])).unwrap();
        assert!(small.iter().all(|v| (120..=136).contains(v)), "{small:?}");
    }
}
