//! Patches as rows of a matrix, and back.

use super::Dims;
use crate::device::cpu::vectorised;

/// Calls `f(row of patches, its part of the patch, its part of the image)` for every run of pixels
/// that a patch has in common with the image, and `pad(row, part)` for the parts that lie outside.
#[inline(always)]
fn runs(
    d: &Dims,
    mut f: impl FnMut(usize, std::ops::Range<usize>, usize),
    mut pad: impl FnMut(usize, std::ops::Range<usize>),
) {
    let ([h, w], [kh, kw], c) = (d.x, d.window.kernel, d.c);
    for p in 0..d.y[0] {
        let (h0, rs) = d.window.clip(0, p, h);
        for q in 0..d.y[1] {
            let (w0, ss) = d.window.clip(1, q, w);
            let row = p * d.y[1] + q;
            let (first, last) = (ss.start.min(kw) * c, ss.end.min(kw) * c);
            for r in 0..kh {
                let at = r * kw * c;
                if !rs.contains(&r) || first == last {
                    pad(row, at..at + kw * c);
                    continue;
                }
                let image = ((h0 + r as isize) as usize * w + (w0 + ss.start as isize) as usize) * c;
                pad(row, at..at + first);
                f(row, at + first..at + last, image);
                pad(row, at + last..at + kw * c);
            }
        }
    }
}

vectorised! {
/// One image `[h, w, c]` to its patches `[pixels, kh·kw·c]`; outside the image there are zeros.
pub(super) fn im2col<T>(x: &[T], cols: &mut [T], d: &Dims) {
    let k = d.patch();
    if d.window.pad == [0, 0] {
        // Without padding every run has one length: short copies of a known size.
        let (run, w) = (d.window.kernel[1] * d.c, d.x[1] * d.c);
        let [sh, sw] = d.window.stride;
        for (p, cols) in cols.chunks_exact_mut(d.y[1] * k).enumerate() {
            for (q, cols) in cols.chunks_exact_mut(k).enumerate() {
                let x = &x[p * sh * w + q * sw * d.c..];
                for (r, out) in cols.chunks_exact_mut(run).enumerate() {
                    copy(out, &x[r * w..r * w + run]);
                }
            }
        }
        return;
    }
    let cols = std::cell::RefCell::new(cols);
    runs(
        d,
        |row, part, image| {
            let n = part.len();
            cols.borrow_mut()[row * k..][part].copy_from_slice(&x[image..image + n]);
        },
        |row, part| cols.borrow_mut()[row * k..][part].fill(T::zero()),
    );
}
}

/// Copies a short run. Blocks of a fixed size become plain register moves, where a general copy
/// would call `memcpy`.
#[inline(always)]
fn copy<T: Copy>(out: &mut [T], from: &[T]) {
    const B: usize = 8;
    let n = out.len();
    if (B..16 * B).contains(&n) {
        let mut at = 0;
        while at + B <= n {
            out[at..at + B].copy_from_slice(&from[at..at + B]);
            at += B;
        }
        // The rest, overlapping what was copied already.
        out[n - B..].copy_from_slice(&from[n - B..]);
    } else {
        out.copy_from_slice(from);
    }
}

vectorised! {
/// The transpose of [`im2col`]: adds every patch `[pixels, kh·kw·c]` into its place in the image.
pub(super) fn col2im<T>(cols: &[T], x: &mut [T], d: &Dims) {
    x.fill(T::zero());
    let k = d.patch();
    runs(
        d,
        |row, part, image| {
            let n = part.len();
            let from = &cols[row * k..][part];
            x[image..image + n].iter_mut().zip(from).for_each(|(x, &v)| *x += v);
        },
        |_, _| {},
    );
}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::case::Draw;
    use crate::ops::window::Window;

    /// Both against the definition, one element at a time, for random geometries.
    #[test]
    fn agree_with_the_definition() {
        for seed in 0..60 {
            let mut draw = Draw::new(seed);
            let window = Window {
                kernel: [draw.int(1, 4), draw.int(1, 4)],
                stride: [draw.int(1, 3), draw.int(1, 3)],
                pad: [draw.int(0, 5) / 2, draw.int(0, 5) / 2],
            };
            let (h, w, c) = (draw.int(4, 8), draw.int(4, 8), draw.int(1, 5));
            let y = window.output("t", [h, w]).unwrap().map(|side| side - draw.int(0, 1).min(side - 1));
            let d = Dims { n: 1, x: [h, w], c, y, o: 1, window };
            let x: Vec<f64> = (0..h * w * c).map(|i| i as f64 + 1.0).collect();
            let mut want = vec![0.0; d.pixels() * d.patch()];
            let mut back = vec![0.0; x.len()];
            for (i, v) in want.iter_mut().enumerate() {
                let (pixel, r, s, ch) =
                    (i / d.patch(), i % d.patch() / (window.kernel[1] * c), i / c % window.kernel[1], i % c);
                let row = (pixel / y[1] * window.stride[0] + r).wrapping_sub(window.pad[0]);
                let col = (pixel % y[1] * window.stride[1] + s).wrapping_sub(window.pad[1]);
                if row < h && col < w {
                    *v = x[(row * w + col) * c + ch];
                    back[(row * w + col) * c + ch] += i as f64;
                }
            }
            let mut cols = vec![f64::NAN; want.len()];
            im2col(&x, &mut cols, &d);
            assert_eq!(cols, want, "{d:?}");
            let numbered: Vec<f64> = (0..want.len()).map(|i| i as f64).collect();
            let mut gx = vec![f64::NAN; x.len()];
            col2im(&numbered, &mut gx, &d);
            assert_eq!(gx, back, "{d:?}");
        }
    }
}
