//! Reverse-mode differentiation on a tape of named nodes.
//!
//! Each op appends one [`Backward`] node, holding exactly what it saved, to the [`Tape`] in the
//! [`Ctx`]. The order of appending is topological, so the backward pass is one loop over the tape in
//! reverse. A [`Var`] that the tape does not track (inference, or data) costs nothing: no node is
//! made and nothing is saved.
//!
//! ```
//! use tilework::{Ctx, Device, Tensor};
//! let device = Device::cpu();
//! let mut cx = Ctx::train(&device);
//! let x = cx.leaf(Tensor::from_slice(&device, [1, 3], &[-1.0f32, 0.0, 2.0])?);
//! let y = x.relu(&mut cx)?;
//! let seed = Tensor::from_slice(&device, [1, 3], &[10.0f32, 10.0, 10.0])?;
//! let grads = cx.backward(&y, seed, None)?;
//! assert_eq!(grads.of(&x).unwrap().to_vec::<f32>()?, [0.0, 0.0, 10.0]);
//! # Ok::<(), tilework::Error>(())
//! ```

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::params::{Buffers, ParamGrads, ParamId, Params, Slot};
use crate::rng::stream;
use crate::shape::Shape;
use crate::step::Step;
use crate::tensor::Tensor;

/// Names a tracked variable on its tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VarId(u32);

/// A tensor in a computation, tracked by a tape or not.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    id: Option<VarId>,
}

impl Var {
    /// A variable that no gradient flows to.
    pub fn constant(value: Tensor) -> Self {
        Var { value, id: None }
    }

    /// The numbers.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The sizes of the value.
    pub fn shape(&self) -> Shape {
        self.value.shape()
    }

    /// Its name on the tape; `None` if it is not tracked.
    pub fn id(&self) -> Option<VarId> {
        self.id
    }
}

/// The backward half of an op: what it saved, and how to turn the gradient of its output into the
/// gradients of its inputs.
pub trait Backward: Send {
    /// Adds the gradients of the op's inputs to `grads`, given `gy`, the gradient of its output.
    ///
    /// # Errors
    /// Whatever the op's kernels report.
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()>;
}

/// The record of a forward pass.
#[derive(Default)]
pub struct Tape {
    nodes: Vec<(VarId, Box<dyn Backward>)>,
    /// For each variable: the parameter that it is, if any.
    vars: Vec<Option<ParamId>>,
}

impl Tape {
    fn new_var(&mut self, param: Option<ParamId>) -> VarId {
        self.vars.push(param);
        VarId(self.vars.len() as u32 - 1)
    }
}

/// Whether layers behave as in training or as in evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics, dropout on.
    Train,
    /// Running statistics, dropout off.
    Eval,
}

/// Shown each layer's key and output as a forward pass goes.
pub type Watcher<'w> = Box<dyn FnMut(&str, &Var) -> Result<()> + 'w>;

/// What a forward pass carries along: the tape, train or eval, the position in the random stream,
/// the parameters.
pub struct Ctx<'p> {
    device: Device,
    tape: Option<Tape>,
    mode: Mode,
    step: Step,
    network: Option<(&'p Params, &'p Buffers)>,
    watcher: Option<Watcher<'p>>,
    dropouts: u32,
}

impl<'p> Ctx<'p> {
    /// Training: ops are recorded.
    pub fn train(device: &Device) -> Self {
        Ctx { tape: Some(Tape::default()), mode: Mode::Train, ..Ctx::eval(device) }
    }

    /// Evaluation: nothing is recorded.
    pub fn eval(device: &Device) -> Self {
        Ctx {
            device: device.clone(),
            tape: None,
            mode: Mode::Eval,
            step: Step::default(),
            network: None,
            watcher: None,
            dropouts: 0,
        }
    }

    /// Through a network of these parameters and buffers.
    pub fn of(mut self, params: &'p Params, buffers: &'p Buffers) -> Self {
        self.network = Some((params, buffers));
        self
    }

    /// With a look at each layer's output.
    pub fn watched(mut self, watcher: impl FnMut(&str, &Var) -> Result<()> + 'p) -> Self {
        self.watcher = Some(Box::new(watcher));
        self
    }

