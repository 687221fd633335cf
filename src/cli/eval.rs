//! `tilework eval`: a run's loss and accuracy on a part of its data.

use super::{Data, Machine, Out, Which, count, per_class};
use crate::data::Split;
use crate::dtype::Precision;
use crate::error::{Error, Result};
use crate::train::checkpoint::{self, Checkpoint};
use crate::train::run::Config;
use crate::train::{Evaluation, RunDir, Trainer};
use clap::Args;
use serde::{Serialize, Serializer};
use std::path::{Path, PathBuf};

/// Evaluate a run on the test set, or another part of its data
#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// The run's folder, e.g. runs/quickstart-001
    run: PathBuf,
    /// The data: a folder or .tar.gz [default: where the run had it from]
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Which part of the data
    #[arg(long, default_value = "test")]
    split: Split,
    /// Print one JSON object: accuracy, loss, count, per_class; accuracies as fractions
    #[arg(long)]
    json: bool,
    /// Which checkpoint [default: best, or last if there is no best]
    #[arg(long)]
    which: Option<Which>,
    #[command(flatten)]
    pub(super) machine: Machine,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    accuracy: f64,
    loss: f64,
    count: usize,
    #[serde(serialize_with = "in_order")]
    per_class: &'a [(String, f64)],
}

fn in_order<S: Serializer>(pairs: &[(String, f64)], s: S) -> Result<S::Ok, S::Error> {
    s.collect_map(pairs.iter().map(|(k, v)| (k, v)))
}

/// A run's checkpoint: its name, where it is and what it holds.
pub(super) fn chosen(run: &RunDir, which: Option<Which>) -> Result<(&'static str, PathBuf, Checkpoint)> {
    let (best, last) = (run.path().join("best"), run.path().join("last"));
    match which {
        Some(Which::Best) => match checkpoint::load(&best) {
            Err(_) if !best.exists() && last.exists() => {
                let problem = "there is no best checkpoint, as no epoch is over";
                Err(Error::file(best, problem, "use --which last, or train further with `tilework train --resume`"))
            }
            loaded => loaded.map(|c| ("best", best, c)),
        },
        Some(Which::Last) => checkpoint::load(&last).map(|c| ("last", last, c)),
        None => match checkpoint::load(&best) {
            // Damage is reported, absence is not.
            Err(_) if !best.exists() => checkpoint::load(&last).map(|c| ("last", last, c)),
            loaded => loaded.map(|c| ("best", best, c)),
        },
    }
}

/// A run's trainer with the weights of one of its checkpoints.
pub(super) struct Restored {
    pub(super) trainer: Trainer,
    /// Which state of the run it is: `best (step 1,570)`.
    pub(super) checkpoint: String,
    /// What it runs on.
    device: String,
}

impl Restored {
    /// `data` is where the data is now, if it is not where the run had it from.
    pub(super) fn open(
        run: &RunDir,
        config: &Config,
        which: Option<Which>,
        data: Option<&Path>,
        machine: &Machine,
    ) -> Result<Self> {
        let (name, path, saved) = chosen(run, which)?;
        let data = Data::reopen(config, data)?;
        let (device, device_name) = machine.device()?;
        let mut recipe = config.recipe.clone();
        // The weights are f32: a run in two bytes can be looked at anywhere.
        if !device.computes_in(recipe.precision.dtype()) {
            recipe.precision = Precision::F32;
        }
        let mut trainer = Trainer::new(recipe, data.splits, &device)?;
        trainer.engine.model.load_state_dict(&saved.model, &path)?;
        let checkpoint = format!("{name} (step {})", count(saved.position.step as usize));
        Ok(Restored { trainer, checkpoint, device: device_name })
    }
}

pub(super) fn run(args: &EvalArgs, out: &mut Out) -> Result<()> {
    let run = RunDir::open(&args.run)?;
    let config = Config::read(&run)?;
    let source = config.recipe.data.source;
    let Restored { mut trainer, checkpoint, device } =
        Restored::open(&run, &config, args.which, args.data.as_deref(), &args.machine)?;
    let Evaluation { loss, accuracy, count: n, per_class: classes, .. } =
        trainer.evaluate(args.split, &mut |_| Ok(()))?;
    if args.json {
        let report = Report { accuracy, loss, count: n, per_class: &classes };
        let text = serde_json::to_string(&report).map_err(|e| Error::Internal(format!("report to JSON: {e}")))?;
        return out.print(&(text + "\n"));
    }
    let split = args.split;
    out.print(&format!(
        "run       {}, checkpoint {checkpoint}\n\
         data      {source}, {} {split} images\n\
         device    {device}\n\
         accuracy  {:.2} %\n\
         loss      {loss:.4}\n\n{}",
        run.path().display(),
        count(n),
        accuracy * 100.0,
        per_class(&classes),
    ))
}
