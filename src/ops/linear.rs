//! Linear (fully connected): `y = x·Wᵀ + b`, x `[n, in]`, W `[out, in]`, b `[out]`.
//!
//! `gx = gy·W`, `gW = gyᵀ·x`, `gb = sum over n of gy`.

use super::case::{Case, Draw, Fill};
use super::product::Operands;
use crate::autograd::{Backward, Ctx, Grads, Var};
use crate::device::Device;
use crate::device::cuda::with_kernel_type;
use crate::dtype::with_real;
use crate::error::{Error, Result};
use crate::params::Slot;
use crate::tensor::Tensor;

const OP: &str = "linear";

impl Var {
    /// `x·Wᵀ + b`: `[n, in]` to `[n, out]`, with `w` of `[out, in]` and `b` of `[out]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the sizes do not match.
    pub fn linear(&self, w: &Var, b: Option<&Var>, cx: &mut Ctx<'_>) -> Result<Var> {
        let y = forward(self.value(), w.value(), b.map(Var::value))?;
        Ok(Operands::record(y, [self, w], b, cx, Linear))
    }
}

fn forward(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let (xs, ws) = (x.shape().rank2(), w.shape().rank2());
    let bias_fits = b.is_none_or(|b| Some(b.len()) == ws.map(|s| s[0]));
    let (Some([n, inputs]), Some([outputs, w_inputs]), true) = (xs, ws, bias_fits) else {
        let got = format!("x {}, w {}, b {:?}", x.shape(), w.shape(), b.map(Tensor::shape));
        return Err(Error::shape(OP, "x [n, in], w [out, in], b [out]", got, "put `flatten` before the first `fc`"));
    };
    if inputs != w_inputs {
        return Err(Error::shape(
            OP,
            format!("x [n, {w_inputs}]"),
            x.shape(),
            "give the layer as many inputs as x has features",
        ));
    }
    let mut y = Tensor::empty(x.device(), x.dtype(), [n, outputs])?;
    match x.device() {
        Device::Cpu(cpu) => with_real!(OP, x.dtype(), T => {
            let b = b.map(|b| b.host::<T>()).transpose()?;
            cpu::forward(x.host::<T>()?, w.host::<T>()?, b, y.host_mut::<T>()?, [n, inputs, outputs], cpu);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            with_kernel_type!(OP, x.dtype(), T => cuda::forward::<T>(cuda, x, w, b, &mut y, [n, inputs, outputs]))?
        }
    }
    Ok(y)
}

struct Linear(Operands);

impl Backward for Linear {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        let Operands { x, w, .. } = &self.0;
        let dims = [gy.shape().dims()[0], x.shape().last(), gy.shape().last()];
        let (device, dtype) = (gy.device(), gy.dtype());
        let weights = |gw: &mut Slot<'_>| match device {
            Device::Cpu(_) => with_real!(OP, dtype, T => {
                let accumulate = gw.accumulate;
                cpu::backward_w(gy.host::<T>()?, x.host::<T>()?, gw.host_mut::<T>()?, accumulate, dims);
                Ok(())
            }),
            Device::Cuda(cuda) => with_kernel_type!(OP, dtype, T => cuda::backward_w::<T>(cuda, &gy, x, gw, dims)),
        };
        let input = |gx: &mut Tensor| match device {
            Device::Cpu(_) => with_real!(OP, dtype, T => {
                cpu::backward_x(gy.host::<T>()?, w.host::<T>()?, gx.host_mut::<T>()?, dims);
                Ok(())
            }),
            Device::Cuda(cuda) => with_kernel_type!(OP, dtype, T => cuda::backward_x::<T>(cuda, &gy, w, gx, dims)),
        };
        self.0.backward(&gy, grads, weights, input)
    }
}

pub(super) mod cpu {
    use crate::device::cpu::{Cpu, MACS, Mat, MatMut, for_pieces, gemm, vectorised};
    use crate::dtype::Real;

    /// Rows or columns of a large matrix per piece of work.
    const BLOCK: usize = 128;
    /// From this batch size on, y is computed transposed: then the weights stream through once, in
    /// the order they lie in memory.
    const TRANSPOSE: usize = 8;

