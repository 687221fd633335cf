//! Log-softmax.

use super::*;

#[derive(Debug)]
pub(super) struct LogSoftmax;

impl Layer for LogSoftmax {
    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        x.log_softmax(cx)
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        Ok(graph.node("LogSoftmax", &[x], &[("axis", Attribute::Int(1))]))
    }

    fn phrase(&self) -> String {
        "log_softmax".into()
    }
}
