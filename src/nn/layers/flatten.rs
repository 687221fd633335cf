//! From image to features.
//!
//! In PyTorch's order; where a linear layer takes them, as they lie in memory, which moves nothing: then the columns of its
//! weights lie in that order too, and in PyTorch's in the state dict.

use super::*;
use crate::ops::flatten::Order;

#[derive(Debug)]
pub(super) struct Flatten(Order);

impl Default for Flatten {
    fn default() -> Self {
        Flatten(Order::ChannelMajor)
    }
}

impl Layer for Flatten {
    fn infer(&mut self, x: Shape, b: &mut Builder<'_>) -> Result<Shape> {
        self.0 = if b.flatten_as_stored(x) { Order::AsStored } else { Order::ChannelMajor };
        Ok([x.len()].into())
    }

    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        x.flatten_in(self.0, cx)
    }

    fn features(&self) -> Features {
        Features::Made
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        // Images are NCHW there: the order is PyTorch's as it is.
        Ok(graph.node("Flatten", &[x], &[("axis", Attribute::Int(1))]))
    }

    fn phrase(&self) -> String {
        "flatten".into()
    }
}
