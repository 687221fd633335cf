//! Random changes to training images, and their random numbers.
//!
//! For the image at `position` of an epoch's order they are blocks `position` of two streams of (seed, epoch). In
//! [`stream::AUGMENT`] word 0 decides on the mirrored image, words 1 and 2 on the crop's row and column, word 3 on the
//! image upside down; in the next stream word 0 is the angle, words 1 and 2 are the cutout's row and column. Where
//! mirroring alternates, word 0 of block `index` of a third stream, of the seed alone, decides on the first epoch's.

use crate::error::{Error, Result};
use crate::rng::stream;
use crate::step::Step;
use serde::{Deserialize, Serialize};

/// Random changes to training images, in this order: crop, mirror, turn over, rotate, cut out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Probability that an image is mirrored left to right.
    pub flip: f64,
    /// Whether an image that is mirrored in one epoch is not in the next: `flip` is the probability that it is in the
    /// first (K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024). Two epochs show both sides of each.
    pub alternate: bool,
    /// Probability that an image is turned upside down.
    pub vertical_flip: f64,
    /// Images are rotated about their centre by an angle from ± this many degrees, bilinearly.
    pub rotation: f64,
    /// What a rotated image leaves empty.
    pub fill: Outside,
    /// Pixels added on each side, before a part of the original size is cut out at a random place.
    pub pad: usize,
    /// What the added pixels are.
    pub border: Border,
    /// Side of a square, at a random place, that becomes the mean colour; it may reach over the edge (DeVries, Taylor,
    /// "Improved Regularization of Convolutional Neural Networks with Cutout", 2017).
    pub cutout: usize,
    /// Whether the images of an evaluation are changed too, each time in the same way. [`Augment::in_prediction`] says
    /// what that means to a picture on its own.
    pub test: bool,
}

/// What lies outside an image. All but the first are torchvision's `padding_mode`s of the same names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Border {
    /// Black, which is what torchvision's `RandomCrop` adds.
    #[default]
    Black,
    /// The nearest pixel.
    Edge,
    /// The image, mirrored at its border pixels: they are not repeated.
    Reflect,
    /// The image, mirrored beyond its border pixels: they are repeated (OpenCV's `BORDER_REFLECT`).
    Symmetric,
}

/// What a rotated image leaves empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outside {
    /// Black: as if the image was rotated before it was normalised.
    #[default]
    Black,
    /// The mean colour, which is 0 when the image has been normalised.
    Mean,
}

/// Angles that an image is rotated by, at most.
const ANGLES: usize = 4096;

/// What was drawn for an image.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Draw {
    /// Mirrored left to right, and upside down.
    pub(super) flipped: [bool; 2],
    /// Row and column of the crop, from that of the image.
    pub(super) shift: [isize; 2],
    /// Which of the angles.
    pub(super) angle: usize,
    /// Row and column of the cutout's first pixel.
    pub(super) cut: [isize; 2],
}

impl Augment {
    /// Checks the values for images of `size` (height and width).
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn check(&self, size: [usize; 2]) -> Result<()> {
        for (key, p) in [("flip", self.flip), ("vertical_flip", self.vertical_flip)] {
            if !(0.0..=1.0).contains(&p) {
                let problem = format!("{p} is not a probability");
                return Err(Error::config(format!("augment.{key}"), problem, "0.5 is usual"));
            }
        }
        if !(0.0..=180.0).contains(&self.rotation) {
            let problem = format!("{} degrees", self.rotation);
            return Err(Error::config("augment.rotation", problem, "use 0 to 180; 15 is usual"));
        }
        let side = size[0].min(size[1]);
        for (key, n, most, usual) in
            [("pad", self.pad, side.saturating_sub(1), 4), ("cutout", self.cutout, side, side / 4)]
        {
            if n > most {
                return Err(Error::config(
                    format!("augment.{key}"),
                    format!("{n} pixels for images of {}x{}", size[0], size[1]),
                    format!("use at most {most}; {usual} is usual"),
                ));
            }
        }
        Ok(())
    }

