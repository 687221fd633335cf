//! The command line: what it takes is defined here, what a command does in its own file.
//!
//! Results go to standard output, progress and errors to standard error. A reader that goes away
//! (`tilework recipes | head -1`) is no error.

mod activations;
mod bench;
mod check;
mod compare;
mod completions;
mod data;
mod data_show;
mod doctor;
mod eval;
mod export;
mod kernels;
mod lr_curve;
mod lr_find;
mod machine;
mod opened;
mod output;
mod predict;
mod progress;
mod recipes;
mod report;
mod signals;
mod summary;
mod sweep;
mod trace;
mod train;

use crate::device::cuda::{Arch, Order};
use crate::error::{Error, Result};
use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use machine::Machine;
use opened::{Data, describe};
use output::Out;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Trains convolutional networks, from scratch and on any machine.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "Start with:\n  tilework train                 train a small network on embedded data, under a minute\n  tilework recipes               what else there is to train\n  tilework data fetch cifar10    download CIFAR-10\n\nEnvironment:\n  TILEWORK_DATA                  where data sets are kept, instead of the user's cache folder\n  TILEWORK_CACHE                 where compiled CUDA kernels are kept, likewise\n  NO_COLOR                       no colours"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(TrainArgs),
    Eval(eval::EvalArgs),
    Report(report::ReportArgs),
    Compare(compare::CompareArgs),
    Sweep(sweep::SweepArgs),
    LrFind(LrFindArgs),
    Predict(predict::PredictArgs),
    Activations(activations::ActivationsArgs),
    Export(export::ExportArgs),
    Summary(summary::SummaryArgs),
    /// List the built-in recipes, or print one as a start for your own
    #[command(after_help = recipes::layers())]
    Recipes {
        /// The recipe to print
        name: Option<String>,
        /// Print how to write one: every key with its default, schedules, augmentation, layers
        #[arg(long, conflicts_with = "name")]
        keys: bool,
    },
    /// Download data sets and show what is in them
    #[command(subcommand)]
    Data(data::DataCommand),
    /// Show what this machine offers, and what to do about what is missing
    Doctor,
    Check(CheckArgs),
    Bench(BenchArgs),
    Kernels(KernelsArgs),
    Trace(TraceArgs),
    /// Print the completion script of a shell, e.g. `tilework completions bash`
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Train a network
///
/// The run leaves a folder RECIPE-NNN with everything that is known about it. Ctrl-C finishes the step and saves; a
/// second Ctrl-C quits at once.
#[derive(Clone, Debug, Args)]
struct TrainArgs {
    /// A built-in recipe (see `tilework recipes`) or the path of a recipe file ending in .toml
    #[arg(default_value = "quickstart")]
    recipe: String,
    /// The data: a folder or .tar.gz [default: $TILEWORK_DATA, ./data or the user's cache folder]
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    #[command(flatten)]
    machine: Machine,
    /// Passes over the training data [default: the recipe's]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u32>::new().range(1..))]
    epochs: Option<u32>,
    /// Stop after N steps, counted over the whole run; --resume with a larger N goes on [default: no limit]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    max_steps: Option<u64>,
    /// Images per step [default: the recipe's]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u32>::new().range(1..))]
    batch_size: Option<u32>,
    /// What activations and weights are stored in; f16 and bf16 run on tensor cores [default: the recipe's]
    #[arg(long, value_parser = ["f32", "f16", "bf16"])]
    precision: Option<String>,
    /// Learning rate [default: the recipe's]
    #[arg(long, value_name = "X", value_parser = rate, allow_negative_numbers = true)]
    lr: Option<f64>,
    /// Key of all randomness: equal seeds give equal runs [default: the recipe's]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u64>::new().range(..=i64::MAX as u64))]
    seed: Option<u64>,
    /// Start from these weights, a state dict such as RUN/best/model.safetensors
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Take the training images in the files' order, in every epoch
    #[arg(long)]
    no_shuffle: bool,
    /// On a CUDA device: launch every kernel of every step instead of replaying a recorded step; slower, the same numbers
    #[arg(long)]
    no_graph: bool,
    /// Print a line every N steps: the means over these N mini-batches
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    log_every: Option<u64>,
    /// Also write an event file for `tensorboard --logdir runs`; a run that goes on keeps to it
    #[arg(long)]
    tensorboard: bool,
    /// The folder in which the run's folder is made
    #[arg(long, value_name = "DIR", default_value = "runs")]
    out: PathBuf,
    /// Go on with this run from where it was saved last, bit for bit as if it had never stopped
    #[arg(long, value_name = "RUN",
          conflicts_with_all = ["recipe", "batch_size", "precision", "lr", "seed", "init", "no_shuffle", "out", "set"])]
    resume: Option<PathBuf>,
    #[command(flatten)]
    set: Set,
}

