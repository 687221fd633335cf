//! The trainable parameters of a network, in one flat arena, and their gradients in another.
//!
//! One arena means one optimizer launch, one checkpoint write, and gradients that ops write in
//! place. A parameter's view of the arena lives only as long as a forward and backward pass; between
//! passes the arena is owned by [`Params`] alone and may be written.

use crate::device::cuda::{BLOCK, Cuda, In, Launch, Out, with_kernel_type};
use crate::device::{Buffer, Device};
use crate::dtype::{DType, Element, with_real};
use crate::error::{Error, Result};
use crate::kernels::params::{ParamsDims, params_norm};
use crate::kernels::tensor::{TensorDims, tensor_accumulate};
use crate::rng::{stream, to_unit};
use crate::shape::Shape;
use crate::step::{GROUPS, Step};
use crate::tensor::Tensor;
use std::ops::Range;
use std::sync::Arc;

/// Names a parameter: its number, in the order of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamId(pub(crate) usize);

/// How a parameter is initialised; PyTorch's defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Uniform in ±1/sqrt(fan_in): what Kaiming-uniform with a = sqrt(5) gives for weights, and
    /// PyTorch's default for biases (He et al., "Delving Deep into Rectifiers", 2015).
    FanIn(usize),
    /// One value for all.
    Constant(f32),
}

/// A parameter: its place in the arena and what it is called.
#[derive(Clone, Debug)]
pub struct Param {
    /// Key in the state dict: `0.weight`.
    pub key: String,
    /// Sizes: O, KH, KW, I for a convolution's weights; `[out, in]` for a linear layer's.
    pub shape: Shape,
    /// How it starts.
    pub init: Init,
    /// Its group: which of a step's rates it moves at.
    pub group: u8,
    /// Whether it is trained. A frozen parameter has no gradient, and optimizers leave it alone.
    pub trainable: bool,
    offset: usize,
}

impl Param {
    /// Its place in the arena.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.shape.len()
    }
}

/// Elements between parameters are padded to whole cache lines of the widest type.
const ALIGN: usize = 16;

/// The arena's layout while a network is being built.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    params: Vec<Param>,
    len: usize,
}

impl Layout {
    /// Adds a parameter.
    pub fn add(&mut self, key: String, shape: impl Into<Shape>, init: Init) -> ParamId {
        let shape = shape.into();
        self.params.push(Param { key, shape, init, group: 0, trainable: true, offset: self.len });
        self.len += shape.len().next_multiple_of(ALIGN);
        ParamId(self.params.len() - 1)
    }

    /// The parameters so far.
    pub fn params(&self) -> &[Param] {
        &self.params
    }
}

/// The values of all parameters.
#[derive(Debug)]
pub struct Params {
    layout: Layout,
    values: Arc<Buffer>,
    /// On a CUDA device, where not all parameters are trained in group 0: the group of each [`ALIGN`]
    /// elements of the arena.
    groups: Option<Buffer>,
}

/// What kernels find for a frozen parameter in place of its group.
const FROZEN: u8 = u8::MAX;

impl Params {
    /// The parameters of a layout, initialised from a seed.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Device`] if the device fails.
    pub fn new(layout: Layout, device: &Device, seed: u64) -> Result<Self> {
        let mut values = vec![0f32; layout.len];
        for (i, p) in layout.params.iter().enumerate() {
            let place = &mut values[p.range()];
            match p.init {
                Init::Constant(v) => place.fill(v),
                Init::FanIn(fan_in) => {
                    let bound = (1.0 / (fan_in as f64).sqrt()) as f32;
                    let s = Step { seed, ..Step::default() }.stream(stream::INIT + i as u32);
                    for (block, out) in place.chunks_mut(4).enumerate() {
                        for (x, word) in out.iter_mut().zip(s.block(block as u32)) {
                            *x = (2.0 * to_unit(word) - 1.0) * bound;
                        }
                    }
                }
            }
        }
        let mut buffer = device.alloc(DType::F32, layout.len)?;
        buffer.write(0, &values)?;
        Ok(Params { layout, values: Arc::new(buffer), groups: None })
    }

    /// What is in the arena, in order.
    pub fn list(&self) -> &[Param] {
        &self.layout.params
    }

    /// The number of trainable numbers, padding not counted.
    pub fn count(&self) -> usize {
        self.layout.params.iter().map(|p| p.shape.len()).sum()
    }

