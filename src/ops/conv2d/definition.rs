//! Convolution by its definition, one product at a time, for the tests of the faster ways.

use super::Dims;
use crate::ops::case::Draw;
use crate::ops::window::Window;
#[cfg(tilework_emulator)]
use crate::{device::Device, tensor::Tensor};
#[cfg(tilework_emulator)]
use half::f16;

/// A convolution of small whole numbers: every sum is exact, in whatever order.
pub(super) struct Example {
    pub(super) d: Dims,
    pub(super) x: Vec<f64>,
    pub(super) w: Vec<f64>,
    pub(super) b: Vec<f64>,
    pub(super) y: Vec<f64>,
    pub(super) gy: Vec<f64>,
    pub(super) gx: Vec<f64>,
    pub(super) gw: Vec<f64>,
}

impl Example {
    /// `n` images of `x` pixels, `c` channels to `o`, a drawn kernel and padding, and strides up to those given; sometimes without
    /// the last row or column of the output.
    pub(super) fn draw(draw: &mut Draw, n: usize, x: [usize; 2], [c, o]: [usize; 2], stride: [usize; 2]) -> Self {
        let pad = [draw.int(0, 2), draw.int(0, 2)];
        let kernel = [0, 1].map(|i| draw.int(1, 5.min(x[i] + 2 * pad[i])));
        let window = Window { kernel, stride: stride.map(|s| draw.int(1, s)), pad };
        let y = window.output("conv2d", x).expect("the window is smaller than the image");
        let y = y.map(|side| side - draw.int(0, 1).min(side - 1));
        Example::new(Dims { n, x, c, y, o, window })
    }

    pub(super) fn new(d: Dims) -> Self {
        Example::of(d, Self::numbers(&d, d.n * d.pixels() * d.o, 3))
    }

    fn numbers(d: &Dims, len: usize, from: usize) -> Vec<f64> {
        (from..from + len).map(|i| ((i * 7919 + d.patch()) % 23) as f64 - 11.0).collect()
    }

    /// With this gradient of y.
    pub(super) fn of(d: Dims, gy: Vec<f64>) -> Self {
        let numbers = |len: usize, from: usize| Self::numbers(&d, len, from);
        let (x, w, b) = (numbers(d.n * d.image(), 0), numbers(d.o * d.patch(), 5), numbers(d.o, 0));
        let mut y: Vec<f64> = (0..gy.len()).map(|i| b[i % d.o]).collect();
        let (mut gx, mut gw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
        let [kh, kw] = d.window.kernel;
        for pixel in 0..d.n * d.pixels() {
            let (image, p, q) = (pixel / d.pixels(), pixel % d.pixels() / d.y[1], pixel % d.y[1]);
            for tap in 0..kh * kw {
                let row = (p * d.window.stride[0] + tap / kw).wrapping_sub(d.window.pad[0]);
                let col = (q * d.window.stride[1] + tap % kw).wrapping_sub(d.window.pad[1]);
                if row >= d.x[0] || col >= d.x[1] {
                    continue;
                }
                for i in 0..d.o * d.c {
                    let (out, ch) = (i / d.c, i % d.c);
                    let (at, from) =
                        ((out * kh * kw + tap) * d.c + ch, image * d.image() + (row * d.x[1] + col) * d.c + ch);
                    y[pixel * d.o + out] += w[at] * x[from];
                    gw[at] += gy[pixel * d.o + out] * x[from];
                    gx[from] += gy[pixel * d.o + out] * w[at];
                }
            }
        }
        Example { d, x, w, b, y, gy, gx, gw }
    }

    /// The largest values of windows of 2x2 of y in f16, or of its ReLU, and where they are from: 255 if the ReLU passes nothing on.
    #[cfg(tilework_emulator)]
    pub(super) fn pooled(&self, relu: bool) -> (Vec<f64>, Vec<u8>) {
        let (d, [h, w], mut all) = (&self.d, self.d.y, (vec![], vec![]));
        for i in 0..d.n * (h / 2) * (w / 2) * d.o {
            let (channel, window) = (i % d.o, i / d.o);
            let (q, line) = (window % (w / 2), window / (w / 2));
            let row = line / (h / 2) * h + line % (h / 2) * 2;
            let value = |place: usize| {
                let v = f16::from_f64(self.y[((row + place / 2) * w + 2 * q + place % 2) * d.o + channel]).to_f64();
                if relu { v.max(0.0) } else { v }
            };
            let won = (1..4).fold(0, |best, place| if value(place) > value(best) { place } else { best });
            all.0.push(value(won));
            all.1.push(if relu && value(won) <= 0.0 { 255 } else { won as u8 });
        }
        all
    }

    /// x, w and gy in f16 on a device, and b.
    #[cfg(tilework_emulator)]
    pub(super) fn tensors(&self, device: &Device) -> [Tensor; 4] {
        let (d, [kh, kw]) = (&self.d, self.d.window.kernel);
        let halves = |shape: [usize; 4], of: &[f64]| {
            let of: Vec<f16> = of.iter().map(|v| f16::from_f64(*v)).collect();
            Tensor::from_slice(device, shape, &of).unwrap()
        };
        let b: Vec<f32> = self.b.iter().map(|v| *v as f32).collect();
        [
            halves([d.n, d.x[0], d.x[1], d.c], &self.x),
            halves([d.o, kh, kw, d.c], &self.w),
            halves([d.n, d.y[0], d.y[1], d.o], &self.gy),
            Tensor::from_slice(device, [d.o], &b).unwrap(),
        ]
    }
}
