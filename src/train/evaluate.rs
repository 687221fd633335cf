//! Loss and accuracy of a network on a data set.

use crate::autograd::{Ctx, Var};
use crate::data::loader::Feed;
use crate::error::Result;
use crate::nn::Model;
use crate::step::Step;
use crate::tensor::Tensor;

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
    let data = feed.loader().clone();
    let classes = &data.data().classes;
    let mut right = vec![0usize; classes.len()];
    let (mut total, mut count) = (0.0, 0);
    while count < data.data().len() {
        let batch = feed.batch(&Step { batch_offset: count as u32, ..Step::default() })?;
        let n = batch.labels.len();
        let mut cx = model.eval();
        let scores = model.forward(&Var::constant(batch.images), &mut cx)?;
        let mean = loss(&scores, &batch.labels, &mut cx)?;
        total += mean.value().item()? * n as f64;
        count += n;
        for (label, hit) in hits(scores.value(), &batch.labels)? {
            if let Some(r) = right.get_mut(label) {
                *r += usize::from(hit);
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
    })
}

/// For each row of scores its label, and whether the label has the largest score (the first of equals).
pub(super) fn hits(scores: &Tensor, labels: &Tensor) -> Result<Vec<(usize, bool)>> {
    let (scores, classes) = (scores.to_vec::<f32>()?, scores.shape().last());
    let labels = labels.to_vec::<i32>()?;
    let largest = |row: &[f32]| row.iter().enumerate().fold(0, |best, (i, &v)| if v > row[best] { i } else { best });
    let rows = labels.iter().zip(scores.chunks(classes));
    Ok(rows.map(|(&l, row)| (l as usize, largest(row) == l as usize)).collect())
}
