//! Recipes: a network, its data and its training, in one TOML file.
//!
//! ```toml
//! about = "what it is, in one line"
//! epochs = 2
//! precision = "f32"                 # f32 (the default); f16, bf16: on tensor cores
//! batch_size = 4
//! loss = "cross-entropy"            # or "nll", after a last layer log_softmax
//! layers = ["conv 5x5, 6 channels", "relu", "max_pool 2", "flatten", "fc 10"]
//!
//! [data]
//! source = "cifar10"                # shapes, cifar10, cifar100, cifar100-coarse, image-folder
//! mean = [0.5, 0.5, 0.5]
//! std = [0.5, 0.5, 0.5]
//!
//! [optimizer]
//! kind = "sgd"                      # sgd, adam, adamw
//! lr = 1e-3
//! momentum = 0.9
//!
//! [augment]                         # may be left out: random changes to training images
//! flip = 0.5                        # probability of a mirrored image
//! pad = 4                           # pixels added on each side before a random crop
//! border = "reflect"                # black (the default), edge, reflect, symmetric
//!
//! [schedule]                        # may be left out
//! kind = "one-cycle"                # constant, step, steps, cosine, warm-restarts, linear, one-cycle
//! warmup = 1                        # epochs in which the rate rises before that
//! ```

use crate::autograd::{Ctx, Var};
use crate::data::augment::Augment;
use crate::data::loader::Transform;
use crate::data::{Source, Splits, Views};
use crate::device::Device;
use crate::dtype::Precision;
use crate::error::{Error, Result};
use crate::formats::file;
use crate::nn::networks::{ModelSpec, freeze_batch_norms};
use crate::nn::{LayerSpec, Model, Pretrained};
use crate::optim::{Clip, EarlyStopping, Ema, OptimizerSpec, Phase, Schedule};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::path::Path;

mod built_in;
mod keys;
mod pace;

pub use built_in::{BUILT_IN, KEYS, MINUTES, unknown};

/// A whole experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// One line on what it is.
    #[serde(default)]
    pub about: String,
    /// The test accuracy that its source reports, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported: Option<f64>,
    /// Passes over the training data: unless given, what the phases take.
    #[serde(default)]
    pub epochs: u32,
    /// Images per step.
    pub batch_size: usize,
    /// What activations and the weights of products are stored in: f32, f16, bf16. Two bytes need a CUDA device.
    #[serde(default)]
    pub precision: Precision,
    /// Key of all randomness.
    #[serde(default)]
    pub seed: u64,
    /// Whether each epoch has an order of its own; otherwise the files' order.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// Whether an epoch leaves out the images at its end that fill no batch.
    #[serde(default)]
    pub drop_last: bool,
    /// What is minimised.
    #[serde(default)]
    pub loss: Loss,
    /// Whether the mean of a batch's losses is minimised, or their sum.
    #[serde(default)]
    pub reduction: Reduction,
    /// Share of the target spread over all classes; for cross-entropy.
    #[serde(default)]
    pub label_smoothing: f64,
    /// The network's layers, unless it has a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerSpec>,
    /// A network by name, and what is changed in the network.
    #[serde(default)]
    pub model: ModelSpec,
    /// The weights that it starts from, unless random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pretrained: Option<Pretrained>,
    /// What is not trained: patterns of parameters, or numbers of the network's children.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
    /// Whether every batch-norm keeps its running statistics and normalises with them in training too.
    #[serde(default)]
    pub frozen_batch_norm: bool,
    /// The data.
    pub data: DataSpec,
    /// Random changes to training images.
    #[serde(default)]
    pub augment: Augment,
    /// The views of a test image whose outputs are averaged, after the last epoch; the epochs before are measured by one.
    #[serde(default)]
    pub tta: Views,
    /// How the parameters move.
    pub optimizer: OptimizerSpec,
    /// How the learning rate changes.
    #[serde(default)]
    pub schedule: Schedule,
    /// The same said by parts of the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<Phase>,
    /// Batches for each update, whose gradients are averaged.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// How gradients are clipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<Clip>,
    /// A moving average of the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<Ema>,
    /// When to stop before the last epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
}

fn yes() -> bool {
    true
}
fn one() -> usize {
    1
}

