//! What can be wrong with a run, found before it starts or told when it happens: memory that does
//! not suffice, batches that a layer cannot take, losses that are not finite.

use super::run::RunDir;
use crate::autograd::Var;
use crate::data::batch::Batch;
use crate::error::{Error, Result};
use crate::nn::LayerInfo;
use crate::nn::Model;
use crate::step::Step;

/// Adds to an out-of-memory error the batch size that would fit, where `images` did not and `fixed` bytes were in use
/// before the first step.
pub(super) fn advise(e: Error, model: &Model, images: usize, fixed: usize) -> Error {
    let Error::OutOfMemory { device, need, in_use, peak, free, total, remedy } = e else { return e };
    // What an image takes: the activations and their gradients, or what this batch took so far.
    let taken = (in_use + need).saturating_sub(fixed) / images.max(1);
    let fits = (free + in_use).saturating_sub(fixed) / activation_bytes(model).max(taken).max(1);
    let remedy = match fits.min(images.saturating_sub(1)) {
        0 => remedy,
        fits => format!("use a batch of about {fits} images (--batch-size {fits}), or fewer channels or features"),
    };
    Error::OutOfMemory { device, need, in_use, peak, free, total, remedy }
}

/// The first parameter that holds a number that is not finite.
pub(super) fn non_finite_parameter(model: &Model) -> Result<Option<String>> {
    let values = model.params.values();
    let values = values.read::<f32>(0..values.len())?;
    let bad = |range: std::ops::Range<usize>| values[range].iter().any(|v| !v.is_finite());
    Ok(model.params.list().iter().find(|p| bad(p.range())).map(|p| p.key.clone()))
}

/// Where a batch's forward pass first stops being finite.
pub(super) fn find_non_finite(model: &Model, batch: &Batch, step: &Step) -> Result<String> {
    if let Some(key) = non_finite_parameter(model)? {
        let layer = key.rsplit_once('.').map_or(key.as_str(), |(l, _)| l);
        return Ok(format!("the parameter {key} of layer {} is not finite any more", model.describe(layer)));
    }
    if !batch.images.is_finite()? {
        return Ok("the images themselves are not finite".into());
    }
    let mut first = None;
    let mut cx = model.train(*step).watched(|key, y| {
        if first.is_none() && !y.value().is_finite()? {
            first = Some(model.describe(key));
        }
        Ok(())
    });
    model.forward(&Var::constant(batch.images.clone()), &mut cx)?;
    drop(cx);
    Ok(match first {
        Some(layer) => format!("the first layer whose output is not finite is {layer}"),
        None => "every layer's output is finite, so it is the loss itself that overflowed".into(),
    })
}

/// The error of a loss that is not finite, at a step counted from 1.
pub(super) fn non_finite(loss: f64, step: u64, epoch: u32, origin: String) -> Error {
    let remedy = "lower the learning rate (--lr), or check the data's normalisation".into();
    Error::NonFinite { loss, step, epoch: epoch + 1, origin, saved: "nothing is saved".into(), remedy }
}

/// Batch normalisation has no variance to work with if the last batch of an epoch is one image of
/// one pixel: better said now than after an epoch. With `drop` an epoch leaves out a last batch that is not whole.
pub(super) fn check_last_batch(model: &Model, images: usize, batch_size: usize, drop: bool) -> Result<()> {
    let pointwise = |l: &&LayerInfo| {
        l.spec.starts_with("batch_norm") && !l.spec.ends_with(", frozen") && l.output.dims()[..2] == [1, 1]
    };
    match model.layers.iter().find(pointwise) {
        Some(l) if (images % batch_size == 1 && !drop) || batch_size == 1 => Err(Error::config(
            "batch_size",
            format!(
                "of {images} images the last batch has one, and layer {} ({}) gets one value per channel from it",
                l.key, l.spec
            ),
            "choose a batch size that leaves another rest",
        )),
        _ => Ok(()),
    }
}

/// Bytes of an image's activations and their gradients.
fn activation_bytes(model: &Model) -> usize {
    model.layers.iter().map(LayerInfo::activations).sum::<usize>().saturating_mul(2 * 4)
}

/// Refuses a network whose training cannot fit the memory that is free: parameters, gradients and
/// optimizer state, and the activations of a batch with their gradients.
pub(super) fn check_memory(model: &Model, batch_size: usize) -> Result<()> {
    let arenas = model.params.count().saturating_mul(3 * 4);
    let activations = activation_bytes(model).saturating_mul(batch_size);
    model.params.values().device().check_fits(arenas.saturating_add(activations), "training")
}

/// Adds to an error where the last good checkpoint is, and of which step.
pub(super) fn with_last_checkpoint(e: Error, run: &RunDir, at: Option<(u64, u32)>) -> Error {
    let Error::NonFinite { loss, step, epoch, origin, remedy, .. } = e else { return e };
    let last = run.path().join("last");
    let saved = match at.filter(|_| last.exists()) {
        Some((step, epoch)) => {
            format!("the last good checkpoint is {}, after step {step} and {epoch} whole epochs", last.display())
        }
        None => "there is no checkpoint yet".into(),
    };
    Error::NonFinite { loss, step, epoch, origin, saved, remedy }
}
