//! The trainable parameters of a network, in one flat arena, their gradients in another, and beside
//! them its [`Buffers`].
//!
//! One arena means one optimizer launch, one checkpoint write, and gradients that ops write in
//! place. A parameter's view of the arena lives only as long as a forward and backward pass; between
//! passes the arena is owned by [`Params`] alone and may be written.

mod buffers;
mod grads;
mod layout;
mod pattern;
mod rounded;
mod scaling;

pub use buffers::{BufferId, Buffers};
pub use grads::{ParamGrads, Slot};
pub(crate) use grads::{Part, Recorded};
pub(crate) use layout::{channels_first, channels_last};
pub use pattern::matches;
pub use scaling::Scaling;

use rounded::Rounded;

use crate::device::cpu::{Cpu, for_pieces};
use crate::device::cuda::{In, Out};
use crate::device::{Buffer, Device};
use crate::dtype::{DType, Element, Precision};
use crate::error::{Error, Result};
use crate::rng::{normals, stream, to_unit};
use crate::shape::Shape;
use crate::step::{GROUPS, Step};
use crate::tensor::Tensor;
use std::ops::Range;
use std::sync::Arc;

/// Names a parameter: its number, in the order of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamId(pub(crate) usize);

impl Default for ParamId {
    /// Names none.
    fn default() -> Self {
        ParamId(usize::MAX)
    }
}

/// How a parameter is initialised; PyTorch's defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Uniform in ±1/sqrt(fan_in): what Kaiming-uniform with a = sqrt(5) gives for weights, and
    /// PyTorch's default for biases (He et al., "Delving Deep into Rectifiers", 2015).
    FanIn(usize),
    /// Normal, with the variance 2 / fan_out: PyTorch's `kaiming_normal_(mode="fan_out", nonlinearity="relu")`.
    FanOut(usize),
    /// As [`Init::FanIn`], but the first filters of O, KH, KW, I pass on an input channel each: filter i is 1 at its
    /// centre in channel i, else 0, as PyTorch's `dirac_` makes the first I filters.
    Dirac(usize),
    /// As [`Init::FanIn`], then divided by their standard deviation (of n - 1).
    UnitDeviation(usize),
    /// As [`Init::FanIn`], until `Model::whiten` makes them from images.
    Whiten(usize),
    /// One value for all.
    Constant(f32),
}

impl Init {
    /// What is done to the uniform numbers of a parameter of this shape.
    fn finish(self, shape: Shape, place: &mut [f32]) {
        match (self, shape.rank4()) {
            (Init::Dirac(_), Some([o, kh, kw, c])) => {
                for (i, filter) in place.chunks_mut(kh * kw * c).enumerate().take(o.min(c)) {
                    filter.fill(0.0);
                    filter[(kh / 2 * kw + kw / 2) * c + i] = 1.0;
                }
            }
            (Init::UnitDeviation(_), _) => {
                let n = place.len() as f64;
                let mean = place.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
                let squares: f64 = place.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
                let deviation = (squares / (n - 1.0)).sqrt();
                if deviation > 0.0 {
                    place.iter_mut().for_each(|x| *x = (f64::from(*x) / deviation) as f32);
                }
            }
            _ => {}
        }
    }
}

/// A parameter: its place in the arena and what it is called.
#[derive(Clone, Debug)]
pub struct Param {
    /// Key in the state dict: `0.weight`.
    pub key: String,
    /// Sizes: O, KH, KW, I for a convolution's weights; `[out, in]` for a linear layer's.
    pub shape: Shape,
    /// The image whose features a linear layer's weights take as they lie in memory: the columns are in the order of its
    /// h, w, c, and in PyTorch's, c, h, w, in the state dict.
    pub image: Option<[usize; 3]>,
    /// How it starts.
    pub init: Init,
    /// Its group: which of a step's rates it moves at.
    pub group: u8,
    /// Whether it is trained. A frozen parameter has no gradient, and optimizers leave it alone.
    pub trainable: bool,
    /// Whether it is moved as a matrix, by Muon: the other optimizers leave it alone.
    pub by_matrix: bool,
    offset: usize,
}

impl Param {
    /// A parameter of group 0, to be trained. It gets its place from [`Params::new`].
    pub fn new(key: String, shape: Shape, init: Init) -> Self {
        Param { key, shape, image: None, init, group: 0, trainable: true, by_matrix: false, offset: 0 }
    }

