//! `tilework completions`: the completion scripts of the shells.

use super::{Cli, Out};
use crate::error::Result;
use clap::CommandFactory;

pub(super) fn run(shell: clap_complete::Shell, out: &mut Out) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tilework", &mut text);
    out.print(&String::from_utf8_lossy(&text))
}
