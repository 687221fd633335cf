//! Reads the state dicts that `torch.save` writes (PyTorch 1.6 and later): a zip archive of a pickle, `data.pkl`, and
//! the numbers of each storage, `data/KEY`.
//!
//! The pickle is never executed ([`super::pickle`]), and what is made is bounded by the size of the file: a tensor
//! holds no more numbers than its storage, all of them together at most [`SHARED`] times what the file does.

use super::pickle::{Pickle, Tensor};
use super::zip;
use safetensors::Dtype;

/// How often on average a storage may be used.
const SHARED: usize = 8;

/// Named numbers: little-endian, row-major.
#[derive(Debug)]
pub(crate) struct Numbers {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// Whether bytes begin as a file of `torch.save` does, of now or of before version 1.6.
pub(crate) fn is_torch(bytes: &[u8]) -> bool {
    zip::is_zip(bytes) || is_old(bytes)
}

/// A pickle of protocol 2 that begins with PyTorch's magic number.
fn is_old(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")
}

/// The tensors of a state dict.
///
/// # Errors
/// The problem in words.
pub(crate) fn read(bytes: &[u8]) -> Result<Vec<Numbers>, String> {
    if is_old(bytes) {
        return Err("the format of PyTorch before 1.6, which is not read".into());
    }
    let files = zip::files(bytes)?;
    // All files lie in a folder whose name is of no account.
    let get = |name: &str| files.iter().find(|(n, _)| n.split_once('/').is_some_and(|(_, n)| n == name));
    let (_, program) = get("data.pkl").ok_or("an archive without `data.pkl`")?;
    if get("byteorder").is_some_and(|(_, order)| *order != b"little") {
        return Err("numbers in big-endian order".into());
    }
    let pickle = Pickle::parse(program)?;
    let mut room = bytes.len().saturating_mul(SHARED);
    let mut numbers = Vec::new();
    for (name, tensor) in pickle.tensors()? {
        let data = get(&format!("data/{}", tensor.storage.key)).ok_or_else(|| "its numbers are missing".to_string());
        let bytes = data.and_then(|(_, data)| gather(tensor, data, &mut room)).map_err(|e| format!("`{name}`: {e}"))?;
        numbers.push(Numbers { name, dtype: tensor.storage.dtype, shape: tensor.shape.clone(), bytes });
    }
    Ok(numbers)
}

/// The numbers of a tensor in row-major order.
fn gather(t: &Tensor, data: &[u8], room: &mut usize) -> Result<Vec<u8>, String> {
    let size = t.storage.dtype.bitsize() / 8;
    if t.storage.len.checked_mul(size) != Some(data.len()) {
        return Err(format!("its storage has {} bytes, which are not {} numbers", data.len(), t.storage.len));
    }
    let count = t.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n <= t.storage.len);
    let count = count.ok_or_else(|| format!("sizes {:?} of {} numbers", t.shape, t.storage.len))?;
    let bytes = count * size;
    *room = room.checked_sub(bytes).ok_or("the tensors are far larger than the file")?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let outside = || format!("sizes {:?} with strides {:?} lead outside of its storage", t.shape, t.strides);
    let span = t.shape.iter().zip(&t.strides).try_fold(0usize, |at, (d, s)| at.checked_add((d - 1).checked_mul(*s)?));
    let last = span.and_then(|span| span.checked_add(t.offset)).filter(|last| *last < t.storage.len);
    last.ok_or_else(outside)?;
    let dense = t.shape.iter().zip(&t.strides).rev().try_fold(1, |n, (d, s)| (*d == 1 || *s == n).then_some(n * d));
    if dense.is_some() {
        return Ok(data[t.offset * size..(t.offset + count) * size].to_vec());
    }
    let mut out = Vec::with_capacity(bytes);
    let mut index = vec![0; t.shape.len()];
    for _ in 0..count {
        let at = t.offset + index.iter().zip(&t.strides).map(|(i, s)| i * s).sum::<usize>();
        out.extend_from_slice(&data[at * size..(at + 1) * size]);
        for (i, d) in index.iter_mut().zip(&t.shape).rev() {
            *i += 1;
            if *i < *d {
                break;
            }
            *i = 0;
        }
    }
    Ok(out)
}

#[cfg(test)]
#[path = "../../tests/unit/torch.rs"]
mod tests;
