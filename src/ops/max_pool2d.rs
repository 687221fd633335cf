//! Max-pool: the largest value under each window.
//!
//! `y[n, p, q, c] = max over (r, s) of x[n, p·sh - ph + r, q·sw - pw + s, c]`; padding never wins.
//! The gradient of an output goes to the place of its maximum; of equal values the first in
//! row-major order wins and NaN wins over all, as in PyTorch.

use super::case::{Case, Draw, Fill};
use super::window::Window;
use crate::autograd::{Backward, Ctx, Grads, Var, VarId};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::shape::Shape;
use crate::tensor::Tensor;

const OP: &str = "max_pool2d";

impl Var {
    /// Max-pool of `[n, h, w, c]` to `[n, ho, wo, c]`; see [`Window::pooled`].
    ///
    /// # Errors
    /// As [`Window::pooled`].
    pub fn max_pool2d(&self, window: Window, cx: &mut Ctx<'_>) -> Result<Var> {
        let out = window.pooled(OP, self.shape())?;
        if window.is_pointwise() {
            return Ok(self.clone());
        }
        let (y, arg) = forward(self.value(), window, out)?;
        let y = cx.record(y, &[self], || MaxPool2d { x: self.id(), shape: self.shape(), window, arg });
        // What is not above 0 has won where nothing is, so ReLU passes no gradient on from there.
        Ok(y.made_by_relu(self.is_relu()))
    }
}

/// The output, and for each of its elements what won: the pixel (h·W + w), or on a device its place in the window
/// (row·kw + column), a byte, or four where there are more places than 256.
fn forward(x: &Tensor, window: Window, out: Shape) -> Result<(Tensor, Tensor)> {
    let mut y = Tensor::empty(x.device(), x.dtype(), out)?;
    let mut arg = match x.device() {
        Device::Cpu(_) => Tensor::empty(x.device(), DType::I32, out)?,
        Device::Cuda(_) => {
            let bytes = if window.kernel[0] * window.kernel[1] > 256 { 4 } else { 1 };
            Tensor::empty(x.device(), DType::U8, [out.len(), bytes])?
        }
    };
    on_device!(OP, x, T,
        cpu => cpu::forward(x.host::<T>()?, y.host_mut::<T>()?, arg.host_mut()?, x.shape(), out, window),
        cuda => cuda::forward::<T>(&cuda, x, &mut y, &mut arg, window));
    Ok((y, arg))
}

struct MaxPool2d {
    x: Option<VarId>,
    shape: Shape,
    window: Window,
    arg: Tensor,
}

impl Backward for MaxPool2d {
    fn backward(self: Box<Self>, gy: Tensor, grads: &mut Grads<'_>) -> Result<()> {
        let masked = grads.is_masked();
        if grads.sums_are_zero() {
            // Each number goes to one pixel of its channel.
            grads.note_sums_to_zero(self.x);
        }
        grads.add_masked(self.x, backward(&gy, &self.arg, self.shape, self.window)?, masked)
    }
}

/// The gradient of what was pooled, of a shape, where `arg` says what won.
pub(super) fn backward(gy: &Tensor, arg: &Tensor, shape: Shape, window: Window) -> Result<Tensor> {
    let mut gx = Tensor::empty(gy.device(), gy.dtype(), shape)?;
    on_device!(OP, gy, T,
        cpu => cpu::backward(gy.host::<T>()?, arg.host()?, gx.host_mut::<T>()?, shape, gy.shape()),
        cuda => cuda::backward::<T>(&cuda, gy, arg, &mut gx, window));
    Ok(gx)
}

mod cpu {
    use super::super::window::{max_pixel, scatter_to_pixels};
    use super::Window;
    use crate::device::cpu::{for_pieces, vectorised};
    use crate::dtype::Real;
    use crate::shape::Shape;

    pub(super) fn forward<T: Real>(x: &[T], y: &mut [T], arg: &mut [i32], xs: Shape, ys: Shape, win: Window) {
        let ([_, h, w, c], [_, ho, wo, _]) = (xs.rank4().unwrap_or([1; 4]), ys.rank4().unwrap_or([1; 4]));
        let row = wo * c;
        let rows: Vec<_> = y.chunks_mut(ho * row).zip(arg.chunks_mut(ho * row)).zip(x.chunks(h * w * c)).collect();
        for_pieces(rows, ho * row * win.kernel[0] * win.kernel[1], |_, ((y, arg), x)| {
            image(x, y, arg, [h, w, c], wo, win)
        });
    }

