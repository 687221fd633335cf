//! The gradients of the parameters, in one arena laid out like theirs.

use super::{ParamId, Scaling};
use crate::device::cpu::for_pieces;
use crate::device::cuda::{BLOCK, Cuda, Launch, Out, Point, with_kernel_type};
use crate::device::{Buffer, Device};
use crate::dtype::{DType, Element, with_real};
use crate::error::{Error, Result};
use crate::kernels::params::{ParamsDims, params_norm};
use crate::kernels::tensor::{TensorDims, tensor_accumulate};
use crate::shape::Shape;
use crate::step::Step;
use crate::tensor::Tensor;
use std::ops::Range;

/// Gradients per piece of work of a sum over all.
const PIECE: usize = 1 << 15;

/// Parameters of a part of the arena, at least: the update of fewer takes no longer than their launch.
const PART: usize = 1 << 19;

/// A part of the arena.
#[derive(Debug)]
pub(crate) struct Part {
    /// Where it lies.
    pub(crate) range: Range<usize>,
    /// The point of a recording from which on its gradients are complete and nothing reads its parameters; `None`: here.
    pub(crate) point: Option<Point>,
}

/// What a recorded pass takes for granted of the gradients.
#[derive(Debug)]
pub(crate) struct Recorded {
    /// Those that were zeros and that it neither writes nor zeroes.
    assumed: Vec<bool>,
    /// Those that it writes.
    reached: Vec<bool>,
}

/// The gradients of all parameters, laid out like the parameters.
#[derive(Debug)]
pub struct ParamGrads {
    buffer: Buffer,
    ranges: Vec<Range<usize>>,
    written: Vec<bool>,
    /// Those that the pass has reached; where it adds to what was there before, `written` are all.
    reached: Vec<bool>,
    /// Those that are all zeros.
    zero: Vec<bool>,
    keep: bool,
    /// The parts that were complete before the pass had ended, from the arena's end on; of the ranges, where they begin.
    parts: Vec<(usize, Point)>,
    step: Step,
    /// What they are multiplied by, beside the step's own scale.
    scaling: Option<Scaling>,
    /// What backward passes started from, which recorded ones go on to read: a number for each size of batch that there was.
    seeds: Vec<(f64, Tensor)>,
}

impl ParamGrads {
    pub(super) fn new(buffer: Buffer, ranges: Vec<Range<usize>>) -> Self {
        ParamGrads {
            buffer,
            written: vec![false; ranges.len()],
            reached: vec![false; ranges.len()],
            zero: vec![false; ranges.len()],
            ranges,
            keep: false,
            parts: Vec::new(),
            step: Step::default(),
            scaling: None,
            seeds: Vec::new(),
        }
    }

    pub(crate) fn begin(&mut self, step: Step) {
        self.written.fill(std::mem::take(&mut self.keep));
        self.reached.fill(false);
        self.parts.clear();
        self.step = step;
    }

    /// The next backward pass adds its gradients to those that are there, instead of replacing them.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// The step whose backward pass wrote them last.
    pub fn step(&self) -> &Step {
        &self.step
    }

