//! Convolution with a few channels over a batch of images: a vector lane is an image.
//!
//! With 10, 20 or 40 channels a matrix product leaves a part of AVX-512's registers empty. Here 16
//! images are laid side by side, so that an element of all of them is one register, whatever the
//! number of channels, the stride and the padding; there are no patches, and what lies in the padding
//! is not computed. An output pixel keeps its channels' sums in registers while the window runs over
//! its taps: per multiply-add, one weight is spread from memory over the lanes.

use super::Dims;
use super::cpu::sum_groups;
use crate::device::cpu::{Cpu, Level, MACS, for_pieces, level};
use crate::dtype::Real;
use crate::error::Result;
use bytemuck::{cast_slice, cast_slice_mut};
use std::any::TypeId;
use std::arch::x86_64::*;

/// Images that are computed side by side: the lanes of a register of f32.
const LANES: usize = 16;
/// Channels whose sums are kept in registers at a time, of 32 registers; half of them for few channels.
const BLOCK: usize = 20;
const HALF: usize = BLOCK / 2;
/// Input channels of colour images.
const RGB: usize = 3;

/// An element of each of the images.
type Lanes = [f32; LANES];

/// Whether a convolution is one for this file: few channels, that fill blocks to five sixths at least,
/// images for all lanes, in f32, on a processor with AVX-512.
pub(super) fn suits<T: Real>(d: &Dims) -> bool {
    let fits = |c: usize| c <= 2 * BLOCK && c.next_multiple_of(block(c)) * 5 <= c * 6;
    TypeId::of::<T>() == TypeId::of::<f32>()
        && level() == Level::Avx512
        && d.n >= LANES
        && fits(d.o)
        && (fits(d.c) || d.c == RGB)
}

fn block(channels: usize) -> usize {
    if channels <= HALF { HALF } else { BLOCK }
}

/// Elements of the images' and the outputs' lanes together.
fn scratch_len(d: &Dims) -> usize {
    (d.image() + d.pixels() * d.o) * LANES
}

/// Weights of `rows` channels by a function of row, tap and column, as
/// `[block of rows, taps, columns, rows of the block]`, zeros where the last block has no row.
fn pack(rows: usize, taps: usize, columns: usize, at: impl Fn(usize, usize, usize) -> f32) -> Vec<f32> {
    let b = block(rows);
    let mut packed = vec![0.0; rows.next_multiple_of(b) * taps * columns];
    for (i, v) in packed.iter_mut().enumerate() {
        let (row, tap, column) = (i / (b * taps * columns) * b + i % b, i / (b * columns) % taps, i / b % columns);
        if row < rows {
            *v = at(row, tap, column);
        }
    }
    packed
}

pub(super) fn forward<T: Real>(x: &[T], w: &[T], b: Option<&[T]>, y: &mut [T], d: &Dims, cpu: &Cpu) -> Result<()> {
    let (x, w, b): (&[f32], &[f32], _) = (cast_slice(x), cast_slice(w), b.map(cast_slice::<T, f32>));
    let (k, taps, len) = (d.patch(), d.patch() / d.c, scratch_len(d));
    let packed = pack(d.o, taps, d.c, |o, tap, c| w[o * k + tap * d.c + c]);
    let groups = cast_slice_mut(y).chunks_mut(LANES * d.pixels() * d.o).zip(x.chunks(LANES * d.image()));
    cpu.reserve::<f32>(len, groups.len())?;
    for_pieces(groups.collect(), LANES * d.pixels() * k * d.o / MACS, |_, (y, x)| {
        // SAFETY: the processor has AVX-512, says `suits`.
        unsafe { forward_group(x, &packed, b, y, &mut cpu.scratch(len), d) };
    });
    Ok(())
}

pub(super) fn backward_x<T: Real>(gy: &[T], w: &[T], gx: &mut [T], d: &Dims, cpu: &Cpu) -> Result<()> {
    let (gy, w): (&[f32], &[f32]) = (cast_slice(gy), cast_slice(w));
    let (k, taps, len) = (d.patch(), d.patch() / d.c, scratch_len(d));
    let packed = pack(d.c, taps, d.o, |c, tap, o| w[o * k + tap * d.c + c]);
    let groups = cast_slice_mut(gx).chunks_mut(LANES * d.image()).zip(gy.chunks(LANES * d.pixels() * d.o));
    cpu.reserve::<f32>(len, groups.len())?;
    for_pieces(groups.collect(), LANES * d.pixels() * k * d.o / MACS, |_, (gx, gy)| {
        // SAFETY: as above.
        unsafe { backward_x_group(gy, &packed, gx, &mut cpu.scratch(len), d) };
    });
    Ok(())
}

