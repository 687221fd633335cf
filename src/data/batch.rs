//! What happens to images on their way into a batch: changed at random, enlarged, normalised.
//!
//! On the CPU the loader's thread does it. On a CUDA device the whole data set lies in its memory as
//! bytes, and one kernel gathers a batch. Both draw the same random numbers ([`augment`](super::augment)), and both give
//! the same bits: positions and weights are integers.

use super::Dataset;
use super::augment::{Augment, Draw, Outside, threshold};
use crate::device::cuda::{Cuda, KernelType, Launch, MULTIPROCESSORS, magic, with_kernel_type};
use crate::device::{Buffer, Device};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::batch::{BatchDims, batch_make};
use crate::step::Step;
use crate::tensor::Tensor;

/// A mini-batch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Normalised pixels, `[n, h, w, c]`.
    pub images: Tensor,
    /// Class indices, `[n]`, `i32`.
    pub labels: Tensor,
}

/// What is done to the images of a data set: enlarged, changed at random, normalised.
#[derive(Clone, Debug, Default)]
pub struct Transform {
    /// Per channel, what is subtracted, in units of [0, 1].
    pub mean: Vec<f32>,
    /// Per channel, what is divided by.
    pub std: Vec<f32>,
    /// Height and width that images are enlarged to, bilinearly.
    pub size: Option<usize>,
    /// Random changes.
    pub augment: Augment,
}

impl Transform {
    /// Undoes the normalisation of pixels that came out: their bytes.
    #[cfg(feature = "cli")]
    pub fn bytes(&self, pixels: &[f32]) -> Vec<u8> {
        let channels = self.mean.iter().zip(&self.std).cycle();
        // `as` keeps within 0 to 255.
        pixels.iter().zip(channels).map(|(v, (m, s))| ((v * s + m) * 255.0).round() as u8).collect()
    }

    /// Checks it for images of these sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub(super) fn check(&self, data: &Dataset) -> Result<()> {
        let Transform { mean, std, augment, .. } = self;
        if [mean.len(), std.len()] != [data.channels; 2]
            || std.iter().any(|s| !s.is_finite() || *s <= 0.0)
            || mean.iter().any(|m| !m.is_finite())
        {
            return Err(Error::config(
                "data.mean, data.std",
                format!("{mean:?} and {std:?} for images of {} channels", data.channels),
                "give one finite mean and one positive deviation per channel",
            ));
        }
        augment.check(self.output(data))?;
        let Some(size) = self.enlarges(data) else { return Ok(()) };
        let (h, w) = (data.height, data.width);
        if size < h.max(w) || size > 4096 {
            let problem = format!("{size} pixels, for images of {h}x{w}");
            return Err(Error::config("data.size", problem, format!("use {} to 4096", h.max(w))));
        }
        if augment.pad > 0 {
            let remedy = "leave out augment.pad, or data.size";
            return Err(Error::config("augment.pad", "images are not padded when they are enlarged", remedy));
        }
        Ok(())
    }

    /// The size that images are enlarged to, unless they have it.
    fn enlarges(&self, data: &Dataset) -> Option<usize> {
        self.size.filter(|n| [*n; 2] != [data.height, data.width])
    }

    /// Height and width of the images that come out.
    pub(super) fn output(&self, data: &Dataset) -> [usize; 2] {
        self.size.map_or([data.height, data.width], |n| [n; 2])
    }
}

/// Makes batches of images: their random changes and their normalisation,
/// `(byte / 255 - mean) / std` per channel.
#[derive(Clone, Debug)]
pub struct Maker {
    /// For each channel, the number for each byte.
    table: Vec<[f32; 256]>,
    /// For each channel, factor and offset that normalise the sum of four bytes, whose weights add up to 2^22.
    scale: Vec<[f32; 2]>,
    turns: Vec<[i32; 2]>,
    /// Height and width of the images that come out.
    output: [usize; 2],
    /// Whether pixels are means of four.
    samples: bool,
    augment: Augment,
}

/// Positions are in units of 2^-17 of a pixel, weights in units of 2^-11.
const PIXEL: i32 = 17;
const WEIGHT: i32 = 11;

impl Maker {
    /// For a transform that has been checked, and the data set that it was checked for.
    pub(super) fn new(t: &Transform, data: &Dataset) -> Self {
        let channels = || t.mean.iter().zip(&t.std);
        let row = |(&m, &s): (&f32, &f32)| std::array::from_fn(|byte| (byte as f32 / 255.0 - m) / s);
        let scale = |(&m, &s): (&f32, &f32)| {
            let (m, s) = (f64::from(m), f64::from(s));
            [(1.0 / (255.0 * s * f64::from(1 << (2 * WEIGHT)))) as f32, (-m / s) as f32]
        };
        Maker {
            table: channels().map(row).collect(),
            scale: channels().map(scale).collect(),
            turns: t.augment.turns(),
            output: t.output(data),
            samples: t.enlarges(data).is_some() || t.augment.rotation > 0.0,
            augment: t.augment,
        }
    }

