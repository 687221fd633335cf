//! What happens to images on their way into a batch: mirrored and cropped at random, normalised.
//!
//! On the CPU the loader's thread does it. On a CUDA device the whole data set lies in its memory as
//! bytes, and one kernel gathers a batch. Both draw the same random numbers: for the image at
//! `position` of the epoch's order, block `position` of the stream (seed, epoch, [`stream::AUGMENT`]):
//! word 0 decides on the flip, words 1 and 2 on the crop's row and column.

use super::Dataset;
use crate::device::cuda::{Cuda, Launch};
use crate::device::{Buffer, Device};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::batch::{BatchDims, batch_make};
use crate::rng::stream;
use crate::step::Step;
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// A mini-batch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Normalised pixels, `[n, h, w, c]`.
    pub images: Tensor,
    /// Class indices, `[n]`, `i32`.
    pub labels: Tensor,
}

/// Random changes to training images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Probability that an image is mirrored left to right.
    pub flip: f64,
    /// Pixels added on each side, before a part of the original size is cut out at a random place.
    pub pad: usize,
    /// What the added pixels are.
    pub border: Border,
}

/// What lies outside an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Border {
    /// Black, as in torchvision's `RandomCrop`.
    #[default]
    Black,
    /// The image, mirrored at its border pixels.
    Reflect,
}

impl Augment {
    /// Checks the values for images of `size` (height and width).
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn check(&self, size: [usize; 2]) -> Result<()> {
        if !(0.0..=1.0).contains(&self.flip) {
            return Err(Error::config("augment.flip", format!("{} is not a probability", self.flip), "0.5 is usual"));
        }
        let most = size[0].min(size[1]).saturating_sub(1);
        if self.pad > most {
            return Err(Error::config(
                "augment.pad",
                format!("{} pixels around images of {}x{}", self.pad, size[0], size[1]),
                format!("use at most {most}; 4 is usual"),
            ));
        }
        Ok(())
    }

    /// The probability of a flip in units of 2^-24: what is compared with a random word's top 24 bits.
    fn flip_threshold(&self) -> u32 {
        (self.flip * f64::from(1u32 << 24)).round() as u32
    }
}

/// Makes batches of images: their random changes and their normalisation,
/// `(byte / 255 - mean) / std` per channel.
#[derive(Clone, Debug)]
pub struct Maker {
    /// For each channel, the number for each byte.
    table: Vec<[f32; 256]>,
    augment: Augment,
}

impl Maker {
    /// For per-channel means and standard deviations in units of [0, 1].
    pub fn new(mean: &[f32], std: &[f32], augment: Augment) -> Self {
        let row = |(&m, &s): (&f32, &f32)| std::array::from_fn(|byte| (byte as f32 / 255.0 - m) / s);
        Maker { table: mean.iter().zip(std).map(row).collect(), augment }
    }

    /// Writes image `index`, which stands at `position` of the epoch's order.
    pub fn image(&self, data: &Dataset, index: usize, position: usize, state: &Step, out: &mut [f32]) {
        let bytes = data.image(index);
        if self.augment == Augment::default() {
            return self.normalise(bytes, out);
        }
        let (h, w, c) = (data.height, data.width, data.channels);
        let draws = state.epoch_stream(stream::AUGMENT).block(position as u32);
        let pad = self.augment.pad;
        let places = 2 * pad as u64 + 1;
        let shift = |word: u32| ((u64::from(word) * places) >> 32) as isize - pad as isize;
        let (top, left) = (shift(draws[1]), shift(draws[2]));
        let mirrored = draws[0] >> 8 < self.augment.flip_threshold();
        for (i, pixel) in out.chunks_exact_mut(c).enumerate() {
            let (row, col) = (i / w, i % w);
            let col = if mirrored { w - 1 - col } else { col };
            let at =
                self.augment.border.place(row as isize + top, h).zip(self.augment.border.place(col as isize + left, w));
            for (channel, (value, table)) in pixel.iter_mut().zip(&self.table).enumerate() {
                *value = table[at.map_or(0, |(row, col)| usize::from(bytes[(row * w + col) * c + channel]))];
            }
        }
    }

    fn normalise(&self, bytes: &[u8], out: &mut [f32]) {
        match self.table.as_slice() {
            [r, g, b] => {
                for (out, px) in out.as_chunks_mut::<3>().0.iter_mut().zip(bytes.as_chunks::<3>().0) {
                    *out = [r[usize::from(px[0])], g[usize::from(px[1])], b[usize::from(px[2])]];
                }
            }
            table => {
                let channels = table.iter().cycle();
                out.iter_mut().zip(bytes).zip(channels).for_each(|((o, &b), row)| *o = row[usize::from(b)]);
            }
        }
    }
}

impl Border {
    /// The place within an image of `size` that a place along one side shows; `None` is black.
    fn place(self, at: isize, size: usize) -> Option<usize> {
        let last = size as isize - 1;
        match self {
            _ if (0..=last).contains(&at) => Some(at as usize),
            Border::Black => None,
            Border::Reflect => Some(if at < 0 { -at } else { 2 * last - at } as usize),
        }
    }
}

