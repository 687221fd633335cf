//! `tilework recipes`: the built-in recipes.

use super::output::{Out, table};
use crate::error::Result;
use crate::nn::LAYERS;
use crate::recipes::{BUILT_IN, Recipe};

/// How a recipe writes layers, for the help.
pub(super) fn layers() -> String {
    let lines: String = LAYERS.iter().map(|k| format!("  {}\n          {}\n", k.form, k.help)).collect();
    format!("The layers of a recipe:\n{lines}")
}

pub(super) fn run(name: Option<&str>, out: &mut Out) -> Result<()> {
    let Some(name) = name else {
        let row = |(name, _): &(&str, &str)| Ok(vec![name.to_string(), Recipe::load(name, &[])?.about]);
        let rows = BUILT_IN.iter().map(row).collect::<Result<_>>()?;
        let next = "train one:       tilework train NAME\nsee its layers:  tilework summary NAME\nchange it:       tilework recipes NAME > mine.toml, edit, tilework train mine.toml\n";
        return out.print(&format!("{}\n{next}", table(&["recipe", "about"], "<<", rows)));
    };
    match BUILT_IN.iter().find(|(n, _)| *n == name) {
        Some((_, text)) => out.print(text),
        None => Recipe::load(name, &[]).map(|_| ()),
    }
}
