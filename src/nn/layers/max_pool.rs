//! Max-pool.

use super::*;

#[derive(Debug)]
struct MaxPool(Window);

pub(super) fn read(p: &mut Phrase<'_>) -> Result<Box<dyn Layer>> {
    Ok(Box::new(MaxPool(p.window("max_pool 2x2", None)?)))
}

impl Layer for MaxPool {
    fn infer(&mut self, x: Shape, _: &mut Builder<'_>) -> Result<Shape> {
        let [h, w, c] = image(x)?;
        let [_, h, w, c] = max_pool2d::output_shape([1, h, w, c].into(), self.0)?.rank4().unwrap_or([0; 4]);
        Ok([h, w, c].into())
    }

    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        x.max_pool2d(self.0, cx)
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        Ok(graph.node("MaxPool", &[x], &window(&self.0)))
    }

    fn phrase(&self) -> String {
        let Window { kernel, stride, pad } = self.0;
        format!("max_pool {}{}{}", by(kernel), part("stride", stride, kernel), part("pad", pad, [0; 2]))
    }
}

#[test]
fn phrases() {
    survive_a_round_trip(&["max_pool 2x2", "max_pool 3x2, stride 1, pad 1x0"]);
    assert_eq!(layer("max_pool 2").unwrap().phrase(), "max_pool 2x2");
}
