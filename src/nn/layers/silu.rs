//! SiLU.

use super::*;

#[derive(Debug)]
pub(super) struct Silu;

impl Layer for Silu {
    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        x.silu(cx)
    }

    fn phrase(&self) -> String {
        "silu".into()
    }
}
