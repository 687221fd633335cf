//! The state dict: a network's numbers by PyTorch's names, in PyTorch's layouts.
//!
//! Keys are those of `nn.Sequential` (`0.weight`, `1.running_mean`, `1.num_batches_tracked`), a
//! convolution's weights are O, I, KH, KW, so a state dict that PyTorch saved as safetensors loads
//! here, and one of ours loads there with `strict=True`.

use super::layers::{Layer, Sequential};
use super::model::Model;
use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::ops::batch_norm2d::Running;
use crate::params::Param;
use crate::shape::Shape;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::path::Path;

/// Named tensors as bytes, as a safetensors file holds them.
pub type Entries = BTreeMap<String, Entry>;

/// A tensor as a safetensors file holds it: little-endian, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Entry {
    /// An entry of `f32`.
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Entry { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }

    /// A single `i64`.
    pub fn i64(value: i64) -> Self {
        Entry { dtype: Dtype::I64, shape: vec![], bytes: value.to_le_bytes().to_vec() }
    }

    /// The numbers as `f32`, from `f32`, `f16`, `bf16` or `f64`; `None` for another type.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.as_chunks::<N>().0.iter().map(|b| f(*b)).collect()
        }
        match self.dtype {
            Dtype::F32 => Some(each(&self.bytes, f32::from_le_bytes)),
            Dtype::F64 => Some(each(&self.bytes, |b| f64::from_le_bytes(b) as f32)),
            Dtype::F16 => Some(each(&self.bytes, |b| half::f16::from_le_bytes(b).to_f32())),
            Dtype::BF16 => Some(each(&self.bytes, |b| half::bf16::from_le_bytes(b).to_f32())),
            _ => None,
        }
    }

    fn to_i64(&self) -> Option<i64> {
        match self.dtype {
            Dtype::I64 => Some(i64::from_le_bytes(self.bytes.as_slice().try_into().ok()?)),
            Dtype::I32 => Some(i64::from(i32::from_le_bytes(self.bytes.as_slice().try_into().ok()?))),
            _ => None,
        }
    }
}

/// The bytes of a safetensors file.
///
/// # Errors
/// [`Error::Internal`] if the library refuses the entries.
pub fn serialize(entries: &Entries) -> Result<Vec<u8>> {
    let views: Result<Vec<_>, _> =
        entries.iter().map(|(k, e)| TensorView::new(e.dtype, e.shape.clone(), &e.bytes).map(|v| (k, v))).collect();
    views
        .and_then(|views| safetensors::serialize(views, None))
        .map_err(|e| Error::Internal(format!("safetensors: {e}")))
}

/// The entries of a safetensors file; `path` is for the error only.
///
/// # Errors
/// [`Error::File`] if the bytes are not a whole safetensors file.
pub fn deserialize(bytes: &[u8], path: &Path) -> Result<Entries> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| {
        Error::file(
            path,
            format!("not a whole safetensors file of {} bytes ({e})", bytes.len()),
            "save it again; from PyTorch: `safetensors.torch.save_file(net.state_dict(), \"net.safetensors\")`",
        )
    })?;
    let entry = |v: TensorView<'_>| Entry { dtype: v.dtype(), shape: v.shape().to_vec(), bytes: v.data().to_vec() };
    Ok(file.tensors().into_iter().map(|(k, v)| (k, entry(v))).collect())
}

/// The sizes of a parameter in PyTorch's layout: O, I, KH, KW for a convolution's weights.
fn torch_dims(shape: Shape) -> Vec<usize> {
    match shape.rank4() {
        Some([o, kh, kw, i]) => vec![o, i, kh, kw],
        None => shape.dims().to_vec(),
    }
}

/// O, KH, KW, I to O, I, KH, KW.
fn to_torch(shape: Shape, values: &[f32]) -> Vec<f32> {
    let Some([_, kh, kw, i]) = shape.rank4() else { return values.to_vec() };
    let k = kh * kw;
    let item = |v: &[f32]| (0..i * k).map(|at| v[at % k * i + at / k]).collect::<Vec<_>>();
    values.chunks(i * k).flat_map(item).collect()
}

