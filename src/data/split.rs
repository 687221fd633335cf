//! The parts of a data set, and a validation set taken from the training images.

use super::{Dataset, Splits, grouped, room};
use crate::rng::{Stream, stream};
use crate::{Error, Result};
use std::fmt;

/// A part of a data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Split {
    /// What a network is trained on.
    Train,
    /// What choices are made by: which checkpoint is the best, when to stop.
    #[cfg_attr(feature = "cli", value(alias = "val"))]
    Validation,
    /// What the result is measured on.
    #[default]
    Test,
}

impl Split {
    /// The start of its columns in `metrics.csv`.
    pub fn column(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Validation => "val",
            Split::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Split::Train => "training",
            Split::Validation => "validation",
            Split::Test => "test",
        })
    }
}

impl Dataset {
    /// The images at these indices, in this order.
    fn subset(&self, split: &str, indices: &[u32]) -> Result<Dataset> {
        let at = || indices.iter().map(|&i| i as usize);
        let source = self.name.strip_suffix(" train").unwrap_or(&self.name);
        let name = format!("{source} {split}");
        let mut images = room(indices.len() * self.image_len(), &name)?;
        at().for_each(|i| images.extend_from_slice(self.image(i)));
        Ok(Dataset {
            name,
            classes: self.classes.clone(),
            images,
            labels: at().filter_map(|i| self.labels.get(i)).copied().collect(),
            ..*self
        })
    }
}

impl Splits {
    /// Takes `validation` random images out of the training images for a validation set, and keeps `train` random ones
    /// of the others to train on (all, unless given). Each part stays in the order of the files. Which images those
    /// are depends on `seed` and on how many there are, and the validation set not on `train`.
    ///
    /// # Errors
    /// [`Error::Config`] if there are not so many images, none is left to train on, or there is a validation set
    /// already.
    pub fn hold_out(mut self, validation: usize, train: Option<usize>, seed: u64) -> Result<Splits> {
        if validation == 0 && train.is_none() {
            return Ok(self);
        }
        let all = self.train.len();
        let number = |n: usize| grouped(n as u64);
        if validation > 0 && self.validation.is_some() {
            let problem = "the data has a validation set of its own";
            return Err(Error::config("data.validation", problem, "leave out data.validation"));
        }
        let left = all.saturating_sub(validation);
        if left == 0 {
            return Err(Error::config(
                "data.validation",
                format!("{} of {} training images held out leave none to train on", number(validation), number(all)),
                format!("hold out fewer, such as {}", number(all / 5)),
            ));
        }
        let kept = train.unwrap_or(left);
        if kept == 0 || kept > left {
            return Err(Error::config(
                "data.train",
                format!("{} images to train on, and there are {}", number(kept), number(left))
                    + &if validation > 0 {
                        format!(" beside {} for validation", number(validation))
                    } else {
                        "".into()
                    },
                format!("use 1 to {}, or leave it out for all of them", number(left)),
            ));
        }
        let mut order = Stream { seed, epoch: 0, step: 0, id: stream::SPLIT }.permutation(all);
        order.truncate(validation + kept);
        let (held_out, rest) = order.split_at_mut(validation);
        held_out.sort_unstable();
        rest.sort_unstable();
        if validation > 0 {
            self.validation = Some(self.train.subset("validation", held_out)?);
        }
        self.train = self.train.subset("train", rest)?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::shapes;
    use super::*;
    use std::collections::BTreeSet;

    fn images(data: &Dataset) -> BTreeSet<(&[u8], i32)> {
        (0..data.len()).map(|i| (data.image(i), data.labels[i])).collect()
    }

    #[test]
    fn the_parts_are_disjoint_cover_all_and_are_always_the_same() {
        let whole = shapes::generate(0, 100, 10);
        let of = |validation, train, seed| whole.clone().hold_out(validation, train, seed).unwrap();
        let s = of(30, None, 0);
        let held_out = s.validation.as_ref().unwrap();
        assert_eq!((s.train.len(), held_out.len(), held_out.name.as_str()), (70, 30, "shapes validation"));
        let (train, validation) = (images(&s.train), images(held_out));
        assert!(train.is_disjoint(&validation));
        assert_eq!(train.union(&validation).cloned().collect::<BTreeSet<_>>(), images(&whole.train));
        assert_eq!((s.test.clone(), s.train.name.as_str()), (whole.test.clone(), "shapes train"));
        assert_eq!(of(30, None, 0), s);
        assert_ne!(of(30, None, 1).validation, s.validation);
        // Training on fewer is measured on the same images.
        let few = of(30, Some(20), 0);
        assert_eq!((few.train.len(), &few.validation), (20, &s.validation));
        assert!(images(&few.train).is_subset(&train));
        assert_eq!(of(0, None, 5), whole);
        assert_eq!(of(0, Some(100), 5), whole);
    }

    #[test]
    fn what_cannot_be_split_is_told() {
        let whole = shapes::generate(0, 50, 10);
        for (validation, train, words) in [
            (50, None, "50 of 50"),
            (60, None, "60 of 50"),
            (20, Some(40), "40 images to train on, and there are 30 beside 20"),
            (0, Some(51), "51 images to train on, and there are 50"),
            (0, Some(0), "0 images"),
        ] {
            let e = whole.clone().hold_out(validation, train, 0).unwrap_err().to_string();
            assert!(e.contains(words) && e.contains("data.") && e.contains("remedy"), "{e}");
        }
        let again = whole.hold_out(5, None, 0).unwrap().hold_out(5, None, 0).unwrap_err().to_string();
        assert!(again.contains("of its own"), "{again}");
    }
}
