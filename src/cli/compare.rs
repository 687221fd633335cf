//! `tilework compare`: runs beside each other.

use super::count;
use super::output::{Out, table};
use super::progress::clock;
use crate::data::Split;
use crate::error::{Error, Result};
use crate::figures::{self, Bars, Chart, Page};
use crate::formats::file;
use crate::train::checkpoint::Position;
use crate::train::run::Config;
use crate::train::{History, RunDir, Summary};
use clap::Args;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Compare runs: accuracy, loss, parameters, time; and their curves
#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// The runs' folders, or folders of runs
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

/// A cell without a value.
const NONE: &str = "-";

/// A run and what it left.
pub(super) struct Run {
    pub(super) name: String,
    path: PathBuf,
    pub(super) config: Config,
    /// How far it has come, if it has saved that.
    pub(super) position: Option<Position>,
    pub(super) history: History,
    pub(super) summary: Option<Summary>,
}

/// A row of the table, as `--json` prints it.
#[derive(Serialize)]
pub(super) struct Row {
    run: String,
    recipe: String,
    /// Whole epochs.
    epochs: u32,
    /// Of how many epochs.
    of: u32,
    /// After the last epoch; of a run with a validation set, of the best checkpoint when the run is finished.
    test_accuracy: Option<f64>,
    test_loss: Option<f64>,
    /// After the last epoch, of a run with a validation set.
    val_accuracy: Option<f64>,
    val_loss: Option<f64>,
    /// On the validation set where there is one, else on the test set.
    best_accuracy: Option<f64>,
    best_epoch: Option<u32>,
    train_accuracy: Option<f64>,
    parameters: Option<usize>,
    seconds: f64,
    reported: Option<f64>,
    /// The recipe's keys in which the runs differ.
    differs: BTreeMap<String, String>,
}

const HEADS: [&str; 10] = [
    "epochs",
    "test acc.",
    "test loss",
    "val. acc.",
    "val. loss",
    "best epoch",
    "train acc.",
    "parameters",
    "time",
    "reported",
];

pub(super) fn run(args: &CompareArgs, out: &mut Out) -> Result<()> {
    args.out.as_deref().map_or(Ok(()), file::check_file)?;
    let mut runs: Vec<Run> = Vec::new();
    for path in &args.runs {
        for run in stands_for(path)? {
            if !runs.iter().any(|other| super::absolute(&other.path).ok() == super::absolute(&run.path).ok()) {
                runs.push(run);
            }
        }
    }
    let twice = (1..runs.len()).any(|i| runs[..i].iter().any(|r| r.name == runs[i].name));
    if twice {
        runs.iter_mut().for_each(|run| run.name = run.path.display().to_string());
    }
    let rows: Vec<Row> = runs.iter().zip(differences(&runs)?).map(|(run, differs)| row(run, differs)).collect();
    let (heads, cells) = with_values(&rows);
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    let align = format!("<{}", ">".repeat(heads.len() - 1));
    if let Some(path) = &args.out {
        file::write(path, page(&runs, figures::table(&heads, &align, &cells)).as_bytes())?;
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
    out.print(&format!("{}\n{see}\n", table(&heads, &align, cells)))
}

/// A run for itself, a folder of runs, such as a sweep's, for those in it.
fn stands_for(path: &Path) -> Result<Vec<Run>> {
    let inside = if path.join("config.toml").exists() { Vec::new() } else { runs_in(path) };
    if inside.is_empty() { Ok(vec![read(path)?]) } else { Ok(inside) }
}

/// The runs in a folder that can be read, in order.
pub(super) fn runs_in(folder: &Path) -> Vec<Run> {
    paths(folder).iter().filter_map(|path| read(path).ok()).collect()
}

/// What is in a folder, in order.
pub(super) fn paths(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|e| e.path()).collect();
    paths.sort();
    paths
}

pub(super) fn read(path: &Path) -> Result<Run> {
    let run = RunDir::open(path)?;
    let full = super::absolute(path)?;
    let name = full.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let (config, history, summary) = (Config::read(&run)?, History::read(&run)?, Summary::read(&run)?);
    Ok(Run { name, path: path.to_path_buf(), config, position: run.position(), history, summary })
}

/// Keys that make no difference to training.
const WORDS: [&str; 2] = ["about", "reported"];
/// The key of the weights that a run has started from, which is no key of its recipe.
const INIT: &str = "init";
/// Columns of keys, at most: with more the runs are of other networks, and their names tell them apart.
const KEYS: usize = 6;