    /// Its sizes as a batch of images, where PyTorch has the channels of each before its rows: O, KH, KW, I for a
    /// convolution's weights.
    pub(crate) fn images(&self) -> Option<[usize; 4]> {
        match self.image {
            Some([h, w, c]) => Some([self.shape.dims()[0], h, w, c]),
            None => self.shape.rank4(),
        }
    }

    /// Its place in the arena.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.shape.len()
    }
}

/// Elements between parameters are padded to whole cache lines of the widest type.
const ALIGN: usize = 16;

/// The values of all parameters.
#[derive(Debug)]
pub struct Params {
    list: Vec<Param>,
    values: Arc<Buffer>,
    /// On a CUDA device, where not all parameters are trained in group 0: the group of each [`ALIGN`]
    /// elements of the arena.
    groups: Option<Buffer>,
    /// The weights as products take them, where that is not f32.
    rounded: Option<Rounded>,
    /// How many times they have been configured.
    version: u64,
}

/// What kernels find in place of the group for a parameter that they leave alone.
const FROZEN: u8 = u8::MAX;

/// Calls `f(block, numbers)` for each block of random numbers, which makes `N` of those in `place`; in parallel.
fn by_block<const N: usize>(place: &mut [f32], f: impl Fn(u32, &mut [f32]) + Sync) {
    const BLOCKS: usize = 1 << 10;
    for_pieces(place.chunks_mut(BLOCKS * N).collect(), 16 * BLOCKS, |piece, out| {
        out.chunks_mut(N).enumerate().for_each(|(i, out)| f((piece * BLOCKS + i) as u32, out));
    });
}

impl Params {
    /// Parameters in this order, initialised from a seed.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Device`] if the device fails.
    pub fn new(mut list: Vec<Param>, device: &Device, seed: u64) -> Result<Self> {
        let mut len = 0;
        for p in &mut list {
            p.offset = len;
            len += p.shape.len().next_multiple_of(ALIGN);
        }
        let mut values: Vec<f32> = Cpu::zeros(len)?;
        for (i, p) in list.iter().enumerate() {
            let place = &mut values[p.range()];
            let s = Step { seed, ..Step::default() }.stream(stream::INIT + i as u32);
            match p.init {
                Init::Constant(v) => place.fill(v),
                Init::FanOut(fan_out) => {
                    let deviation = (2.0 / fan_out as f64).sqrt();
                    by_block::<2>(place, |block, out| {
                        let words = s.block(block);
                        for (x, normal) in out.iter_mut().zip(normals([words[0], words[1]])) {
                            *x = (normal * deviation) as f32;
                        }
                    });
                }
                Init::FanIn(fan_in) | Init::Dirac(fan_in) | Init::UnitDeviation(fan_in) | Init::Whiten(fan_in) => {
                    let bound = (1.0 / (fan_in as f64).sqrt()) as f32;
                    by_block::<4>(place, |block, out| {
                        for (x, word) in out.iter_mut().zip(s.block(block)) {
                            *x = (2.0 * to_unit(word) - 1.0) * bound;
                        }
                    });
                    p.init.finish(p.shape, place);
                    if p.image.is_some() {
                        // The numbers do not depend on the order that they lie in.
                        place.copy_from_slice(&channels_last(p.images(), place));
                    }
                }
            }
        }
        let mut buffer = device.alloc(DType::F32, len)?;
        buffer.write(0, &values)?;
        let mut params = Params { list, values: Arc::new(buffer), groups: None, rounded: None, version: 0 };
        if params.list.iter().any(|p| !p.trainable) {
            params.configure(|_| ())?;
        }
        Ok(params)
    }

    /// What is in the arena, in order.
    pub fn list(&self) -> &[Param] {
        &self.list
    }

    /// The number of trainable numbers, padding not counted.
    pub fn count(&self) -> usize {
        self.list.iter().map(|p| p.shape.len()).sum()
    }

