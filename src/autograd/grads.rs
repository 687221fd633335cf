//! The gradients of a backward pass: where they are added up, what is known of them, and what is computed beside.

use super::{Var, VarId};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::params::{ParamGrads, ParamId, Slot};
use crate::shape::Shape;
use crate::tensor::Tensor;

/// What is known of a gradient.
#[derive(Clone, Copy, Default)]
pub(super) struct Known {
    /// Its sums over the rows are zero.
    sums_to_zero: bool,
    /// It is 0 where its variable, which ReLU made, is not above 0.
    masked: bool,
    /// It is the gradient of what was pooled.
    spread: bool,
}

/// The gradients of a backward pass.
pub struct Grads<'g> {
    pub(super) device: Device,
    pub(super) of: Vec<Option<Tensor>>,
    pub(super) param: Vec<Option<ParamId>>,
    readers: Vec<u32>,
    pub(super) arena: Option<&'g mut ParamGrads>,
    /// Of each variable, what is known of its gradient.
    pub(super) known: Vec<Known>,
    /// The same of the gradient that the op at hand was given.
    pub(super) at_hand: Known,
    /// What work beside the backward pass reads, which nobody may change meanwhile.
    pub(super) read_beside: Vec<Tensor>,
    pub(super) is_beside: bool,
}

/// Bytes that work beside the backward pass keeps alive, at most: kernels on more of them fill a GPU by themselves.
const READ_BESIDE: usize = 256 << 20;

impl<'g> Grads<'g> {
    /// None so far, of variables that are these parameters.
    pub(super) fn new(
        device: Device,
        param: Vec<Option<ParamId>>,
        readers: Vec<u32>,
        arena: Option<&'g mut ParamGrads>,
    ) -> Self {
        let (of, known) = ((0..param.len()).map(|_| None).collect(), vec![Known::default(); param.len()]);
        let (at_hand, read_beside, is_beside) = Default::default();
        Grads { device, of, param, readers, arena, known, at_hand, read_beside, is_beside }
    }

    /// Notes that the pass has come to the node of this variable: it has done with parameters that are used behind it alone.
    pub(super) fn note_passed(&mut self, VarId(node): VarId) -> Result<()> {
        match (&self.device, &mut self.arena) {
            (Device::Cuda(cuda), Some(arena)) if cuda.is_recording() => {
                let to_come = &self.param[..node as usize];
                arena.note_passed(cuda, |id| !to_come.contains(&Some(ParamId(id))))
            }
            _ => Ok(()),
        }
    }

    /// Whether a variable is a parameter, whose gradient no node of the tape reads.
    pub(crate) fn is_param(&self, id: VarId) -> bool {
        self.arena.is_some() && self.param[id.0 as usize].is_some()
    }

    /// Notes that the sums over the rows of a variable's gradient are zero but for rounding, as behind a batch-norm, if nothing
    /// else is added to it. Nothing is noted on the CPU, or where nothing is to be fused: there the gradient of a bias is added up.
    pub(crate) fn note_sums_to_zero(&mut self, id: Option<VarId>) {
        let skips = matches!(&self.device, Device::Cuda(cuda) if !cuda.options().no_fuse);
        if let Some(VarId(id)) = id.filter(|_| skips) {
            self.known[id as usize].sums_to_zero = self.of[id as usize].is_none();
        }
    }

    /// Whether the sums over the rows of the gradient that the op at hand was given are known to be zero: then the gradient of a
    /// bias is.
    pub(crate) fn sums_are_zero(&self) -> bool {
        self.at_hand.sums_to_zero
    }

    /// That is no longer known, as the op at hand passes on a part of the gradient alone.
    pub(crate) fn forget_sums(&mut self) {
        self.at_hand.sums_to_zero = false;
    }

    /// Notes that all that has been added to a variable's gradient, as far as it is `masked`, is 0 where the variable, which ReLU
    /// made, is not above 0.
    pub(crate) fn note_masked(&mut self, id: Option<VarId>, masked: bool) {
        if let Some(VarId(id)) = id {
            self.known[id as usize].masked = masked;
        }
    }

    /// Whether that is so of the gradient that the op at hand was given.
    pub(crate) fn is_masked(&self) -> bool {
        self.at_hand.masked
    }

    /// Whether one node alone gives this variable a gradient, and has not yet.
    pub(crate) fn has_one_reader(&self, id: Option<VarId>) -> bool {
        id.is_some_and(|VarId(id)| self.readers[id as usize] == 1 && self.of[id as usize].is_none())
    }

    /// The gradient of a variable that a max-pool of 2x2 made and one node alone reads, as that of what was pooled: four times as
    /// large, and 0 where [nothing won](Var::won).
    pub(crate) fn add_spread(&mut self, id: Option<VarId>, g: Tensor) {
        if let Some(VarId(id)) = id {
            self.of[id as usize] = Some(g);
            self.known[id as usize].spread = true;
        }
    }

