//! Convolution.

use super::*;

/// What the weights are at first.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Start {
    /// PyTorch's default.
    Default,
    /// Normal, with the variance 2 / fan_out.
    KaimingNormal,
    /// The first filters pass on an input channel each.
    Dirac,
    /// From the images, and kept: see `Model::whiten`.
    Whiten,
}

const STARTS: [(&str, Start); 3] =
    [("kaiming_normal", Start::KaimingNormal), ("dirac", Start::Dirac), ("whiten", Start::Whiten)];

#[derive(Debug)]
struct Conv {
    window: Window,
    from: Option<usize>,
    channels: usize,
    start: Start,
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
    let start = match p.take("init") {
        None => Start::Default,
        Some(text) => match STARTS.iter().find(|(name, _)| *name == text) {
            Some((_, start)) => *start,
            None => {
                let names = STARTS.map(|(name, _)| format!("`init {name}`"));
                let problem = format!("`init {text}` is none of a `conv`");
                return Err(p.bad(problem, format!("write {}, or nothing for PyTorch's default", names.join(", "))));
            }
        },
    };
    Ok(Box::new(Conv { window, from, channels, start, w: ParamId::default(), b }))
}

impl Conv {
    fn apply(&self, then: Then, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        let (w, b) = (cx.weight(self.w)?, self.b.map(|b| cx.param(b)).transpose()?);
        x.conv2d_then(then, &w, b.as_ref(), self.window.stride, self.window.pad, cx)
    }
}

impl Layer for Conv {
    fn infer(&mut self, x: Shape, b: &mut Builder<'_>) -> Result<Shape> {
        let [h, w, c] = image(x)?;
        stated("channels", self.from, c)?;
        let ([ho, wo], [kh, kw]) = (self.window.output("conv2d", [h, w])?, self.window.kernel);
        let init = Init::FanIn(kh * kw * c);
        let start = match self.start {
            Start::Default => init,
            Start::KaimingNormal => Init::FanOut(kh * kw * self.channels),
            Start::Dirac => Init::Dirac(kh * kw * c),
            Start::Whiten => Init::Whiten(kh * kw * c),
        };
        if self.start == Start::Whiten {
            if !b.is_first() {
                return Err(misfit("only the first layer takes the images themselves", "leave out `init whiten`"));
            }
            let both = 2 * kh * kw * c;
            if self.channels != both {
                let problem = format!("{kh}x{kw}x{c} patches have {} eigenvectors, each with its negative", both / 2);
                return Err(misfit(problem, format!("write {both} channels")));
            }
        }
        self.w = b.param("weight", [self.channels, kh, kw, c], start)?;
        if self.start == Start::Whiten {
            b.fix(self.w);
        }
        if let Some(bias) = &mut self.b {
            *bias = b.param("bias", [self.channels], init)?;
        }
        b.macs(&[ho, wo, self.channels, kh, kw, c]);
        Ok([ho, wo, self.channels].into())
    }

    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        self.apply(Then::default(), x, cx)
    }

    fn takes(&self, then: Then) -> bool {
        matches!(then, Then { activation: None | Some(Activation::Relu), pool: None | Some(Then::POOL) })
    }

    fn forward_then(&self, then: Then, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        self.apply(then, x, cx)
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        let (w, b) = (graph.param(self.w)?, self.b.map(|b| graph.param(b)).transpose()?);
        let inputs: Vec<&str> = [x, &w].into_iter().chain(b.as_deref()).collect();
        Ok(graph.node("Conv", &inputs, &window(&self.window)))
    }

    fn phrase(&self) -> String {
        let Conv { window: Window { kernel, stride, pad }, from, channels, start, b, .. } = self;
        let (stride, pad) = (part("stride", *stride, [1; 2]), part("pad", *pad, [0; 2]));
        let bias = if b.is_some() { "" } else { ", no bias" };
        let init = STARTS.iter().find(|(_, s)| s == start).map_or_else(String::new, |(n, _)| format!(", init {n}"));
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
        "conv 3x3, 8 channels, pad 1, init dirac",
        "conv 2x2, 24 channels, init whiten",
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
        ("conv 3x3, 4 channels, init xavier", "`init xavier` is none"),
    ]);
}

#[test]
fn whitening_is_for_images_and_all_their_patches() {
    let of = |net: &[&str]| {
        let net: Vec<_> = net.iter().map(|l| (*l).into()).collect();
        crate::nn::Model::build(&net, [8, 8, 3], &crate::Device::cpu(), 0)
    };
    assert!(of(&["conv 2x2, 24 channels, init whiten"]).is_ok());
    for (net, words) in [
        (&["conv 2x2, 20 channels, init whiten"][..], "write 24 channels"),
        (&["relu", "conv 2x2, 24 channels, init whiten"], "only the first layer"),
    ] {
        let e = of(net).unwrap_err().to_string();
        assert!(e.contains(words) && e.contains("remedy"), "{e}");
    }
}