    /// The changes to the images of an evaluation.
    pub fn in_evaluation(self) -> Self {
        if self.test { self } else { Augment::default() }
    }

    /// The changes to a picture on its own: those of an evaluation that are certain. What is left to chance there would
    /// make of a picture now this and now that: it is not rotated, shifted or cut.
    pub fn in_prediction(self) -> Self {
        let certain = |p: f64| if p >= 1.0 { 1.0 } else { 0.0 };
        let Augment { flip, vertical_flip, test, .. } = self.in_evaluation();
        Augment { flip: certain(flip), vertical_flip: certain(vertical_flip), test, ..Augment::default() }
    }

    /// Draws what happens to image `index`, which is at `position` and becomes one of `[h, w]`.
    pub(super) fn draw(&self, index: usize, position: usize, [h, w]: [usize; 2], step: &Step) -> Draw {
        let words = step.epoch_stream(stream::AUGMENT).block(position as u32);
        let below = |word: u32, n: usize| ((u64::from(word) * n as u64) >> 32) as isize;
        let shift = [words[1], words[2]].map(|word| below(word, 2 * self.pad + 1) - self.pad as isize);
        let flipped = [words[0] >> 8 < threshold(self.flip), words[3] >> 8 < threshold(self.vertical_flip)];
        let mirrored = match self.alternate {
            false => flipped[0],
            true => {
                let run = Step { epoch: 0, ..*step }.epoch_stream(stream::AUGMENT + 2);
                (run.block(index as u32)[0] >> 8 < threshold(self.flip)) != (step.epoch % 2 == 1)
            }
        };
        let flipped = [mirrored, flipped[1]];
        if !self.needs_more() {
            return Draw { flipped, shift, ..Draw::default() };
        }
        let words = step.epoch_stream(stream::AUGMENT + 1).block(position as u32);
        let half = (self.cutout / 2) as isize;
        let cut = [below(words[1], h) - half, below(words[2], w) - half];
        Draw { flipped, shift, angle: below(words[0], self.angles()) as usize, cut }
    }

    /// Whether the second stream is drawn from.
    pub(super) fn needs_more(&self) -> bool {
        self.rotation > 0.0 || self.cutout > 0
    }

    fn angles(&self) -> usize {
        if self.rotation > 0.0 { ANGLES } else { 1 }
    }

    /// The cosines and sines of the angles, in units of 2^-16: the middles of equal parts of the range. One, of an
    /// angle of 0, if nothing is rotated.
    pub(super) fn turns(&self) -> Vec<[i32; 2]> {
        let fixed = |x: f64| (x * 65536.0).round() as i32;
        let n = self.angles();
        let angle = |i: usize| ((2 * i + 1) as f64 / n as f64 - 1.0) * self.rotation.to_radians();
        (0..n).map(|i| [fixed(angle(i).cos()), fixed(angle(i).sin())]).collect()
    }
}

/// A probability in units of 2^-24: what is compared with a random word's top 24 bits.
pub(super) fn threshold(p: f64) -> u32 {
    (p * f64::from(1u32 << 24)).round() as u32
}