/// O, I, KH, KW to O, KH, KW, I.
fn from_torch(shape: Shape, values: &[f32]) -> Vec<f32> {
    let Some([_, kh, kw, i]) = shape.rank4() else { return values.to_vec() };
    let k = kh * kw;
    let item = |v: &[f32]| (0..i * k).map(|at| v[at % i * k + at / i]).collect::<Vec<_>>();
    values.chunks(i * k).flat_map(item).collect()
}

fn batch_norms(net: &mut Sequential, f: &mut dyn FnMut(&str, &mut Running) -> Result<()>) -> Result<()> {
    for (key, _, layer) in &mut net.layers {
        match layer {
            Layer::BatchNorm { running, .. } => f(key, running)?,
            Layer::Residual(inner) => batch_norms(inner, f)?,
            _ => {}
        }
    }
    Ok(())
}

/// A network's numbers as they were at one moment.
pub struct Snapshot {
    params: Vec<Param>,
    values: Buffer,
    buffers: Entries,
}

impl Snapshot {
    /// The state dict.
    ///
    /// # Errors
    /// None that a snapshot of [`Model::snapshot`] can cause.
    pub fn state_dict(self) -> Result<Entries> {
        let values = self.values.host::<f32>()?;
        let mut out = self.buffers;
        for p in self.params {
            let entry = Entry::f32(&torch_dims(p.shape), &to_torch(p.shape, &values[p.range()]));
            out.insert(p.key, entry);
        }
        Ok(out)
    }
}

impl Model {
    /// Counts one more training batch in every batch-norm layer: for a step that was replayed.
    ///
    /// # Errors
    /// None today.
    pub fn count_batch(&mut self) -> Result<()> {
        batch_norms(&mut self.net, &mut |_, running| {
            running.batches += 1;
            Ok(())
        })
    }

