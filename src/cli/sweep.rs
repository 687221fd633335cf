//! `tilework sweep`: a recipe with each of several values, one run after the other.
//!
//! A run belongs to a combination of values if its recipe, with everything resolved, is that combination's: so a sweep
//! that was stopped goes on where it was, and one with more values adds the runs that are missing. `sweep.csv` has the rows of
//! all finished runs in the folder, so that another sweep of the recipe takes none away.

use super::compare::{self, Run};
use super::output::{Out, table};
use super::progress::clock;
use super::{TrainArgs, absolute, count, counted, note, train};
use crate::data::Split;
use crate::error::{Error, Result};
use crate::figures::{Bars, Chart};
use crate::formats::file;
use crate::recipes::Recipe;
use crate::train::RunDir;
use crate::train::run::Config;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Train a recipe with each of several values
///
/// --set takes a list, `--set model.dropout=0.1,0.2,0.3`; several lists make a grid. The runs go one after the other into
/// the folder RECIPE-sweep; given again, the sweep goes on where it was stopped.
#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    #[command(flatten)]
    pub(super) train: TrainArgs,
    /// Train with each of these seeds too, e.g. 0,1,2: the figure shows mean and deviation
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', conflicts_with = "seed",
          value_parser = RangedU64ValueParser::<u64>::new().range(..=i64::MAX as u64))]
    pub(super) seeds: Vec<u64>,
}

/// A key and its values, as they were written.
struct Axis {
    key: String,
    values: Vec<String>,
}

/// One run of the sweep: which value of each axis, and the seed.
struct Cell {
    values: Vec<String>,
    set: Vec<String>,
    recipe: Recipe,
}

pub(super) fn run(args: &SweepArgs, mut out: Out) -> Result<ExitCode> {
    if args.train.resume.is_some() {
        let remedy = "give the same sweep again: runs that are finished are not run again";
        return Err(Error::config("--resume", "a sweep goes on by itself", remedy));
    }
    let axes = axes(&args.train.set.values)?;
    let cells = cells(args, &axes)?;
    file::check_folder(&args.train.out)?;
    let folder = args.train.out.join(format!("{}-sweep", Recipe::run_name(&args.train.recipe)));
    let mut diverged = Vec::new();
    for (i, cell) in cells.iter().enumerate() {
        let what = format!("run {} of {}: {}", i + 1, cells.len(), cell.set.join(", "));
        let mut one = args.train.clone();
        match find(&folder, &cell.recipe, args.train.init.as_deref())? {
            Some(path) => {
                let run = compare::read(&path)?;
                if is_over(&run, args.train.max_steps) && is_tested(&run) {
                    let steps = run.position.map_or(0, |at| at.step);
                    let more = match args.train.max_steps.filter(|limit| steps > *limit) {
                        Some(_) => format!(" ({} steps)", count(steps as usize)),
                        None => String::new(),
                    };
                    note(&format!("{what}: finished{more}, {}", path.display()));
                    continue;
                }
                one.resume = Some(path);
            }
            None => (one.set.values, one.out, one.seed) = (cell.set.clone(), folder.clone(), None),
        }
        out.print(&format!("\n== {what}\n"))?;
        let code = match train::run(&one, Out::new()) {
            Err(e @ Error::NonFinite { .. }) => {
                note(&format!("{what}: {e}\nthe sweep goes on without it"));
                diverged.push(i);
                continue;
            }
            code => code?,
        };
        if code != ExitCode::SUCCESS {
            note("the sweep goes on when it is given again");
            return Ok(code);
        }
    }
    results(&axes, &cells, &diverged, &folder, &args.train, &mut out)?;
    Ok(ExitCode::SUCCESS)
}

/// The keys that have several values, and those that have one.
fn axes(set: &[String]) -> Result<Vec<Axis>> {
    let axis = |text: &String| {
        let (key, values) = text.split_once('=').unwrap_or((text, ""));
        let values: Vec<String> = split(values).into_iter().map(|v| v.trim().to_string()).collect();
        let twice = values.iter().enumerate().find(|(i, v)| values[..*i].contains(v));
        match (values.iter().any(String::is_empty), twice) {
            (true, _) => Err(Error::config(key.trim(), "a value is empty", "write --set KEY=VALUE,VALUE,…")),
            (_, Some((_, v))) => {
                Err(Error::config(key.trim(), format!("the value {v} stands there twice"), "leave one out"))
            }
            _ => Ok(Axis { key: key.trim().to_string(), values }),
        }
    };
    let axes = set.iter().map(axis).collect::<Result<Vec<Axis>>>()?;
    let twice = axes.iter().enumerate().find(|(i, a)| axes[..*i].iter().any(|b| b.key == a.key));
    match twice {
        Some((_, a)) => {
            Err(Error::config(&a.key, "two lists of values", format!("write one: --set {}=VALUE,VALUE,…", a.key)))
        }
        None => Ok(axes),
    }
}

