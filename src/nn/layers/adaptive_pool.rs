//! Pools to a given height and width.

use super::*;

#[derive(Debug)]
struct AdaptivePool {
    max: bool,
    size: [usize; 2],
    /// Height and width of its input.
    from: [usize; 2],
}

pub(super) fn read(p: &mut Phrase<'_>) -> Result<Box<dyn Layer>> {
    let size = p.size(&format!("{} 1x1", p.name))?;
    Ok(Box::new(AdaptivePool { max: p.name == "adaptive_max_pool", size: p.pair(size, "a size", 1)?, from: [0; 2] }))
}

/// Size and stride of the windows from `size` pixels to `n`, if they are all alike.
fn regular(size: usize, n: usize) -> Option<(usize, usize)> {
    let window = |p: usize| (p * size / n, ((p + 1) * size).div_ceil(n));
    let (_, kernel) = window(0);
    let stride = if n > 1 { window(1).0 } else { 1 };
    (stride > 0 && (0..n).all(|p| window(p) == (p * stride, p * stride + kernel))).then_some((kernel, stride))
}

impl Layer for AdaptivePool {
    fn infer(&mut self, x: Shape, _: &mut Builder<'_>) -> Result<Shape> {
        let ([height, width, c], [h, w]) = (image(x)?, self.size);
        self.from = [height, width];
        Ok([h, w, c].into())
    }

    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        if self.max { x.adaptive_max_pool2d(self.size, cx) } else { x.adaptive_avg_pool2d(self.size, cx) }
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        let kind = if self.max { "Max" } else { "Average" };
        if self.size == [1; 2] {
            return Ok(graph.node(&format!("Global{kind}Pool"), &[x], &[]));
        }
        let sides = [0, 1].map(|i| regular(self.from[i], self.size[i]));
        let [Some((height, down)), Some((width, right))] = sides else {
            let problem = format!(
                "it pools {} to {} by windows of different sizes, for which ONNX has no pool",
                by(self.from),
                by(self.size)
            );
            return Err(misfit(problem, "pool to a size that divides its input's, or to 1x1"));
        };
        let w = Window { kernel: [height, width], stride: [down, right], pad: [0; 2] };
        Ok(graph.node(&format!("{kind}Pool"), &[x], &window(&w)))
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
