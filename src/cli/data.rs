//! `tilework data`: downloads, and what is in a data set.

use super::output::{Out, table};
use super::{Data, note};
use crate::data::{Source, default_dir, describe, detect, find};
use crate::error::Result;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::Path;

pub(super) fn fetch(name: &str, to: Option<&Path>, out: &mut Out) -> Result<()> {
    let source: Source = name.parse()?;
    let dest = to.map_or_else(default_dir, Path::to_path_buf);
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

pub(super) fn info(what: Option<&Path>, size: Option<usize>, out: &mut Out) -> Result<()> {
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
    let (source, path) = match named {
        Some(source) => (source, None),
        None => (detect(what)?, Some(what)),
    };
    let data = Data::sized(source, size, path)?;
    let place = data.path.as_ref().map_or_else(|| "generated".to_string(), |p| p.display().to_string());
    out.print(&format!("data     {source}\nwhere    {place}\n{}", describe(&data.splits)))
}

/// The name that `data fetch` takes.
pub(super) fn fetched_as(source: Source) -> Source {
    match source {
        Source::Cifar100Coarse => Source::Cifar100,
        other => other,
    }
}
