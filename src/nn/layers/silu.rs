//! SiLU.

use super::*;

#[derive(Debug)]
pub(super) struct Silu;

impl Layer for Silu {
    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        x.silu(cx)
    }

    fn activation(&self) -> Option<Activation> {
        Some(Activation::Silu)
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        let sigmoid = graph.node("Sigmoid", &[x], &[]);
        Ok(graph.node("Mul", &[x, &sigmoid], &[]))
    }

    fn phrase(&self) -> String {
        "silu".into()
    }
}
