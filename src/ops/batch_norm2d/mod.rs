//! Batch normalisation over (n, h, w), one mean and variance per channel.
//!
//! `y = (x - mean) / sqrt(var + eps) · gamma + beta`. In training mean and (biased) variance are the
//! batch's, and the running statistics move by `running = (1 - momentum)·running + momentum·batch`,
//! with the unbiased variance, as in PyTorch; in evaluation the running statistics are used.
//!
//! Backward, with xhat = (x - mean)/std and M = n·h·w: `gbeta = sum gy`, `ggamma = sum gy·xhat`,
//! in training `gx = gamma/std · (gy - gbeta/M - xhat·ggamma/M)`, in evaluation `gx = gamma/std · gy`.
//!
//! Source: Ioffe, Szegedy, "Batch Normalization", ICML 2015.

mod cpu;
mod cuda;
mod special;

use super::activation::{Activation, Sum, Then};
use super::case::{Case, Draw, Fill};
use crate::autograd::{Backward, Ctx, Grads, Mode, Var, VarId};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::Shape;
use crate::tensor::Tensor;
use special::then;

const OP: &str = "batch_norm2d";

/// Running mean and unbiased variance per channel before any batch: 0 and 1.
///
/// # Errors
/// [`Error::Shape`] for a dtype that is not floating point.
pub fn running(device: &Device, dtype: DType, channels: usize) -> Result<[Tensor; 2]> {
    let mean = Tensor::zeros(device, dtype, [channels])?;
    let mut var = Tensor::empty(device, dtype, [channels])?;
    var.fill(1.0)?;
    Ok([mean, var])
}

impl Var {
    /// Batch-norm of `[n, h, w, c]` with `gamma` and `beta` of `[c]`. Training moves the `running` mean
    /// and variance, evaluation uses them.
    ///
    /// # Errors
    /// [`Error::Shape`] for other shapes, or for one value per channel in training (its variance is
    /// not defined).
    pub fn batch_norm2d(
        &self,
        gamma: &Var,
        beta: &Var,
        running: [&mut Tensor; 2],
        momentum: f64,
        eps: f64,
        cx: &mut Ctx<'_>,
    ) -> Result<Var> {
        self.batch_norm2d_then(Then::default(), gamma, beta, running, momentum, eps, cx)
    }

    /// [`Var::batch_norm2d`], and an activation of the result, and a max-pool of that. On a CUDA device the activation takes no
    /// pass of its own, and what it was applied to is not rounded to the type of the activations in between; in training of
    /// more than 2048 values a channel a max-pool of 2x2, or of 3x3 with a stride of 2 and a padding of 1, takes none either, and
    /// what it pools is not stored.
    ///
    /// # Errors
    /// As [`Var::batch_norm2d`].
    #[expect(clippy::too_many_arguments, reason = "what batch-norm takes")]
    pub fn batch_norm2d_then(
        &self,
        then: Then,
        gamma: &Var,
        beta: &Var,
        running: [&mut Tensor; 2],
        momentum: f64,
        eps: f64,
        cx: &mut Ctx<'_>,
    ) -> Result<Var> {
        if let (Device::Cpu(_), true) = (self.value().device(), then != Then::default()) {
            return then.of(&self.batch_norm2d(gamma, beta, running, momentum, eps, cx)?, cx);
        }
        self.normalised([gamma, beta], running, [momentum, eps], then, None, cx)
    }

    /// [`Var::batch_norm2d`], and a sum of the result and another tensor, as at the end of a residual block. On a CUDA device the
    /// sum takes no pass of its own, and what it is of is not rounded in between; nor does an activation on one side of it, after
    /// it ReLU alone.
    ///
    /// # Errors
    /// As [`Var::batch_norm2d`]; [`Error::Shape`] if the other tensor has another shape.
    #[expect(clippy::too_many_arguments, reason = "what batch-norm takes")]
    pub fn batch_norm2d_plus(
        &self,
        sum: Sum<'_>,
        gamma: &Var,
        beta: &Var,
        running: [&mut Tensor; 2],
        momentum: f64,
        eps: f64,
        cx: &mut Ctx<'_>,
    ) -> Result<Var> {
        if matches!(self.value().device(), Device::Cpu(_)) || !Sum::is_joined(sum.before, sum.after) {
            return sum.of(&self.batch_norm2d(gamma, beta, running, momentum, eps, cx)?, cx);
        }
        sum.plus.value().expect_like(OP, self.value())?;
        self.normalised([gamma, beta], running, [momentum, eps], sum.before.into(), Some(sum), cx)
    }