    /// Changes the group of parameters, or whether they are trained, one after the other:
    /// `params.configure(|p| p.trainable = p.key.starts_with("fc."))`.
    ///
    /// # Errors
    /// [`Error::Config`] for a group that a [`Step`] has no rate for; [`Error::OutOfMemory`].
    pub fn configure(&mut self, mut change: impl FnMut(&mut Param)) -> Result<()> {
        let mut list = self.list.clone();
        for p in &mut list {
            let before = p.clone();
            change(p);
            *p = Param { group: p.group, trainable: p.trainable, by_matrix: p.by_matrix, ..before };
            if usize::from(p.group) >= GROUPS {
                let problem = format!("group {} of `{}`, and there are {GROUPS}", p.group, p.key);
                return Err(Error::config("parameter groups", problem, format!("use 0 to {}", GROUPS - 1)));
            }
        }
        let uniform = list.iter().all(|p| p.trainable && !p.by_matrix && p.group == 0);
        self.groups = match self.values.device() {
            device @ Device::Cuda(_) if !uniform => {
                let mut table = Vec::with_capacity(self.values.len() / ALIGN);
                for p in &list {
                    let group = if p.trainable && !p.by_matrix { p.group } else { FROZEN };
                    table.resize(table.len() + p.shape.len().div_ceil(ALIGN), group);
                }
                let mut buffer = device.alloc(DType::U8, table.len())?;
                buffer.write(0, &table)?;
                Some(buffer)
            }
            _ => None,
        };
        self.list = list;
        self.version += 1;
        Ok(())
    }

    /// How many times they have been configured: a step that was recorded before is another step now.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The parts of the arena that are trained number by number, each as long as can be in one group.
    pub fn spans(&self) -> Vec<(Range<usize>, u8)> {
        let mut spans: Vec<(Range<usize>, u8)> = Vec::new();
        for p in self.list().iter().filter(|p| p.trainable && !p.by_matrix) {
            let range = p.offset..p.offset + p.shape.len().next_multiple_of(ALIGN);
            match spans.last_mut() {
                Some((last, group)) if last.end == range.start && *group == p.group => last.end = range.end,
                _ => spans.push((range, p.group)),
            }
        }
        spans
    }

    /// Sets what the weights of products are rounded to, [`Params::weight`]: on a CUDA device; the CPU computes in f32.
    ///
    /// # Errors
    /// [`Error::Config`] where the device has no such products; [`Error::OutOfMemory`].
    pub fn set_precision(&mut self, precision: Precision) -> Result<()> {
        self.rounded = match precision {
            Precision::F32 => None,
            _ => Some(Rounded::new(self.values.device(), precision, self.values.len())?),
        };
        self.version += 1;
        Ok(())
    }

    /// What activations are stored in.
    pub fn precision(&self) -> Precision {
        self.rounded.as_ref().map_or(Precision::F32, |r| r.precision)
    }

    /// What an optimizer's kernel moves.
    ///
    /// # Errors
    /// As [`Params::values_mut`].
    pub(crate) fn update(&mut self) -> Result<Update<'_>> {
        let groups = self.groups.as_ref();
        let rounded = self.rounded.as_mut().map(Rounded::owned).transpose()?;
        Ok(Update { values: owned(&mut self.values)?, groups, rounded })
    }

    /// A parameter as a tensor. While it lives the arena cannot be written.
    ///
    /// # Errors
    /// [`Error::Internal`] for an id of another network.
    pub fn tensor(&self, id: ParamId) -> Result<Tensor> {
        self.view(self.values.clone(), id)
    }

    /// A parameter in an arena that is laid out like this one.
    fn view(&self, arena: Arc<Buffer>, id: ParamId) -> Result<Tensor> {
        let p = self.list.get(id.0).ok_or_else(|| Error::Internal(format!("no parameter {id:?}")))?;
        Tensor::view(arena, p.offset, p.shape)
    }

    /// A parameter as products take it: in the precision of activations. While it lives the arena cannot be written.
    ///
    /// # Errors
    /// As [`Params::tensor`]; [`Error::Device`] if the device fails.
    pub fn weight(&self, id: ParamId) -> Result<Tensor> {
        match &self.rounded {
            Some(rounded) => self.view(rounded.of(&self.values)?, id),
            None => self.tensor(id),
        }
    }

    /// Rounds the weights anew if they were written by others than an optimizer: a recorded step does not.
    pub(crate) fn refresh(&self) -> Result<()> {
        self.rounded.as_ref().map_or(Ok(()), |r| r.of(&self.values).map(|_| ()))
    }

    /// The arena.
    pub fn values(&self) -> &Buffer {
        &self.values
    }

    /// The arena, to be written.
    ///
    /// # Errors
    /// [`Error::Internal`] while a forward pass still holds views of it.
    pub fn values_mut(&mut self) -> Result<&mut Buffer> {
        if let Some(rounded) = &self.rounded {
            rounded.outdate();
        }
        owned(&mut self.values)
    }

    /// An arena for the gradients.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn grads(&self) -> Result<ParamGrads> {
        let mut buffer = self.values.device().alloc(DType::F32, self.values.len())?;
        buffer.zero()?;
        Ok(ParamGrads::new(buffer, self.list().iter().map(Param::range).collect()))
    }
}

