//! `report.html`: what there is to see of a run, in one file.

use super::eval::Restored;
use super::{Machine, Out, Which, count, counted};
use crate::data::{Dataset, Split};
use crate::error::Result;
use crate::figures::{Bars, Matrix, Page, picture, png, table};
use crate::formats::file;
use crate::train::run::Config;
use crate::train::{EpochRow, Evaluation, History, Judged, RunDir};
use base64::Engine;
use clap::Args;
use std::path::{Path, PathBuf};

/// Pictures in each part.
const PICTURES: usize = 18;

/// Write a run's report: curves, classes, confusions, worst images, in one HTML file
#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// The run's folder, e.g. runs/quickstart-001
    pub(super) run: PathBuf,
    /// The file to write [default: report.html in the run's folder]
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
    /// The data: a folder or .tar.gz [default: where the run had it from]
    #[arg(long, value_name = "PATH")]
    pub(super) data: Option<PathBuf>,
    /// Which checkpoint [default: best, or last if there is no best]
    #[arg(long)]
    pub(super) which: Option<Which>,
    #[command(flatten)]
    pub(super) machine: Machine,
}

pub(super) fn run(args: &ReportArgs, out: &mut Out) -> Result<()> {
    let run = RunDir::open(&args.run)?;
    let config = Config::read(&run)?;
    let path = args.out.clone().unwrap_or_else(|| place(&run));
    file::check_file(&path)?;
    let none = !run.path().join("best").exists() && !run.path().join("last").exists();
    if none && args.which.is_none() {
        // Killed before anything was saved; the steps are still worth seeing.
        write(&run, &config, None, &path)?;
        return out.print(&format!("nothing was saved yet: the curves alone\nreport    {}\n", path.display()));
    }
    let Restored { mut trainer, checkpoint, .. } =
        Restored::open(&run, &config, args.which, args.data.as_deref(), &args.machine)?;
    let found = trainer.evaluate(Split::Test, &mut |_| Ok(()))?;
    let parameters = trainer.engine.model.params.count();
    let seen = Seen { found: &found, images: trainer.test_data(), parameters, checkpoint };
    write(&run, &config, Some(&seen), &path)?;
    let of = format!("of the checkpoint {}", seen.checkpoint);
    out.print(&format!("accuracy  {:.2} %, {of}\nreport    {}\n", found.accuracy * 100.0, path.display()))
}

/// What a network did on the test set.
pub(super) struct Seen<'a> {
    pub(super) found: &'a Evaluation,
    pub(super) images: &'a Dataset,
    pub(super) parameters: usize,
    /// Which state of the run it is.
    pub(super) checkpoint: String,
}

/// "reported 78 %, this run 79.10 %", where the recipe's source reports an accuracy.
pub(super) fn beside_reported(reported: Option<f64>, accuracy: f64) -> Option<String> {
    reported.map(|r| format!("reported {r} %, this run {:.2} %", accuracy * 100.0))
}

/// Writes the report of a run.
pub(super) fn write(run: &RunDir, config: &Config, seen: Option<&Seen<'_>>, path: &Path) -> Result<()> {
    let history = History::read(run)?;
    let whole = history.whole(run.position().as_ref());
    let name = run.path().file_name().map_or_else(|| config.run.name.clone(), |n| n.to_string_lossy().into_owned());
    let mut page = Page::new(format!("Run {name}"));
    if !config.recipe.about.is_empty() {
        page.text(&config.recipe.about);
    }
    if let Some(seen) = seen {
        let accuracy = seen.found.accuracy;
        page.headline(&match beside_reported(config.recipe.reported, accuracy) {
            Some(beside) => format!("Test accuracy: {beside}"),
            None => format!("Test accuracy {:.2} %", accuracy * 100.0),
        });
    }
    page.html(&table(&[], "<<", &facts(config, &history, whole, seen)));
    page.section("Curves");
    page.figures(&history.figures(&name, config.recipe.reported).map(|(_, svg)| svg));
    if let Some(seen) = seen {
        classes(&mut page, seen);
        pictures(&mut page, seen)?;
    }
    page.section("Recipe");
    page.code(&config.recipe.to_toml()?);
    file::write(path, page.finish().as_bytes())
}

