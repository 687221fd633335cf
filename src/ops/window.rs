//! The sliding window that convolution and pooling share.

use crate::device::cpu::for_pieces;
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::shape::Shape;
use std::fmt;

/// A window that slides over the two spatial dimensions: `[height, width]` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its size.
    pub kernel: [usize; 2],
    /// How far it moves.
    pub stride: [usize; 2],
    /// Rows and columns added on each side of the input.
    pub pad: [usize; 2],
}

impl Window {
    /// A square window.
    pub fn square(kernel: usize, stride: usize, pad: usize) -> Self {
        Window { kernel: [kernel; 2], stride: [stride; 2], pad: [pad; 2] }
    }

    /// The output's `[height, width]` for an input's: `(size + 2 pad - kernel) / stride + 1`, rounded down.
    ///
    /// # Errors
    /// [`Error::Shape`] for a zero kernel or stride, or a window larger than the padded input.
    pub fn output(&self, op: &'static str, input: [usize; 2]) -> Result<[usize; 2]> {
        if self.kernel.contains(&0) || self.stride.contains(&0) {
            return Err(Error::shape(op, "a kernel and a stride of at least 1", self, "use positive sizes"));
        }
        let mut out = [0; 2];
        for i in 0..2 {
            let padded = input[i] + 2 * self.pad[i];
            if self.kernel[i] > padded {
                let [h, w] = input;
                return Err(Error::shape(
                    op,
                    format!("a window that fits its input of {h}x{w}"),
                    self,
                    format!(
                        "use a smaller kernel, a padding of at least {}, or fewer reductions before it",
                        (self.kernel[i] - input[i]).div_ceil(2)
                    ),
                ));
            }
            out[i] = (padded - self.kernel[i]) / self.stride[i] + 1;
        }
        Ok(out)
    }

    /// The shape that a pool makes of `x`. Its padding may be half the kernel, so that each window covers a pixel.
    ///
    /// # Errors
    /// [`Error::Shape`] for another rank, a window larger than the input, or more padding.
    pub fn pooled(&self, op: &'static str, x: Shape) -> Result<Shape> {
        let [n, h, w, c] = x
            .rank4()
            .ok_or_else(|| Error::shape(op, "an activation [n, h, w, c]", x, "put the pool before `flatten`"))?;
        let [ho, wo] = self.output(op, [h, w])?;
        if (0..2).any(|i| 2 * self.pad[i] > self.kernel[i]) {
            return Err(Error::shape(op, "a padding of at most half the kernel", self, "use a smaller padding"));
        }
        Ok([n, ho, wo, c].into())
    }

    /// Whether the window covers one pixel and moves by one: the identity for a pool.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1; 2] && self.stride == [1; 2] && self.pad == [0; 2]
    }

    /// Along dimension `i`, the positions of `outputs` whose window covers input position `at`, each with the place
    /// of the input in its window.
    #[inline]
    pub(crate) fn covers(&self, i: usize, at: usize, outputs: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (stride, kernel) = (self.stride[i], self.kernel[i]);
        let at = at + self.pad[i];
        let first = (at + 1).saturating_sub(kernel).div_ceil(stride);
        (first..outputs.min(at / stride + 1)).map(move |o| (o, at - o * stride))
    }

    /// Along dimension `i`, the positions of `outputs` whose input under element `k` of the window lies within an
    /// input of `size`.
    #[inline]
    pub(crate) fn within(&self, i: usize, k: usize, size: usize, outputs: usize) -> std::ops::Range<usize> {
        let (stride, pad) = (self.stride[i], self.pad[i]);
        let last = outputs.min((size + pad).saturating_sub(k).div_ceil(stride));
        pad.saturating_sub(k).div_ceil(stride).min(last)..last
    }

    /// Along dimension `i`, for output position `o`: the part of the kernel that lies within an input
    /// of `size`, and the input position of the window's start (which may be negative).
    #[inline]
    pub(crate) fn clip(&self, i: usize, o: usize, size: usize) -> (isize, std::ops::Range<usize>) {
        let start = (o * self.stride[i]) as isize - self.pad[i] as isize;
        let first = (-start).max(0) as usize;
        let last = (size as isize - start).clamp(first as isize, self.kernel[i].max(first) as isize) as usize;
        (start, first..last)
    }
}