    fn normalised(
        &self,
        [gamma, beta]: [&Var; 2],
        running: [&mut Tensor; 2],
        [momentum, eps]: [f64; 2],
        then: Then,
        sum: Option<Sum<'_>>,
        cx: &mut Ctx<'_>,
    ) -> Result<Var> {
        let x = self.value();
        let pooled = then.pool.map_or(Ok(x.shape()), |window| window.pooled("max_pool2d", x.shape()))?;
        let train = cx.mode() == Mode::Train;
        if let Some(window) = then.pool
            && !(train && cuda::pools(x.shape(), window))
        {
            let y = self.batch_norm2d_then(then.unpooled(), gamma, beta, running, momentum, eps, cx)?;
            return y.max_pool2d(window, cx);
        }
        let [running_mean, running_var] = running;
        let channels = Shape::from([x.shape().last()]);
        let others = [gamma.shape(), beta.shape(), running_mean.shape(), running_var.shape()];
        if x.shape().rank() != 4 || others != [channels; 4] {
            let [g, b, running, _] = others;
            let got = format!("x {}, gamma {g}, beta {b}, running {running}", x.shape());
            let remedy = "put it after a convolution of as many channels";
            return Err(Error::shape(OP, "x [n, h, w, c] and [c] for the others", got, remedy));
        }
        let rows = x.len() / x.shape().last().max(1);
        if train && rows < 2 {
            return Err(Error::shape(
                OP,
                "more than one value per channel in training",
                x.shape(),
                "use a batch size that leaves no last batch of one image, or drop the batch-norm after a 1x1 activation",
            ));
        }
        let mut y = Tensor::empty(x.device(), x.dtype(), pooled)?;
        let mut winners = None;
        let mut mean = Tensor::empty(x.device(), x.dtype().sums(), channels)?;
        let mut inv_std = Tensor::empty(x.device(), x.dtype().sums(), channels)?;
        on_device!(OP, x, T,
        cpu => {
            let (mean, inv_std) = (mean.host_mut::<T>()?, inv_std.host_mut::<T>()?);
            if train {
                cpu::statistics(x.host::<T>()?, mean, inv_std);
                let (rm, rv) = (running_mean.host_mut::<T>()?, running_var.host_mut::<T>()?);
                cpu::update(rm, rv, mean, inv_std, rows, momentum);
            } else {
                mean.copy_from_slice(running_mean.host::<T>()?);
                inv_std.copy_from_slice(running_var.host::<T>()?);
            }
            cpu::invert(inv_std, eps);
            let (gamma, beta) = (gamma.value().host::<T>()?, beta.value().host::<T>()?);
            cpu::normalise(x.host::<T>()?, y.host_mut::<T>()?, mean, inv_std, gamma, beta);
        },
        cuda => {
            let (stats, params) = ([&mut mean, &mut inv_std], [gamma.value(), beta.value()]);
            let running = [running_mean, running_var];
            winners = cuda::forward::<T>(&cuda, x, params, &mut y, stats, running, [momentum, eps], train, then, sum)?;
            Ok(())
        });
        let (plus, masks) = (sum.map(|s| s.plus), sum.and_then(|s| s.after).map(|_| y.clone()));
        let inputs: Vec<&Var> = [self, gamma, beta].into_iter().chain(plus).collect();
        let relu_of_sum = masks.is_some();
        let y = cx.record(y, &inputs, || BatchNorm2d {
            ids: [self.id(), gamma.id(), beta.id()],
            plus: plus.and_then(Var::id),
            masks,
            x: x.clone(),
            gamma: gamma.value().clone(),
            beta: beta.value().clone(),
            mean,
            inv_std,
            train,
            then: then.activation,
            x_is_relu: self.is_relu() && winners.is_none(),
            winners,
            x_won: self.won().filter(|_| train).cloned(),
        });
        Ok(y.made_by_relu(relu_of_sum))
    }
}

struct BatchNorm2d {
    ids: [Option<VarId>; 3],
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    train: bool,
    /// What was applied to the result; on the CPU that is an op of its own.
    then: Option<Activation>,
    plus: Option<VarId>,
    /// The sum with it, if ReLU was applied to that.
    masks: Option<Tensor>,
    /// Whether the pass that writes the gradient of x masks it for ReLU, which made x.
    x_is_relu: bool,
    /// Where the result was pooled.
    winners: Option<cuda::Winners>,
    /// Where x won, if it was pooled.
    x_won: Option<Tensor>,
}

