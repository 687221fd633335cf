//! Cases of batch-norm in which there is more than it: a pool, a sum, a large mean, training before evaluation.

use super::*;
use crate::ops::window::Window;

pub(super) fn cases() -> Vec<Case> {
    vec![
        far_from_zero([2, 8, 16, 2]),
        far_from_zero([4, 8, 8, 8]),
        after_training([2, 3, 5, 3]),
        after_training([2, 3, 5, 8]),
        then(Some(Activation::Relu).into(), [2, 4, 3, 8], true),
        then(Some(Activation::Relu).into(), [2, 3, 5, 3], false),
        then(Some(Activation::Silu).into(), [2, 4, 3, 8], true),
        then(Some(Activation::Silu).into(), [2, 3, 5, 3], true),
        then(Some(Activation::Gelu).into(), [2, 4, 3, 8], true),
        then(Some(Activation::Gelu).into(), [2, 4, 3, 8], false),
        then(Some(Activation::Gelu).into(), [1, 683, 3, 3], true),
        then(Some(Activation::Silu).into(), [1, 683, 3, 4], true),
        pooled(None, Then::POOL, [2, 3, 5, 3]),
        pooled(None, Then::POOL, [2, 64, 65, 8]),
        pooled(Some(Activation::Relu), Then::POOL, [1, 683, 3, 3]),
        pooled(Some(Activation::Relu), Then::POOL, [3, 46, 60, 4]),
        pooled(Some(Activation::Silu), Then::POOL, [3, 51, 55, 5]),
        pooled(Some(Activation::Gelu), Then::POOL, [2, 3, 1371, 12]),
        pooled(None, Then::OVERLAPPING, [2, 47, 33, 3]),
        pooled(Some(Activation::Relu), Then::OVERLAPPING, [3, 46, 60, 4]),
        pooled(Some(Activation::Relu), Then::OVERLAPPING, [2, 1, 1371, 8]),
        pooled(Some(Activation::Gelu), Then::OVERLAPPING, [1, 683, 4, 12]),
        pooled(None, Then::OVERLAPPING, [1, 700, 3, 132]),
        pooled(None, Then::OVERLAPPING, [2, 3, 5, 3]),
        pooled_when(false, Some(Activation::Relu), Then::POOL, [2, 47, 33, 4]),
        pooled_when(false, Some(Activation::Relu), Then::OVERLAPPING, [2, 47, 33, 4]),
        plus([None, None], [2, 3, 5, 3], true),
        plus([None, Some(Activation::Relu)], [2, 4, 3, 8], true),
        plus([None, Some(Activation::Relu)], [2, 3, 5, 4], true),
        plus([None, Some(Activation::Relu)], [1, 683, 3, 5], true),
        plus([None, Some(Activation::Relu)], [1, 683, 3, 12], true),
        plus([None, Some(Activation::Relu)], [2, 3, 5, 8], false),
        plus([Some(Activation::Relu), None], [2, 4, 3, 8], true),
        plus([Some(Activation::Gelu), None], [1, 683, 3, 4], true),
        plus([Some(Activation::Silu), Some(Activation::Silu)], [2, 4, 3, 3], true),
    ]
}

/// What follows in the same pass.
pub(super) fn then(then: Then, x: [usize; 4], train: bool) -> Case {
    let c = x[3];
    let mode = if train { Mode::Train } else { Mode::Eval };
    let pool = match then.pool {
        None => "",
        Some(Then::POOL) => " pooled",
        Some(_) => " pooled, overlapping",
    };
    let name = Activation::in_a_name(then.activation) + pool;
    Case::new(format!("{x:?} {mode:?}{name}"), move |v, cx| {
        let [mut mean, mut var] = running(cx.device(), v[0].value().dtype().sums(), c)?;
        cx.with_mode_during(mode, |cx| v[0].batch_norm2d_then(then, &v[1], &v[2], [&mut mean, &mut var], 0.1, 1e-5, cx))
    })
    .input("x", x, Fill::Uniform)
    .param("gamma", [c], Fill::NonZero)
    .param("beta", [c], Fill::Uniform)
    .flops(x.iter().product::<usize>() * 7)
}