/// A data set in a CUDA device's memory.
pub(super) struct Resident {
    cuda: Cuda,
    images: Buffer,
    labels: Buffer,
    /// The normalisation tables, `[c, 256]`.
    table: Buffer,
    dims: BatchDims,
}

impl Resident {
    /// Copies a data set to a device.
    pub(super) fn new(data: &Dataset, maker: &Maker, cuda: &Cuda) -> Result<Self> {
        let device = Device::Cuda(cuda.clone());
        let mut images = device.alloc(DType::U8, data.images.len())?;
        images.write(0, &data.images)?;
        let mut labels = device.alloc(DType::U8, data.len())?;
        labels.write(0, &data.labels)?;
        let mut table = device.alloc(DType::F32, maker.table.len() * 256)?;
        table.write(0, maker.table.as_flattened())?;
        let augment = &maker.augment;
        let dims = BatchDims {
            h: data.height as i32,
            w: data.width as i32,
            c: data.channels as i32,
            pad: augment.pad as i32,
            reflect: i32::from(augment.border == Border::Reflect),
            flip: augment.flip_threshold(),
        };
        Ok(Resident { cuda: cuda.clone(), images, labels, table, dims })
    }

    /// The `n` images from the step's `batch_offset` and `first_image` on, in an order of the data set's images. It
    /// is one launch, with nothing in it that changes from step to step.
    pub(super) fn make(&self, order: &Buffer, n: usize, step: &Step) -> Result<Batch> {
        let device = Device::Cuda(self.cuda.clone());
        let BatchDims { h, w, c, .. } = self.dims;
        let mut images = Tensor::empty(&device, DType::F32, [n, h as usize, w as usize, c as usize])?;
        let mut labels = Tensor::empty(&device, DType::I32, [n])?;
        batch_make::<f32>(
            &self.cuda,
            Launch::new(n, 256),
            self.images.input(0..self.images.len())?,
            self.labels.input(0..self.labels.len())?,
            order.input(0..order.len())?,
            self.table.input(0..self.table.len())?,
            self.cuda.step(step)?,
            images.output()?,
            labels.output()?,
            &self.dims,
        )?;
        Ok(Batch { images, labels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(h: usize, w: usize) -> Dataset {
        Dataset {
            name: "test".into(),
            classes: vec!["a".into()],
            height: h,
            width: w,
            channels: 1,
            images: (0..h * w).map(|i| i as u8).collect(),
            labels: vec![0],
        }
    }

    /// The bytes of the image after its random changes, at one position of the order.
    fn bytes(data: &Dataset, augment: Augment, position: usize) -> Vec<u8> {
        let maker = Maker::new(&[0.0], &[1.0], augment);
        let mut out = vec![0.0; data.image_len()];
        maker.image(data, 0, position, &Step { seed: 3, ..Step::default() }, &mut out);
        out.iter().map(|v| (v * 255.0).round() as u8).collect()
    }

    #[test]
    fn numbers_are_torchvision_s() {
        let maker = Maker::new(&[0.5, 0.0, 0.25], &[0.5, 1.0, 0.5], Augment::default());
        let mut out = [0.0; 3];
        maker.normalise(&[255, 51, 0], &mut out);
        assert_eq!(out, [1.0, 0.2, -0.5]);
    }

    #[test]
    fn a_flip_mirrors_rows() {
        let flip = Augment { flip: 1.0, ..Augment::default() };
        assert_eq!(bytes(&data(2, 3), flip, 0), [2, 1, 0, 5, 4, 3]);
        let some = Augment { flip: 0.25, ..Augment::default() };
        let share = (0..4000).filter(|&p| bytes(&data(1, 2), some, p) == [1, 0]).count() as f64 / 4000.0;
        assert!((share - 0.25).abs() < 0.03, "{share}");
    }

    #[test]
    fn crops_reach_every_place_and_borders_are_filled() {
        for border in [Border::Black, Border::Reflect] {
            let crop = Augment { pad: 2, border, ..Augment::default() };
            let data = data(6, 7);
            let mut seen = std::collections::HashSet::new();
            for position in 0..500 {
                let image = bytes(&data, crop, position);
                let is = |top: isize, left: isize| {
                    (0..42).all(|i: isize| {
                        let at = border.place(i / 7 + top, 6).zip(border.place(i % 7 + left, 7));
                        image[i as usize] == at.map_or(0, |(r, c)| (r * 7 + c) as u8)
                    })
                };
                let place = (-2..=2).flat_map(|t| (-2..=2).map(move |l| (t, l))).find(|&(t, l)| is(t, l));
                seen.insert(place.unwrap());
            }
            assert_eq!(seen.len(), 25, "{border:?}");
        }
        assert_eq!(Border::Reflect.place(-2, 5), Some(2));
        assert_eq!(Border::Reflect.place(6, 5), Some(2));
    }

    #[test]
    fn values_are_checked() {
        assert!(Augment { flip: 1.5, ..Augment::default() }.check([32, 32]).is_err());
        assert!(Augment { pad: 32, ..Augment::default() }.check([32, 32]).is_err());
        assert!(Augment { pad: 4, flip: 0.5, border: Border::Reflect }.check([32, 32]).is_ok());
    }
}
