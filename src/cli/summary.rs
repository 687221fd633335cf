//! `tilework summary`: a network layer by layer.

use super::output::{Out, table};
use super::{Set, count};
use crate::data::Source;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::LayerInfo;
use crate::nn::Model;
use crate::params::Param;
use crate::recipes::{DataSpec, Recipe};
use clap::Args;
use clap::builder::RangedU64ValueParser;

/// Show a recipe's network: sizes, parameters, multiply-adds, memory
#[derive(Debug, Args)]
pub(super) struct SummaryArgs {
    /// A built-in recipe (see `tilework recipes`) or the path of a recipe file ending in .toml
    recipe: String,
    /// Images per step [default: the recipe's]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u32>::new().range(1..))]
    batch_size: Option<u32>,
    /// Also which layers a CUDA device computes together: a column with the key of the one that has the kernels; what lies
    /// between them is not stored, and not counted, but for max-pools that the kernels of a convolution's size leave to one of
    /// their own
    #[arg(long)]
    fused: bool,
    #[command(flatten)]
    set: Set,
}

/// Bytes of an activation.
const F32: usize = 4;

/// Height, width and channels of the images that a recipe's network takes.
pub(super) fn image(data: &DataSpec) -> Result<[usize; 3]> {
    match (data.source, data.size) {
        (Source::ImageFolder, None) => {
            let remedy = "give the size of your images, e.g. --set data.size=64";
            Err(Error::config("data.size", "the images' size is not known without the images", remedy))
        }
        _ => Ok(data.image([32, 32, 3])),
    }
}

fn mib(bytes: usize) -> String {
    format!("{:.2}", bytes as f64 / (1 << 20) as f64)
}

/// A layer without those inside it, which have rows of their own.
pub(super) fn spec(l: &LayerInfo) -> &str {
    match l.spec.split_once(" [") {
        Some(("residual", f)) if !f.contains("] shortcut [") && !f.contains("] after [") => {
            "residual, x + f(x) with f:"
        }
        Some((name, _)) => name,
        None => &l.spec,
    }
}

/// The same, further right the deeper it is.
pub(super) fn indented(l: &LayerInfo) -> String {
    "  ".repeat(l.key.matches('.').count()) + spec(l)
}

/// The parameters of a layer and of what is in it.
fn own<'a>(model: &'a Model, layer: &LayerInfo) -> impl Iterator<Item = &'a Param> {
    let inside = format!("{}.", layer.key);
    model.params.list().iter().filter(move |p| p.key.starts_with(&inside))
}

fn trained(model: &Model) -> usize {
    model.params.list().iter().filter(|p| p.trainable).map(|p| p.shape.len()).sum()
}

/// The layers whose outputs no gradient needs: those that end before the input of the first that is trained.
fn kept_not(model: &Model) -> Vec<&LayerInfo> {
    let Some(first) = model.params.list().iter().find(|p| p.trainable) else { return Vec::new() };
    let has_it = |l: &&LayerInfo| first.key.starts_with(&format!("{}.", l.key));
    let before = model.layers.iter().rposition(|l| has_it(&l)).unwrap_or(0);
    let mut layers: Vec<&LayerInfo> = model.layers[..before].iter().filter(|l| !has_it(l)).collect();
    layers.pop();
    layers
}

pub(super) fn run(args: &SummaryArgs, out: &mut Out) -> Result<()> {
    let mut set = args.set.values.clone();
    set.extend(args.batch_size.map(|n| format!("batch_size={n}")));
    let recipe = Recipe::load(&args.recipe, &set)?;
    let mut model = Model::build(&recipe.network()?, image(&recipe.data)?, &Device::cpu(), recipe.seed)?;
    model.freeze(&recipe.freeze)?;
    let batch = recipe.batch_size;
    let layers = &model.layers;
    // Of layers that are computed together the last one's output is stored.
    let passes = |l: &LayerInfo| {
        let mut behind =
            layers.iter().skip_while(|other| other.key != l.key).skip(1).filter(|other| other.joined.is_some());
        args.fused && behind.any(|other| other.joined.as_ref() == Some(&l.key) || other.joined == l.joined)
    };
    let bytes = |l: &LayerInfo| if passes(l) { 0 } else { l.activations().saturating_mul(F32).saturating_mul(batch) };
    let mut rows = vec![vec![String::new(), "input".into(), model.input.to_string()]];
    rows.extend(layers.iter().map(|l| {
        let frozen = if l.params > 0 && own(&model, l).all(|p| !p.trainable) { " (frozen)" } else { "" };
        let number = |n: usize| if n == 0 { "-".to_string() } else { count(n) };
        vec![l.key.clone(), indented(l) + frozen, l.output.to_string(), number(l.params), number(l.macs), mib(bytes(l))]
    }));
    let mut heads = vec!["key", "layer", "output", "parameters", "multiply-adds", "activations, MiB"];
    let mut columns = "<<<>>>".to_string();
    if args.fused {
        heads.push("fused into");
        columns.push('<');
        let into = |l: &LayerInfo| l.joined.clone().unwrap_or_default();
        rows.iter_mut().zip(std::iter::once(String::new()).chain(layers.iter().map(into))).for_each(|(r, f)| r.push(f));
    }
    let params = model.params.count();
    let macs: usize = layers.iter().map(|l| l.macs).sum();
    let activations = layers.iter().map(bytes).fold(0, usize::saturating_add);
    let frozen = match (params - trained(&model), kept_not(&model)) {
        (0, _) => String::new(),
        (n, spared) => {
            let spared: usize = spared.iter().map(|l| bytes(l)).sum();
            format!(
                "frozen           {} parameters ({:.0} %) get no gradient; {} MiB of the activations are not kept\n",
                count(n),
                100.0 * n as f64 / params as f64,
                mib(spared),
            )
        }
    };
    out.print(&format!(
        "{}\n\n{}\n\
         parameters       {} ({} MiB)\n\
         multiply-adds    {} an image, {:.3} GMAC a batch (forward; a training step is about three times that)\n\
         activations      {} MiB a batch of {} in f32\n{frozen}",
        recipe.about,
        table(&heads, &columns, rows),
        count(params),
        mib(params * F32),
        count(macs),
        macs as f64 * batch as f64 / 1e9,
        mib(activations),
        count(batch),
    ))
}
