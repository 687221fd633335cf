//! The globals that are understood; none is called.

use super::machine::Object;
use super::strings::shown;
use super::torch::storage_type;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    Reconstruct,
    NdArray,
    Dtype,
    Encode,
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
}

/// The object of a global.
///
/// # Errors
/// For every other one, naming it.
pub(super) fn known_global<'a>(module: &str, name: &str) -> Result<Object<'a>, String> {
    Ok(Object::Global(match (module, name) {
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Global::Reconstruct,
        ("numpy", "ndarray") => Global::NdArray,
        ("numpy", "dtype") => Global::Dtype,
        ("_codecs", "encode") => Global::Encode,
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        _ => match storage_type(name).filter(|_| module == "torch") {
            Some(dtype) => return Ok(Object::StorageType(dtype)),
            None => {
                return Err(format!(
                    "the global `{}.{}` is refused: only arrays and tensors of numbers are read, and loading this \
                     file in Python could run code",
                    shown(module),
                    shown(name)
                ));
            }
        },
    }))
}
