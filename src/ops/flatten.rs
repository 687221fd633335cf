//! Flatten: `[n, h, w, c]` to `[n, c·h·w]`, channel-major, as PyTorch's, or to `[n, h·w·c]` as it lies in memory, which
//! moves nothing.
//!
//! `y[n, (c·H + h)·W + w] = x[n, h, w, c]`, or `y[n, (h·W + w)·C + c]`; the gradient goes back the same way.

use super::case::{Case, Draw, Fill};
use crate::autograd::{Backward, Ctx, Grads, Var, VarId};
use crate::error::{Error, Result};
use crate::shape::Shape;
use crate::tensor::Tensor;

const OP: &str = "flatten";

impl Var {
    /// `[n, h, w, c]` to `[n, c·h·w]`, features in PyTorch's order; a matrix stays as it is.
    ///
    /// # Errors
    /// [`Error::Shape`] for another rank.
    pub fn flatten(&self, cx: &mut Ctx<'_>) -> Result<Var> {
        self.flatten_in(Order::ChannelMajor, cx)
    }

    /// [`Var::flatten`] with the features in the order given.
    ///
    /// # Errors
    /// As [`Var::flatten`].
    pub fn flatten_in(&self, order: Order, cx: &mut Ctx<'_>) -> Result<Var> {
        if self.shape().rank2().is_some() {
            return Ok(self.clone());
        }
        let y = forward(self.value(), order)?;
        let y = cx.record(y, &[self], || Flatten { x: self.id(), shape: self.shape(), order });
        Ok(y.made_by_relu(self.is_relu()))
    }
}

/// The order of an image's features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// c, h, w: PyTorch's.
    ChannelMajor,
    /// h, w, c: as images lie in memory.
    AsStored,
}

impl Order {
    /// Whether numbers of this size move: with one pixel, or one channel, both orders are the same.
    fn moves(self, [_, h, w, c]: [usize; 4]) -> bool {
        self == Order::ChannelMajor && h * w > 1 && c > 1
    }
}

fn forward(x: &Tensor, order: Order) -> Result<Tensor> {
    let shape = x.shape().rank4().ok_or_else(|| {
        Error::shape(
            OP,
            "an activation [n, h, w, c] or a matrix",
            x.shape(),
            "give it the output of a convolution or pool",
        )
    })?;
    let [n, h, w, c] = shape;
    if !order.moves(shape) {
        return x.reshape([n, h * w * c]);
    }
    let mut y = Tensor::empty(x.device(), x.dtype(), [n, c * h * w])?;
    on_device!(OP, x, T,
        cpu => cpu::transpose(x.host::<T>()?, y.host_mut::<T>()?, h * w, c),
        cuda => cuda::transpose::<T>(&cuda, x, &mut y, h * w, c));
    Ok(y)
}

struct Flatten {
    x: Option<VarId>,
    shape: Shape,
    order: Order,
}

impl Backward for Flatten {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        let (masked, shape @ [_, h, w, c]) = (grads.is_masked(), self.shape.rank4().unwrap_or([1; 4]));
        if !self.order.moves(shape) {
            return grads.add_masked(self.x, gy.reshape(self.shape)?, masked);
        }
        let mut gx = Tensor::empty(gy.device(), gy.dtype(), self.shape)?;
        on_device!(OP, gy, T,
            cpu => cpu::transpose(gy.host::<T>()?, gx.host_mut::<T>()?, c, h * w),
            cuda => cuda::transpose::<T>(&cuda, &gy, &mut gx, c, h * w));
        grads.add_masked(self.x, gx, masked)
    }
}

mod cpu {
    use crate::device::cpu::{for_rows, vectorised};
    use crate::dtype::Real;

    /// Each item is a `rows × cols` matrix; writes its transpose.
    pub(super) fn transpose<T: Real>(x: &[T], y: &mut [T], rows: usize, cols: usize) {
        let item = rows * cols;
        for_rows(y, item, item, |first, y| {
            for (y, x) in y.chunks_mut(item).zip(x[first * item..].chunks(item)) {
                one(x, y, rows, cols);
            }
        });
    }

    vectorised! {
        fn one<T>(x: &[T], y: &mut [T], rows: usize, cols: usize) {
            // The channels of pictures: read once, and not once for each channel.
            if let (3, Some((red, rest))) = (cols, y.split_at_mut_checked(rows)) {
                let (green, blue) = rest.split_at_mut(rows);
                for (((x, r), g), b) in x.as_chunks::<3>().0.iter().zip(red).zip(green).zip(blue) {
                    [*r, *g, *b] = *x;
                }
                return;
            }
            for (col, y) in y.chunks_mut(rows).enumerate() {
                y.iter_mut().zip(x[col..].iter().step_by(cols)).for_each(|(y, &x)| *y = x);
            }
        }
    }
}

mod cuda {
    use crate::device::cuda::{Cuda, KernelType, Launch};
    use crate::error::Result;
    use crate::kernels::flatten::{FlattenDims, flatten_transpose};
    use crate::tensor::Tensor;

    pub(super) fn transpose<T: KernelType>(
        cuda: &Cuda,
        x: &Tensor,
        y: &mut Tensor,
        rows: usize,
        cols: usize,
    ) -> Result<()> {
        let d = FlattenDims { rows: rows as i32, cols: cols as i32 };
        let tiles = Launch::tile(32, 8).grid(x.len() / (rows * cols), rows.div_ceil(32), cols.div_ceil(32));
        flatten_transpose::<T>(cuda, tiles, x.input()?, y.output()?, &d)
    }
}

fn case(n: usize, h: usize, w: usize, c: usize) -> Case {
    Case::new(format!("[{n}, {h}, {w}, {c}]"), |v, cx| v[0].flatten(cx)).input("x", [n, h, w, c], Fill::Uniform)
}

fn as_stored(x: [usize; 4]) -> Case {
    Case::new(format!("{x:?} as stored"), |v, cx| v[0].flatten_in(Order::AsStored, cx)).input("x", x, Fill::Uniform)
}

/// Shapes that tests and benches share.
pub fn cases() -> Vec<Case> {
    vec![
        case(1, 1, 1, 1),
        case(3, 1, 1, 7),
        case(3, 5, 4, 1),
        case(3, 5, 4, 7),
        case(2, 3, 11, 33),
        case(1, 8, 8, 32),
        case(2, 5, 13, 70),
        as_stored([3, 5, 4, 7]),
        case(4, 5, 5, 16).timed(),
        case(16, 6, 6, 512).timed(),
    ]
}

/// A small case drawn at random.
pub fn random_case(d: &mut Draw) -> Case {
    case(d.int(1, 4), d.int(1, 6), d.int(1, 6), d.int(1, 9))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn features_are_channel_major() {
        let x = Tensor::from_slice(&Device::cpu(), [1, 1, 2, 3], &[0f32, 1., 2., 3., 4., 5.]).unwrap();
        let of = |order| forward(&x, order).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(of(Order::ChannelMajor), [0., 3., 1., 4., 2., 5.]);
        assert_eq!(of(Order::AsStored), [0., 1., 2., 3., 4., 5.]);
    }
}
