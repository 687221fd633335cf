//! Batch normalisation over n, h, w.
//!
//! A frozen one normalises with its running statistics in training too, and leaves them as they are, like PyTorch's
//! after `eval()`; its weight and bias are trained all the same, unless they are frozen as parameters. One without scale has
//! a weight that is 1 and not trained: its state dict is that of any other.

use super::*;
use crate::autograd::Mode;

#[derive(Debug, Default)]
struct BatchNorm {
    eps: f64,
    momentum: f64,
    frozen: bool,
    /// Whether its weight stays 1.
    fixed: bool,
    gamma: ParamId,
    beta: ParamId,
    mean: BufferId,
    var: BufferId,
}

pub(super) fn read(p: &mut Phrase<'_>) -> Result<Box<dyn Layer>> {
    let eps = p.take("eps").map_or(Ok(1e-5), |t| p.number(t, "a number"))?;
    let momentum = p.take("momentum").map_or(Ok(0.1), |t| p.number(t, "a number"))?;
    // As it is in f32.
    if !(eps > 0.0 && (eps as f32).is_normal() && (0.0..=1.0).contains(&momentum)) {
        return Err(
            p.bad("eps must be positive and finite in f32, momentum in [0, 1]", "the usual ones are 1e-5 and 0.1")
        );
    }
    let (frozen, fixed) = (p.flag("frozen"), p.flag("no scale"));
    Ok(Box::new(BatchNorm { eps, momentum, frozen, fixed, ..BatchNorm::default() }))
}

impl BatchNorm {
    fn apply(&self, then: Then, sum: Option<Sum<'_>>, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        let (gamma, beta) = (cx.param(self.gamma)?, cx.param(self.beta)?);
        let (mut mean, mut var) = (cx.buffers()?.get(self.mean)?, cx.buffers()?.get(self.var)?);
        let mode = if self.frozen { Mode::Eval } else { cx.mode() };
        let running = [&mut *mean, &mut *var];
        cx.with_mode_during(mode, |cx| match sum {
            Some(sum) => x.batch_norm2d_plus(sum, &gamma, &beta, running, self.momentum, self.eps, cx),
            None => x.batch_norm2d_then(then, &gamma, &beta, running, self.momentum, self.eps, cx),
        })
    }
}

impl Layer for BatchNorm {
    fn infer(&mut self, x: Shape, b: &mut Builder<'_>) -> Result<Shape> {
        let [_, _, c] = image(x)?;
        self.gamma = b.param("weight", [c], Init::Constant(1.0))?;
        if self.fixed {
            b.fix(self.gamma);
        }
        self.beta = b.param("bias", [c], Init::Constant(0.0))?;
        self.mean = b.buffer("running_mean", [c], 0.0)?;
        self.var = b.buffer("running_var", [c], 1.0)?;
        b.counter("num_batches_tracked", self.frozen);
        Ok(x)
    }

    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        self.apply(Then::default(), None, x, cx)
    }

    fn takes(&self, then: Then) -> bool {
        matches!(then.pool, None | Some(Then::POOL | Then::OVERLAPPING))
    }

    fn forward_then(&self, then: Then, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        self.apply(then, None, x, cx)
    }

    fn summing<'a>(&'a self, after: Option<Activation>, key: &'a str) -> Option<&'a str> {
        Sum::is_joined(None, after).then_some(key)
    }

    fn forward_plus(&self, sum: Sum<'_>, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        self.apply(Then::default(), Some(sum), x, cx)
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        let [gamma, beta] = [graph.param(self.gamma)?, graph.param(self.beta)?];
        let [mean, var] = [graph.buffer(self.mean)?, graph.buffer(self.var)?];
        let eps = Attribute::Float(self.eps as f32);
        Ok(graph.node("BatchNormalization", &[x, &gamma, &beta, &mean, &var], &[("epsilon", eps)]))
    }

    fn phrase(&self) -> String {
        let scale = if self.fixed { ", no scale" } else { "" };
        let eps = if self.eps == 1e-5 { String::new() } else { format!(", eps {:e}", self.eps) };
        let momentum = if self.momentum == 0.1 { String::new() } else { format!(", momentum {}", self.momentum) };
        let frozen = if self.frozen { ", frozen" } else { "" };
        format!("batch_norm{scale}{eps}{momentum}{frozen}")
    }
}

#[test]
fn phrases() {
    survive_a_round_trip(&["batch_norm", "batch_norm, no scale, eps 1e-12, momentum 0.4"]);
    survive_a_round_trip(&["batch_norm, eps 1e-3, momentum 0.2", "batch_norm, momentum 0.2, frozen"]);
    are_refused(&[
        ("batch_norm, eps -1", "eps must be positive"),
        ("batch_norm, eps inf", "eps must be positive and finite"),
        ("batch_norm, eps", "`` is not a number"),
    ]);
}