/// Find a learning rate: train at rising rates for a moment, and see where the loss falls
///
/// Nothing is saved but the curve, lr-find.svg. Printed are the curve, three suggestions, and the command that trains with
/// one of them.
#[derive(Debug, Args)]
struct LrFindArgs {
    /// A built-in recipe (see `tilework recipes`) or the path of a recipe file ending in .toml
    #[arg(default_value = "quickstart")]
    recipe: String,
    /// The data: a folder or .tar.gz [default: $TILEWORK_DATA, ./data or the user's cache folder]
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// The first rate
    #[arg(long, value_name = "X", default_value = "1e-7", value_parser = rate, allow_negative_numbers = true)]
    start: f64,
    /// The last rate
    #[arg(long, value_name = "X", default_value = "10", value_parser = rate, allow_negative_numbers = true)]
    end: f64,
    /// Weights to start from, safetensors or .pth [default: the recipe's, or random]
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Updates from the first rate to the last [default: those of 12,800 images, at least 100]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(10..=20_000))]
    steps: Option<usize>,
    /// The folder for lr-find.svg
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    set: Set,
}

/// Compare every op on a device with the CPU
#[derive(Debug, Args)]
struct CheckArgs {
    /// The ops [default: all]
    #[arg(value_name = "OP")]
    ops: Vec<String>,
    /// Also the large cases, which benches time; slow on the emulated device
    #[arg(long)]
    large: bool,
    #[command(flatten)]
    machine: Machine,
}

/// Time the kernels of a recipe's training step
///
/// Each kernel's time, bytes and floating-point operations, and its share of what the device reaches
/// at most, measured in the same run. The images are drawn: no data set is needed.
#[derive(Debug, Args)]
struct BenchArgs {
    /// Only the kernels of this op, e.g. conv2d [default: all]
    op: Option<String>,
    /// A built-in recipe or the path of a recipe file; its data must be 32x32 images in 10 classes
    #[arg(long, default_value = "b1-bn-cnn")]
    recipe: String,
    /// Images per step [default: the recipe's]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u32>::new().range(1..))]
    batch_size: Option<u32>,
    /// What activations and weights are stored in; f16 and bf16 run on tensor cores [default: the recipe's]
    #[arg(long, value_parser = ["f32", "f16", "bf16"])]
    precision: Option<String>,
    /// Steps in a row whose time is taken
    #[arg(long, value_name = "N", default_value = "10", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    steps: usize,
    /// Cut products into this tile only, e.g. Mma64 (kernels/product.cuh) [default: what is estimated to be fastest]
    #[arg(long, value_name = "NAME", value_parser = tile)]
    tile: Option<&'static str>,
    /// Also write the step's kernels in Chrome's trace format, for chrome://tracing or ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    set: Set,
}