    pub(super) fn forward<T: Real>(
        x: &[T],
        w: &[T],
        b: Option<&[T]>,
        y: &mut [T],
        [n, inputs, outputs]: [usize; 3],
        cpu: &Cpu,
    ) {
        if n < TRANSPOSE {
            return few_rows(x, w, b, y, inputs, outputs);
        }
        let mut yt = cpu.scratch::<T>(n * outputs);
        // Cut along the outputs, and where they are one block along the batch.
        let block = BLOCK / 2;
        let batch = if outputs > block { n } else { block };
        let blocks = MatMut::new(&mut yt, outputs, n).split_rows(block).into_iter();
        let pieces = blocks.flat_map(|rows| rows.split_cols(batch)).collect();
        for_pieces(pieces, batch * inputs * block / MACS, |i, yt| {
            let (o, first) = (i / n.div_ceil(batch) * block, i % n.div_ceil(batch) * batch);
            let w = Mat::new(w, outputs, inputs).rows(o..outputs.min(o + block));
            let x = Mat::new(x, n, inputs).rows(first..n.min(first + batch));
            gemm(yt, false, w, x.t());
        });
        for (i, y) in y.chunks_mut(outputs).enumerate() {
            let column = yt[i..].iter().step_by(n);
            match b {
                Some(b) => y.iter_mut().zip(column).zip(b).for_each(|((y, &v), &b)| *y = v + b),
                None => y.iter_mut().zip(column).for_each(|(y, &v)| *y = v),
            }
        }
    }

    /// For small batches: dot products of rows of x and rows of w, both read as they lie in memory.
    fn few_rows<T: Real>(x: &[T], w: &[T], b: Option<&[T]>, y: &mut [T], inputs: usize, outputs: usize) {
        let block = BLOCK / 4;
        let mut rows: Vec<_> = y.chunks_mut(outputs).map(|y| y.chunks_mut(block)).collect();
        let pieces =
            (0..outputs.div_ceil(block)).map(|_| rows.iter_mut().filter_map(Iterator::next).collect::<Vec<_>>());
        for_pieces(pieces.collect(), x.len() * block / MACS, |i, mut y| {
            let first = i * block;
            for (y, x) in y.iter_mut().zip(x.chunks_exact(inputs)) {
                one_row(x, &w[first * inputs..], y);
                if let Some(b) = b {
                    y.iter_mut().zip(&b[first..]).for_each(|(y, &b)| *y += b);
                }
            }
        });
    }

    vectorised! {
        fn one_row<T>(x: &[T], w: &[T], y: &mut [T]) {
            let (fours, rest) = y.as_chunks_mut::<4>();
            let mut w = w;
            for y in fours {
                *y = dots::<T, 4>(x, w);
                w = &w[4 * x.len()..];
            }
            for y in rest {
                [*y] = dots::<T, 1>(x, w);
                w = &w[x.len()..];
            }
        }
    }

    /// The dot products of x with N rows of w, summed in 32 lanes.
    #[inline(always)]
    fn dots<T: Real, const N: usize>(x: &[T], w: &[T]) -> [T; N] {
        const L: usize = 32;
        let k = x.len();
        let mut acc = [[T::zero(); L]; N];
        let (chunks, rest) = x.as_chunks::<L>();
        let rows: [&[[T; L]]; N] = std::array::from_fn(|n| w[n * k..(n + 1) * k].as_chunks::<L>().0);
        for (i, x) in chunks.iter().enumerate() {
            for n in 0..N {
                let w = &rows[n][i];
                for l in 0..L {
                    acc[n][l] += x[l] * w[l];
                }
            }
        }
        let mut out = [T::zero(); N];
        for ((out, acc), w) in out.iter_mut().zip(acc).zip(w.chunks_exact(k)) {
            let tail: T = rest.iter().zip(&w[k - rest.len()..]).map(|(&x, &w)| x * w).sum();
            let mut half = acc;
            for width in [16, 8, 4, 2, 1] {
                for l in 0..width {
                    half[l] += half[l + width];
                }
            }
            *out = half[0] + tail;
        }
        out
    }

    pub(super) fn backward_x<T: Real>(gy: &[T], w: &[T], gx: &mut [T], [n, inputs, outputs]: [usize; 3]) {
        let block = inputs.div_ceil(8).clamp(BLOCK, 2048);
        for_pieces(MatMut::new(gx, n, inputs).split_cols(block), n * outputs * block / MACS, |i, gx| {
            let cols = i * block..inputs.min((i + 1) * block);
            gemm(gx, false, Mat::new(gy, n, outputs), Mat::new(w, outputs, inputs).cols(cols));
        });
    }

    pub(super) fn backward_w<T: Real>(
        gy: &[T],
        x: &[T],
        gw: &mut [T],
        accumulate: bool,
        [n, inputs, outputs]: [usize; 3],
    ) {
        // Cut along the outputs, and where they are one block along the inputs.
        let width = if outputs > BLOCK { inputs } else { inputs.div_ceil(4).max(4 * BLOCK) };
        let blocks = MatMut::new(gw, outputs, inputs).split_rows(BLOCK).into_iter();
        let pieces = blocks.flat_map(|rows| rows.split_cols(width)).collect();
        for_pieces(pieces, n * width * BLOCK / MACS, |i, gw| {
            let (o, first) = (i / inputs.div_ceil(width) * BLOCK, i % inputs.div_ceil(width) * width);
            let gy = Mat::new(gy, n, outputs).cols(o..outputs.min(o + BLOCK));
            gemm(gw, accumulate, gy.t(), Mat::new(x, n, inputs).cols(first..inputs.min(first + width)));
        });
    }
}