    /// With another mode; the tape stays (or stays away).
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Runs `f` in another mode.
    pub fn with_mode_during<R>(&mut self, mode: Mode, f: impl FnOnce(&mut Self) -> R) -> R {
        let before = std::mem::replace(&mut self.mode, mode);
        let result = f(self);
        self.mode = before;
        result
    }

    /// At a step of a run.
    pub fn at(mut self, step: Step) -> Self {
        self.step = step;
        self
    }

    /// The step of the run.
    pub fn step(&self) -> &Step {
        &self.step
    }

    /// The device that the pass runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Train or eval.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// A tracked input.
    pub fn leaf(&mut self, value: Tensor) -> Var {
        Var { value, id: self.tape.as_mut().map(|t| t.new_var(None)) }
    }

    /// A parameter, tracked unless it is frozen.
    ///
    /// # Errors
    /// [`Error::Internal`] if the context has no parameters.
    pub fn param(&mut self, id: ParamId) -> Result<Var> {
        let value = self.network()?.0.tensor(id)?;
        self.tracked(id, value)
    }

    /// A parameter as a product takes it, in the precision of activations; tracked unless it is frozen.
    ///
    /// # Errors
    /// As [`Ctx::param`].
    pub fn weight(&mut self, id: ParamId) -> Result<Var> {
        let value = self.network()?.0.weight(id)?;
        self.tracked(id, value)
    }

    fn tracked(&mut self, id: ParamId, value: Tensor) -> Result<Var> {
        let (params, _) = self.network()?;
        let tape = self.tape.as_mut().filter(|_| params.list()[id.0].trainable);
        Ok(Var { value, id: tape.map(|t| t.new_var(Some(id))) })
    }

    /// The buffers of the network.
    ///
    /// # Errors
    /// [`Error::Internal`] if the context has none.
    pub fn buffers(&self) -> Result<&'p Buffers> {
        Ok(self.network()?.1)
    }

    fn network(&self) -> Result<(&'p Params, &'p Buffers)> {
        self.network.ok_or_else(|| Error::Internal("a forward pass through a network without its parameters".into()))
    }

    /// Whether a layer and the activation or the max-pool behind it are computed together: on a CUDA device, unless someone
    /// watches or it is not wanted.
    pub(crate) fn joins(&self) -> bool {
        self.watcher.is_none() && matches!(&self.device, Device::Cuda(cuda) if !cuda.options().no_fuse)
    }

    /// Shows a layer's output to who watches.
    pub(crate) fn passed(&mut self, key: &str, y: &Var) -> Result<()> {
        self.watcher.as_mut().map_or(Ok(()), |w| w(key, y))
    }

    /// The random stream of the next dropout layer in this pass.
    pub(crate) fn next_dropout(&mut self) -> u32 {
        self.dropouts += 1;
        stream::DROPOUT + self.dropouts - 1
    }

    /// The output of an op: tracked, with the node that `node` makes, if any of `inputs` is. `node` is
    /// not called otherwise, so that nothing is saved for inference.
    pub fn record<B: Backward + 'static>(&mut self, y: Tensor, inputs: &[&Var], node: impl FnOnce() -> B) -> Var {
        match &mut self.tape {
            Some(tape) if inputs.iter().any(|v| v.id.is_some()) => {
                let id = tape.new_var(None);
                tape.nodes.push((id, Box::new(node())));
                Var { value: y, id: Some(id) }
            }
            _ => Var::constant(y),
        }
    }

    /// The backward pass from `y`, whose gradient is `gy`. Gradients of parameters go to `params`.
    ///
    /// # Errors
    /// [`Error::Shape`] if `gy` does not match `y`; [`Error::Internal`] without a tape; whatever the
    /// ops report.
    pub fn backward<'g>(self, y: &Var, gy: Tensor, params: Option<&'g mut ParamGrads>) -> Result<Grads<'g>> {
        y.value.expect_like("backward", &gy)?;
        let tape = self.tape.ok_or_else(|| Error::Internal("backward without a tape".into()))?;
        let (of, sums_to_zero) = ((0..tape.vars.len()).map(|_| None).collect(), vec![false; tape.vars.len()]);
        let mut grads = Grads {
            device: self.device,
            of,
            param: tape.vars,
            arena: params,
            sums_to_zero,
            at_hand: false,
            read_beside: Vec::new(),
            is_beside: false,
        };
        if let Some(arena) = &mut grads.arena {
            arena.begin(self.step);
        }
        grads.add(y.id, gy)?;
        for (id, node) in tape.nodes.into_iter().rev() {
            if let Some(gy) = grads.of[id.0 as usize].take() {
                grads.at_hand = grads.sums_to_zero[id.0 as usize];
                node.backward(gy, &mut grads)?;
                grads.bound_what_is_held()?;
            }
        }
        grads.join()?;
        if let Some(arena) = &mut grads.arena {
            arena.finish()?;
        }
        Ok(grads)
    }

    /// [`Ctx::backward`] from a loss: a scalar whose gradient is 1.
    ///
    /// # Errors
    /// As [`Ctx::backward`].
    pub fn backward_loss<'g>(self, loss: &Var, params: Option<&'g mut ParamGrads>) -> Result<Grads<'g>> {
        let mut one = Tensor::empty(loss.value.device(), loss.value.dtype(), loss.shape())?;
        one.fill(1.0)?;
        self.backward(loss, one, params)
    }
}