/// Compile the CUDA kernels and show what each takes of a GPU; needs no GPU
///
/// Registers per thread and what its header allows, bytes spilled to memory, shared memory and threads per block, blocks
/// that fit on a multiprocessor, the share of its warps that they fill, and what stops one more block.
#[derive(Debug, Args)]
struct KernelsArgs {
    /// Only the kernels of this op, e.g. conv2d [default: all]
    op: Option<String>,
    /// The architecture to compile for, e.g. sm_80 or sm_90a [default: the GPU's, or sm_90 without one]
    #[arg(long, value_name = "ARCH")]
    arch: Option<Arch>,
}

/// Show what the threads of a block do, step by step, on the emulated device
///
/// Every read and write with its place and value, every barrier and exchange with its source line. The kernel is the
/// first that the case launches unless --kernel says otherwise.
#[derive(Debug, Args)]
struct TraceArgs {
    /// The op
    op: String,
    /// Which of the op's cases
    #[arg(long, value_name = "N", default_value = "0")]
    case: usize,
    /// List the op's cases
    #[arg(long)]
    list: bool,
    /// The kernel, or how its name begins, e.g. relu_bwd [default: the first that the case launches]
    #[arg(long)]
    kernel: Option<String>,
    /// blockIdx, as X, X,Y or X,Y,Z
    #[arg(long, value_name = "X,Y,Z", default_value = "0", value_parser = block_index)]
    block: [u32; 3],
    /// Indices of the block's threads
    #[arg(long, value_name = "A..B", default_value = "0..1", value_parser = thread_range)]
    threads: Range<u32>,
    /// The order in which threads run: forward, reverse or random:SEED
    #[arg(long, default_value = "forward", value_parser = thread_order)]
    order: Order,
}

#[derive(Clone, Debug, Args)]
struct Set {
    /// Replace a value of the recipe, e.g. --set optimizer.momentum=0.95; may be repeated
    #[arg(id = "set", long = "set", value_name = "KEY=VALUE", value_parser = assignment)]
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    /// The checkpoint with the best accuracy: on the validation set where there is one, else on the test set
    Best,
    /// The latest checkpoint
    Last,
}

fn rate(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_string())?;
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err("a learning rate is finite and not negative".into()) }
}

fn tile(text: &str) -> Result<&'static str, String> {
    let mut names = Vec::new();
    for name in crate::kernels::all().filter_map(|k| Some(k.tile?.name)) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.push(crate::ops::STRIPS);
    let found = names.iter().find(|name| **name == text);
    found.copied().ok_or_else(|| format!("the tiles are {}", names.join(", ")))
}

fn block_index(text: &str) -> Result<[u32; 3], String> {
    let mut at = [0; 3];
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > 3 {
        return Err("write it as X, X,Y or X,Y,Z".into());
    }
    for (at, part) in at.iter_mut().zip(parts) {
        *at = part.trim().parse().map_err(|_| format!("`{part}` is not a number"))?;
    }
    Ok(at)
}

fn thread_range(text: &str) -> Result<Range<u32>, String> {
    let number = |t: &str| t.trim().parse::<u32>().map_err(|_| "write it as A..B, e.g. 0..4".to_string());
    let (first, end) = match text.split_once("..") {
        Some((first, end)) => (number(first)?, number(end)?),
        None => (number(text)?, number(text)?.saturating_add(1)),
    };
    if first < end { Ok(first..end) } else { Err("the range is empty".into()) }
}

fn thread_order(text: &str) -> Result<Order, String> {
    match (text, text.strip_prefix("random:").map(str::parse)) {
        ("forward", _) => Ok(Order::Forward),
        ("reverse", _) => Ok(Order::Reverse),
        (_, Some(Ok(seed))) => Ok(Order::Random(seed)),
        _ => Err("it is forward, reverse or random:SEED".into()),
    }
}

fn assignment(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.trim().is_empty() => Ok(text.to_string()),
        _ => Err("write it as KEY=VALUE, e.g. optimizer.lr=0.1".into()),
    }
}

