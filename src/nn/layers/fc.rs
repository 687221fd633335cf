//! Linear.

use super::*;

#[derive(Debug)]
struct Fc {
    from: Option<usize>,
    features: usize,
    w: ParamId,
    b: Option<ParamId>,
}

pub(super) fn read(p: &mut Phrase<'_>) -> Result<Box<dyn Layer>> {
    let size = p.size("fc 120")?;
    let (from, features) = p.arrow(size, "a number of features")?;
    let b = (!p.flag("no bias")).then(ParamId::default);
    Ok(Box::new(Fc { from, features, w: ParamId::default(), b }))
}

impl Layer for Fc {
    fn infer(&mut self, x: Shape, b: &mut Builder<'_>) -> Result<Shape> {
        let [inputs] = *x.dims() else {
            return Err(misfit(format!("it takes features, but here comes an image {x}"), "put `flatten` before it"));
        };
        stated("features", self.from, inputs)?;
        self.w = b.param("weight", [self.features, inputs], Init::FanIn(inputs))?;
        if let Some(bias) = &mut self.b {
            *bias = b.param("bias", [self.features], Init::FanIn(inputs))?;
        }
        b.macs(&[inputs, self.features]);
        Ok([self.features].into())
    }

    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        let (w, b) = (cx.weight(self.w)?, self.b.map(|b| cx.param(b)).transpose()?);
        x.linear(&w, b.as_ref(), cx)
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        let (w, b) = (graph.param(self.w)?, self.b.map(|b| graph.param(b)).transpose()?);
        let inputs: Vec<&str> = [x, &w].into_iter().chain(b.as_deref()).collect();
        Ok(graph.node("Gemm", &inputs, &[("transB", Attribute::Int(1))]))
    }

    fn phrase(&self) -> String {
        let bias = if self.b.is_some() { "" } else { ", no bias" };
        format!("fc {}{}{bias}", arrow(self.from), self.features)
    }
}

#[test]
fn phrases() {
    survive_a_round_trip(&["fc 120", "fc 400 -> 120, no bias"]);
    are_refused(&[
        ("fc", "needs a size"),
        ("fc 0", "not a number of features"),
        ("fc 10 channels", "not a number of features"),
    ]);
}