/// For each run its values of the recipe's keys in which they differ.
fn differences(runs: &[Run]) -> Result<Vec<BTreeMap<String, String>>> {
    let mut all = runs.iter().map(values).collect::<Result<Vec<_>>>()?;
    // The epochs have a column of their own.
    let keys: Vec<String> = differing(&all).into_iter().filter(|key| key != "epochs").collect();
    for values in &mut all {
        let mine = |key: &String| (key.clone(), values.get(key).map_or_else(|| NONE.into(), |v| short(key, v)));
        *values = keys.iter().filter(|_| keys.len() <= KEYS).map(mine).collect();
    }
    Ok(all)
}

/// The values of a run's recipe by their keys, and the weights that it started from.
pub(super) fn values(run: &Run) -> Result<BTreeMap<String, String>> {
    let text = run.config.recipe.to_toml()?;
    let table: toml::Table = toml::from_str(&text).map_err(|e| Error::Internal(format!("a recipe as TOML: {e}")))?;
    let mut found = BTreeMap::new();
    leaves("", &toml::Value::Table(table), &mut found);
    if let Some(init) = &run.config.run.init {
        found.insert(INIT.into(), init.display().to_string());
    }
    Ok(found)
}

/// The keys in which recipes differ, but for those that make no difference to training.
pub(super) fn differing(all: &[BTreeMap<String, String>]) -> Vec<String> {
    let keys: BTreeSet<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    let differs = |key: &str| all.iter().any(|v| v.get(key) != all[0].get(key));
    keys.into_iter().filter(|k| !WORDS.contains(&k.as_str()) && differs(k)).cloned().collect()
}

/// A key's text for a column: a network's layers, say, are shown by their beginning, the path of weights by its end.
fn short(key: &str, text: &str) -> String {
    match text.chars().count() {
        0..=30 => text.into(),
        n if key == INIT => ['…'].into_iter().chain(text.chars().skip(n - 29)).collect(),
        _ => text.chars().take(29).chain(['…']).collect(),
    }
}

/// The values of a table, by their keys with dots.
fn leaves(path: &str, value: &toml::Value, found: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => table.iter().for_each(|(key, value)| {
            leaves(&if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, value, found);
        }),
        toml::Value::String(text) => drop(found.insert(path.into(), text.clone())),
        other => drop(found.insert(path.into(), other.to_string())),
    }
}

fn row(run: &Run, differs: BTreeMap<String, String>) -> Row {
    let whole = run.history.whole(run.position.as_ref());
    let (last, best, split) = (run.history.epochs.last(), run.history.best(whole), run.history.split);
    let tested = run.summary.as_ref().and_then(|s| s.test.as_ref());
    let after = |wanted: Split| last.filter(|_| split == wanted);
    Row {
        run: run.name.clone(),
        recipe: run.config.run.name.clone(),
        epochs: whole,
        of: run.config.recipe.epochs,
        test_accuracy: after(Split::Test).map(|e| e.accuracy).or(tested.map(|t| t.accuracy)),
        test_loss: after(Split::Test).map(|e| e.loss).or(tested.map(|t| t.loss)),
        val_accuracy: after(Split::Validation).map(|e| e.accuracy),
        val_loss: after(Split::Validation).map(|e| e.loss),
        best_accuracy: best.map(|e| e.accuracy),
        best_epoch: best.map(|e| e.epoch),
        train_accuracy: last.map(|e| e.train_accuracy),
        parameters: run.summary.as_ref().map(|s| s.parameters),
        seconds: run.history.epochs.iter().map(|e| e.seconds).sum(),
        reported: run.config.recipe.reported,
        differs,
    }
}

impl Row {
    /// As people read it.
    fn cells(&self) -> Vec<String> {
        let some = |text: Option<String>| text.unwrap_or_else(|| NONE.into());
        let percent = |share: Option<f64>| some(share.map(|a| format!("{:.2} %", a * 100.0)));
        let loss = |loss: Option<f64>| some(loss.map(|l| format!("{l:.4}")));
        vec![
            format!("{}/{}", self.epochs, self.of),
            percent(self.test_accuracy),
            loss(self.test_loss),
            percent(self.val_accuracy),
            loss(self.val_loss),
            some(self.best_epoch.map(|n| format!("{} ({n})", percent(self.best_accuracy)))),
            percent(self.train_accuracy),
            some(self.parameters.map(count)),
            clock(self.seconds),
            some(self.reported.map(|r| format!("{r} %"))),
        ]
    }
}

