//! Log-softmax.

use super::*;

#[derive(Debug)]
pub(super) struct LogSoftmax;

impl Layer for LogSoftmax {
    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        x.log_softmax(cx)
    }

    fn phrase(&self) -> String {
        "log_softmax".into()
    }
}
