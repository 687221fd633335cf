//! `tilework compare`: runs beside each other.

use super::count;
use super::output::{Out, table};
use super::progress::clock;
use crate::error::{Error, Result};
use crate::figures::{self, Bars, Chart, Page};
use crate::train::run::Config;
use crate::train::{History, RunDir, Summary};
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Compare runs: accuracy, loss, parameters, time; and their curves
#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// The runs' folders
    #[arg(value_name = "RUN", required = true)]
    pub(super) runs: Vec<PathBuf>,
    /// Write overlaid curves and bars by class to this HTML file
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
    /// Print a JSON array, an object a run; accuracies as fractions, `reported` in percent
    #[arg(long, conflicts_with = "csv")]
    pub(super) json: bool,
    /// Print the same as CSV
    #[arg(long)]
    pub(super) csv: bool,
}

/// A run and what it left.
struct Run {
    name: String,
    config: Config,
    history: History,
    summary: Option<Summary>,
}

/// A row of the table, as `--json` prints it.
#[derive(Serialize)]
pub(super) struct Row {
    run: String,
    recipe: String,
    epochs: usize,
    /// Of how many epochs.
    of: u32,
    test_accuracy: Option<f64>,
    best_accuracy: Option<f64>,
    best_epoch: Option<u32>,
    test_loss: Option<f64>,
    train_accuracy: Option<f64>,
    parameters: Option<usize>,
    seconds: f64,
    reported: Option<f64>,
}

const HEADS: [&str; 9] =
    ["run", "epochs", "test acc.", "best", "test loss", "train acc.", "parameters", "time", "reported"];
const ALIGN: &str = "<>>>>>>>>";

pub(super) fn run(args: &CompareArgs, out: &mut Out) -> Result<()> {
    let runs = args.runs.iter().map(|path| read(path)).collect::<Result<Vec<Run>>>()?;
    let rows: Vec<Row> = runs.iter().map(row).collect();
    let wide: Vec<Vec<String>> = rows.iter().map(Row::cells).collect();
    if let Some(path) = &args.out {
        std::fs::write(path, page(&runs, &wide)).map_err(Error::io("write the comparison", path))?;
    }
    if args.json {
        let text = serde_json::to_string_pretty(&rows).map_err(|e| Error::Internal(format!("rows to JSON: {e}")))?;
        return out.print(&(text + "\n"));
    }
    if args.csv {
        return out.print(&csv(&rows));
    }
    let see = match &args.out {
        Some(path) => format!("curves and bars: {}", path.display()),
        None => "for curves and bars, add --out compare.html".into(),
    };
    out.print(&format!("{}\n{see}\n", table(&HEADS, ALIGN, wide)))
}

fn read(path: &Path) -> Result<Run> {
    let run = RunDir::open(path)?;
    let full = super::absolute(path)?;
    let name = full.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok(Run { name, config: Config::read(&run)?, history: History::read(&run)?, summary: Summary::read(&run)? })
}

fn row(run: &Run) -> Row {
    let (last, best) = (run.history.epochs.last(), run.history.best());
    Row {
        run: run.name.clone(),
        recipe: run.config.run.name.clone(),
        epochs: run.history.epochs.len(),
        of: run.config.recipe.epochs,
        test_accuracy: last.map(|e| e.test_accuracy),
        best_accuracy: best.map(|e| e.test_accuracy),
        best_epoch: best.map(|e| e.epoch),
        test_loss: last.map(|e| e.test_loss),
        train_accuracy: last.map(|e| e.train_accuracy),
        parameters: run.summary.as_ref().map(|s| s.parameters),
        seconds: run.history.epochs.iter().map(|e| e.seconds).sum(),
        reported: run.config.recipe.reported,
    }
}

impl Row {
    /// As people read it.
    fn cells(&self) -> Vec<String> {
        let some = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let percent = |share: Option<f64>| some(share.map(|a| format!("{:.2} %", a * 100.0)));
        vec![
            self.run.clone(),
            format!("{}/{}", self.epochs, self.of),
            percent(self.test_accuracy),
            percent(self.best_accuracy),
            some(self.test_loss.map(|l| format!("{l:.4}"))),
            percent(self.train_accuracy),
            some(self.parameters.map(count)),
            clock(self.seconds),
            some(self.reported.map(|r| format!("{r} %"))),
        ]
    }
}

/// The rows as CSV; accuracies are shares, `reported` is in percent.
fn csv(rows: &[Row]) -> String {
    let head = "run,recipe,epochs,of,test_accuracy,best_accuracy,best_epoch,test_loss,train_accuracy,parameters,seconds,reported\n";
    let line = |r: &Row| {
        let number = |n: Option<f64>| n.map_or_else(String::new, |n| n.to_string());
        let cells = [
            quoted(&r.run),
            quoted(&r.recipe),
            r.epochs.to_string(),
            r.of.to_string(),
            number(r.test_accuracy),
            number(r.best_accuracy),
            r.best_epoch.map_or_else(String::new, |n| n.to_string()),
            number(r.test_loss),
            number(r.train_accuracy),
            r.parameters.map_or_else(String::new, |n| n.to_string()),
            format!("{:.3}", r.seconds),
            number(r.reported),
        ];
        cells.join(",") + "\n"
    };
    head.to_string() + &rows.iter().map(line).collect::<String>()
}

/// A text as a CSV cell.
pub(super) fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_string() }
}

/// The comparison with its figures.
fn page(runs: &[Run], rows: &[Vec<String>]) -> String {
    let mut page = Page::new(format!("{} runs compared", runs.len()));
    page.html(&figures::table(&HEADS, ALIGN, rows));
    let chart = |title: &str, unit: &str, of: fn(&History) -> Vec<[f64; 2]>| {
        let empty = Chart::new(title, "epoch", unit);
        runs.iter().fold(empty, |c, r| c.line(&r.name, of(&r.history))).svg()
    };
    page.section("Curves");
    page.figures(&[
        chart("Training accuracy", "accuracy in percent", |h| h.by_epoch(|e| e.train_accuracy * 100.0)),
        chart("Test accuracy", "accuracy in percent", |h| h.by_epoch(|e| e.test_accuracy * 100.0)),
        chart("Training loss", "mean loss of an image", |h| h.by_epoch(|e| e.train_loss)),
        chart("Test loss", "mean loss of an image", |h| h.by_epoch(|e| e.test_loss)),
    ]);
    page.section("Test accuracy by class, after the last epoch");
    let mut done: Vec<&Vec<String>> = Vec::new();
    let names = |r: &Run| r.summary.as_ref().map(|s| s.per_class.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>());
    let all: Vec<Option<Vec<String>>> = runs.iter().map(names).collect();
    // Runs on other classes have a figure of their own.
    for classes in all.iter().flatten() {
        if done.contains(&classes) {
            continue;
        }
        done.push(classes);
        let mut bars = Bars::new(format!("Test accuracy by class, {} classes", classes.len()), classes.clone());
        for (run, _) in runs.iter().zip(&all).filter(|(_, names)| names.as_ref() == Some(classes)) {
            let values = run.summary.iter().flat_map(|s| s.per_class.iter().map(|(_, a)| a * 100.0)).collect();
            bars = bars.group(&run.name, values);
        }
        page.figures(&[bars.svg()]);
    }
    page.finish()
}
