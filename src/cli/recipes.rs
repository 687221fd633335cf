//! `tilework recipes`: the built-in recipes.

use super::output::{Out, table};
use crate::error::Result;
use crate::nn::LAYERS;
use crate::recipes::{BUILT_IN, MINUTES, Recipe, unknown};

/// How a recipe writes layers, for the help.
pub(super) fn layers() -> String {
    let lines: String = LAYERS.iter().map(|k| format!("  {}\n          {}\n", k.form, k.help)).collect();
    format!("The layers of a recipe:\n{lines}")
}

pub(super) fn run(name: Option<&str>, out: &mut Out) -> Result<()> {
    let Some(name) = name else {
        let row = |(name, _): &(&str, &str)| {
            let r = Recipe::load(name, &[])?;
            let reported = r.reported.map_or_else(String::new, |p| format!("{p} %"));
            Ok(vec![name.to_string(), r.about, r.data.source.to_string(), r.epochs.to_string(), reported, time(name)])
        };
        let rows = BUILT_IN.iter().map(row).collect::<Result<_>>()?;
        let heads = ["recipe", "about", "data", "epochs", "reported", "time on two cores"];
        let next = "train one:       tilework train NAME\nsee its layers:  tilework summary NAME\nchange it:       tilework recipes NAME > mine.toml, edit, tilework train mine.toml\nsee all keys:    tilework recipes --keys\n";
        return out.print(&format!("{}\n{next}", table(&heads, "<<<>>>", rows)));
    };
    match BUILT_IN.iter().find(|(n, _)| *n == name) {
        Some((_, text)) => out.print(text),
        None => Err(unknown(name)),
    }
}

/// How long a recipe takes, as was measured.
fn time(name: &str) -> String {
    match MINUTES.iter().find(|(n, _)| *n == name) {
        Some((_, minutes)) if *minutes < 1.0 => format!("{:.0} s", minutes * 60.0),
        Some((_, minutes)) if *minutes < 90.0 => format!("{minutes:.0} min"),
        Some((_, minutes)) => format!("{:.0} h", minutes / 60.0),
        None => String::new(),
    }
}