/// A recipe's data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// Which data set.
    pub source: Source,
    /// Subtracted from each channel, in units of [0, 1].
    pub mean: Vec<f32>,
    /// Each channel is divided by it.
    pub std: Vec<f32>,
    /// Height and width that images are enlarged to; those of an image folder are resized when they are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// Training images held out for validation.
    #[serde(default)]
    pub validation: usize,
    /// Training images to train on: all others, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<usize>,
    /// Key of the choice of those images; not `seed`, so that runs can be compared.
    #[serde(default)]
    pub split_seed: u64,
}

/// What is minimised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Softmax cross-entropy of the network's outputs.
    #[default]
    CrossEntropy,
    /// Negative log-likelihood of the network's log-probabilities.
    Nll,
}

/// How the losses of a batch's images become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Their mean.
    #[default]
    Mean,
    /// Their sum: gradients are as many times larger as a batch has images.
    Sum,
}

impl Loss {
    /// The loss as a function of a network's outputs `[n, classes]`, their labels `[n]` and the pass.
    pub fn with(self, smoothing: f64) -> impl Fn(&Var, &Tensor, &mut Ctx<'_>) -> Result<Var> + Send + 'static {
        move |scores, labels, cx| match self {
            Loss::CrossEntropy => scores.cross_entropy(labels, smoothing, cx),
            Loss::Nll => scores.nll(labels, cx),
        }
    }
}

impl DataSpec {
    /// Data with the validation set that is asked for.
    ///
    /// # Errors
    /// As [`Splits::hold_out`].
    pub fn split(&self, splits: Splits) -> Result<Splits> {
        splits.hold_out(self.validation, self.train, self.split_seed)
    }

    /// What is done to its images, with these random changes.
    pub fn transform(&self, augment: Augment) -> Transform {
        Transform { mean: self.mean.clone(), std: self.std.clone(), size: self.size, augment }
    }

    /// Height, width and channels of the images that the network takes, of data like those.
    pub fn image(&self, [h, w, c]: [usize; 3]) -> [usize; 3] {
        self.size.map_or([h, w, c], |n| [n, n, c])
    }
}

/// What the last layer of some is: of a list with a name, or of what comes after a residual's sum, the last in it.
fn last_phrase(layers: &[LayerSpec]) -> Result<String> {
    match layers.last() {
        Some(LayerSpec::Table(t)) if t.after.is_empty() => last_phrase(t.layers.as_deref().unwrap_or_default()),
        Some(LayerSpec::Table(t)) => last_phrase(&t.after),
        Some(layer) => Ok(layer.read()?.1.phrase()),
        None => Ok(String::new()),
    }
}

impl Recipe {
    /// The network, initialised for images of `[h, w, c]`.
    ///
    /// # Errors
    /// As [`Model::build`]; [`Error::Config`] for a precision that the device has not.
    pub fn model(&self, image: [usize; 3], device: &Device) -> Result<Model> {
        let mut model = Model::build(&self.network()?, image, device, self.seed)?;
        model.params.set_precision(self.precision)?;
        Ok(model)
    }