    vectorised! {
        fn image<T>(x: &[T], y: &mut [T], arg: &mut [i32], size: [usize; 3], wo: usize, win: Window) {
            let [h, w, c] = size;
            let row = wo * c;
            for ((p, y), arg) in y.chunks_mut(row).enumerate().zip(arg.chunks_mut(row)) {
                let (h0, rs) = win.clip(0, p, h);
                for ((q, y), arg) in y.chunks_mut(c).enumerate().zip(arg.chunks_mut(c)) {
                    let (w0, ss) = win.clip(1, q, w);
                    let pixels = rs.clone().flat_map(|r| {
                        let first = (h0 + r as isize) as usize * w;
                        ss.clone().map(move |s| first + (w0 + s as isize) as usize)
                    });
                    max_pixel(x, c, pixels, y, arg);
                }
            }
        }
    }

    pub(super) fn backward<T: Real>(gy: &[T], arg: &[i32], gx: &mut [T], xs: Shape, ys: Shape) {
        let item = |s: Shape| s.dims()[1..].iter().product();
        scatter_to_pixels(gy, arg, gx, xs.last(), [item(xs), item(ys)]);
    }
}

mod cuda {
    use super::Window;
    use crate::device::cuda::{Cuda, KernelType, Launch, magic};
    use crate::error::Result;
    use crate::kernels::max_pool2d::*;
    use crate::shape::Shape;
    use crate::tensor::Tensor;

    /// The sizes for elements of T, and threads that have 16 bytes of the channels each, where channels are all of 16
    /// bytes: of a window, or of a cell of x if `cells`.
    fn dims<T>(x: Shape, y: Shape, window: Window, cells: bool) -> (MaxPool2dDims, Launch) {
        let [[n, h, w, c], [_, ho, wo, _]] = [x, y].map(|s| s.rank4().unwrap_or([1; 4]));
        let Window { kernel: [kh, kw], stride: [sh, sw], pad: [ph, pw] } = window;
        let [down, across] = if cells { [(h + ph).div_ceil(sh), (w + pw).div_ceil(sw)] } else { [ho, wo] };
        let packs = c / (16 / size_of::<T>());
        let wide = kh * kw <= 256 && packs * (16 / size_of::<T>()) == c;
        let launch = Launch::each(n * down * across * if wide { packs } else { c });
        let [by_c, by_packs, by_across, by_down] = [c, packs, across, down].map(|divisor| magic(divisor.max(1)));
        let [up, left] = [(kh - 1) / sh, (kw - 1) / sw].map(|d| d as i32);
        let [n, h, w, c, ho, wo, down, across] = [n, h, w, c, ho, wo, down, across].map(|d| d as i32);
        let [kh, kw, sh, sw, ph, pw] = [kh, kw, sh, sw, ph, pw].map(|d| d as i32);
        #[rustfmt::skip]
        let d = MaxPool2dDims {
            n, h, w, c, ho, wo, kh, kw, sh, sw, ph, pw, down, across, up, left, by_c, by_packs, by_across, by_down,
        };
        (d, launch)
    }

    pub(super) fn forward<T: KernelType>(
        cuda: &Cuda,
        x: &Tensor,
        y: &mut Tensor,
        place: &mut Tensor,
        window: Window,
    ) -> Result<()> {
        let (d, launch) = dims::<T>(x.shape(), y.shape(), window, false);
        max_pool2d_fwd::<T>(cuda, launch, x.input()?, y.output()?, place.output()?, &d)
    }

    pub(super) fn backward<T: KernelType>(
        cuda: &Cuda,
        gy: &Tensor,
        place: &Tensor,
        gx: &mut Tensor,
        window: Window,
    ) -> Result<()> {
        let (d, launch) = dims::<T>(gx.shape(), gy.shape(), window, true);
        max_pool2d_bwd::<T>(cuda, launch, gy.input()?, place.input()?, gx.output()?, &d)
    }
}

