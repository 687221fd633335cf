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

mod grads;

pub use grads::Grads;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::params::{Buffers, ParamGrads, ParamId, Params};
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
    made: Made,
}

/// What is noted of how a variable was made, for ops that read it.
#[derive(Clone, Debug, Default)]
struct Made {
    relu: bool,
    won: Option<Tensor>,
    logits: Option<VarId>,
    bias: Option<VarId>,
}

impl Var {
    /// A variable that no gradient flows to.
    pub fn constant(value: Tensor) -> Self {
        Var { value, id: None, made: Made::default() }
    }

    /// With a note whether ReLU made it, in a product or a sum, or a pool or dropout of what ReLU made: then its gradient may
    /// be taken for 0 where it is not above 0 itself.
    pub(crate) fn made_by_relu(self, relu: bool) -> Self {
        Var { made: Made { relu, ..self.made }, ..self }
    }

    /// Whether that is noted.
    pub(crate) fn is_relu(&self) -> bool {
        self.made.relu
    }

    /// With a note where it won, the output of a max-pool of 2x2 in one op with what was pooled: who alone reads it may give the
    /// gradient [of that](Grads::add_spread).
    pub(crate) fn won_at(self, place: Tensor) -> Self {
        Var { made: Made { won: Some(place), ..self.made }, ..self }
    }

    /// What is noted of that.
    pub(crate) fn won(&self) -> Option<&Tensor> {
        self.made.won.as_ref()
    }

    /// With a note of the variable whose log-softmax it is: a loss may give the gradient of that.
    pub(crate) fn log_softmax_of(self, logits: Option<VarId>) -> Self {
        Var { made: Made { logits, ..self.made }, ..self }
    }

    /// With a note of the bias that alone is trained of the product that made it: its gradient is all that is to be known of that
    /// of the variable.
    pub(crate) fn of_bias(self, bias: Option<VarId>) -> Self {
        Var { made: Made { bias, ..self.made }, ..self }
    }

    /// What is noted of that.
    pub(crate) fn bias(&self) -> Option<VarId> {
        self.made.bias
    }

    /// What is noted of that.
    pub(crate) fn logits(&self) -> Option<VarId> {
        self.made.logits
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
    /// For each variable: the nodes that give it a gradient.
    readers: Vec<u32>,
}

impl Tape {
    fn new_var(&mut self, param: Option<ParamId>) -> VarId {
        self.vars.push(param);
        self.readers.push(0);
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
    seed: Option<Tensor>,
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
            seed: None,
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

    /// Before a backward pass that begins with the gradient `seed`: a loss on a CUDA device computes its own gradient with it at
    /// once, in the launch that it has anyway.
    pub(crate) fn seeded(mut self, seed: Tensor) -> Self {
        self.seed = Some(seed);
        self
    }

    /// That gradient, where a loss is to do so.
    pub(crate) fn seed(&self) -> Option<&Tensor> {
        self.seed.as_ref().filter(|_| self.tape.is_some() && self.joins())
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
        Var { id: self.tape.as_mut().map(|t| t.new_var(None)), ..Var::constant(value) }
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
        Ok(Var { id: tape.map(|t| t.new_var(Some(id))), ..Var::constant(value) })
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

    /// Whether a layer and the activation or the max-pool behind it are computed together: unless someone watches, or on a CUDA
    /// device it is not wanted.
    pub(crate) fn joins(&self) -> bool {
        self.watcher.is_none() && !matches!(&self.device, Device::Cuda(cuda) if cuda.options().no_fuse)
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
                inputs.iter().filter_map(|v| v.id).for_each(|VarId(id)| tape.readers[id as usize] += 1);
                tape.nodes.push((id, Box::new(node())));
                Var { id: Some(id), ..Var::constant(y) }
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
        let mut grads = Grads::new(self.device, tape.vars, tape.readers, params);
        if let Some(arena) = &mut grads.arena {
            arena.begin(self.step);
        }
        grads.add(y.id, gy)?;
        for (id, node) in tape.nodes.into_iter().rev() {
            grads.note_passed(id)?;
            if let Some(gy) = grads.of[id.0 as usize].take() {
                grads.at_hand = grads.known[id.0 as usize];
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