pub(super) mod cuda {
    use crate::device::cuda::{Cuda, KernelType};
    use crate::error::Result;
    use crate::kernels::linear::*;
    use crate::ops::product::{Plan, Product};
    use crate::params::Slot;
    use crate::tensor::Tensor;

    fn sizes([n, inputs, outputs]: [usize; 3], accumulate: bool, plan: &Plan) -> LinearDims {
        LinearDims {
            n: n as i32,
            inputs: inputs as i32,
            outputs: outputs as i32,
            accumulate: accumulate.into(),
            split_steps: plan.split_steps as i32,
        }
    }

    pub(in crate::ops) fn forward<T: KernelType>(
        cuda: &Cuda,
        x: &Tensor,
        w: &Tensor,
        b: Option<&Tensor>,
        y: &mut Tensor,
        dims: [usize; 3],
    ) -> Result<()> {
        let [n, inputs, outputs] = dims;
        let bias = b.map(Tensor::input).transpose()?;
        let product = Product { sizes: [n, outputs, inputs], bias, accumulate: false };
        product.run::<T, T>(cuda, &LINEAR_FWD, y.output()?, |plan, y, partial| {
            let d = sizes(dims, false, plan);
            linear_fwd::<T>(cuda, plan.tile, plan.launch, x.input()?, w.input()?, bias, y, partial, &d)
        })
    }

    pub(in crate::ops) fn backward_x<T: KernelType>(
        cuda: &Cuda,
        gy: &Tensor,
        w: &Tensor,
        gx: &mut Tensor,
        dims: [usize; 3],
    ) -> Result<()> {
        let [n, inputs, outputs] = dims;
        let product = Product { sizes: [n, inputs, outputs], bias: None, accumulate: false };
        product.run::<T, T>(cuda, &LINEAR_BWD_X, gx.output()?, |plan, gx, partial| {
            let d = sizes(dims, false, plan);
            linear_bwd_x::<T>(cuda, plan.tile, plan.launch, gy.input()?, w.input()?, gx, partial, &d)
        })
    }

    pub(in crate::ops) fn backward_w<T: KernelType>(
        cuda: &Cuda,
        gy: &Tensor,
        x: &Tensor,
        gw: &mut Slot<'_>,
        dims: [usize; 3],
    ) -> Result<()> {
        let ([n, inputs, outputs], accumulate) = (dims, gw.accumulate);
        let product = Product { sizes: [outputs, inputs, n], bias: None, accumulate };
        product.run::<T, f32>(cuda, &LINEAR_BWD_W, gw.output()?, |plan, gw, partial| {
            let d = sizes(dims, accumulate, plan);
            linear_bwd_w::<T>(cuda, plan.tile, plan.launch, gy.input()?, x.input()?, gw, partial, &d)
        })
    }
}

fn case(n: usize, inputs: usize, outputs: usize, bias: bool) -> Case {
    let case = Case::new(format!("[{n}, {inputs}] to {outputs}{}", if bias { "" } else { " no bias" }), |v, cx| {
        v[0].linear(&v[1], v.get(2), cx)
    })
    .input("x", [n, inputs], Fill::Uniform)
    .param("w", [outputs, inputs], Fill::Uniform)
    .flops(2 * n * inputs * outputs);
    if bias { case.param("b", [outputs], Fill::Uniform) } else { case }
}

/// Shapes that tests and benches share.
pub fn cases() -> Vec<Case> {
    vec![
        case(1, 1, 1, true),
        case(3, 17, 5, true),
        case(9, 33, 70, false),
        case(4, 130, 260, true),
        case(5, 24, 36, true),
        case(36, 8, 20, true),
        case(70, 550, 3, true),
        case(4, 400, 120, true).timed(),
        case(16, 18_432, 1024, true).timed(),
    ]
}

/// A small case drawn at random.
pub fn random_case(d: &mut Draw) -> Case {
    case(d.int(1, 12), d.int(1, 20), d.int(1, 12), d.flip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    #[test]
    fn sizes_are_checked() {
        let device = Device::cpu();
        let zeros =
            |shape: &[usize]| Tensor::zeros(&device, DType::F32, crate::Shape::from_slice(shape).unwrap()).unwrap();
        for (x, w, b) in [(vec![2, 3], [4, 5], 4), (vec![2, 1, 1, 5], [4, 5], 4), (vec![2, 5], [4, 5], 5)] {
            let e = forward(&zeros(&x), &zeros(&w), Some(&zeros(&[b]))).unwrap_err().to_string();
            assert!(e.contains("linear"), "{e}");
        }
    }
}