/// Runs a command.
///
/// # Errors
/// Whatever the command reports; [`report`] prints it.
pub fn run(cli: &Cli) -> Result<ExitCode> {
    let mut out = Out::new();
    match &cli.command {
        Command::Train(args) => return args.machine.install(|| train::run(args, out)),
        Command::Eval(args) => args.machine.install(|| eval::run(args, &mut out))?,
        Command::Report(args) => args.machine.install(|| report::run(args, &mut out))?,
        Command::Compare(args) => compare::run(args, &mut out)?,
        Command::Sweep(args) => return args.train.machine.install(|| sweep::run(args, out)),
        Command::LrFind(args) => args.machine.install(|| lr_find::run(args, &mut out))?,
        Command::Predict(args) => return args.machine.install(|| predict::run(args, &mut out)),
        Command::Activations(args) => args.machine.install(|| activations::run(args, &mut out))?,
        Command::Export(args) => export::run(args, &mut out)?,
        Command::Summary(args) => summary::run(args, &mut out)?,
        Command::Recipes { keys: true, .. } => out.print(crate::recipes::KEYS)?,
        Command::Recipes { name, .. } => recipes::run(name.as_deref(), &mut out)?,
        Command::Data(command) => data::run(command, &mut out)?,
        Command::Doctor => doctor::run(&mut out)?,
        Command::Check(args) => args.machine.install(|| check::run(args, &mut out))?,
        Command::Trace(args) => trace::run(args, &mut out)?,
        Command::Bench(args) => args.machine.install(|| bench::run(args, &mut out))?,
        Command::Kernels(args) => kernels::run(args, &mut out)?,
        Command::Completions { shell } => completions::run(*shell, &mut out)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints an error to standard error.
pub fn report(error: &Error) -> ExitCode {
    note(&format!("error: {error}"));
    ExitCode::FAILURE
}

/// A line on standard error, for people. Nobody may be there to read it.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io("resolve", path))
}

/// A number with its thousands separated.
fn count(n: usize) -> String {
    crate::data::grouped(n as u64)
}

/// "1 thread", "2 threads".
fn counted(n: usize, thing: &str) -> String {
    format!("{} {thing}{}", count(n), if n == 1 { "" } else { "s" })
}

/// The accuracies of all classes, one a line.
fn per_class(per_class: &[(String, f64)]) -> String {
    let rows = per_class.iter().map(|(name, a)| vec![name.clone(), format!("{:.2} %", a * 100.0)]);
    output::table(&["class", "accuracy"], "<>", rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn values_are_checked() {
        let parse =
            |args: &[&str]| Cli::try_parse_from(["tilework", "train"].iter().chain(args)).map_err(|e| e.to_string());
        for bad in [
            &["--threads", "0"][..],
            &["--lr", "nan"],
            &["--lr=-1"],
            &["--epochs", "0"],
            &["--max-steps", "0"],
            &["--batch-size", "0"],
            &["--set", "epochs"],
            &["--set", "=1"],
            &["--device", "gpu"],
            &["--seed", "9223372036854775808"],
            &["quickstart", "--resume", "runs/x-001"],
            &["--resume", "runs/x-001", "--lr", "1"],
            &["--resume", "runs/x-001", "--set", "a=1"],
            &["--resume", "runs/x-001", "--out", "runs"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert!(
            parse(&["--resume", "runs/x-001", "--epochs", "3", "--max-steps", "9", "--threads", "1", "--data", "d"])
                .is_ok()
        );
        let e = parse(&["--device", "gpu"]).unwrap_err();
        assert!(e.contains("auto") && e.contains("cpu"), "{e}");
        let arch = |text: &str| text.parse::<Arch>();
        assert_eq!(
            (arch("sm_90"), arch("75"), arch("sm_90a")),
            (Ok(Arch::new(90)), Ok(Arch::new(75)), Ok(Arch::specific(90)))
        );
        assert!(arch("sm_90f").is_err() && arch("hopper").is_err());
    }
}
