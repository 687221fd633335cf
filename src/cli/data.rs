//! `tilework data`: downloads, and what is in a data set.

use super::data_show::{self, ShowArgs};
use super::output::{Out, table};
use super::{Data, note};
use crate::data::{Source, default_dir, describe, detect, find};
use crate::error::Result;
use crate::formats::file;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(super) enum DataCommand {
    /// Download a data set; a download that was cut goes on where it stopped
    Fetch {
        /// The data set
        #[arg(value_parser = ["cifar10", "cifar100"])]
        name: String,
        /// The folder to put it in [default: $TILEWORK_DATA or the user's cache folder]
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
    },
    /// Show a data set: classes, images, mean and deviation of the channels
    Info {
        /// shapes, cifar10, cifar100, cifar100-coarse, or the path of a folder or .tar.gz [default: list all]
        #[arg(value_name = "NAME|PATH")]
        what: Option<PathBuf>,
        /// Resize the images of a folder to N pixels each way, as `data.size` does
        #[arg(long, value_name = "N")]
        size: Option<usize>,
    },
    Show(ShowArgs),
}

pub(super) fn run(command: &DataCommand, out: &mut Out) -> Result<()> {
    match command {
        DataCommand::Fetch { name, to } => fetch(name, to.as_deref(), out),
        DataCommand::Info { what, size } => info(what.as_deref(), *size, out),
        DataCommand::Show(args) => data_show::run(args, out),
    }
}

fn fetch(name: &str, to: Option<&Path>, out: &mut Out) -> Result<()> {
    let source: Source = name.parse()?;
    let dest = to.map_or_else(default_dir, Path::to_path_buf);
    file::check_folder(&dest)?;
    note(&format!("fetching {source} to {}", dest.display()));
    let path = match super::progress::is_terminal() {
        true => {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            let fetched = crate::data::fetch::fetch(source, &dest, &mut |done, total| {
                bar.set_length(total.unwrap_or(done));
                bar.set_position(done);
            });
            bar.finish_and_clear();
            fetched?
        }
        false => {
            let mut tenths = 0;
            crate::data::fetch::fetch(source, &dest, &mut |done, total| {
                let total = total.unwrap_or(0).max(1);
                if done * 10 / total > tenths {
                    tenths = done * 10 / total;
                    note(&format!("{:>3} %  {} of {} MB", tenths * 10, done / 1_000_000, total / 1_000_000));
                }
            })?
        }
    };
    let hint = match to {
        Some(_) => format!("use it: tilework train RECIPE --data {}", path.display()),
        None => "it will be found without --data".to_string(),
    };
    out.print(&format!("{source} is at {}\n{hint}\n", path.display()))
}

fn info(what: Option<&Path>, size: Option<usize>, out: &mut Out) -> Result<()> {
    let Some(what) = what else {
        let place = |source| match (source, find(source, None)) {
            (Source::Shapes, _) => "generated, always there".to_string(),
            (Source::ImageFolder, _) => "yours: --data DIR, with train/CLASS/*.png and test/CLASS/*.png".to_string(),
            (_, Ok(path)) => path.display().to_string(),
            (_, Err(_)) => format!("not here; tilework data fetch {}", fetched_as(source)),
        };
        let rows = Source::ALL.into_iter().map(|s| vec![s.to_string(), place(s)]).collect();
        return out.print(&table(&["data set", "where"], "<<", rows));
    };
    let named = what.to_str().and_then(|w| w.parse::<Source>().ok());
    let (sources, path) = match named {
        Some(source) => (vec![source], None),
        None => (detect(what)?, Some(what)),
    };
    let (source, others) = (sources[0], &sources[1..]);
    let data = Data::sized(source, size, path)?;
    let place = data.path.as_ref().map_or_else(|| "generated".to_string(), |p| p.display().to_string());
    let mut also = String::new();
    for other in others {
        also += &format!("also     {other}, not read: tilework data info {}\n", find(*other, path)?.display());
    }
    out.print(&format!("data     {source}\nwhere    {place}\n{also}{}", describe(&data.splits)))
}

/// The name that `data fetch` takes.
pub(super) fn fetched_as(source: Source) -> Source {
    match source {
        Source::Cifar100Coarse => Source::Cifar100,
        other => other,
    }
}