/// What an optimizer's kernel moves.
pub(crate) struct Update<'a> {
    /// The arena.
    values: &'a mut Buffer,
    groups: Option<&'a Buffer>,
    rounded: Option<&'a mut Buffer>,
}

/// A part of it.
pub(crate) struct Moved<'a, T> {
    /// The parameters.
    pub(crate) p: Out<'a, f32>,
    /// The weights as products take them, where that is not f32.
    pub(crate) copy: Option<Out<'a, T>>,
    /// The group of each [`ALIGN`] elements; `None` if all are trained in group 0.
    pub(crate) groups: Option<In<'a, u8>>,
}

impl Update<'_> {
    /// A part of the arena, for a kernel.
    pub(crate) fn part<T: Element>(&mut self, part: Range<usize>) -> Result<Moved<'_, T>> {
        let of_groups = part.start / ALIGN..part.end.div_ceil(ALIGN);
        Ok(Moved {
            groups: self.groups.map(|g| g.input(of_groups)).transpose()?,
            copy: self.rounded.as_mut().map(|copy| copy.output(part.clone())).transpose()?,
            p: self.values.output(part)?,
        })
    }

    /// The type of the rounded weights: f32 where there are none.
    pub(crate) fn dtype(&self) -> DType {
        self.rounded.as_ref().map_or(DType::F32, |r| r.dtype())
    }
}

fn owned(values: &mut Arc<Buffer>) -> Result<&mut Buffer> {
    Arc::get_mut(values).ok_or_else(|| Error::Internal("parameters were to be written during a forward pass".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_weights_fill_the_range() {
        let bias = Param::new("0.bias".into(), [7].into(), Init::Constant(1.0));
        let list = vec![Param::new("0.weight".into(), [50, 100].into(), Init::FanIn(100)), bias];
        let params = Params::new(list, &Device::cpu(), 3).unwrap();
        let w = params.tensor(ParamId(0)).unwrap();
        let w = w.to_vec::<f32>().unwrap();
        let (min, max) = w.iter().fold((0f32, 0f32), |(a, b), &x| (a.min(x), b.max(x)));
        assert!((-0.1..-0.099).contains(&min) && (0.099..=0.1).contains(&max), "{min} {max}");
        assert_eq!(params.tensor(ParamId(1)).unwrap().to_vec::<f32>().unwrap(), [1.0; 7]);
        assert_eq!(params.count(), 5007);
    }

    #[test]
    fn identities_and_deviations() {
        let dirac = Param::new("0.weight".into(), [4, 3, 2, 2].into(), Init::Dirac(12));
        let unit = Param::new("1.weight".into(), [10, 7].into(), Init::UnitDeviation(7));
        let params = Params::new(vec![dirac, unit], &Device::cpu(), 3).unwrap();
        let w = params.tensor(ParamId(0)).unwrap().to_vec::<f32>().unwrap();
        let ones: Vec<usize> = (0..24).filter(|&i| w[i] != 0.0).collect();
        // At row 1 of 3 and column 1 of 2.
        assert_eq!((ones, w[6], w[12 + 7]), (vec![6, 19], 1.0, 1.0));
        assert!(w[24..].iter().all(|&x| x != 0.0 && x.abs() < 0.29));
        let w = params.tensor(ParamId(1)).unwrap().to_vec::<f32>().unwrap();
        let mean = w.iter().sum::<f32>() / 70.0;
        let variance = w.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 69.0;
        assert!((variance - 1.0).abs() < 1e-5, "{variance}");
    }

    #[test]
    fn a_view_keeps_the_arena_from_being_written() {
        let list = vec![Param::new("w".into(), [3].into(), Init::Constant(0.0))];
        let mut params = Params::new(list, &Device::cpu(), 0).unwrap();
        let view = params.tensor(ParamId(0)).unwrap();
        assert!(params.values_mut().is_err());
        drop(view);
        assert!(params.values_mut().is_ok());
    }
}
