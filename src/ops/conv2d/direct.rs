//! Convolution with few output channels, without im2col: the vector lanes lie along the image's row.
//!
//! With 6 output channels a matrix product leaves most of a vector register empty, and laying the
//! patches out costs more than the product. Here an image is first split into planes (one a channel,
//! padding included), so that 32 neighbouring pixels are one load; a block of output channels is
//! kept in registers while the kernel's window runs over its taps.

use super::Dims;
use crate::device::cpu::{has_fma, vectorised};
use crate::dtype::Real;

/// Output channels per block: with 32 pixels each they fill 12 of the 32 AVX-512 registers.
const OUTPUTS: usize = 6;
/// Pixels per strip.
const STRIP: usize = 32;

/// Whether a convolution is one for this file: few output channels, rows that fill a strip, and a
/// processor whose multiply-add is one instruction.
pub(super) fn suits(d: &Dims) -> bool {
    has_fma() && d.o <= 2 * OUTPUTS && d.c <= 8 && d.window.stride[1] == 1 && d.y[1] >= STRIP / 2
}

/// The padded planes of an image: `[c, h + 2 ph, w + 2 pw]` and zeros behind, so that a strip may
/// reach past the end.
struct Planes {
    width: usize,
    size: usize,
}

impl Planes {
    fn new(d: &Dims) -> Self {
        let width = d.x[1] + 2 * d.window.pad[1];
        Planes { width, size: (d.x[0] + 2 * d.window.pad[0]) * width }
    }

    fn len(&self, d: &Dims) -> usize {
        d.c * self.size + STRIP
    }

    #[inline(always)]
    fn split<T: Real>(&self, x: &[T], planes: &mut [T], d: &Dims) {
        let ([_, w], [ph, pw], c) = (d.x, d.window.pad, d.c);
        planes.fill(T::zero());
        for (row, x) in x.chunks_exact(w * c).enumerate() {
            let at = (row + ph) * self.width + pw;
            for (ch, plane) in planes.chunks_mut(self.size).take(c).enumerate() {
                let row = &mut plane[at..at + w];
                row.iter_mut().zip(x[ch..].iter().step_by(c)).for_each(|(p, &x)| *p = x);
            }
        }
    }
}

/// Elements of scratch memory that [`forward`] needs per image.
pub(super) fn forward_scratch(d: &Dims) -> usize {
    Planes::new(d).len(d)
}

/// Elements of scratch memory that [`backward_w`] needs per image.
pub(super) fn backward_scratch(d: &Dims) -> usize {
    Planes::new(d).len(d) + d.o.next_multiple_of(OUTPUTS) * d.y[0] * d.y[1].next_multiple_of(STRIP)
}

/// The weights `[o, kh, kw, c]` in the order that the forward pass reads them:
/// `[block of outputs, c, kh, kw, outputs in the block]`, zeros where the last block has no output.
pub(super) fn pack<T: Real>(w: &[T], d: &Dims) -> Vec<T> {
    let ([kh, kw], c, k) = (d.window.kernel, d.c, d.patch());
    let mut packed = vec![T::zero(); d.o.next_multiple_of(OUTPUTS) * k];
    for (o, w) in w.chunks_exact(k).enumerate() {
        let block = &mut packed[o / OUTPUTS * OUTPUTS * k..];
        for (i, &v) in w.iter().enumerate() {
            let (tap, ch) = (i / c, i % c);
            block[(ch * kh * kw + tap) * OUTPUTS + o % OUTPUTS] = v;
        }
    }
    packed
}

vectorised! {
/// One image: y `[ho, wo, o]` from x `[h, w, c]`.
pub(super) fn forward<T>(x: &[T], packed: &[T], b: Option<&[T]>, y: &mut [T], planes: &mut [T], d: &Dims) {
    let (shape, o, k) = (Planes::new(d), d.o, d.patch());
    shape.split(x, planes, d);
    for (p, y) in y.chunks_exact_mut(d.y[1] * o).enumerate() {
        for q in (0..d.y[1]).step_by(STRIP) {
            let start = p * d.window.stride[0] * shape.width + q;
            let y = &mut y[q * o..];
            for (block, w) in packed.chunks_exact(OUTPUTS * k).enumerate() {
                let acc = strip(&planes[start..], w, &shape, d);
                let first = block * OUTPUTS;
                for (i, acc) in acc.iter().enumerate().take(o - first) {
                    let bias = b.map_or(T::zero(), |b| b[first + i]);
                    y.iter_mut().skip(first + i).step_by(o).zip(acc).for_each(|(y, &a)| *y = a + bias);
                }
            }
        }
    }
}
}

/// A strip of pixels for a block of output channels.
#[inline(always)]
fn strip<T: Real>(planes: &[T], w: &[T], shape: &Planes, d: &Dims) -> [[T; STRIP]; OUTPUTS] {
    let [kh, kw] = d.window.kernel;
    let mut acc = [[T::zero(); STRIP]; OUTPUTS];
    let (w, _) = w.as_chunks::<OUTPUTS>();
    for (row, w) in w.chunks_exact(kw).enumerate() {
        let at = row / kh * shape.size + row % kh * shape.width;
        for (s, w) in w.iter().enumerate() {
            // A strip that starts in the last row may reach into the zeros behind the planes.
            let Some(x) = planes[at + s..].first_chunk::<STRIP>() else { continue };
            for (acc, &w) in acc.iter_mut().zip(w) {
                for l in 0..STRIP {
                    acc[l] = w.mul_add(x[l], acc[l]);
                }
            }
        }
    }
    acc
}