/// The heads and rows: the run, what it differs in, and the columns in which a row has a value.
fn with_values(rows: &[Row]) -> (Vec<String>, Vec<Vec<String>>) {
    let cells: Vec<Vec<String>> = rows.iter().map(Row::cells).collect();
    let used: Vec<usize> = (0..HEADS.len()).filter(|&i| cells.iter().any(|row| row[i] != NONE)).collect();
    let keys = rows.iter().flat_map(|r| r.differs.keys().cloned()).take(rows.first().map_or(0, |r| r.differs.len()));
    let heads = ["run".to_string()].into_iter().chain(keys).chain(used.iter().map(|&i| HEADS[i].to_string()));
    let line = |(row, cells): (&Row, &Vec<String>)| {
        let values = row.differs.values().cloned().chain(used.iter().map(|&i| cells[i].clone()));
        [row.run.clone()].into_iter().chain(values).collect()
    };
    (heads.collect(), rows.iter().zip(&cells).map(line).collect())
}

/// What all runs were measured on after each epoch: "test", "validation", or both.
fn measured_on(runs: &[Run]) -> &'static str {
    let any = |split: Split| runs.iter().any(|r| r.history.split == split);
    match (any(Split::Validation), any(Split::Test)) {
        (true, true) => "validation or test",
        (true, false) => "validation",
        _ => "test",
    }
}

/// The rows as CSV; accuracies are shares, `reported` is in percent.
fn csv(rows: &[Row]) -> String {
    let head = "run,recipe,epochs,of,test_accuracy,test_loss,val_accuracy,val_loss,best_accuracy,best_epoch,train_accuracy,parameters,seconds,reported\n";
    let line = |r: &Row| {
        let number = |n: Option<f64>| n.map_or_else(String::new, |n| n.to_string());
        let cells = [
            quoted(&r.run),
            quoted(&r.recipe),
            r.epochs.to_string(),
            r.of.to_string(),
            number(r.test_accuracy),
            number(r.test_loss),
            number(r.val_accuracy),
            number(r.val_loss),
            number(r.best_accuracy),
            r.best_epoch.map_or_else(String::new, |n| n.to_string()),
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
fn page(runs: &[Run], table: String) -> String {
    let (mut page, set) = (Page::new(format!("{} runs compared", runs.len())), measured_on(runs));
    page.html(&table);
    let chart = |title: &str, unit: &str, of: fn(&History) -> Vec<[f64; 2]>| {
        let empty = Chart::new(title, "epoch", unit);
        runs.iter().fold(empty, |c, r| c.line(&r.name, of(&r.history))).svg()
    };
    page.section("Curves");
    page.figures(&[
        chart("Training accuracy", "accuracy in percent", |h| h.by_epoch(|e| e.train_accuracy * 100.0)),
        chart(&format!("Accuracy, {set} images"), "accuracy in percent", |h| h.by_epoch(|e| e.accuracy * 100.0)),
        chart("Training loss", "mean loss of an image", |h| h.by_epoch(|e| e.train_loss)),
        chart(&format!("Loss, {set} images"), "mean loss of an image", |h| h.by_epoch(|e| e.loss)),
    ]);
    page.section(&format!("Accuracy by class after the last epoch, {set} images"));
    let mut done: Vec<&Vec<String>> = Vec::new();
    let names = |r: &Run| r.summary.as_ref().map(|s| s.per_class.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>());
    let all: Vec<Option<Vec<String>>> = runs.iter().map(names).collect();
    // Runs on other classes have a figure of their own.
    for classes in all.iter().flatten() {
        if done.contains(&classes) {
            continue;
        }
        done.push(classes);
        let mut bars = Bars::new(format!("Accuracy by class, {} classes", classes.len()), classes.clone());
        for (run, _) in runs.iter().zip(&all).filter(|(_, names)| names.as_ref() == Some(classes)) {
            let values = run.summary.iter().flat_map(|s| s.per_class.iter().map(|(_, a)| a * 100.0)).collect();
            bars = bars.group(&run.name, values);
        }
        page.figures(&[bars.svg()]);
    }
    page.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_keep_the_end_that_tells_them_apart() {
        let path = "/somewhere/far/away/runs/a1-lenet-001/best/model.safetensors";
        assert_eq!(short(INIT, path), "…et-001/best/model.safetensors");
        assert_eq!(short("layers", path), "/somewhere/far/away/runs/a1-l…");
        assert_eq!(short(INIT, "w.pth"), "w.pth");
    }
}
