//! GELU.

use super::*;

#[derive(Debug)]
pub(super) struct Gelu;

impl Layer for Gelu {
    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        x.gelu(cx)
    }

    fn phrase(&self) -> String {
        "gelu".into()
    }
}
