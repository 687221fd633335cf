//! `tilework lr-find`: which learning rate to train with.

use super::lr_curve::{Mark, svg, text};
use super::output::{Out, table};
use super::train::start_from;
use super::{Data, LrFindArgs, count, counted, describe};
use crate::error::{Error, Result};
use crate::formats::file;
use crate::recipes::Recipe;
use crate::train::Trainer;
use crate::train::lr_find::Ramp;

pub(super) fn run(args: &LrFindArgs, out: &mut Out) -> Result<()> {
    let mut recipe = Recipe::load(&args.recipe, &args.set.values)?;
    if recipe.optimizer.lr() == 0.0 {
        let problem = "a rate of 0, of which the finder tries multiples".to_string();
        return Err(Error::config("optimizer.lr", problem, "set any other rate, such as --set optimizer.lr=0.1"));
    }
    // The average and the schedule are a run's.
    recipe.ema = None;
    let ramp = Ramp { start: args.start, end: args.end, steps: args.steps.unwrap_or(Ramp::default().steps) };
    ramp.check()?;
    file::check_folder(&args.out)?;
    std::fs::create_dir_all(&args.out).map_err(Error::io("make the folder", &args.out))?;
    let data = Data::open(&recipe.data, args.data.as_deref())?;
    let (device, name) = args.machine.device()?;
    let mut trainer = Trainer::new(recipe.clone(), data.splits, &device)?;
    start_from(&mut trainer, &recipe, args.init.as_deref())?;
    let images = trainer.images_of_update();
    let ramp = Ramp { steps: args.steps.unwrap_or(Ramp::steps_for(images)), ..ramp };
    let describe = describe(recipe.data.source, &trainer, data.path.as_deref());
    out.print(&format!(
        "recipe    {}\ndata      {describe}\ndevice    {name}\n\
         finder    {} updates of {}, learning rate {:e} to {:e}\n\n",
        args.recipe,
        count(ramp.steps),
        counted(images, "image"),
        ramp.start,
        ramp.end,
    ))?;
    let curve = trainer.find_rate(ramp)?;
    let (Some(valley), Some(steepest), Some(minimum), Some(careful)) =
        (curve.valley(), curve.steepest(), curve.minimum(), curve.careful())
    else {
        let problem = format!("the loss is not finite at the first rate, {}", ramp.start);
        return Err(Error::config("--start", problem, "start at a smaller rate, or check the data's normalisation"));
    };
    let marks = [
        Mark { name: "valley", lr: valley },
        Mark { name: "steepest", lr: steepest },
        Mark { name: "minimum / 10", lr: minimum },
    ];
    out.print(&text(&curve, &marks))?;
    let meaning = [
        "within the longest fall of the loss",
        "where the loss falls fastest",
        "a tenth of the rate of the least loss",
    ];
    let rows = marks.iter().zip(meaning).map(|(m, why)| vec![m.name.into(), rounded(m.lr), why.into()]);
    out.print(&format!("\n{}", table(&["suggestion", "rate", ""], "<><", rows.collect())))?;
    let end = match (curve.diverged, curve.tried.last()) {
        (true, Some(last)) => format!("the loss diverged at a rate of {}\n", rounded(last.lr)),
        _ if curve.falls_still() => {
            format!("the loss fell to the last rate, {}; --end sets a larger one\n", rounded(ramp.end))
        }
        _ => String::new(),
    };
    let path = args.out.join("lr-find.svg");
    file::write(&path, svg(&curve, &marks, &args.recipe).as_bytes())?;
    let data = args.data.as_ref().map_or_else(String::new, |p| format!(" --data {}", quoted(&p.to_string_lossy())));
    let init = args.init.as_ref().map_or_else(String::new, |p| format!(" --init {}", quoted(&p.to_string_lossy())));
    let kept = args.set.values.iter().filter(|s| !s.starts_with("optimizer.lr="));
    let set: String = kept.map(|s| format!(" --set {}", quoted(s))).collect();
    let typed = format!("{}{data}{init}{}{set}", quoted(&args.recipe), args.machine.typed());
    let own = recipe.optimizer.lr();
    // All rates together, as the finder has raised those of groups.
    let others: String =
        recipe.other_rates().map(|(key, lr)| format!(" --set {key}={}", rounded(careful * lr))).collect();
    let mut rates: Vec<(f64, String)> = marks.iter().map(|m| (m.lr, rounded(m.lr))).collect();
    rates.push((own, own.to_string()));
    rates.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut rates: Vec<String> = rates.into_iter().map(|(_, text)| text).collect();
    rates.dedup();
    let train = format!(
        "train with the smaller of valley and minimum / 10:  tilework train {typed} --lr {}{others}\n",
        rounded(careful)
    );
    let next = match (curve.is_clear(), others.is_empty()) {
        (true, true) => {
            let rates = rates.join(",");
            train + &format!("or try all, and the recipe's own:  tilework sweep {typed} --set optimizer.lr={rates}\n")
        }
        (true, false) => train,
        (false, _) if curve.diverged && curve.tried.len() < ramp.steps / 2 => {
            "these rates are too large from the first on: begin at a smaller --start\n".to_string()
        }
        (false, _) => {
            let steps = (4 * ramp.steps).min(20_000);
            let more = if steps > ramp.steps { format!("more updates, --steps {steps}, or ") } else { String::new() };
            format!("the loss scatters more than it falls, so these rates say little: take {more}larger batches\n")
        }
    };
    out.print(&format!("{end}the curve is in {}\n\n{next}", path.display()))
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// A rate with two digits, as people write it.
pub(super) fn rounded(lr: f64) -> String {
    let text = format!("{lr:.1e}");
    match text.parse::<f64>() {
        Ok(x) if (1e-4..1e4).contains(&x) => format!("{x}"),
        _ => text,
    }
}