    /// The parameters and running statistics.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn state_dict(&mut self) -> Result<Entries> {
        self.snapshot(&Device::cpu())?.state_dict()
    }

    /// A copy of the network's numbers in the memory of `host`, a CPU device: made at the speed of a copy, so that
    /// another thread can make the state dict of it.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn snapshot(&mut self, host: &Device) -> Result<Snapshot> {
        let mut buffers = Entries::new();
        batch_norms(&mut self.net, &mut |key, running| {
            let (mean, var) = (running.mean.to_vec::<f32>()?, running.var.to_vec::<f32>()?);
            buffers.insert(format!("{key}.running_mean"), Entry::f32(&[mean.len()], &mean));
            buffers.insert(format!("{key}.running_var"), Entry::f32(&[var.len()], &var));
            buffers.insert(format!("{key}.num_batches_tracked"), Entry::i64(running.batches));
            Ok(())
        })?;
        Ok(Snapshot { params: self.params.list().to_vec(), values: self.params.values().to_host(host)?, buffers })
    }

    /// Takes over a state dict: every key must be there, with its shape, and no other.
    /// `num_batches_tracked` may be missing. Nothing changes on an error. `path` is for the error.
    ///
    /// # Errors
    /// [`Error::File`] naming the keys that are missing, unknown or of another shape.
    pub fn load_state_dict(&mut self, entries: &Entries, path: &Path) -> Result<()> {
        let mut unknown: BTreeMap<&str, &Entry> = entries.iter().map(|(k, e)| (k.as_str(), e)).collect();
        let mut problems = Vec::new();
        let mut take = |key: &str, dims: &[usize]| -> Option<Vec<f32>> {
            let Some(entry) = unknown.remove(key) else {
                problems.push(format!("`{key}` is missing"));
                return None;
            };
            if entry.shape != dims {
                problems.push(format!("`{key}` is {:?} and should be {dims:?}", entry.shape));
                return None;
            }
            let values = entry.to_f32();
            if values.is_none() {
                problems.push(format!("`{key}` is of type {:?} and should be F32", entry.dtype));
            }
            values
        };
        let mut params = Vec::new();
        for p in self.params.list() {
            if let Some(values) = take(&p.key, &torch_dims(p.shape)) {
                params.push((p.range(), from_torch(p.shape, &values)));
            }
        }
        let mut stats = Vec::new();
        batch_norms(&mut self.net, &mut |key, running| {
            let dims = [running.mean.len()];
            stats.push((take(&format!("{key}.running_mean"), &dims), take(&format!("{key}.running_var"), &dims)));
            Ok(())
        })?;
        let mut counts = Vec::new();
        batch_norms(&mut self.net, &mut |key, _| {
            counts.push(
                unknown.remove(format!("{key}.num_batches_tracked").as_str()).and_then(Entry::to_i64).unwrap_or(0),
            );
            Ok(())
        })?;
        problems.extend(unknown.keys().map(|k| format!("`{k}` is not in this network")));
        if !problems.is_empty() {
            let more = problems.len().saturating_sub(8);
            problems.truncate(8);
            if more > 0 {
                problems.push(format!("and {more} more"));
            }
            return Err(Error::file(
                path,
                format!("its tensors do not fit the network:\n    {}", problems.join("\n    ")),
                "use weights of the same network; `tilework summary RECIPE` shows its layers",
            ));
        }
        let arena = self.params.values_mut()?;
        for (range, values) in params {
            arena.write(range.start, &values)?;
        }
        let mut stats = stats.into_iter().zip(counts);
        batch_norms(&mut self.net, &mut |_, running| {
            if let Some(((Some(mean), Some(var)), count)) = stats.next() {
                running.mean.write(&mean)?;
                running.var.write(&var)?;
                running.batches = count;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::spec::LayerSpec;

    fn model(seed: u64) -> Model {
        let inner: Vec<LayerSpec> = vec!["conv 3x1, 4 channels, pad 1x0".parse().unwrap(), LayerSpec::batch_norm()];
        let specs = [
            LayerSpec::conv(3, 4),
            LayerSpec::batch_norm(),
            LayerSpec::Residual(inner),
            LayerSpec::Flatten,
            LayerSpec::fc(3),
        ];
        Model::build(&specs, [5, 6, 2], &Device::cpu(), seed).unwrap()
    }

    #[test]
    fn a_state_dict_survives_a_round_trip() {
        let state = model(1).state_dict().unwrap();
        assert_eq!(state["0.weight"].shape, [4, 2, 3, 3]);
        assert!(state.contains_key("2.0.weight") && state.contains_key("2.1.num_batches_tracked"));
        let bytes = serialize(&state).unwrap();
        let read = deserialize(&bytes, Path::new("x")).unwrap();
        assert_eq!(read, state);
        let mut other = model(2);
        assert_ne!(other.state_dict().unwrap(), state);
        other.load_state_dict(&read, Path::new("x")).unwrap();
        assert_eq!(other.state_dict().unwrap(), state);
        for cut in [0, 7, 8, 100, bytes.len() - 1] {
            assert!(deserialize(&bytes[..cut], Path::new("x")).is_err());
        }
    }

    #[test]
    fn wrong_entries_are_all_named_and_nothing_changes() {
        let mut m = model(1);
        let before = m.state_dict().unwrap();
        let mut state = model(2).state_dict().unwrap();
        state.remove("0.bias");
        state.insert("9.weight".into(), Entry::i64(1));
        state.insert("4.bias".into(), Entry::f32(&[2], &[0.0; 2]));
        let e = m.load_state_dict(&state, Path::new("w.safetensors")).unwrap_err().to_string();
        for word in
            ["w.safetensors", "`0.bias` is missing", "`9.weight` is not in", "`4.bias` is [2] and should be [3]"]
        {
            assert!(e.contains(word), "{e}");
        }
        assert_eq!(m.state_dict().unwrap(), before);
    }

    #[test]
    fn layouts_are_permuted() {
        let shape = Shape::from([1, 2, 1, 3]);
        let ours = [0., 1., 2., 3., 4., 5.];
        assert_eq!(to_torch(shape, &ours), [0., 3., 1., 4., 2., 5.]);
        assert_eq!(from_torch(shape, &to_torch(shape, &ours)), ours);
    }
}
