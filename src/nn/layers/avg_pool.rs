//! Average-pool.

use super::*;

#[derive(Debug)]
struct AvgPool {
    window: Window,
    include_pad: bool,
}

pub(super) fn read(p: &mut Phrase<'_>) -> Result<Box<dyn Layer>> {
    Ok(Box::new(AvgPool { include_pad: !p.flag("exclude_pad"), window: p.window("avg_pool 2x2", None)? }))
}

impl Layer for AvgPool {
    fn infer(&mut self, x: Shape, _: &mut Builder<'_>) -> Result<Shape> {
        pooled("avg_pool", x, self.window)
    }

    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        x.avg_pool2d(self.window, self.include_pad, cx)
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        let include = ("count_include_pad", Attribute::Int(self.include_pad.into()));
        let attributes: Vec<_> = window(&self.window).into_iter().chain([include]).collect();
        Ok(graph.node("AveragePool", &[x], &attributes))
    }

    fn phrase(&self) -> String {
        let exclude = if self.include_pad { "" } else { ", exclude_pad" };
        format!("avg_pool {}{exclude}", windowed(self.window))
    }
}

#[test]
fn phrases() {
    survive_a_round_trip(&["avg_pool 2x2", "avg_pool 3x2, stride 1, pad 1x0, exclude_pad"]);
    assert_eq!(layer("avg_pool 2, stride 2").unwrap().phrase(), "avg_pool 2x2");
    are_refused(&[("avg_pool", "write it as `avg_pool 2x2`"), ("avg_pool 2, include_pad", "not something")]);
}
