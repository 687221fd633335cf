//! Loss and accuracy of a network on a data set.

use crate::autograd::{Ctx, Var};
use crate::data::Views;
use crate::data::loader::Feed;
use crate::error::{Error, Result};
use crate::nn::Model;
use crate::step::Step;
use crate::tensor::Tensor;
use std::sync::atomic::{AtomicBool, Ordering};

/// What is minimised: the loss of a network's outputs `[n, classes]` and their labels `[n]`.
pub type Objective = dyn Fn(&Var, &Tensor, &mut Ctx<'_>) -> Result<Var> + Send;

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean loss per image; label smoothing does not count here.
    pub loss: f64,
    /// Share of images classified right.
    pub accuracy: f64,
    /// Images.
    pub count: usize,
    /// For each class, its name and the share of its images classified right (0 if it has none).
    pub per_class: Vec<(String, f64)>,
    /// Each image, in the data set's order.
    pub images: Vec<Judged>,
}

/// What a network makes of an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// The class that it is.
    pub label: usize,
    /// The class with the largest score, the first of equals.
    pub predicted: usize,
    /// The predicted class's probability: the softmax of the scores.
    pub confidence: f64,
    /// The cross-entropy of the scores, `-ln` of the label's probability.
    pub loss: f64,
}

impl Evaluation {
    /// How often an image of a class (row) was taken for one of another (column).
    pub fn confusion(&self) -> Vec<Vec<usize>> {
        let classes = self.per_class.len();
        let mut counts = vec![vec![0; classes]; classes];
        for image in &self.images {
            if let Some(n) = counts.get_mut(image.label).and_then(|row| row.get_mut(image.predicted)) {
                *n += 1;
            }
        }
        counts
    }
}

/// What ends an evaluation once it is to stop.
pub(super) fn unless(stop: &AtomicBool) -> Result<()> {
    match stop.load(Ordering::Relaxed) {
        true => Err(Error::Internal("an evaluation was stopped".into())),
        false => Ok(()),
    }
}

/// Runs the network in evaluation mode over all images of a feed. `progress` is called with the number of images
/// done.
///
/// # Errors
/// Whatever the ops or the feed report.
pub fn evaluate(
    model: &Model,
    feed: &mut Feed,
    loss: &Objective,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Evaluation> {
    evaluate_views(model, feed, Views::One, loss, progress)
}

/// The same by the mean of what the network makes of some views of each image.
///
/// # Errors
/// As [`evaluate`]; [`Error::Shape`] for images that have no such views.
pub fn evaluate_views(
    model: &Model,
    feed: &mut Feed,
    views: Views,
    loss: &Objective,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Evaluation> {
    let data = feed.loader().clone();
    let classes = &data.data().classes;
    let mut right = vec![0usize; classes.len()];
    let (mut total, mut count, mut images) = (0.0, 0, Vec::with_capacity(data.data().len()));
    while count < data.data().len() {
        let batch = feed.batch(&Step { batch_offset: count as u32, ..Step::default() })?;
        let n = batch.labels.len();
        let mut cx = model.eval();
        let scores = views.mean(&batch.images, &mut cx, |x, cx| model.forward(x, cx))?;
        let mean = loss(&scores, &batch.labels, &mut cx)?;
        total += mean.value().item()? * n as f64;
        count += n;
        images.extend(judged(scores.value(), &batch.labels)?);
        for image in &images[count - n..] {
            if let Some(r) = right.get_mut(image.label) {
                *r += usize::from(image.predicted == image.label);
            }
        }
        progress(count)?;
    }
    let per_class = classes.iter().zip(&right).zip(data.data().counts());
    Ok(Evaluation {
        loss: total / count as f64,
        accuracy: right.iter().sum::<usize>() as f64 / count as f64,
        count,
        per_class: per_class.map(|((name, &r), n)| (name.clone(), r as f64 / n.max(1) as f64)).collect(),
        images,
    })
}

/// For each row of scores its label, and whether the label has the largest score (the first of equals).
pub(super) fn hits(scores: &Tensor, labels: &Tensor) -> Result<Vec<(usize, bool)>> {
    rows(scores, labels, |row, label| (label, largest(row) == label))
}

/// What each row of scores says of its image.
fn judged(scores: &Tensor, labels: &Tensor) -> Result<Vec<Judged>> {
    rows(scores, labels, |row, label| {
        let (predicted, score) = (largest(row), |i: usize| row.get(i).map_or(f64::NAN, |&s| f64::from(s)));
        let most = score(predicted);
        let sum = row.iter().map(|&s| (f64::from(s) - most).exp()).sum::<f64>();
        Judged { label, predicted, confidence: 1.0 / sum, loss: most + sum.ln() - score(label) }
    })
}

fn rows<T>(scores: &Tensor, labels: &Tensor, f: impl Fn(&[f32], usize) -> T) -> Result<Vec<T>> {
    let (scores, classes): (Vec<f32>, _) =
        (scores.to_f64()?.iter().map(|&s| s as f32).collect(), scores.shape().last());
    let labels = labels.to_vec::<i32>()?;
    Ok(labels.iter().zip(scores.chunks(classes)).map(|(&label, row)| f(row, label as usize)).collect())
}

fn largest(row: &[f32]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, &v)| if v > row[best] { i } else { best })
}
