//! ReLU.

use super::*;

#[derive(Debug)]
pub(super) struct Relu;

impl Layer for Relu {
    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        x.relu(cx)
    }

    fn phrase(&self) -> String {
        "relu".into()
    }
}
