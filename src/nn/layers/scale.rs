//! Multiplication by a constant.

use super::*;

#[derive(Debug)]
struct Scale(f64);

pub(super) fn read(p: &mut Phrase<'_>) -> Result<Box<dyn Layer>> {
    const WHAT: &str = "a factor such as 0.5 or 1/256";
    let size = p.size("scale 1/256")?;
    let factor = match size.split_once('/') {
        Some((a, b)) => p.number::<f64>(a, WHAT)? / p.number::<f64>(b, WHAT)?,
        None => p.number(size, WHAT)?,
    };
    // As it is in f32.
    if !(factor as f32).is_normal() {
        let problem = format!("`{size}` is not a finite factor other than 0 in f32");
        return Err(p.bad(problem, "write it as `scale 1/256`"));
    }
    Ok(Box::new(Scale(factor)))
}

impl Layer for Scale {
    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        x.scale(self.0, cx)
    }

    fn features(&self) -> Features {
        Features::Kept
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        let factor = graph.constant("factor", &[1], &[self.0 as f32]);
        Ok(graph.node("Mul", &[x, &factor], &[]))
    }

    fn phrase(&self) -> String {
        let inverse = 1.0 / self.0;
        match inverse.fract() == 0.0 && (2.0..1e9).contains(&inverse) && 1.0 / inverse == self.0 {
            true => format!("scale 1/{inverse}"),
            false => format!("scale {}", self.0),
        }
    }
}

#[test]
fn phrases() {
    survive_a_round_trip(&["scale 1/256", "scale 0.3", "scale -2", "scale 1/3"]);
    are_refused(&[
        ("scale", "needs a size"),
        ("scale x", "not a factor"),
        ("scale 1/0", "not a finite factor"),
        ("scale 0", "other than 0"),
        ("scale nan", "not a finite factor"),
    ]);
}
