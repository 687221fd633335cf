//! `tilework predict`: what a trained network takes pictures for.

use super::eval::chosen;
use super::machine::Machine;
use super::{Out, Which, counted, note, output, summary};
use crate::autograd::Var;
use crate::data::loader::{Loader, Transform};
use crate::data::{Dataset, picture};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::Model;
use crate::step::Step;
use crate::train::RunDir;
use crate::train::run::Config;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use image::RgbImage;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Pictures that are in memory at a time.
const BATCH: usize = 64;

/// Classify pictures with a trained network
///
/// PNG and JPEG of any size: a picture is scaled to the size of the network's input, bilinearly. One that cannot be
/// read is reported and left out, and the exit code is then 1. Where the recipe changes test images too (`augment.test`),
/// pictures are flipped as those are if that is certain; they are not rotated, shifted or cut at random.
#[derive(Debug, Args)]
pub(super) struct PredictArgs {
    /// The run's folder, e.g. runs/a1-lenet-001
    run: PathBuf,
    /// Pictures, or folders of them
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// How many classes to show of each
    #[arg(long, value_name = "N", default_value = "5", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    top: usize,
    /// Print one JSON object a line and picture: image, predictions (class and probability)
    #[arg(long)]
    json: bool,
    /// Which checkpoint [default: best, or last if there is no best]
    #[arg(long)]
    which: Option<Which>,
    #[command(flatten)]
    pub(super) machine: Machine,
}

/// A trained network, ready for pictures.
pub(super) struct Trained {
    pub(super) model: Model,
    pub(super) config: Config,
    /// `best` or `last`.
    pub(super) checkpoint: &'static str,
    device: Device,
}

impl Trained {
    /// The network of a run with the weights of one of its checkpoints.
    pub(super) fn open(run: &std::path::Path, which: Option<Which>, device: Device) -> Result<Self> {
        let run = RunDir::open(run)?;
        let config = Config::read(&run)?;
        let (checkpoint, path, saved) = chosen(&run, which)?;
        let recipe = &config.recipe;
        let image = match config.run.image {
            Some(image) => image,
            None => summary::image(&recipe.data).map_err(|_| {
                let remedy = "add `image = [HEIGHT, WIDTH, 3]`, that of the training images, to its section [run]";
                Error::file(run.path().join("config.toml"), "it does not say how large the images are", remedy)
            })?,
        };
        let mut model = Model::build(&recipe.network()?, image, &device, recipe.seed)?;
        model.load_state_dict(&saved.model, &path)?;
        Ok(Trained { model, config, checkpoint, device })
    }

    /// Height and width of its input.
    pub(super) fn size(&self) -> [usize; 2] {
        let dims = self.model.input.dims();
        [dims[0], dims[1]]
    }

    /// What is done to pictures of that size.
    pub(super) fn transform(&self) -> Transform {
        let recipe = &self.config.recipe;
        recipe.data.transform(recipe.augment.in_prediction())
    }

    /// Normalised images `[n, h, w, 3]` of the bytes of pictures of the network's size.
    pub(super) fn images(&self, pictures: Vec<Vec<u8>>) -> Result<Var> {
        let ([height, width], n) = (self.size(), pictures.len());
        let images = Dataset {
            name: "pictures".into(),
            classes: vec![String::new()],
            height,
            width,
            channels: 3,
            images: pictures.concat(),
            labels: vec![0; n],
        };
        let loader = Loader::transformed(Arc::new(images), n, &self.transform(), &self.device)?;
        Ok(Var::constant(loader.feed(false).batch(&Step::default())?.images))
    }

    /// The name of a class.
    pub(super) fn class(&self, i: usize) -> String {
        self.config.run.classes.get(i).cloned().unwrap_or_else(|| format!("class {i}"))
    }

    /// For each picture its classes with their probabilities, the most probable first.
    fn predict(&self, pictures: Vec<Vec<u8>>) -> Result<Vec<Vec<Prediction>>> {
        let x = self.images(pictures)?;
        let views = self.config.recipe.tta;
        let scores = views.mean(x.value(), &mut self.model.eval(), |x, cx| self.model.forward(x, cx))?;
        let (values, classes) = (scores.value().to_vec::<f32>()?, scores.shape().last());
        Ok(values.chunks(classes).map(|row| self.predictions(row)).collect())
    }

    /// The classes with their probabilities, the most probable first, of a picture's scores.
    pub(super) fn predictions(&self, scores: &[f32]) -> Vec<Prediction> {
        let mut list: Vec<_> = softmax(scores).into_iter().enumerate().collect();
        list.sort_by(|a, b| b.1.total_cmp(&a.1));
        list.into_iter().map(|(i, probability)| Prediction { class: self.class(i), probability }).collect()
    }
}

/// exp(x) / Σ exp(x), of scores and of log-probabilities alike.
fn softmax(row: &[f32]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = row.iter().map(|x| f64::from(x - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

#[derive(Serialize)]
pub(super) struct Prediction {
    pub(super) class: String,
    pub(super) probability: f64,
}

/// What `--json` prints of a picture.
#[derive(Serialize)]
struct Line<'a> {
    image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    predictions: Option<&'a [Prediction]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(super) fn run(args: &PredictArgs, out: &mut Out) -> Result<ExitCode> {
    let (device, _) = args.machine.device()?;
    let paths = picture::find(&args.images)?;
    let trained = Trained::open(&args.run, args.which, device)?;
    let mut failed = 0;
    for paths in paths.chunks(BATCH) {
        let read: Vec<_> =
            paths.iter().map(|p| picture::read(p, Some(trained.size())).map(RgbImage::into_raw)).collect();
        let whole: Vec<_> = read.iter().filter_map(|r| r.as_ref().ok().cloned()).collect();
        let predictions = if whole.is_empty() { Vec::new() } else { trained.predict(whole)? };
        let mut predictions = predictions.into_iter();
        for (path, read) in paths.iter().zip(read) {
            let (image, error) = (path.display().to_string(), read.err());
            let list = if error.is_none() { predictions.next() } else { None };
            let list = list.as_ref().map(|list| &list[..args.top.min(list.len())]);
            failed += usize::from(error.is_some());
            if args.json {
                let line = Line { image, predictions: list, error: error.map(|e| e.to_string()) };
                let text = serde_json::to_string(&line).map_err(|e| Error::Internal(format!("to JSON: {e}")))?;
                out.print(&(text + "\n"))?;
            } else if let Some(e) = error {
                note(&format!("error: {e}"));
            } else if let Some(list) = list {
                let row = |p: &Prediction| vec![format!("  {}", p.class), format!("{:.1} %", p.probability * 100.0)];
                out.print(&output::table(&[&image], "<>", list.iter().map(row).collect()))?;
            }
        }
    }
    if failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    note(&format!("{failed} of {} could not be read", counted(paths.len(), "picture")));
    Ok(ExitCode::FAILURE)
}