pub(super) fn backward_w<T: Real>(
    gy: &[T],
    x: &[T],
    gw: &mut [T],
    accumulate: bool,
    d: &Dims,
    cpu: &Cpu,
) -> Result<()> {
    sum_groups(gy, x, gw, accumulate, [LANES, scratch_len(d)], d, cpu, |gy, x, sum, scratch| {
        let (gy, x, sum) = (cast_slice(gy), cast_slice(x), cast_slice_mut::<T, f32>(sum));
        sum.fill(0.0);
        for (gy, x) in gy.chunks(LANES * d.pixels() * d.o).zip(x.chunks(LANES * d.image())) {
            // SAFETY: as above.
            unsafe { backward_w_group(gy, x, sum, cast_slice_mut(scratch), d) };
        }
    })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(from: &Lanes) -> __m512 {
    // SAFETY: 16 elements are read, of 16.
    unsafe { _mm512_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(to: &mut Lanes, v: __m512) {
    // SAFETY: 16 elements are written, of 16.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
}

/// Images of `size` elements, one behind the other, to lanes; lanes without an image become zeros.
#[target_feature(enable = "avx512f")]
fn to_lanes(images: &[f32], size: usize, lanes: &mut [Lanes]) {
    let whole = if images.len() == LANES * size { size / LANES * LANES } else { 0 };
    for at in (0..whole).step_by(LANES) {
        let mut tile = [_mm512_setzero_ps(); LANES];
        for l in 0..LANES {
            tile[l] = load(chunk(&images[l * size + at..]));
        }
        transpose(&mut tile);
        let lanes: &mut [Lanes; LANES] = chunk_mut(&mut lanes[at..]);
        for l in 0..LANES {
            store(&mut lanes[l], tile[l]);
        }
    }
    for (i, lanes) in lanes[..size].iter_mut().enumerate().skip(whole) {
        *lanes = std::array::from_fn(|l| images.get(l * size + i).copied().unwrap_or(0.0));
    }
}

/// The way back.
#[target_feature(enable = "avx512f")]
fn from_lanes(lanes: &[Lanes], size: usize, images: &mut [f32]) {
    let whole = if images.len() == LANES * size { size / LANES * LANES } else { 0 };
    for at in (0..whole).step_by(LANES) {
        let mut tile = [_mm512_setzero_ps(); LANES];
        let lanes: &[Lanes; LANES] = chunk(&lanes[at..]);
        for l in 0..LANES {
            tile[l] = load(&lanes[l]);
        }
        transpose(&mut tile);
        for l in 0..LANES {
            store(chunk_mut(&mut images[l * size + at..]), tile[l]);
        }
    }
    for (l, image) in images.chunks_exact_mut(size).enumerate() {
        for i in whole..size {
            image[i] = lanes[i][l];
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(tile: &mut [__m512; LANES]) {
    swap::<8>(tile);
    swap::<4>(tile);
    swap::<2>(tile);
    swap::<1>(tile);
}

/// In squares of `2·HALF` rows and columns, the quarters off the diagonal change places.
#[inline]
#[target_feature(enable = "avx512f")]
fn swap<const HALF: usize>(tile: &mut [__m512; LANES]) {
    // Of two registers' 32 elements, those that become an upper row and a lower one.
    let pick = const {
        let mut pick = [[0i32; LANES]; 2];
        let mut l = 0;
        while l < LANES {
            let first = l & HALF == 0;
            pick[0][l] = (if first { l } else { LANES + (l ^ HALF) }) as i32;
            pick[1][l] = (if first { l ^ HALF } else { LANES + l }) as i32;
            l += 1;
        }
        pick
    };
    // SAFETY: 16 elements are read, of 16.
    let [upper, lower] =
        unsafe { [_mm512_loadu_si512(pick[0].as_ptr().cast()), _mm512_loadu_si512(pick[1].as_ptr().cast())] };
    for i in 0..LANES {
        if i & HALF == 0 {
            let (a, b) = (tile[i], tile[i + HALF]);
            tile[i] = _mm512_permutex2var_ps(a, upper, b);
            tile[i + HALF] = _mm512_permutex2var_ps(a, lower, b);
        }
    }
}

/// Adds `sum over i of x[i]·w[i]` for a block of channels.
#[inline]
#[target_feature(enable = "avx512f")]
fn add<const B: usize>(acc: &mut [__m512; B], x: &[Lanes], w: &[[f32; B]]) {
    for (x, w) in x.iter().zip(w) {
        let x = load(x);
        for i in 0..B {
            acc[i] = _mm512_fmadd_ps(_mm512_set1_ps(w[i]), x, acc[i]);
        }
    }
}

#[target_feature(enable = "avx512f")]
fn forward_group(x: &[f32], w: &[f32], b: Option<&[f32]>, y: &mut [f32], scratch: &mut [f32], d: &Dims) {
    let (xs, ys) = scratch.as_chunks_mut().0.split_at_mut(d.image());
    to_lanes(x, d.image(), xs);
    match block(d.o) {
        HALF => outputs::<HALF>(xs, w.as_chunks().0, b, ys, d),
        _ => outputs::<BLOCK>(xs, w.as_chunks().0, b, ys, d),
    }
    from_lanes(ys, d.pixels() * d.o, y);
}

#[target_feature(enable = "avx512f")]
fn outputs<const B: usize>(xs: &[Lanes], w: &[[f32; B]], b: Option<&[f32]>, ys: &mut [Lanes], d: &Dims) {
    for p in 0..d.y[0] {
        let (h0, rows) = d.window.clip(0, p, d.x[0]);
        for (block, w) in w.chunks_exact(d.patch()).enumerate() {
            let first = block * B;
            for q in 0..d.y[1] {
                let (w0, columns) = d.window.clip(1, q, d.x[1]);
                let mut acc = [_mm512_setzero_ps(); B];
                for r in rows.clone().filter(|_| !columns.is_empty()) {
                    // The pixels of a row of the window lie side by side, in the image and in the weights.
                    let from = (h0 + r as isize) as usize * d.x[1] + (w0 + columns.start as isize) as usize;
                    let tap = r * d.window.kernel[1] + columns.start;
                    add(&mut acc, &xs[from * d.c..][..columns.len() * d.c], &w[tap * d.c..]);
                }
                let ys = &mut ys[(p * d.y[1] + q) * d.o..][..d.o];
                for (i, (y, acc)) in ys[first..].iter_mut().zip(acc).enumerate() {
                    store(y, _mm512_add_ps(acc, _mm512_set1_ps(b.map_or(0.0, |b| b[first + i]))));
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn backward_x_group(gy: &[f32], w: &[f32], gx: &mut [f32], scratch: &mut [f32], d: &Dims) {
    let (gxs, gys) = scratch.as_chunks_mut().0.split_at_mut(d.image());
    to_lanes(gy, d.pixels() * d.o, gys);
    match block(d.c) {
        HALF => inputs::<HALF>(gys, w.as_chunks().0, gxs, d),
        _ => inputs::<BLOCK>(gys, w.as_chunks().0, gxs, d),
    }
    from_lanes(gxs, d.image(), gx);
}

#[target_feature(enable = "avx512f")]
fn inputs<const B: usize>(gys: &[Lanes], w: &[[f32; B]], gxs: &mut [Lanes], d: &Dims) {
    let [kh, kw] = d.window.kernel;
    for h in 0..d.x[0] {
        for (block, w) in w.chunks_exact(kh * kw * d.o).enumerate() {
            for v in 0..d.x[1] {
                let mut acc = [_mm512_setzero_ps(); B];
                for (p, r) in d.window.covers(0, h, d.y[0]) {
                    for (q, s) in d.window.covers(1, v, d.y[1]) {
                        add(&mut acc, &gys[(p * d.y[1] + q) * d.o..][..d.o], &w[(r * kw + s) * d.o..]);
                    }
                }
                let gxs = &mut gxs[(h * d.x[1] + v) * d.c..][..d.c];
                for (gx, acc) in gxs[block * B..].iter_mut().zip(acc) {
                    store(gx, acc);
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn backward_w_group(gy: &[f32], x: &[f32], gw: &mut [f32], scratch: &mut [f32], d: &Dims) {
    let (xs, gys) = scratch.as_chunks_mut().0.split_at_mut(d.image());
    to_lanes(x, d.image(), xs);
    to_lanes(gy, d.pixels() * d.o, gys);
    // Tiles that fill the registers, and divide the numbers of channels that are usual.
    match d.c {
        RGB => tiles::<5, RGB>(gys, xs, gw, d),
        _ => tiles::<4, 5>(gys, xs, gw, d),
    }
}

#[target_feature(enable = "avx512f")]
fn tiles<const O: usize, const C: usize>(gys: &[Lanes], xs: &[Lanes], gw: &mut [f32], d: &Dims) {
    for o in (0..d.o).step_by(O) {
        for c in (0..d.c).step_by(C) {
            tile::<O, C>(gys, xs, gw, [o, c], d);
        }
    }
}

/// The weights' gradient for a few output channels from `o` on and a few input channels from `c` on. The last tile
/// reaches back over channels that were done.
#[target_feature(enable = "avx512f")]
fn tile<const O: usize, const C: usize>(gys: &[Lanes], xs: &[Lanes], gw: &mut [f32], [o, c]: [usize; 2], d: &Dims) {
    let ([kh, kw], [sh, sw], [ph, pw]) = (d.window.kernel, d.window.stride, d.window.pad);
    let (first_o, first_c) = (o.min(d.o - O), c.min(d.c - C));
    for tap in 0..kh * kw {
        let (r, s) = (tap / kw, tap % kw);
        let columns = d.window.within(1, s, d.x[1], d.y[1]);
        if columns.is_empty() {
            continue;
        }
        let mut acc = [[_mm512_setzero_ps(); C]; O];
        for p in d.window.within(0, r, d.x[0], d.y[0]) {
            let gys = &gys[(p * d.y[1] + columns.start) * d.o..];
            let xs = &xs[((p * sh + r - ph) * d.x[1] + columns.start * sw + s - pw) * d.c..];
            for (gy, x) in gys.chunks(d.o).zip(xs.chunks(sw * d.c)).take(columns.len()) {
                let (gy, x): (&[Lanes; O], &[Lanes; C]) = (chunk(&gy[first_o..]), chunk(&x[first_c..]));
                for i in 0..O {
                    for j in 0..C {
                        acc[i][j] = _mm512_fmadd_ps(load(&gy[i]), load(&x[j]), acc[i][j]);
                    }
                }
            }
        }
        for i in o - first_o..O {
            for j in c - first_c..C {
                gw[((first_o + i) * kh * kw + tap) * d.c + first_c + j] += _mm512_reduce_add_ps(acc[i][j]);
            }
        }
    }
}

#[inline]
fn chunk<T, const N: usize>(from: &[T]) -> &[T; N] {
    from.first_chunk().expect("as many elements")
}

#[inline]
fn chunk_mut<T, const N: usize>(from: &mut [T]) -> &mut [T; N] {
    from.first_chunk_mut().expect("as many elements")
}

#[cfg(test)]
mod tests {
    use super::super::definition::Example;
    use super::*;
    use crate::ops::case::Draw;

    /// All passes against the definition, for random geometries that suit.
    #[test]
    fn agree_with_the_definition() {
        let cpu = Cpu::default();
        for seed in 0..60 {
            let mut draw = Draw::new(seed);
            let x = [draw.int(1, 8), draw.int(1, 8)];
            let channels = [[RGB, 9, 10, 18][draw.int(0, 3)], [9, 10, 17, 36][draw.int(0, 3)]];
            let e = Example::draw(&mut draw, LANES + seed as usize % 3, x, channels, [3, 3]);
            let d = e.d;
            if !suits::<f32>(&d) {
                assert_ne!(level(), Level::Avx512, "{d:?}");
                return;
            }
            let f32s = |v: &[f64]| -> Vec<f32> { v.iter().map(|&v| v as f32).collect() };
            let (x, w, b, gy) = (f32s(&e.x), f32s(&e.w), f32s(&e.b), f32s(&e.gy));
            let mut y = vec![f32::NAN; gy.len()];
            forward(&x, &w, Some(&b), &mut y, &d, &cpu).unwrap();
            assert_eq!(y, f32s(&e.y), "{d:?}");
            let (mut gx, mut gw) = (vec![f32::NAN; x.len()], vec![f32::NAN; w.len()]);
            backward_x(&gy, &w, &mut gx, &d, &cpu).unwrap();
            assert_eq!(gx, f32s(&e.gx), "{d:?}");
            backward_w(&gy, &x, &mut gw, false, &d, &cpu).unwrap();
            assert_eq!(gw, f32s(&e.gw), "{d:?}");
            backward_w(&gy, &x, &mut gw, true, &d, &cpu).unwrap();
            assert!(gw.iter().zip(&e.gw).all(|(&a, b)| f64::from(a) == 2.0 * b));
        }
    }
}