/// A max-pool of the result. In two bytes values are equal that are not, and another one wins; finite differences end at the
/// corner of ReLU.
fn pooled(activation: Option<Activation>, window: Window, x: [usize; 4]) -> Case {
    pooled_when(true, activation, window, x)
}

fn pooled_when(train: bool, activation: Option<Activation>, window: Window, x: [usize; 4]) -> Case {
    let mut case = then(Then { activation, pool: Some(window) }, x, train);
    case.inputs[0].fill = Fill::Distinct;
    Case { half: false, smooth: false, ..case }
}

/// Values of 10000 ± 0.5, which must not cost the variance its digits; `x` is added afterwards.
fn far_from_zero(x: [usize; 4]) -> Case {
    let Case { inputs, apply, .. } = case(x, true);
    let [n, h, w, c] = x;
    let far = move |v: &[Var], cx: &mut Ctx<'_>| {
        let of = |i: usize| 10_000.0 + if i < n * h * w * c / 2 { 0.5 } else { -0.5 };
        let values: Vec<f32> = (0..n * h * w * c).map(of).collect();
        let values = Tensor::from_slice(cx.device(), x, &values)?.to_dtype(v[0].value().dtype())?;
        apply(&[Var::constant(values), v[1].clone(), v[2].clone()], cx)?.add(&v[0], cx)
    };
    Case { inputs, half: false, ..Case::new(format!("{x:?} far from zero"), far) }
}

/// Evaluation after two steps of training. The gradient takes the running statistics for constants,
/// which a finite difference does not.
fn after_training(x: [usize; 4]) -> Case {
    let c = x[3];
    let apply = move |v: &[Var], cx: &mut Ctx<'_>| {
        let [mut mean, mut var] = running(cx.device(), v[0].value().dtype().sums(), c)?;
        for momentum in [0.3, 0.6] {
            cx.with_mode_during(Mode::Train, |cx| {
                v[0].batch_norm2d(&v[1], &v[2], [&mut mean, &mut var], momentum, 1e-5, cx)
            })?;
        }
        cx.with_mode_during(Mode::Eval, |cx| v[0].batch_norm2d(&v[1], &v[2], [&mut mean, &mut var], 0.1, 1e-3, cx))
    };
    Case { inputs: case(x, false).inputs, smooth: false, ..Case::new(format!("{x:?} after training"), apply) }
}

/// A sum with another tensor, and the activations on its sides.
fn plus([before, after]: [Option<Activation>; 2], x: [usize; 4], train: bool) -> Case {
    let (c, mode) = (x[3], if train { Mode::Train } else { Mode::Eval });
    let [of_it, of_sum] = [before, after].map(Activation::in_a_name);
    let apply = move |v: &[Var], cx: &mut Ctx<'_>| {
        let [mut mean, mut var] = running(cx.device(), v[0].value().dtype().sums(), c)?;
        let sum = Sum { plus: &v[3], before, after };
        cx.with_mode_during(mode, |cx| v[0].batch_norm2d_plus(sum, &v[1], &v[2], [&mut mean, &mut var], 0.1, 1e-5, cx))
    };
    // Finite differences end at the corner of ReLU.
    let smooth = ![before, after].contains(&Some(Activation::Relu));
    let case = Case::new(format!("{x:?} {mode:?}{of_it} plus{of_sum}"), apply);
    // Apart, what they are of is rounded in between.
    let case = Case { smooth, half: Sum::is_joined(before, after), ..case };
    let case = case.input("x", x, Fill::Uniform).param("gamma", [c], Fill::NonZero);
    case.param("beta", [c], Fill::Uniform).input("plus", x, Fill::Uniform)
}