/// A text at its commas, but for those in brackets, braces and quotes.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut quoted, mut start, mut parts) = (0i32, false, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '[' | '{' if !quoted => depth += 1,
            ']' | '}' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// The grid of all values and seeds, each a recipe that was checked.
fn cells(args: &SweepArgs, axes: &[Axis]) -> Result<Vec<Cell>> {
    let mut grid: Vec<Vec<String>> = vec![Vec::new()];
    for axis in axes {
        let longer = |row: &Vec<String>| {
            axis.values.iter().map(|v| [row.as_slice(), std::slice::from_ref(v)].concat()).collect::<Vec<_>>()
        };
        grid = grid.iter().flat_map(longer).collect();
    }
    let seeds: Vec<Option<u64>> =
        if args.seeds.is_empty() { vec![args.train.seed] } else { args.seeds.iter().map(|&s| Some(s)).collect() };
    if let Some((_, seed)) = args.seeds.iter().enumerate().find(|(i, seed)| args.seeds[..*i].contains(seed)) {
        return Err(Error::config("--seeds", format!("the seed {seed} stands there twice"), "leave one out"));
    }
    let mut cells = Vec::new();
    for values in grid {
        for seed in &seeds {
            let mut set: Vec<String> = axes.iter().zip(&values).map(|(a, v)| format!("{}={v}", a.key)).collect();
            set.extend(seed.map(|s| format!("seed={s}")));
            let with = TrainArgs { seed: None, set: super::Set { values: set.clone() }, ..args.train.clone() };
            let recipe = Recipe::load(&args.train.recipe, &train::overrides(&with))?;
            cells.push(Cell { values: values.clone(), set, recipe });
        }
    }
    match cells.len() {
        1 => Err(Error::config(
            "--set",
            "there is one value to try",
            "give several, e.g. --set optimizer.lr=0.01,0.1, or --seeds 0,1,2",
        )),
        _ => Ok(cells),
    }
}

