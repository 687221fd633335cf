//! The state dict: a network's numbers by PyTorch's names, in PyTorch's layouts.
//!
//! Keys are those of `nn.Sequential` (`0.weight`, `1.running_mean`, `1.num_batches_tracked`), a
//! convolution's weights are O, I, KH, KW, so a state dict that PyTorch saved as safetensors loads
//! here, and one of ours loads there with `strict=True`.

use super::model::Model;
use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::formats::torch;
use crate::params::{Param, channels_first, channels_last};
use crate::shape::Shape;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;

/// Named tensors as bytes, as a safetensors file holds them.
pub type StateDict = BTreeMap<String, Array>;

/// A tensor as a safetensors file holds it: little-endian, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Array {
    /// An array of `f32`.
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Array { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }

    /// A single `i64`.
    pub fn i64(value: i64) -> Self {
        Array { dtype: Dtype::I64, shape: vec![], bytes: value.to_le_bytes().to_vec() }
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

    /// The sizes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
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
/// [`Error::Internal`] if the library refuses the tensors.
pub fn serialize(state: &StateDict) -> Result<Vec<u8>> {
    let views: Result<Vec<_>, _> =
        state.iter().map(|(k, a)| TensorView::new(a.dtype, a.shape.clone(), &a.bytes).map(|v| (k, v))).collect();
    views
        .and_then(|views| safetensors::serialize(views, None))
        .map_err(|e| Error::Internal(format!("safetensors: {e}")))
}

/// The tensors of a safetensors file, or of a `.pth` file as `torch.save` writes it, whose pickle is never
/// executed; `path` is for the error only.
///
/// # Errors
/// [`Error::File`] if the bytes are not a whole file of one of the two.
pub fn deserialize(bytes: &[u8], path: &Path) -> Result<StateDict> {
    if torch::is_torch(bytes) {
        let list = torch::read(bytes).map_err(|problem| {
            let remedy = "save the state dict again with a PyTorch of now: `torch.save(net.state_dict(), \"net.pth\")`, \
                          or as safetensors: `safetensors.torch.save_file(net.state_dict(), \"net.safetensors\")`";
            Error::file(path, problem, remedy)
        })?;
        let array = |n: torch::Numbers| (n.name, Array { dtype: n.dtype, shape: n.shape, bytes: n.bytes });
        return Ok(list.into_iter().map(array).collect());
    }
    let file = SafeTensors::deserialize(bytes).map_err(|e| {
        Error::file(
            path,
            format!("not a whole safetensors file of {} bytes ({e})", bytes.len()),
            "save it again; from PyTorch: `safetensors.torch.save_file(net.state_dict(), \"net.safetensors\")`",
        )
    })?;
    let array = |v: TensorView<'_>| Array { dtype: v.dtype(), shape: v.shape().to_vec(), bytes: v.data().to_vec() };
    Ok(file.tensors().into_iter().map(|(k, v)| (k, array(v))).collect())
}

/// The sizes of a tensor in PyTorch's layout: O, I, KH, KW for a convolution's weights.
fn torch_dims(shape: Shape) -> Vec<usize> {
    match shape.rank4() {
        Some([o, kh, kw, i]) => vec![o, i, kh, kw],
        None => shape.dims().to_vec(),
    }
}

/// A network's numbers as they were at one moment.
pub struct Snapshot {
    params: Vec<Param>,
    values: Buffer,
    buffers: StateDict,
}

impl Snapshot {
    /// The key of the first parameter that holds a number that is not finite.
    ///
    /// # Errors
    /// None that a snapshot of [`Model::snapshot`] can cause.
    pub fn non_finite_parameter(&self) -> Result<Option<String>> {
        let values = self.values.host::<f32>()?;
        // In blocks, so that the loop over a block has no exit.
        let finite = |block: &[f32]| block.iter().fold(true, |all, v| all & v.is_finite());
        let bad = |p: &&Param| !values[p.range()].chunks(1024).all(finite);
        Ok(self.params.iter().find(bad).map(|p| p.key.clone()))
    }

    /// The state dict.
    ///
    /// # Errors
    /// None that a snapshot of [`Model::snapshot`] can cause.
    pub fn state_dict(self) -> Result<StateDict> {
        let values = self.values.host::<f32>()?;
        let mut out = self.buffers;
        for p in self.params {
            let array = Array::f32(&torch_dims(p.shape), &channels_first(p.images(), &values[p.range()]));
            out.insert(p.key, array);
        }
        Ok(out)
    }
}

impl Model {
    /// The parameters and running statistics.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn state_dict(&self) -> Result<StateDict> {
        self.snapshot(&Device::cpu())?.state_dict()
    }

    /// A copy of the network's numbers in the memory of `host`, a CPU device: made at the speed of a copy, so that
    /// another thread can make the state dict of it.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn snapshot(&self, host: &Device) -> Result<Snapshot> {
        let mut buffers = StateDict::new();
        for (key, t) in self.buffers.tensors() {
            let values = channels_first(t.shape().rank4(), &t.to_vec::<f32>()?);
            buffers.insert(key.into(), Array::f32(&torch_dims(t.shape()), &values));
        }
        for counter in self.buffers.counters() {
            buffers.insert(counter.key.clone(), Array::i64(counter.count.load(Ordering::Relaxed)));
        }
        Ok(Snapshot { params: self.params.list().to_vec(), values: self.params.values().to_host(host)?, buffers })
    }

    /// Takes over a state dict: every key must be there, with its shape, and no other.
    /// `num_batches_tracked` may be missing. Nothing changes on an error. `path` is for the error.
    ///
    /// # Errors
    /// [`Error::File`] naming the keys that are missing, unknown or of another shape.
    pub fn load_state_dict(&mut self, state: &StateDict, path: &Path) -> Result<()> {
        let mut unknown: BTreeMap<&str, &Array> = state.iter().map(|(k, a)| (k.as_str(), a)).collect();
        let mut problems = Vec::new();
        let mut take = |key: &str, shape: Shape, images: Option<[usize; 4]>| -> Option<Vec<f32>> {
            let Some(array) = unknown.remove(key) else {
                problems.push(format!("`{key}` is missing"));
                return None;
            };
            let dims = torch_dims(shape);
            if array.shape != dims {
                problems.push(format!("`{key}` is {:?} and should be {dims:?}", array.shape));
                return None;
            }
            let values = array.to_f32();
            if values.is_none() {
                problems.push(format!("`{key}` is of type {:?} and should be F32", array.dtype));
            }
            Some(channels_last(images, &values?))
        };
        let params: Vec<_> =
            self.params.list().iter().map(|p| (p.range(), take(&p.key, p.shape, p.images()))).collect();
        let buffers: Vec<_> = self.buffers.tensors().map(|(key, t)| take(key, t.shape(), t.shape().rank4())).collect();
        let counts = self.buffers.counters().iter();
        let counts: Vec<_> = counts.map(|c| unknown.remove(c.key.as_str()).and_then(Array::to_i64)).collect();
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
            arena.write(range.start, &values.unwrap_or_default())?;
        }
        for ((_, mut tensor), values) in self.buffers.tensors().zip(buffers) {
            tensor.write(&values.unwrap_or_default())?;
        }
        for (counter, count) in self.buffers.counters().iter().zip(counts) {
            counter.count.store(count.unwrap_or(0), Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Var;
    use crate::nn::{Layer, layer, layers::Residual};
    use crate::tensor::Tensor;

    fn model(seed: u64) -> Model {
        let list = |phrases: &[&str]| phrases.iter().map(|p| layer(p).unwrap()).collect::<Vec<Box<dyn Layer>>>();
        let main = list(&["conv 3x1, 4 channels, pad 1x0", "batch_norm"]).into();
        let mut net = list(&["conv 3x3, 4 channels", "batch_norm", "flatten", "fc 3"]);
        net.insert(2, Box::new(Residual { main, ..Residual::default() }));
        Model::new(net, [5, 6, 2], &Device::cpu(), seed).unwrap()
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
    fn wrong_tensors_are_all_named_and_nothing_changes() {
        let mut m = model(1);
        let before = m.state_dict().unwrap();
        let mut state = model(2).state_dict().unwrap();
        state.remove("0.bias");
        state.insert("9.weight".into(), Array::i64(1));
        state.insert("4.bias".into(), Array::f32(&[2], &[0.0; 2]));
        let e = m.load_state_dict(&state, Path::new("w.safetensors")).unwrap_err().to_string();
        for word in
            ["w.safetensors", "`0.bias` is missing", "`9.weight` is not in", "`4.bias` is [2] and should be [3]"]
        {
            assert!(e.contains(word), "{e}");
        }
        assert_eq!(m.state_dict().unwrap(), before);
    }

    #[test]
    fn features_stay_as_they_lie_where_a_linear_layer_takes_them() {
        let device = Device::cpu();
        let of = |phrases: &[&str], seed| {
            let net: Vec<Box<dyn Layer>> = phrases.iter().map(|p| layer(p).unwrap()).collect();
            Model::new(net, [2, 3, 2], &device, seed).unwrap()
        };
        let image = |m: &Model, key: &str| m.params.list().iter().find(|p| p.key == key).unwrap().image;
        let x = (0..24).map(|i| (i * i % 17) as f32 / 8.0 - 1.0).collect::<Vec<_>>();
        let x = Var::constant(Tensor::from_slice(&device, [2, 2, 3, 2], &x).unwrap());
        // By channels, as PyTorch has them: a layer that looks at places follows.
        let by_channel = of(&["flatten", "log_softmax", "fc 4", "fc 3"], 3);
        assert_eq!(image(&by_channel, "2.weight"), None);
        for phrases in [["flatten", "fc 4", "fc 3"], ["flatten", "relu", "fc 4"], ["flatten", "dropout 0.5", "fc 4"]] {
            let mut stored = of(&phrases, 3);
            let first = if phrases[1] == "fc 4" { "1.weight" } else { "2.weight" };
            assert_eq!(image(&stored, first), Some([2, 3, 2]), "{phrases:?}");
            assert_eq!(image(&stored, "2.weight").is_some(), first == "2.weight");
            let state = stored.state_dict().unwrap();
            assert_eq!(state[first].shape, [4, 12]);
            // What PyTorch computes with this state dict.
            let weights = state[first].to_f32().unwrap();
            let flat = x.flatten(&mut stored.eval()).unwrap();
            let flat = if phrases[1] == "relu" { flat.relu(&mut stored.eval()).unwrap() } else { flat };
            let w = Var::constant(Tensor::from_slice(&device, [4, 12], &weights).unwrap());
            let b = state[&first.replace("weight", "bias")].to_f32().unwrap();
            let b = Var::constant(Tensor::from_slice(&device, [4], &b).unwrap());
            let mut want = flat.linear(&w, Some(&b), &mut stored.eval()).unwrap();
            if first == "1.weight" {
                let of = |key: &str, shape: &[usize]| {
                    let values = state[key].to_f32().unwrap();
                    Var::constant(Tensor::from_slice(&device, Shape::from_slice(shape).unwrap(), &values).unwrap())
                };
                let [w, b] = [of("2.weight", &[3, 4]), of("2.bias", &[3])];
                want = want.linear(&w, Some(&b), &mut stored.eval()).unwrap();
            }
            let got = stored.forward(&x, &mut stored.eval()).unwrap();
            let [got, want] = [got, want].map(|v| v.value().to_vec::<f32>().unwrap());
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5), "{phrases:?}: {got:?} {want:?}");
            // The same numbers to begin with as in PyTorch's order, and they come back.
            let other = of(&phrases, 4).state_dict().unwrap();
            assert_ne!(other, state);
            stored.load_state_dict(&other, Path::new("x")).unwrap();
            assert_eq!(stored.state_dict().unwrap(), other);
        }
    }
}