/// The largest of the given pixels for each channel, and which pixel it is: for max-pools.
///
/// `x` is an image of `c` channels; of equal values the first pixel wins, NaN wins over all. There
/// must be at least one pixel.
#[inline(always)]
pub(crate) fn max_pixel<T: Real>(
    x: &[T],
    c: usize,
    pixels: impl Iterator<Item = usize> + Clone,
    y: &mut [T],
    arg: &mut [i32],
) {
    let mut at = 0;
    // Channels in groups that fill vector registers, then what is left.
    while at < c {
        at += match c - at {
            16.. => max_lanes::<T, 16>(x, c, at, pixels.clone(), y, arg),
            4.. => max_lanes::<T, 4>(x, c, at, pixels.clone(), y, arg),
            2.. => max_lanes::<T, 2>(x, c, at, pixels.clone(), y, arg),
            _ => max_lanes::<T, 1>(x, c, at, pixels.clone(), y, arg),
        };
    }
}

#[inline(always)]
fn max_lanes<T: Real, const L: usize>(
    x: &[T],
    c: usize,
    at: usize,
    pixels: impl Iterator<Item = usize>,
    y: &mut [T],
    arg: &mut [i32],
) -> usize {
    let (mut best, mut who) = ([T::neg_infinity(); L], [-1; L]);
    for pixel in pixels {
        let x = &x[pixel * c + at..pixel * c + at + L];
        for l in 0..L {
            // Neither <= nor >= holds for NaN. Selects, not branches.
            #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "NaN is to win, and is not <= anything")]
            let wins = (!(x[l] <= best[l]) & !best[l].is_nan()) | (who[l] < 0);
            best[l] = if wins { x[l] } else { best[l] };
            who[l] = if wins { pixel as i32 } else { who[l] };
        }
    }
    y[at..at + L].copy_from_slice(&best);
    arg[at..at + L].copy_from_slice(&who);
    L
}

/// The gradient of a max-pool: each output's goes to the pixel that won it.
///
/// `items` are the elements of an input and an output image, `c` the channels.
pub(crate) fn scatter_to_pixels<T: Real>(gy: &[T], arg: &[i32], gx: &mut [T], c: usize, items: [usize; 2]) {
    let [input, output] = items;
    let images: Vec<_> = gx.chunks_mut(input).zip(gy.chunks(output)).zip(arg.chunks(output)).collect();
    for_pieces(images, input + output, |_, ((gx, gy), arg)| {
        gx.fill(T::zero());
        for (gy, arg) in gy.chunks(c).zip(arg.chunks(c)) {
            for (channel, (&g, &pixel)) in gy.iter().zip(arg).enumerate() {
                gx[pixel as usize * c + channel] += g;
            }
        }
    });
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Window { kernel: [kh, kw], stride: [sh, sw], pad: [ph, pw] } = self;
        write!(f, "{kh}x{kw} stride {sh}x{sw} pad {ph}x{pw}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_sizes() {
        assert_eq!(Window::square(5, 1, 0).output("t", [32, 32]).unwrap(), [28, 28]);
        assert_eq!(Window::square(3, 2, 1).output("t", [32, 31]).unwrap(), [16, 16]);
        assert_eq!(Window::square(2, 2, 0).output("t", [5, 4]).unwrap(), [2, 2]);
        let e = Window::square(5, 1, 1).output("t", [2, 9]).unwrap_err().to_string();
        assert!(e.contains("5x5") && e.contains("2x9") && e.contains("padding of at least 2"), "{e}");
        assert!(Window::square(3, 0, 0).output("t", [9, 9]).is_err());
    }

    #[test]
    fn a_pool_covers_pixels() {
        let pool = |x: &[usize], pad| Window::square(2, 2, pad).pooled("t", Shape::from_slice(x).unwrap());
        assert_eq!(pool(&[3, 5, 4, 7], 1).unwrap().dims(), [3, 3, 3, 7]);
        assert!(pool(&[1, 4, 4, 1], 2).unwrap_err().to_string().contains("half the kernel"));
        assert!(pool(&[1, 4], 0).unwrap_err().to_string().contains("before `flatten`"));
    }

    #[test]
    fn clipping_at_the_borders() {
        let w = Window::square(3, 2, 1);
        assert_eq!(w.clip(0, 0, 4), (-1, 1..3));
        assert_eq!(w.clip(0, 1, 4), (1, 0..3));
        assert_eq!(w.clip(0, 2, 4), (3, 0..1));
        // A window wholly in the padding covers nothing.
        assert_eq!(Window::square(1, 1, 2).clip(0, 0, 3).1.len(), 0);
        assert_eq!(Window::square(1, 1, 2).clip(0, 6, 3).1.len(), 0);
    }
}