    /// A built-in recipe by name, or a file whose name ends in `.toml`; then `set`, a list of
    /// `key=value`, replaces values (`optimizer.lr=0.1`).
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown name or key or a value out of range; [`Error::File`] and
    /// [`Error::Io`] for a file.
    pub fn load(name: &str, set: &[String]) -> Result<Self> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(n, _)| *n == name) {
            return Recipe::parse(text, &format!("built-in recipe {name}"), set);
        }
        let path = Path::new(name);
        if path.extension().is_none_or(|e| e != "toml") {
            return Err(unknown(name));
        }
        let text = file::read_text(path, "read the recipe")?;
        // A run's config.toml has its recipe beside what is known of the run.
        let of_a_run = text.parse::<toml::Table>().ok().filter(|t| t.contains_key("run"));
        let recipe = of_a_run.as_ref().and_then(|t| t.get("recipe")).and_then(|r| toml::to_string(r).ok());
        Recipe::parse(&recipe.unwrap_or(text), name, set)
    }

    /// What runs of a recipe are called: by the file's name without `.toml`, or as the run whose `config.toml` it is.
    pub fn run_name(name: &str) -> String {
        let path = Path::new(name);
        let table = |text: String| text.parse::<toml::Table>().ok();
        let of_a_run =
            path.ends_with("config.toml").then(|| file::read_text(path, "read").ok().and_then(table)).flatten();
        let known = of_a_run.as_ref().and_then(|t| t.get("run")?.get("name")?.as_str());
        let stem = || path.file_stem().unwrap_or(name.as_ref()).to_string_lossy().into_owned();
        known.map_or_else(stem, String::from)
    }

    /// Reads a recipe's text; `origin` is for errors.
    ///
    /// # Errors
    /// [`Error::Config`] naming the line, the key and what is allowed.
    pub fn parse(text: &str, origin: &str, set: &[String]) -> Result<Self> {
        let bad = |e: toml::de::Error| {
            let remedy = match keys::meant(e.message()) {
                Some(word) => format!("did you mean `{word}`? `tilework recipes --keys` has every key"),
                None => keys::of_another_optimizer(e.message()).unwrap_or_else(|| {
                    "`tilework recipes --keys` has every key, and `tilework recipes quickstart` is an example".into()
                }),
            };
            Error::config(origin, keys::plain(&e.to_string()).trim_end(), remedy)
        };
        let recipe: Recipe = if set.is_empty() {
            // From the text, not from a table, so that an error shows its line.
            toml::from_str(text).map_err(bad)?
        } else {
            let mut table: toml::Table = toml::from_str(text).map_err(bad)?;
            for s in set {
                keys::assign(&mut table, s)?;
            }
            // A mistake in the text itself is better told with its line.
            table.try_into().map_err(|e| bad(toml::from_str::<Recipe>(text).err().unwrap_or(e)))?
        };
        let recipe = recipe.with_epochs();
        recipe.check()?;
        Ok(recipe)
    }

    /// The recipe as TOML.
    ///
    /// # Errors
    /// [`Error::Internal`] if it cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Internal(format!("recipe to TOML: {e}")))
    }

    /// The layers of its network.
    ///
    /// # Errors
    /// [`Error::Config`] if the recipe says two things of it, or too little.
    pub fn network(&self) -> Result<Vec<LayerSpec>> {
        let mut layers = self.model.layers(&self.layers)?;
        if self.frozen_batch_norm {
            freeze_batch_norms(&mut layers)?;
        }
        Ok(layers)
    }

    /// Checks the values that the types do not.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub fn check(&self) -> Result<()> {
        let must = |ok: bool, key: &str, problem: String, remedy: &str| {
            if ok { Ok(()) } else { Err(Error::config(key, problem, remedy)) }
        };
        must(self.epochs > 0, "epochs", "0 epochs".into(), "use at least 1")?;
        must(self.batch_size > 0, "batch_size", "0 images per batch".into(), "use at least 1")?;
        for (key, seed) in [("seed", self.seed), ("data.split_seed", self.data.split_seed)] {
            must(i64::try_from(seed).is_ok(), key, format!("{seed} is too large"), "use a seed below 2^63")?;
        }
        let reported = self.reported.unwrap_or(100.0);
        must(
            (0.0..=100.0).contains(&reported),
            "reported",
            format!("an accuracy of {reported} %"),
            "it is a percentage, 0 to 100",
        )?;
        must(
            (0.0..=1.0).contains(&self.label_smoothing),
            "label_smoothing",
            format!("{} is not in [0, 1]", self.label_smoothing),
            "0.1 is usual",
        )?;
        let network = self.network()?;
        must(
            !network.is_empty(),
            "layers",
            "the network has no layers".into(),
            "list at least one, or give model.name",
        )?;
        network.iter().try_for_each(|layer| layer.read().map(drop))?;
        let last = last_phrase(&network)?;
        must(
            (last == "log_softmax") == (self.loss == Loss::Nll),
            "loss",
            format!("{:?} with a last layer `{last}`", self.loss),
            "\"nll\" needs a last layer log_softmax, \"cross-entropy\" has it built in",
        )?;
        must(
            self.loss == Loss::CrossEntropy || self.label_smoothing == 0.0,
            "label_smoothing",
            "the loss nll has none".into(),
            "use the loss cross-entropy without the last log_softmax",
        )?;
        self.check_pace()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::Curve;

    /// By the start of a recipe's name, as PyTorch counts them.
    const PARAMETERS: &[(&str, usize)] = &[
        ("a1", 62_006),
        ("a2", 62_006),
        ("a3", 108_732),
        ("a4", 108_732),
        ("a5", 108_732),
        ("a6", 1_760_756),
        ("a7", 7_038_452),
        ("a8", 6_424_308),
        ("b1", 20_715_146),
        ("c1", 123_330),
        ("c2", 37_490),
        ("c3", 37_490),
        ("c4", 155_970),
        ("c5", 462_570),
        ("d1", 11_181_642),
        ("d2", 11_181_642),
        ("d5", 11_181_642),
        ("e1", 6_580_500),
        ("fast-resnet9", 6_575_370),
        ("airbench94", 1_972_792),
    ];

    #[test]
    fn built_in_recipes_load_build_and_survive_a_round_trip() {
        for (name, _) in BUILT_IN {
            let recipe = Recipe::load(name, &[]).unwrap();
            assert_eq!(Recipe::parse(&recipe.to_toml().unwrap(), "again", &[]).unwrap(), recipe);
            assert!(!recipe.about.is_empty());
            let model = Model::build(&recipe.network().unwrap(), [32, 32, 3], &Device::cpu(), 0).unwrap();
            let classes = if recipe.data.source == Source::Cifar100Coarse { 20 } else { 10 };
            assert_eq!(model.output.dims(), [classes]);
            if let Some((_, want)) = PARAMETERS.iter().find(|(start, _)| name.starts_with(start)) {
                assert_eq!(model.params.count(), *want, "{name}");
                assert_eq!(recipe.reported.is_none(), ["c3-conv-padded", "fast-resnet9"].contains(name), "{name}");
            }
        }
    }

    #[test]
    fn values_can_be_set() {
        let set = ["optimizer.lr=1", "epochs=7", "schedule.kind=cosine", "data.source=cifar100"].map(String::from);
        let r = Recipe::load("a1-lenet", &set).unwrap();
        assert_eq!((r.optimizer.lr(), r.epochs, r.data.source), (1.0, 7, Source::Cifar100));
        assert_eq!(r.schedule, Curve::Cosine { over: None, min: 0.0 }.into());
    }

    #[test]
    fn mistakes_are_named() {
        let of = |set: &str| Recipe::load("a1-lenet", &[set.to_string()]).unwrap_err().to_string();
        for (set, word) in [
            ("optimizer.lrr=1", "did you mean `lr`?"),
            ("epoch=3", "did you mean `epochs`?"),
            ("optimiser.lr=3", "did you mean `optimizer`?"),
            ("reported=140", "140 %"),
            ("epochs=-1", "-1"),
            ("batch_size=0", "0 images"),
            ("epochs.x=1", "single value"),
            ("optimizer", "no `=`"),
            ("optimizer.kind=sdg", "did you mean `sgd`?"),
            ("optimizer.momentum=2", "momentum"),
            ("loss=nll", "log_softmax"),
            ("layers=[\"cnov 3x3\"]", "cnov"),
            ("data.source=mnist", "mnist"),
            ("reduction=max", "max"),
            ("tta=mirrors", "did you mean `mirror`?"),
            ("drop_lost=true", "did you mean `drop_last`?"),
            ("augment.alternat=true", "did you mean `alternate`?"),
            ("optimizer.groups=[{match = \"*\", over = 0}]", "groups.0.over"),
            ("optimizer.groups=[{match = \"*\", muon = {steps = 0}}]", "groups.0.muon.steps"),
            ("optimizer.groups=[{match = \"*\", muon = {step = 3}}]", "did you mean `steps`?"),
        ] {
            let e = of(set);
            assert!(e.contains(word) && e.contains("remedy"), "{set}: {e}");
        }
        // The last layer of a list with a name is the network's last.
        let head = [
            "loss=nll",
            "layers=[\"max_pool 8\", {name = \"head\", layers = [\"flatten\", \"fc 10\", \"log_softmax\"]}]",
        ];
        assert!(Recipe::load("a1-lenet", &head.map(String::from)).is_ok());
        let e = Recipe::load("a1-lent", &[]).unwrap_err().to_string();
        assert!(e.contains("did you mean `a1-lenet`?") && e.contains("quickstart"), "{e}");
        let (_, text) = BUILT_IN[1];
        let e = Recipe::parse(&text.replace("batch_size", "batchsize"), "x.toml", &[]).unwrap_err().to_string();
        assert!(e.contains("x.toml") && e.contains("line") && e.contains("batchsize"), "{e}");
    }
}
