//! An operation of one's own, softplus: `y = ln(1 + exp(x))` with the gradient `gx = gy / (1 + exp(-x))`. It is checked
//! against finite differences, and used in a layer that can be exported.
//!
//!     cargo run --release --example own_op

use tilework::autograd::{Backward, Grads, VarId};
use tilework::nn::{Layer, Model, layer, onnx::Onnx};
use tilework::ops::gradcheck;
use tilework::step::Step;
use tilework::{Ctx, Device, Result, Tensor, Var, with_real};

/// The op, in f32 and f64 on the CPU.
fn softplus(x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
    let mut y = Tensor::empty(x.value().device(), x.value().dtype(), x.shape())?;
    with_real!("softplus", x.value().dtype(), T => {
        let x = x.value().host::<T>()?;
        y.host_mut::<T>()?.iter_mut().zip(x).for_each(|(y, x)| *y = x.exp().ln_1p());
        Ok(())
    })?;
    // The node is made, and `x` kept for it, only if something is to be differentiated.
    Ok(cx.record(y, &[x], || Softplus { id: x.id(), x: x.value().clone() }))
}

/// What the backward pass needs: whose gradient it is, and the input.
struct Softplus {
    id: Option<VarId>,
    x: Tensor,
}

impl Backward for Softplus {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        let mut gx = Tensor::empty(gy.device(), gy.dtype(), gy.shape())?;
        with_real!("softplus", gy.dtype(), T => {
            let (x, gy) = (self.x.host::<T>()?, gy.host::<T>()?);
            gx.host_mut::<T>()?.iter_mut().zip(x.iter().zip(gy)).for_each(|(gx, (x, gy))| *gx = gy / (1.0 + (-x).exp()));
            Ok(())
        })?;
        grads.add(self.id, gx)
    }
}

/// The layer: it has no parameters and leaves the size as it is.
#[derive(Debug)]
struct SoftplusLayer;

impl Layer for SoftplusLayer {
    fn forward(&self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        softplus(x, cx)
    }

    fn onnx(&self, x: &str, graph: &mut Onnx<'_>) -> Result<String> {
        Ok(graph.node("Softplus", &[x], &[]))
    }

    fn phrase(&self) -> String {
        "softplus".into()
    }
}

fn main() -> Result<()> {
    let device = Device::cpu();
    let x = Tensor::from_slice(&device, [2, 3], &[-2.0f64, -0.5, 0.0, 0.3, 1.0, 4.0])?;
    let worst = gradcheck(&[x], |v, cx| softplus(&v[0], cx))?;
    println!("{worst}");
    assert!(worst.error < 1e-5);

    let net = vec![layer("flatten")?, layer("fc 8")?, Box::new(SoftplusLayer), layer("fc 2")?];
    let model = Model::new(net, [4, 4, 1], &device, 0)?;
    let images = Var::constant(Tensor::zeros(&device, tilework::DType::F32, [5, 4, 4, 1])?);
    let mut cx = model.train(Step::default());
    println!("as an ONNX model: {} bytes", model.to_onnx(None, &[])?.len());
    println!("scores of five images: {:?}", model.forward(&images, &mut cx)?.shape());
    Ok(())
}