    /// Height and width of the images that come out.
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    /// Writes image `index`, which stands at `position` of the epoch's order: `[h, w, c]`.
    pub fn image(&self, data: &Dataset, index: usize, position: usize, state: &Step, out: &mut [f32]) {
        let bytes = data.image(index);
        if !self.samples && self.augment == Augment::default() {
            return self.normalise(bytes, out);
        }
        let draw = self.augment.draw(index, position, self.output, state);
        if self.samples {
            self.sample(bytes, data, &draw, out);
        } else {
            self.copy(bytes, data, &draw, out);
        }
        self.cut(&draw, out);
    }

    /// Pixel by pixel from another place.
    fn copy(&self, bytes: &[u8], data: &Dataset, draw: &Draw, out: &mut [f32]) {
        let (w, c) = (data.width, data.channels);
        for (i, pixel) in out.chunks_exact_mut(c).enumerate() {
            let at = self.source(data, draw, [i / w, i % w]);
            for (channel, (value, table)) in pixel.iter_mut().zip(&self.table).enumerate() {
                *value = table[at.map_or(0, |at| usize::from(bytes[at + channel]))];
            }
        }
    }

    /// Where the pixel at a place of the mirrored and cropped image begins; `None` is black.
    fn source(&self, data: &Dataset, draw: &Draw, [row, col]: [usize; 2]) -> Option<usize> {
        let (h, w) = (data.height, data.width);
        let row = if draw.flipped[1] { h - 1 - row } else { row } as isize + draw.shift[0];
        let col = if draw.flipped[0] { w - 1 - col } else { col } as isize + draw.shift[1];
        let border = self.augment.border;
        border.place(row, h).zip(border.place(col, w)).map(|(row, col)| (row * w + col) * data.channels)
    }

