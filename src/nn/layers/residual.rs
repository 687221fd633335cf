//! Residual blocks.
//!
//! Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.

use super::*;

/// `after(shortcut(x) + main(x))`. An empty list passes its input on.
#[derive(Debug, Default)]
pub struct Residual {
    /// The layers whose output is added.
    pub main: Sequential,
    /// The layers that fit the input to that output.
    pub shortcut: Sequential,
    /// The layers that take the sum.
    pub after: Sequential,
}

impl Layer for Residual {
    fn infer(&mut self, x: Shape, b: &mut Builder<'_>) -> Result<Shape> {
        let (main, shortcut) = (self.main.infer(x, b)?, self.shortcut.infer(x, b)?);
        if main == shortcut {
            let y = self.after.infer(main, b)?;
            let then = self.after.first_activation();
            let key = b.key();
            let summing = self.main.summing(then.map(|(activation, _)| activation), &key);
            if let Some((Activation::Relu, behind)) = then {
                b.note_joined(summing.unwrap_or(&key).into(), behind);
            }
            if let Some(summing) = summing {
                b.note_computed_by(summing);
            }
            return Ok(y);
        }
        Err(if self.shortcut.is_empty() {
            misfit(
                format!("the block turns {x} into {main}, so its input cannot be added to its output"),
                "make the block keep height, width and channels (pad its convolutions), or give it a shortcut",
            )
        } else {
            misfit(
                format!("the block turns {x} into {main}, its shortcut into {shortcut}, so they cannot be added"),
                "give the shortcut the strides of the block and its last number of channels",
            )
        })
    }

    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        let shortcut = self.shortcut.forward(x, cx)?;
        let after = self.after.first_activation().map(|(activation, _)| activation).filter(|_| cx.joins());
        if cx.joins() && self.main.summing(after, "").is_some() {
            let sum = self.main.forward_plus(Sum { plus: &shortcut, before: None, after }, x, cx)?;
            return self.after.forward_from(usize::from(after.is_some()), &sum, cx);
        }
        let main = self.main.forward(x, cx)?;
        match after {
            Some(Activation::Relu) => {
                let sum = shortcut.add_then(after, &main, cx)?;
                self.after.forward_from(1, &sum, cx)
            }
            _ => self.after.forward(&shortcut.add(&main, cx)?, cx),
        }
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        let main = self.main.onnx(x, graph)?;
        let shortcut = self.shortcut.onnx(x, graph)?;
        let sum = graph.node("Add", &[&shortcut, &main], &[]);
        self.after.onnx(&sum, graph)
    }

    fn phrase(&self) -> String {
        let part =
            |name, list: &Sequential| if list.is_empty() { "".into() } else { format!(" {name} [{}]", list.list()) };
        let (shortcut, after) = (part("shortcut", &self.shortcut), part("after", &self.after));
        format!("residual [{}]{shortcut}{after}", self.main.list())
    }
}