fn case(x: [usize; 4], win: Window, fill: Fill) -> Case {
    let out = win.pooled(OP, x.into()).map_or(0, |s| s.len());
    Case::new(format!("{x:?} {win} {fill:?}"), move |v, cx| v[0].max_pool2d(win, cx))
        .input("x", x, fill)
        .flops(out * win.kernel[0] * win.kernel[1])
}

/// Shapes that tests and benches share.
pub fn cases() -> Vec<Case> {
    let rect = Window { kernel: [3, 2], stride: [2, 1], pad: [1, 0] };
    vec![
        case([1, 1, 1, 1], Window::square(1, 1, 0), Fill::Distinct),
        case([2, 7, 5, 3], Window::square(2, 2, 0), Fill::Distinct),
        case([2, 7, 5, 3], Window::square(3, 1, 1), Fill::Ties),
        case([1, 6, 9, 5], rect, Fill::Ties),
        case([3, 6, 6, 17], Window::square(3, 2, 0), Fill::Distinct),
        case([2, 5, 11, 33], Window { kernel: [2, 5], stride: [3, 2], pad: [1, 2] }, Fill::Distinct),
        case([2, 5, 7, 8], Window::square(3, 2, 1), Fill::Ties),
        case([2, 10, 4, 2], Window { kernel: [4, 1], stride: [1, 2], pad: [2, 0] }, Fill::Ties),
        case([2, 7, 5, 16], Window::square(2, 2, 0), Fill::Ties),
        case([1, 7, 8, 8], Window::square(3, 3, 0), Fill::Distinct),
        case([1, 5, 7, 8], Window { kernel: [2, 3], stride: [2, 3], pad: [0; 2] }, Fill::Ties),
        case([2, 7, 5, 8], Window::square(2, 2, 1), Fill::Ties),
        case([2, 7, 9, 8], Window::square(2, 3, 1), Fill::Distinct),
        case([1, 9, 8, 16], Window { kernel: [5, 3], stride: [2, 2], pad: [2, 1] }, Fill::Ties),
        case([1, 17, 20, 8], Window::square(17, 5, 8), Fill::Distinct),
        case([4, 28, 28, 6], Window::square(2, 2, 0), Fill::Distinct).timed(),
        case([16, 28, 28, 32], Window::square(2, 2, 0), Fill::Distinct).timed(),
        case([16, 28, 28, 32], Window::square(3, 2, 1), Fill::Distinct).timed(),
    ]
}

/// A small case drawn at random.
pub fn random_case(d: &mut Draw) -> Case {
    let kernel = [d.int(1, 4), d.int(1, 4)];
    let window =
        Window { kernel, stride: [d.int(1, 3), d.int(1, 3)], pad: [d.int(0, kernel[0] / 2), d.int(0, kernel[1] / 2)] };
    case([d.int(1, 3), d.int(4, 8), d.int(4, 8), d.int(1, 5)], window, Fill::Distinct)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn nan_wins_and_ties_go_to_the_first() {
        let device = Device::cpu();
        let x = Tensor::from_slice(&device, [1, 2, 2, 2], &[1f32, 5., f32::NAN, 5., 3., 5., 2., 5.]).unwrap();
        let win = Window::square(2, 2, 0);
        let (y, arg) = forward(&x, win, win.pooled(OP, x.shape()).unwrap()).unwrap();
        let y = y.to_vec::<f32>().unwrap();
        assert!(y[0].is_nan() && y[1] == 5.0);
        assert_eq!(arg.to_vec::<i32>().unwrap(), [1, 0]);
    }

    #[test]
    fn minus_infinity_everywhere_stays_in_bounds() {
        let device = Device::cpu();
        let x = Tensor::from_slice(&device, [1, 2, 2, 1], &[f32::NEG_INFINITY; 4]).unwrap();
        let win = Window::square(2, 1, 1);
        let (_, arg) = forward(&x, win, win.pooled(OP, x.shape()).unwrap()).unwrap();
        assert!(arg.to_vec::<i32>().unwrap().iter().all(|&a| (0..4).contains(&a)));
    }
}
