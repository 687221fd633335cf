//! The backward pass of what takes weights: linear layers and convolutions.

use super::activation::Activation;
use super::product::Product;
use super::relu;
use crate::autograd::{Ctx, Grads, Var, VarId};
use crate::device::Device;
use crate::device::cuda::{Cuda, Launch, MULTIPROCESSORS, Out, with_kernel_type};
use crate::dtype::{DType, with_real};
use crate::error::Result;
use crate::kernels::bias::{BiasDims, bias_activation_sums, bias_relu_sums, bias_sums};
use crate::params::Slot;
use crate::tensor::Tensor;

/// Where a recording has gradients of weights and of biases: beside the backward pass, and beside each other.
const WEIGHTS: usize = 0;
const SUMS: usize = 2;

/// The inputs of a layer with weights, as its backward pass needs them.
pub(super) struct Operands {
    /// Of x, w and b.
    ids: [Option<VarId>; 3],
    pub(super) x: Tensor,
    pub(super) w: Tensor,
    /// The result, if the product has applied ReLU to it: no gradient passes where it is 0.
    y: Option<Tensor>,
    /// Whether x is what ReLU made, so that the product can write what that passes on of its gradient.
    x_is_relu: bool,
}

impl Operands {
    /// Records `y` with the node that `node` makes of the operands, and applies the activation unless the product
    /// [has](Activation::is_stored).
    ///
    /// # Errors
    /// Those of the activation.
    pub(super) fn record<B: crate::autograd::Backward + 'static>(
        y: Tensor,
        then: Option<Activation>,
        [x, w]: [&Var; 2],
        b: Option<&Var>,
        cx: &mut Ctx<'_>,
        node: impl FnOnce(Operands) -> B,
    ) -> Result<Var> {
        let ids = [x.id(), w.id(), b.and_then(Var::id)];
        let inputs: Vec<&Var> = [Some(x), Some(w), b].into_iter().flatten().collect();
        let applied = Activation::is_stored(then, y.device());
        let masks = applied.then(|| y.clone());
        let (x_is_relu, x, w) = (x.is_relu(), x.value().clone(), w.value().clone());
        let operands = || Operands { ids, x, w, y: masks, x_is_relu };
        let bias = ids[2].filter(|_| !applied && ids[..2] == [None; 2] && cx.joins());
        let y = cx.record(y, &inputs, || node(operands())).made_by_relu(applied).of_bias(bias);
        Activation::unless_stored(then, y, cx)
    }

    /// What the gradient of x is to be masked by, if a product can do so.
    pub(super) fn masks(&self) -> Option<&Tensor> {
        Some(&self.x).filter(|_| self.x_is_relu)
    }

    /// The gradients that are wanted, in this order: of the bias, the sums of gy's columns; of the weights, which `weights`
    /// writes, reading `also` if that is given; of the input, which `input` writes. Both are called with the gradient of the
    /// product, and `input` adds to what is there on a CUDA device alone, where that costs the product no pass of its own; it
    /// says whether the sum is [masked](Operands::masks).
    pub(super) fn backward(
        &self,
        gy: Tensor,
        grads: &mut Grads<'_>,
        also: Option<&Tensor>,
        weights: impl FnOnce(&Tensor, &mut Slot<'_>) -> Result<()>,
        input: impl FnOnce(&Tensor, &mut Slot<'_>) -> Result<bool>,
    ) -> Result<()> {
        let y = self.y.as_ref().filter(|_| !grads.is_masked());
        let sums = gy.dtype().sums();
        let of_bias = gy.shape().last();
        let gy = match y {
            None => gy,
            Some(y) => match grads.slot(self.ids[2], sums, [of_bias].into())? {
                None => relu::backward(y, gy)?,
                Some(mut gb) => relu_sums(y, gy, &mut gb)?,
            },
        };
        let gy = &gy;
        // Unless it has been written above, or is zero.
        let is_zero = |grads: &Grads<'_>, id| grads.sums_are_zero() && grads.is_param(id);
        let bias = self.ids[2].filter(|&id| y.is_none() && !is_zero(grads, id));
        let of_bias = |grads: &mut Grads<'_>| {
            let gb = grads.slot(bias, sums, [of_bias].into())?;
            gb.map_or(Ok(()), |mut gb| column_sums(gy, &mut gb))
        };
        let of_weights = |grads: &mut Grads<'_>| {
            grads.slot(self.ids[1], sums, self.w.shape())?.map_or(Ok(()), |mut gw| weights(gy, &mut gw))
        };
        // The product keeps gy as well, for as long.
        let kept = self.ids[1].is_some_and(|id| grads.is_param(id));
        beside(bias, SUMS, &[gy][usize::from(kept)..], grads, of_bias)?;
        let reads = [Some(gy), Some(&self.x), also].into_iter().flatten();
        beside(self.ids[1], WEIGHTS, &reads.collect::<Vec<_>>(), grads, of_weights)?;
        let (id, dtype, shape) = (self.ids[0], gy.dtype(), self.x.shape());
        if let Device::Cuda(_) = gy.device() {
            let masked = grads.slot(id, dtype, shape)?.map_or(Ok(false), |mut gx| input(gy, &mut gx))?;
            grads.note_masked(id, masked);
            return Ok(());
        }
        if id.is_some() {
            let mut gx = Tensor::empty(gy.device(), dtype, shape)?;
            input(gy, &mut Slot::of_tensor(&mut gx, false)?)?;
            grads.add(id, gx)?;
        }
        Ok(())
    }
}