    /// Scales losses from now on so that gradients of f16 neither vanish nor overflow; of a network on a CUDA device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn scale(&mut self) -> Result<()> {
        if let Device::Cuda(cuda) = self.buffer.device() {
            self.scaling = Some(Scaling::new(cuda)?);
        }
        Ok(())
    }

    /// How losses are scaled.
    pub fn scaling(&self) -> Option<&Scaling> {
        self.scaling.as_ref()
    }

    /// The same, to be changed.
    pub(crate) fn scaling_mut(&mut self) -> Option<&mut Scaling> {
        self.scaling.as_mut()
    }

    /// The gradient of a loss on a device that counts for `share`, from which a backward pass is to start.
    pub(crate) fn start(&mut self, device: &Device, share: f64) -> Result<Tensor> {
        let fresh = || Tensor::empty(device, DType::F32, Shape::SCALAR);
        if let Some(scaling) = &self.scaling {
            let mut gradient = fresh()?;
            scaling.begin(&mut gradient, share)?;
            return Ok(gradient);
        }
        if let Some((_, seed)) = self.seeds.iter().find(|(of, seed)| *of == share && seed.device() == device) {
            return Ok(seed.clone());
        }
        let mut gradient = fresh()?;
        gradient.fill(share)?;
        // What is recorded has not happened yet.
        if !matches!(device, Device::Cuda(cuda) if cuda.is_recording()) {
            self.seeds.push((share, gradient.clone()));
        }
        Ok(gradient)
    }

    /// Calls `update` with the gradients, whose kernels do nothing if one that was scaled is not finite.
    pub(crate) fn used(&mut self, update: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        if let Some(scaling) = &mut self.scaling {
            scaling.check(&self.buffer)?;
        }
        update(self)?;
        self.scaling.as_mut().map_or(Ok(()), Scaling::adapt)
    }

    /// Zeroes what the pass did not reach, unless it is zero already. There is no zeroing beforehand: the first contribution
    /// overwrites.
    pub(crate) fn finish(&mut self) -> Result<()> {
        // What is recorded has not happened yet.
        let happens = !matches!(self.buffer.device(), Device::Cuda(cuda) if cuda.is_recording());
        for (i, range) in self.ranges.iter().enumerate() {
            if !self.written[i] && !self.zero[i] {
                self.buffer.zero_range(range.clone())?;
                self.zero[i] = happens;
            }
        }
        Ok(())
    }

    /// What the pass that has just been recorded takes for granted.
    pub(crate) fn recorded(&self) -> Recorded {
        let assumed = self.written.iter().zip(&self.zero).map(|(written, zero)| !written && *zero).collect();
        Recorded { assumed, reached: self.reached.clone() }
    }

    /// Zeroes what a recorded pass takes for zeros before it is replayed, and notes what it writes. Passes over other batches may
    /// have reached others: which products are fused depends on their sizes.
    pub(crate) fn replaying(&mut self, recorded: &Recorded) -> Result<()> {
        for (i, range) in self.ranges.iter().enumerate() {
            if recorded.assumed[i] && !self.zero[i] {
                self.buffer.zero_range(range.clone())?;
                self.zero[i] = true;
            }
            self.zero[i] &= !recorded.reached[i];
        }
        Ok(())
    }

    /// Notes that a pass which is being recorded neither reads nor writes any more what belongs to the parameters that are `passed`.
    pub(crate) fn note_passed(&mut self, cuda: &Cuda, passed: impl Fn(usize) -> bool) -> Result<()> {
        let last = self.parts.last().map_or(self.ranges.len(), |(first, _)| *first);
        // What it has not reached is zeroed in the end.
        let complete = |i: &usize| passed(*i) && (self.written[*i] || self.zero[*i]);
        let Some(first) = (0..last).rev().take_while(complete).last().filter(|first| *first > 0) else { return Ok(()) };
        if self.ranges[last - 1].end - self.ranges[first].start >= PART {
            self.parts.push((first, cuda.point()?));
        }
        Ok(())
    }

    /// The arena in the parts in which an optimizer that takes each number by itself may move the parameters: where a step is
    /// recorded, those of the last layers while the pass goes on. It is one part where the update of a parameter waits for all
    /// gradients: for their norm, or to know whether one has overflowed.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let (mut parts, mut end) = (Vec::new(), self.buffer.len());
        if self.scaling.is_none() && self.step.clip_norm == 0.0 {
            for &(first, point) in &self.parts {
                let start = self.ranges[first].start;
                parts.push(Part { range: start..std::mem::replace(&mut end, start), point: Some(point) });
            }
        }
        parts.push(Part { range: 0..end, point: None });
        parts
    }

    /// Whether the pass has written this gradient before.
    pub(crate) fn is_written(&self, id: ParamId) -> bool {
        self.written[id.0]
    }

    pub(crate) fn slot(&mut self, id: ParamId) -> Result<Slot<'_>> {
        let accumulate = std::mem::replace(&mut self.written[id.0], true);
        self.reached[id.0] = true;
        self.zero[id.0] = false;
        Ok(Slot { buffer: &mut self.buffer, range: self.ranges[id.0].clone(), accumulate, masked: false })
    }

    /// The arena.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// The Euclidean norm of all gradients together, as they are: a frozen parameter's are 0.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn norm(&self) -> Result<f64> {
        match self.buffer.device().clone() {
            Device::Cpu(_) => {
                let mut sums: Vec<f64> = vec![0.0; self.buffer.len().div_ceil(PIECE)];
                let pieces = self.buffer.host::<f32>()?.chunks(PIECE).zip(&mut sums).collect();
                for_pieces(pieces, PIECE, |_, (piece, sum)| {
                    *sum = piece.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
                });
                Ok(sums.iter().sum::<f64>().sqrt())
            }
            Device::Cuda(cuda) => Ok(f64::from(self.norm_on(&cuda)?.read::<f32>(0..1)?[0])),
        }
    }

    /// [`ParamGrads::norm`], left on the device: one number.
    pub(crate) fn norm_on(&self, cuda: &Cuda) -> Result<Buffer> {
        let (device, n) = (self.buffer.device(), self.buffer.len());
        let first = Launch::new(n.div_ceil(BLOCK as usize).clamp(1, 512), BLOCK);
        let blocks = first.grid[0] as usize;
        let (mut partial, mut norm) = (device.alloc(DType::F32, blocks)?, device.alloc(DType::F32, 1)?);
        let d = ParamsDims { n: n as i32, root: 0 };
        params_norm(cuda, first.flops(2 * n), self.buffer.input(0..n)?, partial.output(0..blocks)?, &d)?;
        let d = ParamsDims { n: blocks as i32, root: 1 };
        params_norm(cuda, Launch::new(1, BLOCK), partial.input(0..blocks)?, norm.output(0..1)?, &d)?;
        Ok(norm)
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
    /// What is there is 0 where the variable, which ReLU made, is not above 0.
    pub(crate) masked: bool,
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
        Ok(Slot { buffer, range, accumulate, masked: false })
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
                let launch = Launch::each(g.len().div_ceil(4)).flops(g.len());
                tensor_accumulate::<T>(cuda, launch, g.input()?, self.output()?, &d)
            }),
        }
    }
}