    /// Changes the group of parameters, or whether they are trained, one after the other:
    /// `params.configure(|p| p.trainable = p.key.starts_with("fc."))`.
    ///
    /// # Errors
    /// [`Error::Config`] for a group that a [`Step`] has no rate for; [`Error::OutOfMemory`].
    pub fn configure(&mut self, mut change: impl FnMut(&mut Param)) -> Result<()> {
        let mut layout = self.layout.clone();
        for p in &mut layout.params {
            let before = p.clone();
            change(p);
            *p = Param { group: p.group, trainable: p.trainable, ..before };
            if usize::from(p.group) >= GROUPS {
                let problem = format!("group {} of `{}`, and there are {GROUPS}", p.group, p.key);
                return Err(Error::config("parameter groups", problem, format!("use 0 to {}", GROUPS - 1)));
            }
        }
        let uniform = layout.params.iter().all(|p| p.trainable && p.group == 0);
        self.groups = match self.values.device() {
            device @ Device::Cuda(_) if !uniform => {
                let mut table = Vec::with_capacity(layout.len / ALIGN);
                for p in &layout.params {
                    let group = if p.trainable { p.group } else { FROZEN };
                    table.resize(table.len() + p.shape.len().div_ceil(ALIGN), group);
                }
                let mut buffer = device.alloc(DType::U8, table.len())?;
                buffer.write(0, &table)?;
                Some(buffer)
            }
            _ => None,
        };
        self.layout = layout;
        Ok(())
    }

    /// The parts of the arena that are trained, each as long as can be in one group.
    pub fn spans(&self) -> Vec<(Range<usize>, u8)> {
        let mut spans: Vec<(Range<usize>, u8)> = Vec::new();
        for p in self.list().iter().filter(|p| p.trainable) {
            let range = p.offset..p.offset + p.shape.len().next_multiple_of(ALIGN);
            match spans.last_mut() {
                Some((last, group)) if last.end == range.start && *group == p.group => last.end = range.end,
                _ => spans.push((range, p.group)),
            }
        }
        spans
    }

    /// The arena, to be written, and the group of each [`ALIGN`] elements; `None` if all are trained in
    /// group 0.
    ///
    /// # Errors
    /// As [`Params::values_mut`].
    pub(crate) fn values_and_groups(&mut self) -> Result<(&mut Buffer, Option<In<'_, u8>>)> {
        let groups = self.groups.as_ref().map(|g| g.input(0..g.len())).transpose()?;
        Ok((owned(&mut self.values)?, groups))
    }

    /// A parameter as a tensor. While it lives the arena cannot be written.
    ///
    /// # Errors
    /// [`Error::Internal`] for an id of another network.
    pub fn tensor(&self, id: ParamId) -> Result<Tensor> {
        let p = self.layout.params.get(id.0).ok_or_else(|| Error::Internal(format!("no parameter {id:?}")))?;
        Tensor::view(self.values.clone(), p.offset, p.shape)
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
        owned(&mut self.values)
    }

    /// An arena for the gradients.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn grads(&self) -> Result<ParamGrads> {
        let mut buffer = self.values.device().alloc(DType::F32, self.layout.len)?;
        buffer.zero()?;
        Ok(ParamGrads {
            buffer,
            ranges: self.list().iter().map(Param::range).collect(),
            written: vec![false; self.list().len()],
            step: Step::default(),
        })
    }
}

fn owned(values: &mut Arc<Buffer>) -> Result<&mut Buffer> {
    Arc::get_mut(values).ok_or_else(|| Error::Internal("parameters were to be written during a forward pass".into()))
}

/// The gradients of all parameters, laid out like the parameters.
#[derive(Debug)]
pub struct ParamGrads {
    buffer: Buffer,
    ranges: Vec<Range<usize>>,
    written: Vec<bool>,
    step: Step,
}

impl ParamGrads {
    pub(crate) fn begin(&mut self, step: Step) {
        self.written.fill(false);
        self.step = step;
    }

    /// The step whose backward pass wrote them last.
    pub fn step(&self) -> &Step {
        &self.step
    }

    /// Zeroes what the pass did not reach. There is no zeroing beforehand: the first contribution
    /// overwrites.
    pub(crate) fn finish(&mut self) -> Result<()> {
        for (range, _) in self.ranges.iter().zip(&self.written).filter(|(_, written)| !**written) {
            self.buffer.zero_range(range.clone())?;
        }
        Ok(())
    }

