//! The globals and objects of which PyTorch's state dicts are made.
//!
//! Source: `torch/serialization.py` (`persistent_id`: a storage is its type, key, device and length) and
//! `torch/_utils.py` (`_rebuild_tensor_v2`: a tensor is a storage, a place in it, sizes and strides).

use super::Pickle;
use super::machine::{Id, MAX_AXES, Object, bytes_of};
use safetensors::Dtype;

/// What lies in a file of the archive: `len` numbers in `data/KEY`.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    pub(crate) key: String,
    pub(crate) dtype: Dtype,
    pub(crate) len: usize,
}

/// A tensor as a view of a storage; offset and strides count numbers.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) storage: Storage,
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
}

/// The type of a storage by its class.
pub(super) fn storage_type(name: &str) -> Option<Dtype> {
    Some(match name {
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

/// The storage that `("storage", class, key, device, length)` stands for.
pub(super) fn storage(objects: &[Object<'_>], id: &[Id]) -> Result<Storage, String> {
    let [kind, class, key, _device, len] = id else { return Err("a storage should have 5 parts".into()) };
    let text = |id: &Id| objects.get(*id).and_then(bytes_of).and_then(|b| std::str::from_utf8(b).ok());
    let (Some("storage"), Some(Object::StorageType(dtype)), Some(key)) = (text(kind), objects.get(*class), text(key))
    else {
        return Err("a reference to something other than a storage".into());
    };
    Ok(Storage { key: key.into(), dtype: *dtype, len: natural(objects, *len)? })
}

/// The tensor of the arguments of `_rebuild_tensor_v2`.
pub(super) fn tensor(objects: &[Object<'_>], args: &[Id]) -> Result<Tensor, String> {
    let [storage, offset, shape, strides, ..] = args else { return Err("a tensor without storage or sizes".into()) };
    let Some(Object::Storage(storage)) = objects.get(*storage) else { return Err("a tensor without storage".into()) };
    let list = |id: &Id| match objects.get(*id) {
        Some(Object::Tuple(items)) if items.len() <= MAX_AXES => {
            items.iter().map(|id| natural(objects, *id)).collect::<Result<Vec<_>, _>>()
        }
        _ => Err("a tensor's sizes should be a short tuple".into()),
    };
    let (shape, strides) = (list(shape)?, list(strides)?);
    if shape.len() != strides.len() {
        return Err(format!("a tensor of {} axes with {} strides", shape.len(), strides.len()));
    }
    Ok(Tensor { storage: storage.clone(), offset: natural(objects, *offset)?, shape, strides })
}

fn natural(objects: &[Object<'_>], id: Id) -> Result<usize, String> {
    match objects.get(id) {
        Some(Object::Integer(n)) => usize::try_from(*n).map_err(|_| format!("a length of {n}")),
        _ => Err("a length that is no integer".into()),
    }
}

impl Pickle<'_> {
    /// The tensors of a state dict with their names; the dictionary may lie in another one, as training programs
    /// save it.
    ///
    /// # Errors
    /// The problem in words.
    pub(crate) fn tensors(&self) -> Result<Vec<(String, &Tensor)>, String> {
        let inner = ["state_dict", "model_state_dict", "model"].iter().find_map(|key| match self.get(key) {
            Ok(Object::Dict(pairs)) => Some(pairs),
            _ => None,
        });
        let pairs = match (inner, self.objects.get(self.root)) {
            (Some(pairs), _) | (None, Some(Object::Dict(pairs))) => pairs,
            _ => return Err("no dictionary".into()),
        };
        let one = |(key, value): &(Id, Id)| {
            let name = self.objects.get(*key).and_then(bytes_of).map(|b| String::from_utf8_lossy(b).into_owned());
            let name = name.ok_or("a tensor whose name is no text")?;
            match self.objects.get(*value) {
                Some(Object::Tensor(tensor)) => Ok((name, tensor)),
                _ => Err(format!("`{}` is no tensor: this is no state dict", name.escape_debug())),
            }
        };
        pairs.iter().map(one).collect()
    }
}