/// The run of a recipe in a folder of runs, from the weights that are asked for, if there is one.
fn find(folder: &Path, recipe: &Recipe, init: Option<&Path>) -> Result<Option<PathBuf>> {
    for path in compare::paths(folder) {
        let Ok(run) = RunDir::open(&path) else { continue };
        if is_of(&Config::read(&run)?, recipe, init)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Whether a run is of a recipe, and from the same weights.
fn is_of(config: &Config, recipe: &Recipe, init: Option<&Path>) -> Result<bool> {
    let wanted = init.or(recipe.pretrained.as_ref().map(|p| p.file.as_path()));
    Ok(config.recipe == *recipe && config.run.init == wanted.map(absolute).transpose()?)
}

/// Whether a run has come to its recipe's end, or to a limit of steps, and what it trained last has been evaluated.
fn is_over(run: &Run, max_steps: Option<u64>) -> bool {
    let (Some(at), recipe) = (&run.position, &run.config.recipe) else { return false };
    let evaluated = at.batch == 0 || run.history.epochs.last().is_some_and(|row| row.epoch > at.epoch);
    at.epoch >= recipe.epochs
        || at.waited_long_enough(recipe.early_stopping)
        || evaluated && max_steps.is_some_and(|limit| at.step >= limit)
}

/// Whether a run that has a validation set has measured the test set too, which it does last.
fn is_tested(run: &Run) -> bool {
    run.config.recipe.data.validation == 0 || run.summary.as_ref().is_none_or(|s| s.test.is_some())
}

/// The runs with the same values, of all seeds.
struct Found<'a> {
    values: &'a Vec<String>,
    /// After the last epoch, on the validation set where there is one, else on the test set.
    percent: Vec<f64>,
    /// With a validation set: of the best checkpoints, on the test set.
    tested: Vec<f64>,
    seconds: f64,
    /// Those that diverged.
    diverged: usize,
}

/// The values of the other keys, the points, and the deviation of each.
type Line = (Vec<String>, Vec<[f64; 2]>, Vec<f64>);

/// Mean and standard deviation (of the sample; 0 of one).
fn spread(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

/// The table, `sweep.csv` and the figure.
fn results(
    axes: &[Axis],
    cells: &[Cell],
    diverged: &[usize],
    folder: &Path,
    args: &TrainArgs,
    out: &mut Out,
) -> Result<()> {
    let mut found: Vec<Found<'_>> = Vec::new();
    let keys: Vec<&str> = axes.iter().map(|a| a.key.as_str()).collect();
    let split = if cells.iter().any(|c| c.recipe.data.validation > 0) { Split::Validation } else { Split::Test };
    let mut runs = compare::runs_in(folder);
    let mut rows = Vec::new();
    for (i, cell) in cells.iter().enumerate() {
        let is_cell = |run: &Run| is_of(&run.config, &cell.recipe, args.init.as_deref());
        let Some(at) = runs.iter().position(|run| is_cell(run).unwrap_or(false)) else { continue };
        let run = runs.remove(at);
        if found.last().is_none_or(|f| f.values != &cell.values) {
            let (percent, tested) = (Vec::new(), Vec::new());
            found.push(Found { values: &cell.values, percent, tested, seconds: 0.0, diverged: 0 });
        }
        let Some(of) = found.last_mut() else { continue };
        of.diverged += usize::from(diverged.contains(&i));
        if let Some(last) = run.history.epochs.last().filter(|_| !diverged.contains(&i)) {
            of.percent.push(last.accuracy * 100.0);
            let tested = run.summary.as_ref().and_then(|s| s.test.as_ref()).map(|t| t.accuracy);
            of.tested.extend(tested.map(|a| a * 100.0));
            of.seconds += seconds(&run);
            rows.push((run, Some(cell)));
        }
    }
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        file::write(&path, text.as_bytes()).map(|()| path)
    };
    let finished = |run: &Run| is_over(run, args.max_steps) && !run.history.epochs.is_empty();
    let others: Vec<Run> = runs.into_iter().filter(finished).collect();
    let more = match others.len() {
        0 => String::new(),
        n => format!(", with {} of other sweeps", counted(n, "run")),
    };
    rows.extend(others.into_iter().map(|run| (run, None)));
    let drawn: Vec<&Found<'_>> = found.iter().filter(|f| !f.percent.is_empty()).collect();
    let (csv, svg) = (write("sweep.csv", &csv(&keys, &rows)?)?, write("sweep.svg", &figure(axes, &drawn, split))?);
    let accuracy = |all: &[f64]| match (spread(all), all.len()) {
        (_, 0) => "diverged".to_string(),
        ((mean, _), 1) => format!("{mean:.2} %"),
        ((mean, deviation), _) => format!("{mean:.2} ± {deviation:.2} %"),
    };
    let row = |f: &Found<'_>| {
        let runs = match (f.percent.len(), f.diverged) {
            (n, 0) => n.to_string(),
            (n, diverged) => format!("{n} of {}", n + diverged),
        };
        let mut row = [f.values.as_slice(), &[runs, accuracy(&f.percent)]].concat();
        let tested = || if f.tested.is_empty() { "-".into() } else { accuracy(&f.tested) };
        row.extend((split == Split::Validation).then(tested));
        row.push(clock(f.seconds));
        row
    };
    let measured: &[&str] = match split {
        Split::Validation => &["validation accuracy", "test accuracy of the best"],
        _ => &["test accuracy"],
    };
    let heads: Vec<&str> = keys.into_iter().chain(["runs"]).chain(measured.iter().copied()).chain(["time"]).collect();
    let text = table(&heads, &(">".repeat(heads.len())), found.iter().map(row).collect());
    out.print(&format!("\n{text}\nfigure    {}\ntable     {}{more}\n", svg.display(), csv.display()))
}

fn seconds(run: &Run) -> f64 {
    run.history.epochs.iter().map(|e| e.seconds).sum()
}

/// `sweep.csv`: a row a run, with the values as they were written where it is of this sweep. Columns are the sweep's keys and
/// the others in which the runs differ.
fn csv(keys: &[&str], rows: &[(Run, Option<&Cell>)]) -> Result<String> {
    let values = rows.iter().map(|(run, _)| compare::values(run)).collect::<Result<Vec<_>>>()?;
    let others = compare::differing(&values).into_iter().filter(|k| k != "seed" && !keys.contains(&k.as_str()));
    let columns: Vec<String> = keys.iter().map(ToString::to_string).chain(others).collect();
    let validated = rows.iter().any(|(run, _)| run.history.split == Split::Validation);
    let measured = if validated { ["val_accuracy", "test_accuracy"].as_slice() } else { &["test_accuracy"] };
    let mut table = vec![columns.clone()];
    table[0].extend(["seed", "run"].iter().chain(measured).chain(&["seconds"]).map(ToString::to_string));
    for ((run, cell), of) in rows.iter().zip(&values) {
        let written = |i: usize| cell.and_then(|c| c.values.get(i)).cloned();
        let value = |(i, key): (usize, &String)| written(i).or_else(|| of.get(key).cloned()).unwrap_or_default();
        let mut row: Vec<String> = columns.iter().enumerate().map(value).collect();
        row.extend([run.config.recipe.seed.to_string(), run.name.clone()]);
        let accuracy = |a: Option<f64>| a.map_or_else(String::new, |a| a.to_string());
        let last = run.history.epochs.last().map(|e| e.accuracy);
        let best = run.summary.as_ref().and_then(|s| s.test.as_ref()).map(|t| t.accuracy);
        match (validated, run.history.split == Split::Validation) {
            (true, true) => row.extend([accuracy(last), accuracy(best)]),
            (true, false) => row.extend([String::new(), accuracy(last)]),
            (false, _) => row.push(accuracy(last)),
        }
        row.push(format!("{:.3}", seconds(run)));
        table.push(row);
    }
    let line = |row: &Vec<String>| row.iter().map(|c| compare::quoted(c)).collect::<Vec<_>>().join(",") + "\n";
    Ok(table.iter().map(line).collect())
}

