//! Dropout.

use super::*;

#[derive(Debug)]
struct Dropout(f64);

pub(super) fn read(p: &mut Phrase<'_>) -> Result<Box<dyn Layer>> {
    let size = p.size("dropout 0.5")?;
    let rate: f64 = p.number(size, "a probability")?;
    if !(0.0..1.0).contains(&rate) {
        return Err(p.bad(format!("{rate} is not a probability in [0, 1)"), "write it as `dropout 0.5`"));
    }
    Ok(Box::new(Dropout(rate)))
}

impl Layer for Dropout {
    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        x.dropout(self.0, cx)
    }

    fn features(&self) -> Features {
        Features::Kept
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        // In inference it does nothing.
        let _ = graph;
        Ok(x.into())
    }

    fn phrase(&self) -> String {
        format!("dropout {}", self.0)
    }
}

#[test]
fn phrases() {
    survive_a_round_trip(&["dropout 0.25"]);
    are_refused(&[("dropout 1", "not a probability"), ("dropout nan", "not a probability")]);
}