vectorised! {
/// One image's share of the weights' gradient, written or added into gw `[o, kh, kw, c]`.
pub(super) fn backward_w<T>(gy: &[T], x: &[T], gw: &mut [T], accumulate: bool, scratch: &mut [T], d: &Dims) {
    let (shape, [kh, kw], c) = (Planes::new(d), d.window.kernel, d.c);
    let (planes, grads) = scratch.split_at_mut(shape.len(d));
    shape.split(x, planes, d);
    // gy as [block of outputs, ho, strip, output in the block, pixel], zeros in the gaps: they cancel
    // what lies past the end of a row.
    let strips = d.y[1].div_ceil(STRIP);
    let block = d.y[0] * strips * OUTPUTS * STRIP;
    grads.fill(T::zero());
    for (row, gy) in gy.chunks_exact(d.y[1] * d.o).enumerate() {
        for o in 0..d.o {
            let at = o / OUTPUTS * block + row * strips * OUTPUTS * STRIP + o % OUTPUTS * STRIP;
            let strips = grads[at..].chunks_mut(OUTPUTS * STRIP);
            for (grads, gy) in strips.zip(gy.chunks(STRIP * d.o)) {
                grads.iter_mut().zip(gy[o..].iter().step_by(d.o)).for_each(|(g, &v)| *g = v);
            }
        }
    }
    let mut put = |first: usize, r: usize, s: usize, ch: usize, sums: &[T]| {
        for (i, &sum) in sums.iter().enumerate().take(d.o - first) {
            let at = &mut gw[(((first + i) * kh + r) * kw + s) * c + ch];
            *at = if accumulate { *at + sum } else { sum };
        }
    };
    for first in (0..d.o).step_by(OUTPUTS) {
        let grads = &grads[first / OUTPUTS * block..][..block];
        for row in 0..c * kh {
            let (ch, r) = (row / kh, row % kh);
            let x = &planes[ch * shape.size + r * shape.width..];
            for s in 0..kw {
                put(first, r, s, ch, &tap(&x[s..], grads, &shape, strips, d));
            }
        }
    }
}
}

/// The sums over all pixels of gy·x for one tap and a block of output channels.
#[inline(always)]
fn tap<T: Real>(x: &[T], grads: &[T], shape: &Planes, strips: usize, d: &Dims) -> [T; OUTPUTS] {
    let mut acc = [[T::zero(); STRIP]; OUTPUTS];
    let (grads, _) = grads.as_chunks::<STRIP>().0.as_chunks::<OUTPUTS>();
    for (p, grads) in grads.chunks_exact(strips).enumerate() {
        let x = &x[p * d.window.stride[0] * shape.width..];
        for (strip, g) in grads.iter().enumerate() {
            // There is always a whole strip: the planes end with as many zeros.
            let Some(x) = x[strip * STRIP..].first_chunk::<STRIP>() else { continue };
            for (acc, g) in acc.iter_mut().zip(g) {
                for l in 0..STRIP {
                    acc[l] = g[l].mul_add(x[l], acc[l]);
                }
            }
        }
    }
    let mut sums = [T::zero(); OUTPUTS];
    for (sum, lanes) in sums.iter_mut().zip(&mut acc) {
        for half in [16, 8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] += lanes[l + half];
            }
        }
        *sum = lanes[0];
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::super::definition::Example;
    use super::*;
    use crate::ops::case::Draw;

    /// Both passes against the definition, for random geometries that suit.
    #[test]
    fn agree_with_the_definition() {
        let mut tried = 0;
        for seed in 0..200 {
            let mut draw = Draw::new(seed);
            let x = [draw.int(5, 9), draw.int(16, 70)];
            let e = Example::draw(&mut draw, 1, x, 8, [3, 1]);
            let d = e.d;
            if !suits(&d) {
                continue;
            }
            tried += 1;
            let mut y = vec![f64::NAN; e.y.len()];
            let mut scratch = vec![f64::NAN; backward_scratch(&d)];
            forward(&e.x, &pack(&e.w, &d), Some(&e.b), &mut y, &mut scratch[..forward_scratch(&d)], &d);
            assert_eq!(y, e.y, "{d:?}");
            let mut gw = vec![f64::NAN; e.w.len()];
            backward_w(&e.gy, &e.x, &mut gw, false, &mut scratch, &d);
            assert_eq!(gw, e.gw, "{d:?}");
            backward_w(&e.gy, &e.x, &mut gw, true, &mut scratch, &d);
            assert!(gw.iter().zip(&e.gw).all(|(a, b)| *a == 2.0 * b));
        }
        assert!(tried > 100 || !cfg!(target_arch = "x86_64"), "{tried}");
    }
}
