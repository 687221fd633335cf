//! ReLU.

use super::*;

#[derive(Debug)]
pub(super) struct Relu;

impl Layer for Relu {
    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        x.relu(cx)
    }

    fn activation(&self) -> Option<Activation> {
        Some(Activation::Relu)
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        Ok(graph.node("Relu", &[x], &[]))
    }

    fn phrase(&self) -> String {
        "relu".into()
    }
}
