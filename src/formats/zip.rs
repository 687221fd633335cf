//! Zip archives whose files are stored as they are, as PyTorch writes them.
//!
//! Source: PKWARE, APPNOTE.TXT 6.3.10, sections 4.3.7 (local file header), 4.3.12 (central directory) and 4.3.16 (its
//! end record). Files are borrowed from the archive and nothing is unpacked, so that nothing can unfold.

/// How records begin.
const LOCAL: &[u8] = b"PK\x03\x04";
const CENTRAL: &[u8] = b"PK\x01\x02";
const END: &[u8] = b"PK\x05\x06";

/// Bytes of the end record without its comment, which has at most 64 KiB.
const END_LEN: usize = 22;

/// Whether bytes begin as an archive does.
pub(crate) fn is_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(LOCAL)
}

/// The unsigned little-endian number of `N` bytes at a place.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<usize> {
    Some(bytes.get(at..)?.get(..N)?.iter().rev().fold(0, |n, b| (n << 8) | usize::from(*b)))
}

/// The files of an archive with their names, in its order.
///
/// # Errors
/// The problem in words.
pub(crate) fn files(archive: &[u8]) -> Result<Vec<(&str, &[u8])>, String> {
    let cut = || "a zip archive that is cut off or damaged".to_string();
    let places = (archive.len().saturating_sub(END_LEN + 0xffff)..=archive.len().saturating_sub(END_LEN)).rev();
    let end = places.into_iter().find(|at| archive[*at..].starts_with(END)).ok_or_else(cut)?;
    let (count, mut at) = (number::<2>(archive, end + 10), number::<4>(archive, end + 16));
    let mut found = Vec::new();
    for _ in 0..count.ok_or_else(cut)? {
        let here = at.and_then(|at| archive.get(at..)).filter(|here| here.starts_with(CENTRAL)).ok_or_else(cut)?;
        let field = |place| number::<2>(here, place).ok_or_else(cut);
        let long = |place| number::<4>(here, place).ok_or_else(cut);
        let (flags, method, name_len) = (field(8)?, field(10)?, field(28)?);
        let (crc, size, local) = (long(16)?, long(24)?, long(42)?);
        let name = here.get(46..46 + name_len).and_then(|n| std::str::from_utf8(n).ok()).ok_or_else(cut)?;
        if method != 0 || flags & 1 != 0 || long(20)? != size {
            return Err(format!("`{}` in the archive is compressed or encrypted", name.escape_debug()));
        }
        if [size, local].contains(&0xffff_ffff) {
            return Err("a zip archive of 4 GiB or more".into());
        }
        let head = archive.get(local..).filter(|head| head.starts_with(LOCAL)).ok_or_else(cut)?;
        let skip = 30 + number::<2>(head, 26).ok_or_else(cut)? + number::<2>(head, 28).ok_or_else(cut)?;
        let data = head.get(skip..).and_then(|data| data.get(..size)).ok_or_else(cut)?;
        let mut sum = flate2::Crc::new();
        sum.update(data);
        if sum.sum() as usize != crc {
            return Err(format!("`{}` in the archive is damaged: its CRC-32 is wrong", name.escape_debug()));
        }
        found.push((name, data));
        at = at.map(|at| at + 46 + name_len + field(30).unwrap_or(0) + field(32).unwrap_or(0));
    }
    Ok(found)
}