impl Backward for BatchNorm2d {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        let mut ggamma = Tensor::empty(gy.device(), gy.dtype().sums(), self.mean.shape())?;
        let mut gbeta = Tensor::empty(gy.device(), gy.dtype().sums(), self.mean.shape())?;
        let mut gx = None;
        on_device!(OP, gy, T,
        cpu => {
            let mut g = gy.into_unique()?;
            let (x, mean, inv_std) = (self.x.host::<T>()?, self.mean.host::<T>()?, self.inv_std.host::<T>()?);
            let (gg, gb) = (ggamma.host_mut::<T>()?, gbeta.host_mut::<T>()?);
            cpu::reduce(x, g.host::<T>()?, mean, inv_std, gg, gb);
            let (gamma, of) = (self.gamma.host::<T>()?, g.host_mut::<T>()?);
            match (&self.ids[0], self.train) {
                (None, _) => {}
                (_, true) => cpu::backward(x, of, mean, inv_std, gamma, gg, gb),
                (_, false) => cpu::backward_eval(of, inv_std, gamma),
            }
            gx = Some(g);
        },
        cuda => {
            let masks = self.masks.as_ref().filter(|_| !grads.is_masked());
            let spread = self.x_won.as_ref().filter(|_| grads.has_one_reader(self.ids[0]));
            let [of_x, masked] = cuda::backward::<T>(&cuda, &self, &gy, masks, spread, [&mut ggamma, &mut gbeta])?;
            gx = of_x;
            grads.add(self.plus, masked.unwrap_or(gy))
        });
        // A bias in front of it changes nothing.
        grads.note_sums_to_zero(self.ids[0].filter(|_| self.train && !self.x_is_relu));
        match gx {
            Some(gx) if gx.shape() != self.x.shape() => grads.add_spread(self.ids[0], gx),
            Some(gx) => grads.add_masked(self.ids[0], gx, self.x_is_relu)?,
            None => {}
        }
        grads.add(self.ids[1], ggamma)?;
        grads.add(self.ids[2], gbeta)
    }
}

fn case(x: [usize; 4], train: bool) -> Case {
    then(Then::default(), x, train)
}

/// Shapes that tests and benches share.
pub fn cases() -> Vec<Case> {
    let mut all = vec![
        case([2, 1, 1, 1], true),
        case([1, 3, 5, 7], true),
        case([1, 1, 1, 3], false),
        case([5, 4, 3, 33], true),
        case([5, 4, 3, 33], false),
        case([1, 1, 1, 515], false),
        case([2, 3, 5, 31], true),
        case([3, 7, 5, 64], true),
        case([1, 5, 2, 132], true),
        case([1, 9, 5, 264], true),
        case([2, 40, 41, 1], true),
        case([1, 9, 5, 264], false),
        case([3, 7, 5, 64], false),
        // As many rows as are treated whole, and more.
        case([2, 32, 32, 5], true),
        case([1, 683, 3, 1], true),
        case([1, 683, 3, 8], true),
        case([2, 46, 46, 31], true),
        case([1, 683, 3, 132], true),
    ];
    all.extend(special::cases());
    all.extend([
        case([16, 28, 28, 32], true).timed(),
        case([16, 8, 8, 256], true).timed(),
        case([16, 28, 28, 32], false).timed(),
    ]);
    all
}

/// A small case drawn at random.
pub fn random_case(d: &mut Draw) -> Case {
    case([d.int(2, 4), d.int(1, 5), d.int(1, 5), d.int(1, 6)], d.flip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_mean_keeps_the_variance() {
        // 10000 ± 0.5: a one-pass sum of squares in f32 would lose it entirely.
        let x: Vec<f32> = (0..256).map(|i| 10_000.0 + if i % 2 == 0 { 0.5 } else { -0.5 }).collect();
        let (mut mean, mut var) = ([0f32], [0f32]);
        cpu::statistics(&x, &mut mean, &mut var);
        assert_eq!((mean[0], var[0]), (10_000.0, 0.25));
    }

    #[test]
    fn one_value_per_channel_has_no_variance() {
        let device = Device::cpu();
        let of = |v| Var::constant(Tensor::from_slice(&device, [1], &[v]).unwrap());
        let x = Var::constant(Tensor::from_slice(&device, [1, 1, 1, 1], &[3f32]).unwrap());
        let [mut mean, mut var] = running(&device, DType::F32, 1).unwrap();
        let y = x.batch_norm2d(&of(1f32), &of(0f32), [&mut mean, &mut var], 0.1, 1e-5, &mut Ctx::train(&device));
        assert!(y.unwrap_err().to_string().contains("more than one value"));
        let y = x.batch_norm2d(&of(1f32), &of(0f32), [&mut mean, &mut var], 0.1, 0.0, &mut Ctx::eval(&device)).unwrap();
        assert_eq!(y.value().item().unwrap(), 3.0);
    }
}