    pub(crate) fn slot(&mut self, id: ParamId) -> Result<Slot<'_>> {
        let accumulate = std::mem::replace(&mut self.written[id.0], true);
        Ok(Slot { buffer: &mut self.buffer, range: self.ranges[id.0].clone(), accumulate })
    }

    /// The arena.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// The Euclidean norm of all gradients together.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn norm(&self) -> Result<f64> {
        match self.buffer.device().clone() {
            Device::Cpu(_) => {
                let squares = self.buffer.host::<f32>()?.iter().map(|&g| f64::from(g) * f64::from(g));
                Ok(squares.sum::<f64>().sqrt())
            }
            Device::Cuda(cuda) => self.norm_on(&cuda),
        }
    }

    fn norm_on(&self, cuda: &Cuda) -> Result<f64> {
        let n = self.buffer.len();
        let first = Launch::new(n.div_ceil(BLOCK as usize).clamp(1, 512), BLOCK);
        let blocks = first.grid[0] as usize;
        let mut partial = self.buffer.device().alloc(DType::F32, blocks)?;
        let d = ParamsDims { n: n as i32, root: 0 };
        params_norm(cuda, first.flops(2 * n), self.buffer.input(0..n)?, partial.output(0..blocks)?, &d)?;
        let mut norm = self.buffer.device().alloc(DType::F32, 1)?;
        let d = ParamsDims { n: blocks as i32, root: 1 };
        params_norm(cuda, Launch::new(1, BLOCK), partial.input(0..blocks)?, norm.output(0..1)?, &d)?;
        Ok(f64::from(norm.read::<f32>(0..1)?[0]))
    }

    /// A copy of the gradient of one parameter.
    ///
    /// # Errors
    /// [`Error::Internal`] for an id of another network.
    pub fn of(&self, id: usize) -> Result<Vec<f32>> {
        let range = self.ranges.get(id).ok_or_else(|| Error::Internal(format!("no parameter {id}")))?;
        self.buffer.read(range.clone())
    }
}

/// A gradient to be written in place: part of a buffer.
pub struct Slot<'a> {
    buffer: &'a mut Buffer,
    range: Range<usize>,
    /// Add to what is there instead of overwriting it.
    pub accumulate: bool,
}

impl<'a> Slot<'a> {
    /// All of a tensor.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn of_tensor(t: &'a mut Tensor, accumulate: bool) -> Result<Self> {
        // An accumulated gradient may still be shared with the op that sent it: own it first.
        if accumulate && !t.is_unique() {
            let mut copy = Tensor::empty(t.device(), t.dtype(), t.shape())?;
            copy.copy_from(t)?;
            *t = copy;
        }
        let (buffer, range) = t.buffer_mut()?;
        Ok(Slot { buffer, range, accumulate })
    }

    /// The elements, in host memory.
    ///
    /// # Errors
    /// [`Error::Internal`] if `T` is not the element type.
    pub fn host_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        Ok(&mut self.buffer.host_mut()?[self.range.clone()])
    }

    /// The elements as the output of a CUDA kernel.
    ///
    /// # Errors
    /// [`Error::Internal`] if `T` is not the element type or they are not on a CUDA device.
    pub fn output<T: Element>(&mut self) -> Result<Out<'_, T>> {
        self.buffer.output(self.range.clone())
    }

    /// Writes `g`, or adds it to what is there.
    pub(crate) fn put(&mut self, g: &Tensor) -> Result<()> {
        if !self.accumulate {
            return g.copy_to(self.buffer, self.range.start);
        }
        match g.device() {
            Device::Cpu(_) => with_real!("gradient", g.dtype(), T => {
                self.host_mut::<T>()?.iter_mut().zip(g.host::<T>()?).for_each(|(a, b)| *a += *b);
                Ok(())
            }),
            Device::Cuda(cuda) => with_kernel_type!("gradient", g.dtype(), T => {
                let d = TensorDims { n: g.len() as i32, value: 0.0 };
                tensor_accumulate::<T>(cuda, Launch::each(g.len()).flops(g.len()), g.input()?, self.output()?, &d)
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_weights_fill_the_range() {
        let mut layout = Layout::default();
        layout.add("0.weight".into(), [50, 100], Init::FanIn(100));
        let second = layout.add("0.bias".into(), [7], Init::Constant(1.0));
        let params = Params::new(layout, &Device::cpu(), 3).unwrap();
        let w = params.tensor(ParamId(0)).unwrap();
        let w = w.to_vec::<f32>().unwrap();
        let (min, max) = w.iter().fold((0f32, 0f32), |(a, b), &x| (a.min(x), b.max(x)));
        assert!((-0.1..-0.099).contains(&min) && (0.099..=0.1).contains(&max), "{min} {max}");
        assert_eq!(params.tensor(second).unwrap().to_vec::<f32>().unwrap(), [1.0; 7]);
        assert_eq!(params.count(), 5007);
    }

    #[test]
    fn a_view_keeps_the_arena_from_being_written() {
        let mut layout = Layout::default();
        let id = layout.add("w".into(), [3], Init::Constant(0.0));
        let mut params = Params::new(layout, &Device::cpu(), 0).unwrap();
        let view = params.tensor(id).unwrap();
        assert!(params.values_mut().is_err());
        drop(view);
        assert!(params.values_mut().is_ok());
    }
}
