//! The sizes of a convolution, and what of it is computed.

use super::OP;
use crate::error::{Error, Result};
use crate::ops::activation::Then;
use crate::ops::window::Window;
use crate::shape::Shape;

/// The sizes of a convolution; the kernel's are in the window. The output has as many rows and columns as there are places for
/// the window, or fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dims {
    /// Images.
    pub(super) n: usize,
    /// Input height and width.
    pub(super) x: [usize; 2],
    /// Input channels.
    pub(super) c: usize,
    /// Output height and width.
    pub(super) y: [usize; 2],
    /// Output channels.
    pub(super) o: usize,
    pub(super) window: Window,
}

impl Dims {
    pub(super) fn new(x: Shape, w: Shape, b: Option<Shape>, stride: [usize; 2], pad: [usize; 2]) -> Result<Self> {
        let (Some([n, h, wd, c]), Some([o, kh, kw, wc])) = (x.rank4(), w.rank4()) else {
            let got = format!("x {x}, w {w}");
            return Err(Error::shape(
                OP,
                "x [n, h, w, c] and w [o, kh, kw, c]",
                got,
                "put the convolution before `flatten`",
            ));
        };
        if c != wc || b.is_some_and(|b| b != Shape::from([o])) {
            let got = format!("x {x}, w {w}, b {b:?}");
            return Err(Error::shape(
                OP,
                format!("{wc} input channels and {o} biases"),
                got,
                "match the weights to the input's channels",
            ));
        }
        let window = Window { kernel: [kh, kw], stride, pad };
        Ok(Dims { n, x: [h, wd], c, y: window.output(OP, [h, wd])?, o, window })
    }

    /// Of the output what a max-pool of 2x2 reads of it. What no window of its has, the last row or column, is not computed.
    pub(super) fn cropped(self, then: Then) -> Self {
        let whole = |side: usize| if then.pool == Some(Then::POOL) && side > 1 { side / 2 * 2 } else { side };
        Dims { y: self.y.map(whole), ..self }
    }

    /// Output pixels per image.
    pub(super) fn pixels(&self) -> usize {
        self.y[0] * self.y[1]
    }

    /// Elements of a patch: the columns of im2col's matrix.
    pub(super) fn patch(&self) -> usize {
        self.window.kernel[0] * self.window.kernel[1] * self.c
    }

    /// Of the window's elements, `channels` at each place, where those begin and end that see the input somewhere, in whole steps of
    /// all products: of small images the other places are in the padding wherever the window is.
    pub(super) fn seen(&self, channels: usize) -> [usize; 2] {
        const STEP: usize = 64;
        let [kh, kw] = self.window.kernel;
        let sees = |i: usize, k: usize| !self.window.within(i, k, self.x[i], self.y[i]).is_empty();
        let ends =
            |i: usize, side: usize| Some([(0..side).find(|&k| sees(i, k))?, (0..side).rfind(|&k| sees(i, k))? + 1]);
        let all = channels * kh * kw;
        let Some(([top, bottom], [left, right])) = ends(0, kh).zip(ends(1, kw)) else { return [0, all] };
        let (from, to) = ((top * kw + left) * channels, ((bottom - 1) * kw + right) * channels);
        [from / STEP * STEP, to.next_multiple_of(STEP).min(all)]
    }

    /// Elements of an input image.
    pub(super) fn image(&self) -> usize {
        self.x[0] * self.x[1] * self.c
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_the_padding_are_left_out() {
        let seen = |x: [usize; 2], kernel, stride, pad, channels: usize| {
            let window = Window::square(kernel, stride, pad);
            Dims { n: 1, x, c: 1, y: window.output(OP, x).unwrap(), o: 1, window }.seen(channels)
        };
        assert_eq!(seen([1, 1], 3, 1, 1, 64), [4 * 64, 5 * 64]);
        assert_eq!(seen([1, 1], 3, 1, 1, 8), [0, 64]);
        assert_eq!(seen([1, 1], 3, 1, 1, 24), [64, 128]);
        assert_eq!(seen([2, 2], 3, 2, 1, 64), [4 * 64, 9 * 64]);
        assert_eq!(seen([1, 5], 3, 1, 1, 64), [3 * 64, 6 * 64]);
        assert_eq!(seen([2, 2], 3, 1, 1, 64), [0, 9 * 64]);
        assert_eq!(seen([4, 4], 1, 1, 0, 3), [0, 3]);
        // All of it is in the padding.
        assert_eq!(seen([1, 1], 1, 2, 1, 5), [0, 5]);
    }

    #[test]
    fn what_a_pool_does_not_read_is_not_computed() {
        let y = |x: [usize; 4], pool| {
            let d = Dims::new(x.into(), [1, 3, 3, 1].into(), None, [1, 1], [1, 1]).unwrap();
            d.cropped(Then { activation: None, pool }).y
        };
        assert_eq!(y([1, 7, 8, 1], Some(Then::POOL)), [6, 8]);
        assert_eq!(y([1, 7, 8, 1], Some(Then::OVERLAPPING)), [7, 8]);
        assert_eq!(y([1, 7, 8, 1], None), [7, 8]);
        // The pool itself says that its window is too large.
        assert_eq!(y([1, 1, 3, 1], Some(Then::POOL)), [1, 2]);
    }
}