/// Computes the gradient of a variable that reads these: beside the pass if it is a parameter. What an op has made has a gradient
/// that is read in this pass.
fn beside(
    id: Option<VarId>,
    line: usize,
    reads: &[&Tensor],
    grads: &mut Grads<'_>,
    work: impl FnOnce(&mut Grads<'_>) -> Result<()>,
) -> Result<()> {
    match id.is_some_and(|id| grads.is_param(id)) {
        true => grads.beside(line, reads, work),
        false => work(grads),
    }
}

/// `gb (+)= sum over the rows of gy`, gy as rows of its last dimension.
fn column_sums(gy: &Tensor, gb: &mut Slot<'_>) -> Result<()> {
    const OP: &str = "bias";
    let accumulate = gb.accumulate;
    match gy.device() {
        Device::Cpu(_) => with_real!(OP, gy.dtype(), T => {
            let (gy, gb) = (gy.host::<T>()?, gb.host_mut::<T>()?);
            if !accumulate {
                gb.fill(<T as num_traits::Zero>::zero());
            }
            let c = gb.len();
            crate::device::cpu::map_reduce(gy.len() / c, c, gb, |range, sums| {
                crate::device::cpu::add_rows(&gy[range.start * c..range.end * c], sums);
            });
            Ok(())
        }),
        Device::Cuda(cuda) => {
            with_kernel_type!(OP, gy.dtype(), T => device_sums(cuda, gy, gb, |launch, gb, partial, d| {
                bias_sums::<T>(cuda, launch, gy.input()?, gb, partial, d)
            }))
        }
    }
}

/// What ReLU passes on of gy, and `gb (+)= sum over its rows`, in one pass on a CUDA device; nowhere else do products apply
/// ReLU.
fn relu_sums(y: &Tensor, gy: Tensor, gb: &mut Slot<'_>) -> Result<Tensor> {
    const OP: &str = "bias";
    let Device::Cuda(cuda) = gy.device().clone() else {
        let gy = relu::backward(y, gy)?;
        column_sums(&gy, gb)?;
        return Ok(gy);
    };
    let mut g = gy.into_unique()?;
    with_kernel_type!(OP, g.dtype(), T => device_sums(&cuda, y, gb, |launch, gb, partial, d| {
        bias_relu_sums::<T>(&cuda, launch, y.input()?, g.output()?, gb, partial, d)
    }))?;
    Ok(g)
}

/// Of an activation's x and gy: where the `bias` alone is trained of the product that made x, and nobody else reads x, the bias's
/// gradient, of what the activation passes on, which is not kept; whether that was so. On a CUDA device alone.
pub(super) fn only_bias(
    activation: Activation,
    x: &Tensor,
    [id, bias]: [Option<VarId>; 2],
    gy: &Tensor,
    grads: &mut Grads<'_>,
) -> Result<bool> {
    let Device::Cuda(cuda) = gy.device().clone() else { return Ok(false) };
    if bias.is_none() || !grads.has_one_reader(id) {
        return Ok(false);
    }
    beside(bias, SUMS, &[x, gy], grads, |grads| {
        let Some(mut gb) = grads.slot(bias, gy.dtype().sums(), [x.shape().last()].into())? else { return Ok(()) };
        with_kernel_type!("bias", gy.dtype(), T => device_sums(&cuda, x, &mut gb, |launch, gb, partial, d| {
            let d = BiasDims { activation: Activation::number(Some(activation)), ..*d };
            bias_activation_sums::<T>(&cuda, launch, x.input()?, gy.input()?, gb, partial, &d)
        }))
    })?;
    Ok(true)
}

/// Cuts the rows of tensors like `x` into strips; `launch` adds up the columns of each, into the memory for the partial results if
/// there are several strips, which are then added up.
fn device_sums(
    cuda: &Cuda,
    x: &Tensor,
    gb: &mut Slot<'_>,
    launch: impl FnOnce(Launch, Out<'_, f32>, Option<Out<'_, f32>>, &BiasDims) -> Result<()>,
) -> Result<()> {
    let columns = x.shape().last();
    let rows = x.len() / columns;
    let wide = if columns.is_multiple_of(4) { 4 } else { 1 };
    let width = (columns / wide).next_power_of_two().min(32);
    let blocks = columns.div_ceil(width * wide);
    let strips = (rows * width).div_ceil(4096).min((4 * MULTIPROCESSORS / blocks).max(1)).max(1);
    let strip = rows.div_ceil(strips).max(1);
    let strips = rows.div_ceil(strip).max(1);
    let sum = Product { accumulate: gb.accumulate, ..Product::of([1, columns, rows], [columns; 2]) };
    let accumulate = gb.accumulate && strips == 1;
    let [rows_, columns_, wide, width, strip] = [rows, columns, wide, width, strip].map(|d| d as i32);
    let (accumulate, activation) = (accumulate.into(), 0);
    let d = BiasDims { rows: rows_, columns: columns_, wide, width, strip, accumulate, activation };
    let blocks = Launch::new(0, 256).grid(blocks, strips, 1).flops(rows * columns);
    let mut gb = gb.output()?;
    if strips == 1 {
        return launch(blocks, gb, None, &d);
    }
    let mut partial = Tensor::empty(&Device::Cuda(cuda.clone()), DType::F32, [strips, columns])?;
    launch(blocks, gb.again(), Some(partial.output()?), &d)?;
    sum.add_up(cuda, &partial, gb)
}