/// The gradients of a backward pass.
pub struct Grads<'g> {
    device: Device,
    of: Vec<Option<Tensor>>,
    param: Vec<Option<ParamId>>,
    arena: Option<&'g mut ParamGrads>,
    /// Of each variable, whether the sums over the rows of its gradient are zero.
    sums_to_zero: Vec<bool>,
    /// The same of the gradient that the op at hand was given.
    at_hand: bool,
    /// What work beside the backward pass reads, which nobody may change meanwhile.
    read_beside: Vec<Tensor>,
    is_beside: bool,
}

/// Bytes that work beside the backward pass keeps alive, at most: kernels on more of them fill a GPU by themselves.
const READ_BESIDE: usize = 256 << 20;

impl Grads<'_> {
    /// Whether a variable is a parameter, whose gradient no node of the tape reads.
    pub(crate) fn is_param(&self, id: VarId) -> bool {
        self.arena.is_some() && self.param[id.0 as usize].is_some()
    }

    /// Notes that the sums over the rows of a variable's gradient are zero but for rounding, as behind a batch-norm, if nothing
    /// else is added to it. Nothing is noted on the CPU, or where nothing is to be fused: there the gradient of a bias is added up.
    pub(crate) fn note_sums_to_zero(&mut self, id: Option<VarId>) {
        let skips = matches!(&self.device, Device::Cuda(cuda) if !cuda.options().no_fuse);
        if let Some(VarId(id)) = id.filter(|_| skips) {
            self.sums_to_zero[id as usize] = self.of[id as usize].is_none();
        }
    }

    /// Whether the sums over the rows of the gradient that the op at hand was given are known to be zero: then the gradient of a
    /// bias is.
    pub(crate) fn sums_are_zero(&self) -> bool {
        self.at_hand
    }

    /// Writes gradients of parameters that nothing in the backward pass waits for: where a step is recorded, a GPU does it beside
    /// what follows. `reads` are the tensors that it reads.
    ///
    /// # Errors
    /// Whatever `work` reports; [`Error::Device`] if the device fails.
    pub(crate) fn beside(&mut self, reads: &[&Tensor], work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let Device::Cuda(cuda) = self.device.clone() else { return work(self) };
        if !cuda.is_recording() {
            return work(self);
        }
        self.read_beside.extend(reads.iter().map(|&tensor| tensor.clone()));
        self.is_beside = true;
        let done = cuda.beside(0, || work(self));
        self.is_beside = false;
        done?;
        let bytes = self.read_beside.iter().map(|t| t.len() * t.dtype().size()).sum::<usize>();
        if bytes > READ_BESIDE { self.join() } else { Ok(()) }
    }

    /// Waits for work that others do beside the pass, if the memory that is held for it becomes much.
    fn bound_what_is_held(&self) -> Result<()> {
        match &self.device {
            Device::Cuda(cuda) if self.read_beside.is_empty() && cuda.held() > READ_BESIDE => cuda.join(),
            _ => Ok(()),
        }
    }

    /// What follows waits for the work beside.
    fn join(&mut self) -> Result<()> {
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
        self.sums_to_zero[id as usize] = false;
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
        Slot::of_tensor(t, accumulate).map(Some)
    }
}