/// The table at the top.
fn facts(config: &Config, history: &History, whole: u32, seen: Option<&Seen<'_>>) -> Vec<Vec<String>> {
    let Config { run, recipe } = config;
    let percent = |share: f64| format!("{:.2} %", share * 100.0);
    let mut rows: Vec<(&str, String)> = vec![("recipe", run.name.clone())];
    if let Some(Seen { found, parameters, checkpoint, .. }) = seen {
        rows.push(("checkpoint", checkpoint.clone()));
        rows.push((
            "on the test set",
            format!("{}, loss {:.4}, {} images", percent(found.accuracy), found.loss, count(found.count)),
        ));
        rows.push(("parameters", count(*parameters)));
    }
    if let Some(best) = history.best(whole) {
        rows.push(("best epoch", format!("{}, {} accuracy {}", best.epoch, history.split, percent(best.accuracy))));
    }
    rows.push(("data", recipe.data.source.to_string()));
    let done = format!("{whole} of {} epochs, {} steps", recipe.epochs, count(history.steps.len()));
    rows.push(("training", format!("{done} of {} images, seed {}", recipe.batch_size, recipe.seed)));
    let seconds: f64 = history.epochs.iter().map(|e: &EpochRow| e.seconds).sum();
    if seconds > 0.0 {
        let each = seconds / history.epochs.len() as f64;
        rows.push(("time", format!("{seconds:.1} s of training steps, {each:.1} s an epoch")));
    }
    let commit = run.git_commit.as_ref().map_or_else(String::new, |c| format!(", commit {c}"));
    let threads = counted(run.threads, "thread");
    rows.push(("environment", format!("{}, {threads}, tilework {}{commit}", run.device, run.tilework)));
    rows.extend(run.init.as_ref().map(|p| ("initial weights", p.display().to_string())));
    rows.into_iter().map(|(name, value)| vec![name.to_string(), value]).collect()
}

/// Accuracy by class, and which are taken for which.
fn classes(page: &mut Page, seen: &Seen<'_>) {
    let names: Vec<String> = seen.found.per_class.iter().map(|(n, _)| n.clone()).collect();
    let percent = seen.found.per_class.iter().map(|(_, a)| a * 100.0).collect();
    let bars = Bars::new("Test accuracy by class", names.clone()).group("test accuracy", percent);
    let matrix =
        Matrix { title: "Confusion matrix, test images".into(), names: names.clone(), counts: seen.found.confusion() };
    page.section("Classes");
    page.figures(&[bars.svg(), matrix.svg()]);
    page.section("Most confused");
    let total = |i: usize| matrix.counts[i].iter().sum::<usize>();
    let share = |i: usize, n: usize| format!("{:.1} %", 100.0 * n as f64 / total(i).max(1) as f64);
    let row = |(i, j, n): (usize, usize, usize)| vec![names[i].clone(), names[j].clone(), count(n), share(i, n)];
    let rows: Vec<Vec<String>> = matrix.confused(10).into_iter().map(row).collect();
    page.html(&table(&["true class", "taken for", "images", "of the true class"], "<<>>", &rows));
}

fn pictures(page: &mut Page, seen: &Seen<'_>) -> Result<()> {
    let images = &seen.found.images;
    let name = |i: usize| seen.images.classes.get(i).map_or("?", String::as_str);
    let shown = |&i: &usize| -> Result<(String, Vec<String>)> {
        let Judged { label, predicted, confidence, loss } = images[i];
        let mark = if label == predicted { "✓" } else { "✗" };
        let said = format!("{mark} {} ({:.1} %)", name(predicted), confidence * 100.0);
        let lines = vec![name(label).to_string(), said, format!("loss {loss:.2}"), format!("image {i}")];
        Ok((data_uri(seen.images, i)?, lines))
    };
    let mut worst: Vec<usize> = (0..images.len()).collect();
    worst.sort_by(|&a, &b| images[b].loss.total_cmp(&images[a].loss));
    worst.truncate(PICTURES);
    // From all over the set, but not at a step by which classes that take turns would be left out.
    let classes = seen.images.classes.len();
    let shared = |step: usize| (2..=classes).any(|d| step.is_multiple_of(d) && classes.is_multiple_of(d));
    let every = (1..=images.len() / PICTURES).rev().find(|&step| !shared(step)).unwrap_or(1);
    let sample: Vec<usize> = (0..images.len()).step_by(every).take(PICTURES).collect();
    let text = "The true class; what the network says and how sure it is; the loss; the image's place in the test set.";
    for (title, which) in [("Top losses", worst), ("Sample predictions", sample)] {
        page.section(title);
        page.text(text);
        page.pictures(&which.iter().map(shown).collect::<Result<Vec<_>>>()?);
    }
    Ok(())
}

/// An image as a PNG in a URI.
fn data_uri(data: &Dataset, i: usize) -> Result<String> {
    let bytes = png(&picture(data.image(i), [data.height, data.width, data.channels]))?;
    Ok(format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes)))
}

/// Where the report of a run is written.
pub(super) fn place(run: &RunDir) -> PathBuf {
    run.path().join("report.html")
}
