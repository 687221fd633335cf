//! GELU.

use super::*;

#[derive(Debug)]
pub(super) struct Gelu;

impl Layer for Gelu {
    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        x.gelu(cx)
    }

    fn activation(&self) -> Option<Activation> {
        Some(Activation::Gelu)
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        // Opset 20 has a `Gelu`, which few programs know yet.
        let [root, one, half] =
            [("root", f32::sqrt(2.0)), ("one", 1.0), ("half", 0.5)].map(|(n, v)| graph.constant(n, &[], &[v]));
        let scaled = graph.node("Div", &[x, &root], &[]);
        let erf = graph.node("Erf", &[&scaled], &[]);
        let share = graph.node("Add", &[&erf, &one], &[]);
        let whole = graph.node("Mul", &[x, &share], &[]);
        Ok(graph.node("Mul", &[&whole, &half], &[]))
    }

    fn phrase(&self) -> String {
        "gelu".into()
    }
}