    /// Rotated and enlarged: each pixel is the mean of the four around the place that it shows.
    fn sample(&self, bytes: &[u8], data: &Dataset, draw: &Draw, out: &mut [f32]) {
        let [h, w] = self.output;
        let [cos, sin] = self.turns[draw.angle];
        for (i, pixel) in out.chunks_exact_mut(data.channels).enumerate() {
            // From the centre, in units of half a pixel.
            let (v, u) = ((2 * (i / w) + 1) as i32 - h as i32, (2 * (i % w) + 1) as i32 - w as i32);
            let y = Side::new(sin * u + cos * v + ((h as i32 - 1) << (PIXEL - 1)), h, data.height);
            let x = Side::new(cos * u - sin * v + ((w as i32 - 1) << (PIXEL - 1)), w, data.width);
            let taps = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(j, i)| {
                let (weight, place) = (y.weights[j] * x.weights[i], y.places[j].zip(x.places[i]));
                (weight, place.map(|(row, col)| self.source(data, draw, [row, col])))
            });
            let inside: i32 = match self.augment.fill {
                Outside::Black => 1 << (2 * WEIGHT),
                Outside::Mean => taps.iter().filter(|t| t.1.is_some()).map(|t| t.0).sum(),
            };
            let inside = inside as f32 / (1 << (2 * WEIGHT)) as f32;
            for (channel, (value, [factor, offset])) in pixel.iter_mut().zip(&self.scale).enumerate() {
                let byte = |at: Option<Option<usize>>| at.flatten().map_or(0, |at| i32::from(bytes[at + channel]));
                let sum: i32 = taps.iter().map(|&(weight, at)| weight * byte(at)).sum();
                *value = sum as f32 * factor + offset * inside;
            }
        }
    }

    /// The square that becomes the mean colour.
    fn cut(&self, draw: &Draw, out: &mut [f32]) {
        let w = self.output[1];
        let n = self.augment.cutout as isize;
        let c = self.table.len();
        for row in draw.cut[0].max(0)..draw.cut[0] + n {
            let cols = draw.cut[1].max(0) as usize..(draw.cut[1] + n).clamp(0, w as isize) as usize;
            let at = row as usize * w;
            if let Some(pixels) = out.get_mut((at + cols.start) * c..(at + cols.end.max(cols.start)) * c) {
                pixels.fill(0.0);
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

/// A position along one side of an image: the two pixels around it, and their weights.
struct Side {
    /// Outside of the image there are none.
    places: [Option<usize>; 2],
    weights: [i32; 2],
}

impl Side {
    /// At `at`, along a side of `to` pixels that show `from`.
    fn new(at: i32, to: usize, from: usize) -> Self {
        let half = 1 << (PIXEL - 1);
        let (at, places) = if to == from {
            let first = at >> PIXEL;
            (at, [first, first + 1].map(|p| usize::try_from(p).ok().filter(|&p| p < to)))
        } else if (0..(to as i32) << PIXEL).contains(&(at + half)) {
            let at = (i64::from(at + half) * from as i64 / to as i64) as i32 - half;
            let at = at.max(0);
            let first = (at >> PIXEL) as usize;
            (at, [Some(first), Some((first + 1).min(from - 1))])
        } else {
            (at, [None; 2])
        };
        let second = (at & ((1 << PIXEL) - 1)) >> (PIXEL - WEIGHT);
        Side { places, weights: [(1 << WEIGHT) - second, second] }
    }
}

/// A data set in a CUDA device's memory.
pub(super) struct Resident {
    cuda: Cuda,
    images: Buffer,
    labels: Buffer,
    /// The normalisation tables, `[c, 256]`.
    table: Buffer,
    /// Factor and offset of each channel.
    scale: Buffer,
    /// The angles' cosines and sines.
    turns: Buffer,
    dims: BatchDims,
}

impl Resident {
    /// Copies a data set to a device.
    pub(super) fn new(data: &Dataset, maker: &Maker, cuda: &Cuda) -> Result<Self> {
        let device = Device::Cuda(cuda.clone());
        let mut images = device.alloc(DType::U8, data.images.len())?;
        images.write(0, &data.images)?;
        let mut labels = device.alloc(DType::I32, data.len())?;
        labels.write(0, &data.labels)?;
        let mut table = device.alloc(DType::F32, maker.table.len() * 256)?;
        table.write(0, maker.table.as_flattened())?;
        let mut scale = device.alloc(DType::F32, 2 * maker.scale.len())?;
        scale.write(0, maker.scale.as_flattened())?;
        let mut turns = device.alloc(DType::I32, 2 * maker.turns.len())?;
        turns.write(0, maker.turns.as_flattened())?;
        let (augment, [out_h, out_w]) = (&maker.augment, maker.output);
        let dims = BatchDims {
            h: data.height as i32,
            w: data.width as i32,
            c: data.channels as i32,
            out_h: out_h as i32,
            out_w: out_w as i32,
            samples: i32::from(maker.samples),
            angles: maker.turns.len() as i32,
            pad: augment.pad as i32,
            border: augment.border as i32,
            mean: i32::from(augment.fill == Outside::Mean),
            cutout: augment.cutout as i32,
            flip: threshold(augment.flip),
            vertical_flip: threshold(augment.vertical_flip),
            alternate: i32::from(augment.alternate),
            by_out_h: magic(out_h),
            by_out_w: magic(out_w),
        };
        Ok(Resident { cuda: cuda.clone(), images, labels, table, scale, turns, dims })
    }

    /// The `n` images from the step's `batch_offset` and `first_image` on, in an order of the data set's images. It
    /// is one launch, with nothing in it that changes from step to step.
    pub(super) fn make(&self, order: &Buffer, n: usize, dtype: DType, step: &Step) -> Result<Batch> {
        with_kernel_type!("batch", dtype, T => self.make_in::<T>(order, n, step))
    }

    /// Blocks that share each of `n` images: no more in all than a large GPU holds at once, four on a multiprocessor, as each
    /// draws before it begins.
    fn pieces(&self, n: usize) -> usize {
        let pixels = (self.dims.out_h * self.dims.out_w) as usize;
        (4 * MULTIPROCESSORS / n.max(1)).clamp(1, pixels.div_ceil(256))
    }

    fn make_in<T: KernelType>(&self, order: &Buffer, n: usize, step: &Step) -> Result<Batch> {
        let device = Device::Cuda(self.cuda.clone());
        let BatchDims { out_h, out_w, c, .. } = self.dims;
        let mut images = Tensor::empty(&device, T::DTYPE, [n, out_h as usize, out_w as usize, c as usize])?;
        let mut labels = Tensor::empty(&device, DType::I32, [n])?;
        batch_make::<T>(
            &self.cuda,
            Launch::new(0, 256).grid(n, self.pieces(n), 1),
            self.images.input(0..self.images.len())?,
            self.labels.input(0..self.labels.len())?,
            order.input(0..order.len())?,
            self.table.input(0..self.table.len())?,
            self.scale.input(0..self.scale.len())?,
            self.turns.input(0..self.turns.len())?,
            self.cuda.step(step)?,
            images.output()?,
            labels.output()?,
            &self.dims,
        )?;
        Ok(Batch { images, labels })
    }
}

#[cfg(test)]
#[path = "../../tests/unit/batch.rs"]
mod tests;