impl Border {
    /// The place within an image of `size` that a place along one side shows; `None` is black.
    pub(super) fn place(self, at: isize, size: usize) -> Option<usize> {
        let last = size as isize - 1;
        match self {
            _ if (0..=last).contains(&at) => Some(at as usize),
            Border::Black => None,
            Border::Edge => Some(at.clamp(0, last) as usize),
            Border::Reflect => Some(if at < 0 { -at } else { 2 * last - at } as usize),
            Border::Symmetric => Some(if at < 0 { -at - 1 } else { 2 * last + 1 - at } as usize),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked() {
        let augment = Augment::default();
        let bad = |a: Augment, key: &str| {
            let e = a.check([32, 32]).unwrap_err().to_string();
            assert!(e.contains(key) && e.contains("remedy"), "{e}");
        };
        bad(Augment { flip: 1.5, ..augment }, "augment.flip");
        bad(Augment { vertical_flip: f64::NAN, ..augment }, "augment.vertical_flip");
        bad(Augment { rotation: -1.0, ..augment }, "augment.rotation");
        bad(Augment { pad: 32, ..augment }, "augment.pad");
        bad(Augment { cutout: 33, ..augment }, "augment.cutout");
        assert!(Augment { pad: 4, flip: 0.5, border: Border::Reflect, ..augment }.check([32, 32]).is_ok());
    }

    #[test]
    fn a_picture_on_its_own_is_changed_where_nothing_is_left_to_chance() {
        let all = Augment { flip: 1.0, vertical_flip: 0.5, rotation: 45.0, pad: 4, cutout: 8, ..Augment::default() };
        assert_eq!(all.in_prediction(), Augment::default());
        let test = Augment { test: true, ..all };
        assert_eq!(test.in_prediction(), Augment { flip: 1.0, test: true, ..Augment::default() });
    }

    #[test]
    fn borders() {
        let places = |border: Border| [-2, -1, 0, 4, 5, 6].map(|at| border.place(at, 5));
        assert_eq!(places(Border::Black), [None, None, Some(0), Some(4), None, None]);
        assert_eq!(places(Border::Edge), [0, 0, 0, 4, 4, 4].map(Some));
        assert_eq!(places(Border::Reflect), [2, 1, 0, 4, 3, 2].map(Some));
        assert_eq!(places(Border::Symmetric), [1, 0, 0, 4, 4, 3].map(Some));
    }

    #[test]
    fn mirroring_alternates() {
        let augment = Augment { flip: 0.5, alternate: true, ..Augment::default() };
        let of = |index: usize, position: usize, epoch: u32| {
            augment.draw(index, position, [6, 7], &Step { epoch, seed: 4, ..Step::default() }).flipped[0]
        };
        // By the image, wherever it comes in the epoch.
        assert!((0..99).all(|i| of(i, i, 0) != of(i, 98 - i, 1) && of(i, 5, 1) != of(i, 7, 2)));
        let first = (0..4000).filter(|&i| of(i, 3, 0)).count() as f64 / 4000.0;
        assert!((first - 0.5).abs() < 0.03, "{first}");
        let all = Augment { flip: 1.0, ..augment };
        let of = |epoch| all.draw(2, 0, [6, 7], &Step { epoch, ..Step::default() }).flipped[0];
        assert_eq!([0, 1, 2].map(of), [true, false, true]);
    }

    #[test]
    fn draws_fill_their_ranges() {
        let augment = Augment { rotation: 45.0, cutout: 3, pad: 2, vertical_flip: 0.25, ..Augment::default() };
        let draws: Vec<Draw> = (0..4000).map(|p| augment.draw(0, p, [6, 7], &Step::default())).collect();
        let turned = draws.iter().filter(|d| d.flipped[1]).count() as f64 / 4000.0;
        assert!((turned - 0.25).abs() < 0.03 && draws.iter().all(|d| !d.flipped[0]), "{turned}");
        let range = |f: fn(&Draw) -> isize| (draws.iter().map(f).min().unwrap(), draws.iter().map(f).max().unwrap());
        assert_eq!((range(|d| d.cut[0]), range(|d| d.cut[1])), ((-1, 4), (-1, 5)));
        assert_eq!((range(|d| d.shift[0]), range(|d| d.shift[1])), ((-2, 2), (-2, 2)));
        let turns = augment.turns();
        let (low, high) = range(|d| d.angle as isize);
        assert!(low < 5 && high > 4090 && turns.len() == 4096);
        let degrees = |[cos, sin]: [i32; 2]| f64::from(sin).atan2(f64::from(cos)).to_degrees();
        assert!((degrees(turns[0]) + 45.0).abs() < 0.02 && (degrees(turns[4095]) - 45.0).abs() < 0.02);
        assert_eq!(Augment::default().turns(), [[65536, 0]]);
    }
}
