//! Linear.

use super::*;

#[derive(Debug)]
struct Fc {
    from: Option<usize>,
    features: usize,
    /// Whether the weights start divided by their standard deviation.
    unit: bool,
    w: ParamId,
    b: Option<ParamId>,
}

pub(super) fn read(p: &mut Phrase<'_>) -> Result<Box<dyn Layer>> {
    let size = p.size("fc 120")?;
    let (from, features) = p.arrow(size, "a number of features")?;
    let b = (!p.flag("no bias")).then(ParamId::default);
    let unit = p.flag("init unit_std");
    Ok(Box::new(Fc { from, features, unit, w: ParamId::default(), b }))
}

impl Fc {
    fn apply(&self, then: Option<Activation>, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        let (w, b) = (cx.weight(self.w)?, self.b.map(|b| cx.param(b)).transpose()?);
        x.linear_then(then, &w, b.as_ref(), cx)
    }
}

impl Layer for Fc {
    fn infer(&mut self, x: Shape, b: &mut Builder<'_>) -> Result<Shape> {
        let [inputs] = *x.dims() else {
            return Err(misfit(format!("it takes features, but here comes an image {x}"), "put `flatten` before it"));
        };
        stated("features", self.from, inputs)?;
        let start = if self.unit { Init::UnitDeviation(inputs) } else { Init::FanIn(inputs) };
        self.w = b.param_of_features("weight", [self.features, inputs], start)?;
        if let Some(bias) = &mut self.b {
            *bias = b.param("bias", [self.features], Init::FanIn(inputs))?;
        }
        b.macs(&[inputs, self.features]);
        Ok([self.features].into())
    }

    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        self.apply(None, x, cx)
    }

    fn features(&self) -> Features {
        Features::Free
    }

    fn takes(&self, then: Then) -> bool {
        then == Some(Activation::Relu).into()
    }

    fn forward_then(&self, then: Then, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        let y = self.apply(then.activation, x, cx)?;
        Then { activation: None, ..then }.of(&y, cx)
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        let (w, b) = (graph.param(self.w)?, self.b.map(|b| graph.param(b)).transpose()?);
        let inputs: Vec<&str> = [x, &w].into_iter().chain(b.as_deref()).collect();
        Ok(graph.node("Gemm", &inputs, &[("transB", Attribute::Int(1))]))
    }

    fn phrase(&self) -> String {
        let bias = if self.b.is_some() { "" } else { ", no bias" };
        let init = if self.unit { ", init unit_std" } else { "" };
        format!("fc {}{}{bias}{init}", arrow(self.from), self.features)
    }
}

#[test]
fn phrases() {
    survive_a_round_trip(&["fc 120", "fc 400 -> 120, no bias", "fc 10, no bias, init unit_std"]);
    are_refused(&[
        ("fc", "needs a size"),
        ("fc 10, init dirac", "`init dirac` is not something"),
        ("fc 0", "not a number of features"),
        ("fc 10 channels", "not a number of features"),
    ]);
}