/// Accuracy over the first key's values if these are numbers, a line for each combination of the others; else bars.
fn figure(axes: &[Axis], found: &[&Found<'_>], split: Split) -> String {
    let measured = format!("{split} accuracy");
    let title = format!("{}{}", measured[..1].to_uppercase(), &measured[1..]);
    // The first key with several values; others with one value are the same for all.
    let several = |a: &Axis| a.values.len() > 1;
    let x = axes.iter().position(several).unwrap_or(0);
    let number = |values: &[String]| values.get(x).and_then(|v| v.parse::<f64>().ok());
    if !found.is_empty() && found.iter().all(|f| number(f.values).is_some()) {
        let positive: Vec<f64> = found.iter().filter_map(|f| number(f.values)).collect();
        let (low, high) = positive.iter().fold((f64::INFINITY, 0.0f64), |(l, h), &v| (l.min(v), h.max(v)));
        let (key, log) = (&axes[x].key, low > 0.0 && high / low >= 8.0);
        let label = if log { format!("{key} (logarithmic)") } else { key.clone() };
        let mut chart = Chart::new(format!("{title} over {key}"), label, format!("{measured} in percent"));
        if log {
            chart = chart.log_x();
        }
        let mut lines: Vec<Line> = Vec::new();
        for Found { values, percent, .. } in found {
            let (mean, deviation) = spread(percent);
            let point = [number(values).unwrap_or(f64::NAN), mean];
            let others = axes.iter().zip(*values).enumerate().filter(|(i, (a, _))| *i != x && several(a));
            let name: Vec<String> = others.map(|(_, (a, v))| format!("{} = {v}", a.key)).collect();
            match lines.iter_mut().find(|(other, ..)| *other == name) {
                Some((_, points, deviations)) => {
                    points.push(point);
                    deviations.push(deviation);
                }
                None => lines.push((name, vec![point], vec![deviation])),
            }
        }
        for (name, mut points, deviations) in lines {
            let name = match (name.is_empty(), found.iter().any(|f| f.percent.len() > 1)) {
                (true, true) => "mean and standard deviation of the seeds".to_string(),
                (true, false) => measured.clone(),
                _ => name.join(", "),
            };
            let mut order: Vec<usize> = (0..points.len()).collect();
            order.sort_by(|&a, &b| points[a][0].total_cmp(&points[b][0]));
            let deviations = order.iter().map(|&i| deviations[i]).collect();
            points = order.iter().map(|&i| points[i]).collect();
            chart = chart.spread(name, points, deviations);
        }
        return chart.svg();
    }
    let names = found.iter().map(|f| f.values.join(", ")).collect();
    let keys: Vec<&str> = axes.iter().map(|a| a.key.as_str()).collect();
    let title = format!("{title} by {}", if keys.is_empty() { "seed".into() } else { keys.join(", ") });
    let means = found.iter().map(|f| spread(&f.percent).0).collect();
    Bars::new(title, names).group(format!("{measured}, mean"), means).svg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_split_at_outer_commas() {
        assert_eq!(split("0.1,0.2"), ["0.1", "0.2"]);
        assert_eq!(split("[0.9, 0.99],[0.8, 0.9]"), ["[0.9, 0.99]", "[0.8, 0.9]"]);
        assert_eq!(split("\"a,b\",c"), ["\"a,b\"", "c"]);
    }

    #[test]
    fn deviations_are_of_the_sample() {
        assert_eq!(spread(&[1.0, 2.0, 3.0]), (2.0, 1.0));
        assert_eq!(spread(&[5.0]), (5.0, 0.0));
    }
}