    /// Whether that is so of the gradient that the op at hand was given.
    pub(crate) fn is_spread(&self) -> bool {
        self.at_hand.spread
    }

    /// [`Grads::add`] of a gradient that is `masked`, or not.
    ///
    /// # Errors
    /// As [`Grads::add`].
    pub(crate) fn add_masked(&mut self, id: Option<VarId>, g: Tensor, masked: bool) -> Result<()> {
        let before = id.is_some_and(|VarId(id)| self.of[id as usize].is_none() || self.known[id as usize].masked);
        self.add(id, g)?;
        self.note_masked(id, masked && before);
        Ok(())
    }

    /// Writes gradients of parameters that nothing in the backward pass waits for: where a step is recorded, a GPU does it beside
    /// what follows, and in a row what is of one `line`. `reads` are the tensors that it reads.
    ///
    /// # Errors
    /// Whatever `work` reports; [`Error::Device`] if the device fails.
    pub(crate) fn beside(
        &mut self,
        line: usize,
        reads: &[&Tensor],
        work: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let Device::Cuda(cuda) = self.device.clone() else { return work(self) };
        if !cuda.is_recording() {
            return work(self);
        }
        self.read_beside.extend(reads.iter().map(|&tensor| tensor.clone()));
        self.is_beside = true;
        let done = cuda.beside(line, || work(self));
        self.is_beside = false;
        done?;
        let bytes = self.read_beside.iter().map(|t| t.len() * t.dtype().size()).sum::<usize>();
        if bytes > READ_BESIDE { self.join() } else { Ok(()) }
    }

    /// Waits for work that others do beside the pass, if the memory that is held for it becomes much.
    pub(super) fn bound_what_is_held(&self) -> Result<()> {
        match &self.device {
            Device::Cuda(cuda) if self.read_beside.is_empty() && cuda.held() > READ_BESIDE => cuda.join(),
            _ => Ok(()),
        }
    }

    /// What follows waits for the work beside.
    pub(super) fn join(&mut self) -> Result<()> {
        if let (Device::Cuda(cuda), false) = (&self.device, self.read_beside.is_empty()) {
            cuda.join()?;
        }
        self.read_beside.clear();
        Ok(())
    }

    /// The gradient of a leaf after the pass; `None` if nothing flowed there.
    pub fn of(&self, leaf: &Var) -> Option<&Tensor> {
        self.of.get(leaf.id?.0 as usize)?.as_ref()
    }

    /// Adds `g` to the gradient of a variable. Nothing happens for an untracked one.
    ///
    /// # Errors
    /// [`Error::Shape`] if an earlier contribution has another shape.
    pub fn add(&mut self, id: Option<VarId>, g: Tensor) -> Result<()> {
        let Some(id) = id else { return Ok(()) };
        let is_param = self.arena.is_some() && self.param[id.0 as usize].is_some();
        let current = &mut self.of[id.0 as usize];
        if !is_param && current.is_none() {
            *current = Some(g);
            return Ok(());
        }
        let Some(mut slot) = self.slot(Some(id), g.dtype(), g.shape())? else { return Ok(()) };
        slot.put(&g)
    }

    /// The place where an op writes the gradient of a variable itself, to save a copy; `None` for an
    /// untracked variable. Every element must be written, or added to if [`Slot::accumulate`] says so.
    ///
    /// # Errors
    /// [`Error::Shape`] if an earlier contribution has another shape.
    pub fn slot(&mut self, id: Option<VarId>, dtype: DType, shape: Shape) -> Result<Option<Slot<'_>>> {
        let Some(VarId(id)) = id else { return Ok(None) };
        if let (Some(arena), Some(param)) = (&mut self.arena, self.param[id as usize]) {
            // What is added to may be written beside.
            let wait = !self.is_beside && arena.is_written(param);
            if wait {
                self.join()?;
            }
            return self.arena.as_mut().map(|arena| arena.slot(param)).transpose();
        }
        let current = &mut self.of[id as usize];
        let accumulate = current.is_some();
        let known = std::mem::take(&mut self.known[id as usize]);
        let t = match current {
            Some(t) => t,
            None => current.insert(Tensor::empty(&self.device, dtype, shape)?),
        };
        if t.shape() != shape {
            return Err(Error::shape(
                "Grads::slot",
                t.shape().to_string(),
                shape,
                "report this: an op's gradient has the wrong shape",
            ));
        }
        let mut slot = Slot::of_tensor(t, accumulate)?;
        slot.masked = accumulate && known.masked;
        Ok(Some(slot))
    }
}
