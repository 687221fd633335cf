//! `tilework export`: a trained network for other programs.

use super::predict::Trained;
use super::{Out, Which, count};
use crate::data::Views;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::formats::file;
use crate::nn::state::serialize;
use clap::{ArgGroup, Args};
use std::path::PathBuf;

/// Write a trained network as ONNX or safetensors, for other programs
///
/// The ONNX model's input `images` is [N, 3, H, W] of f32 with pixels in [0, 1], RGB, in the size that the network takes
/// (printed): the recipe's normalisation is in the model; enlarging, test-time changes of images and the views of `tta` are
/// not. Its output `logits` is [N, classes]. The names of the classes and the recipe are in its metadata.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("file").args(["onnx", "safetensors"]).required(true).multiple(true)))]
pub(super) struct ExportArgs {
    /// The run's folder, e.g. runs/quickstart-001
    run: PathBuf,
    /// Write an ONNX model (opset 17) to this file
    #[arg(long, value_name = "FILE")]
    onnx: Option<PathBuf>,
    /// Write the state dict with PyTorch's keys and layouts to this file; with `ema`, the averaged weights
    #[arg(long, value_name = "FILE")]
    safetensors: Option<PathBuf>,
    /// The ONNX model takes images that are normalised already
    #[arg(long, requires = "onnx")]
    normalised: bool,
    /// Which checkpoint [default: best, or last if there is no best]
    #[arg(long)]
    which: Option<Which>,
}

pub(super) fn run(args: &ExportArgs, out: &mut Out) -> Result<()> {
    [&args.onnx, &args.safetensors].into_iter().flatten().try_for_each(|path| file::check_file(path))?;
    let trained = Trained::open(&args.run, args.which, Device::cpu())?;
    let model = &trained.model;
    if let Some(path) = &args.onnx {
        let recipe = &trained.config.recipe;
        let classes = serde_json::to_string(&trained.config.run.classes);
        let classes = classes.map_err(|e| Error::Internal(format!("classes to JSON: {e}")))?;
        let pixels = if args.normalised { "normalised by the recipe's data.mean and data.std" } else { "0 to 1" };
        let about = [("classes", classes), ("pixels", format!("RGB, {pixels}")), ("recipe", recipe.to_toml()?)];
        let (mean, std) = (recipe.data.mean.as_slice(), recipe.data.std.as_slice());
        file::write(path, &model.to_onnx((!args.normalised).then_some((mean, std)), &about)?)?;
        let ([h, w], n) = (trained.size(), model.output);
        let ports = format!("images [N, 3, {h}, {w}], pixels {pixels}; logits [N, {}]", n.len());
        out.print(&format!("{}  ONNX: {ports}\n", path.display()))?;
        if recipe.tta != Views::One {
            out.print("`predict` and `eval` average over the views of `tta`: the model is for one of them\n")?;
        }
    }
    if let Some(path) = &args.safetensors {
        let state = model.state_dict()?;
        file::write(path, &serialize(&state)?)?;
        let params = count(model.params.count());
        out.print(&format!("{}  {} tensors, {params} parameters\n", path.display(), state.len()))?;
    }
    Ok(())
}
