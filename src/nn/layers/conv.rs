//! Convolution.

use super::*;

#[derive(Debug)]
struct Conv {
    window: Window,
    from: Option<usize>,
    channels: usize,
    /// Whether the weights start normal, with the variance 2 / fan_out, and not as PyTorch's default does.
    normal: bool,
    w: ParamId,
    b: Option<ParamId>,
}

pub(super) fn read(p: &mut Phrase<'_>) -> Result<Box<dyn Layer>> {
    const EXAMPLE: &str = "conv 5x5, 16 channels";
    let window = p.window(EXAMPLE, Some([1; 2]))?;
    let Some(count) = p.take_count("channel") else {
        return Err(p.bad("the number of channels is missing", format!("write it as `{EXAMPLE}`")));
    };
    let (from, channels) = p.arrow(count, "a number of channels")?;
    let b = (!p.flag("no bias")).then(ParamId::default);
    let normal = p.flag("init kaiming_normal");
    Ok(Box::new(Conv { window, from, channels, normal, w: ParamId::default(), b }))
}

impl Layer for Conv {
    fn infer(&mut self, x: Shape, b: &mut Builder<'_>) -> Result<Shape> {
        let [h, w, c] = image(x)?;
        stated("channels", self.from, c)?;
        let ([ho, wo], [kh, kw]) = (self.window.output("conv2d", [h, w])?, self.window.kernel);
        let init = Init::FanIn(kh * kw * c);
        let start = if self.normal { Init::FanOut(kh * kw * self.channels) } else { init };
        self.w = b.param("weight", [self.channels, kh, kw, c], start)?;
        if let Some(bias) = &mut self.b {
            *bias = b.param("bias", [self.channels], init)?;
        }
        b.macs(&[ho, wo, self.channels, kh, kw, c]);
        Ok([ho, wo, self.channels].into())
    }

    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        let (w, b) = (cx.weight(self.w)?, self.b.map(|b| cx.param(b)).transpose()?);
        x.conv2d(&w, b.as_ref(), self.window.stride, self.window.pad, cx)
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        let (w, b) = (graph.param(self.w)?, self.b.map(|b| graph.param(b)).transpose()?);
        let inputs: Vec<&str> = [x, &w].into_iter().chain(b.as_deref()).collect();
        Ok(graph.node("Conv", &inputs, &window(&self.window)))
    }

    fn phrase(&self) -> String {
        let Conv { window: Window { kernel, stride, pad }, from, channels, normal, b, .. } = self;
        let (stride, pad) = (part("stride", *stride, [1; 2]), part("pad", *pad, [0; 2]));
        let bias = if b.is_some() { "" } else { ", no bias" };
        let init = if *normal { ", init kaiming_normal" } else { "" };
        format!("conv {}, {}{channels} channels{stride}{pad}{bias}{init}", by(*kernel), arrow(*from))
    }
}

#[test]
fn phrases() {
    survive_a_round_trip(&[
        "conv 5x5, 16 channels",
        "conv 3x1, 3 -> 16 channels, stride 2x1, pad 1x0, no bias",
        "conv 3x3, 1 channels, stride 2, pad 1",
        "conv 1x1, 8 channels, no bias, init kaiming_normal",
    ]);
    assert_eq!(layer("conv 5, 6 channels").unwrap().phrase(), "conv 5x5, 6 channels");
    assert_eq!(layer("conv 5x5, 1 channel").unwrap().phrase(), "conv 5x5, 1 channels");
    are_refused(&[
        ("conv", "needs a size"),
        ("conv 3x3", "number of channels is missing"),
        ("conv 0x3, 4 channels", "not a kernel size"),
        ("conv 3x3, 4 channels, stride 0", "not a stride"),
        ("conv 3x3, 4 channels, padding 1", "`padding 1` is not something"),
        ("conv 3x3, -4 channels", "not a number of channels"),
        ("conv 3x3, 99999999999999999999 channels", "not a number of channels"),
        ("conv 3x3, 4 channels, stride", "`` is not a stride"),
        ("conv 3x3, 4 channels, pad", "`` is not a padding"),
    ]);
}
