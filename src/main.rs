//! The program `tilework`: parse, run, report the error.
use clap::Parser;
use std::process::ExitCode;
use tilework::cli::{Cli, report, run};

fn main() -> ExitCode {
    run(&Cli::parse()).unwrap_or_else(|e| report(&e))
}
