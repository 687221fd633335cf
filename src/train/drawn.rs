//! A recipe's training step without its data: for timing.

use super::trainer::Trainer;
use crate::data::shapes;
use crate::device::Device;
use crate::error::Result;
use crate::nn::Model;
use crate::recipes::Recipe;

/// Images of an epoch, unless a batch has more.
const IMAGES: usize = 1024;

/// A trainer of a recipe on images of `shapes`: a step takes as long as on the recipe's own data. Neither data nor
/// pretrained weights are read, nothing is held out, and labels are the images' own modulo the network's outputs.
///
/// # Errors
/// As [`Trainer::new`].
pub fn drawn(mut recipe: Recipe, device: &Device) -> Result<Trainer> {
    (recipe.data.validation, recipe.data.train, recipe.pretrained) = (0, None, None);
    let mut splits = shapes::generate(0, recipe.batch_size.max(IMAGES), 10);
    let image = recipe.data.image([splits.train.height, splits.train.width, splits.train.channels]);
    let model = Model::build(&recipe.network()?, image, &Device::cpu(), recipe.seed)?;
    let outputs = model.output.last();
    for set in [&mut splits.train, &mut splits.test] {
        set.classes = (0..outputs).map(|class| class.to_string()).collect();
        set.labels.iter_mut().for_each(|label| *label %= outputs as i32);
    }
    Trainer::new(recipe, splits, device)
}
