//! Pools to a given height and width.

use super::*;

#[derive(Debug)]
struct AdaptivePool {
    max: bool,
    size: [usize; 2],
}

pub(super) fn read(p: &mut Phrase<'_>) -> Result<Box<dyn Layer>> {
    let size = p.size(&format!("{} 1x1", p.name))?;
    Ok(Box::new(AdaptivePool { max: p.name == "adaptive_max_pool", size: p.pair(size, "a size", 1)? }))
}

impl Layer for AdaptivePool {
    fn infer(&mut self, x: Shape, _: &mut Builder<'_>) -> Result<Shape> {
        let ([_, _, c], [h, w]) = (image(x)?, self.size);
        Ok([h, w, c].into())
    }

    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        if self.max { x.adaptive_max_pool2d(self.size, cx) } else { x.adaptive_avg_pool2d(self.size, cx) }
    }

    fn phrase(&self) -> String {
        format!("adaptive_{}_pool {}", if self.max { "max" } else { "avg" }, by(self.size))
    }
}

#[test]
fn phrases() {
    survive_a_round_trip(&["adaptive_max_pool 1x1", "adaptive_avg_pool 2x3"]);
    are_refused(&[("adaptive_avg_pool", "write it as `adaptive_avg_pool 1x1`")]);
}
