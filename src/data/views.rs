//! Views of test images: mirrored, and moved by a pixel.

use super::augment::Border;
use crate::autograd::{Ctx, Var};
use crate::device::Device;
use crate::device::cuda::{Launch, with_kernel_type};
use crate::dtype::with_real;
use crate::error::{Error, Result};
use crate::kernels::batch::{ViewDims, batch_view};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// What a network is shown of a test image; its outputs are averaged (test-time augmentation).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Views {
    /// The image.
    #[default]
    One,
    /// The image and its mirror.
    Mirror,
    /// The same of the image, which counts half, and of the image moved by one pixel up and left, and down and right,
    /// mirrored at its border, a quarter each (K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024).
    MirrorShift,
}

/// Where a view's pixels come from.
#[derive(Clone, Copy)]
struct View {
    mirrored: bool,
    /// Row and column of the image that the view's first pixel shows.
    shift: isize,
    /// Of the outputs.
    weight: f64,
}

impl Views {
    /// Checks that images of a height, a width and channels have these views.
    ///
    /// # Errors
    /// [`Error::Config`] for images of one row or column, which cannot be moved.
    pub(crate) fn check(self, [h, w, _]: [usize; 3]) -> Result<()> {
        if self != Views::MirrorShift || h > 1 && w > 1 {
            return Ok(());
        }
        let problem = format!("mirror-shift moves images by a pixel, and these have {h}x{w}");
        Err(Error::config("tta", problem, "use mirror, or one"))
    }

    fn list(self) -> Vec<View> {
        let pair = |shift, weight| [false, true].map(|mirrored| View { mirrored, shift, weight });
        match self {
            Views::One => vec![View { mirrored: false, shift: 0, weight: 1.0 }],
            Views::Mirror => pair(0, 0.5).into(),
            Views::MirrorShift => [pair(0, 0.25), pair(1, 0.125), pair(-1, 0.125)].concat(),
        }
    }

    /// The weighted mean of what `network` makes of the views of images `[n, h, w, c]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for images of one row or column, which cannot be moved; those of `network`.
    pub fn mean(
        self,
        images: &Tensor,
        cx: &mut Ctx<'_>,
        mut network: impl FnMut(&Var, &mut Ctx<'_>) -> Result<Var>,
    ) -> Result<Var> {
        if self == Views::One {
            return network(&Var::constant(images.clone()), cx);
        }
        let mut sum: Option<Var> = None;
        for view in self.list() {
            let y = network(&Var::constant(view.of(images)?), cx)?.scale(view.weight, cx)?;
            sum = Some(match sum {
                Some(sum) => sum.add(&y, cx)?,
                None => y,
            });
        }
        sum.ok_or_else(|| Error::Internal("no view".into()))
    }
}

impl View {
    fn of(self, images: &Tensor) -> Result<Tensor> {
        const OP: &str = "views";
        if (self.shift, self.mirrored) == (0, false) {
            return Ok(images.clone());
        }
        let Some([_, h, w, c]) = images.shape().rank4().filter(|s| self.shift == 0 || (s[1] > 1 && s[2] > 1)) else {
            let want = "images [n, h, w, c] of two rows and columns or more";
            return Err(Error::shape(OP, want, images.shape(), "set tta = \"one\""));
        };
        let mut out = Tensor::empty(images.device(), images.dtype(), images.shape())?;
        match images.device() {
            Device::Cpu(_) => with_real!(OP, images.dtype(), T => {
                let from = images.host::<T>()?.chunks_exact(h * w * c);
                for (image, out) in from.zip(out.host_mut::<T>()?.chunks_exact_mut(h * w * c)) {
                    for (i, pixel) in out.chunks_exact_mut(c).enumerate() {
                        let col = if self.mirrored { w - 1 - i % w } else { i % w };
                        let at = (self.place(i / w, h) * w + self.place(col, w)) * c;
                        pixel.copy_from_slice(&image[at..at + c]);
                    }
                }
                Ok(())
            })?,
            Device::Cuda(cuda) => with_kernel_type!(OP, images.dtype(), T => {
                let d = ViewDims {
                    n: images.len() as i32,
                    h: h as i32,
                    w: w as i32,
                    c: c as i32,
                    mirrored: self.mirrored.into(),
                    shift: self.shift as i32,
                };
                batch_view::<T>(cuda, Launch::each(images.len()), images.input()?, out.output()?, &d)
            })?,
        }
        Ok(out)
    }

    /// What a place of a side of `size` shows: beyond the border it is mirrored, so that no place is black.
    fn place(self, at: usize, size: usize) -> usize {
        Border::Reflect.place(at as isize + self.shift, size).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_mirrored_and_moved() {
        let device = Device::cpu();
        let x: Vec<f32> = (0..6).map(|i| i as f32).collect();
        let images = Tensor::from_slice(&device, [1, 2, 3, 1], &x).unwrap();
        let of = |mirrored, shift| View { mirrored, shift, weight: 1.0 }.of(&images).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(of(false, 0), x);
        assert_eq!(of(true, 0), [2.0, 1.0, 0.0, 5.0, 4.0, 3.0]);
        assert_eq!(of(false, 1), [4.0, 5.0, 4.0, 1.0, 2.0, 1.0]);
        assert_eq!(of(true, 1), [4.0, 5.0, 4.0, 1.0, 2.0, 1.0]);
        assert_eq!(of(false, -1), [4.0, 3.0, 4.0, 1.0, 0.0, 1.0]);
        for views in [Views::One, Views::Mirror, Views::MirrorShift] {
            let weights: f64 = views.list().iter().map(|v| v.weight).sum();
            assert_eq!(weights, 1.0);
        }
        let thin = images.reshape([2, 3, 1, 1]).unwrap();
        let mut cx = Ctx::eval(&device);
        assert!(Views::MirrorShift.check([4, 1, 3]).is_err() && Views::Mirror.check([4, 1, 3]).is_ok());
        let e = Views::MirrorShift.mean(&thin, &mut cx, |x, _| Ok(x.clone())).err().unwrap().to_string();
        assert!(e.contains("two rows") && e.contains("remedy"), "{e}");
        let mean = Views::Mirror.mean(&images, &mut cx, |x, _| Ok(x.clone())).unwrap();
        assert_eq!(mean.value().to_vec::<f32>().unwrap(), [1.0, 1.0, 1.0, 4.0, 4.0, 4.0]);
    }
}
