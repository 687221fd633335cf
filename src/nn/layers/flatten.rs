//! From image to features.

use super::*;

#[derive(Debug)]
pub(super) struct Flatten;

impl Layer for Flatten {
    fn infer(&mut self, x: Shape, _: &mut Builder<'_>) -> Result<Shape> {
        Ok([x.len()].into())
    }

    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        x.flatten(cx)
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        // Images are NCHW there: the order is PyTorch's as it is.
        Ok(graph.node("Flatten", &[x], &[("axis", Attribute::Int(1))]))
    }

    fn phrase(&self) -> String {
        "flatten".into()
    }
}