#[cfg(all(test, tilework_emulator))]
mod tests {
    use super::*;
    use crate::device::cuda::CudaOptions;
    use crate::device::emulator::EmulatorOptions;

    #[test]
    fn what_a_replayed_pass_takes_for_zeros_is_zero() {
        let device = Device::emulated_with(CudaOptions::default(), EmulatorOptions::default()).unwrap();
        let Device::Cuda(cuda) = &device else { panic!("a CUDA device") };
        let mut grads = ParamGrads::new(device.alloc(DType::F32, 32).unwrap(), vec![0..16, 16..32]);
        let pass = |grads: &mut ParamGrads, reaches: &[usize]| {
            grads.begin(Step::default());
            for &i in reaches {
                let mut ones = Tensor::empty(&device, DType::F32, [16])?;
                ones.fill(1.0)?;
                grads.slot(ParamId(i))?.put(&ones)?;
            }
            grads.finish()
        };
        let sums = |grads: &ParamGrads| [0, 1].map(|i| grads.of(i).unwrap().iter().sum::<f32>());
        pass(&mut grads, &[0]).unwrap();
        let captured = cuda.capture(|| pass(&mut grads, &[0])).unwrap();
        let recorded = grads.recorded();
        for others in [&[0][..], &[0, 1], &[1], &[]] {
            // A pass over a batch of another size, and the recorded one.
            pass(&mut grads, others).unwrap();
            assert_eq!(sums(&grads), [0, 1].map(|i| if others.contains(&i) { 16.0 } else { 0.0 }), "{others:?}");
            grads.replaying(&recorded).unwrap();
            captured.replay().unwrap();
            assert_eq!(sums(&grads), [16.0, 0.0], "after {others:?}");
        }
    }

    #[test]
    fn parts_are_complete_before_the_pass_ends() {
        let device = Device::emulated_with(CudaOptions::default(), EmulatorOptions::default()).unwrap();
        let Device::Cuda(cuda) = &device else { panic!("a CUDA device") };
        let ranges = [0..16, 16..16 + PART, 16 + PART..32 + PART, 32 + PART..32 + 2 * PART];
        let len = ranges[3].end;
        let mut grads = ParamGrads::new(device.alloc(DType::F32, len).unwrap(), ranges.to_vec());
        let found = |grads: &ParamGrads| {
            let parts = grads.parts();
            assert!(parts.iter().all(|part| part.point.is_some() == (part.range.start > 0)));
            parts.into_iter().map(|part| part.range).collect::<Vec<_>>()
        };
        // A pass that writes these, and comes to the nodes before them; without `small` nothing reaches one.
        let pass = |grads: &mut ParamGrads, small: bool, clip_norm: f32| {
            grads.begin(Step { clip_norm, ..Step::default() });
            let recorded = cuda.capture(|| {
                for i in (0..4).rev().filter(|i| small || *i != 2) {
                    let _ = grads.slot(ParamId(i))?;
                    grads.note_passed(cuda, |passed| passed >= i)?;
                }
                grads.finish()
            });
            recorded.unwrap();
            found(grads)
        };
        let (last, middle) = (32 + PART..len, 16..32 + PART);
        assert_eq!(pass(&mut grads, true, 0.0), [last.clone(), middle.clone(), 0..16]);
        // One that is zeroed when all is done keeps those before it back; not once it is known to be zero.
        assert_eq!(pass(&mut grads, false, 0.0), [last.clone(), 0..32 + PART]);
        grads.zero[2] = true;
        assert_eq!(pass(&mut grads, false, 0.0), [last, middle, 0..16]);
        // Where all wait for all gradients there is one part.
        assert_eq!(pass(&mut grads, true, 1.0).len(), 1);
        grads.scale().unwrap();
        assert_eq!(pass(&mut grads, true, 0.0).len(), 1);
    }
}
