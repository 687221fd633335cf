//! Max-pool.

use super::*;

#[derive(Debug)]
struct MaxPool(Window);

pub(super) fn read(p: &mut Phrase<'_>) -> Result<Box<dyn Layer>> {
    Ok(Box::new(MaxPool(p.window("max_pool 2x2", None)?)))
}

impl Layer for MaxPool {
    fn infer(&mut self, x: Shape, _: &mut Builder<'_>) -> Result<Shape> {
        pooled("max_pool", x, self.0)
    }

    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        x.max_pool2d(self.0, cx)
    }

    fn max_pool(&self) -> Option<Window> {
        Some(self.0)
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        Ok(graph.node("MaxPool", &[x], &window(&self.0)))
    }

    fn phrase(&self) -> String {
        format!("max_pool {}", windowed(self.0))
    }
}

#[test]
fn phrases() {
    survive_a_round_trip(&["max_pool 2x2", "max_pool 3x2, stride 1, pad 1x0"]);
    assert_eq!(layer("max_pool 2").unwrap().phrase(), "max_pool 2x2");
}
