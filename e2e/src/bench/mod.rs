//! `lab bench`: podspan's data plane measured side by side with what people would use instead.

#![allow(dead_code, unused_imports, reason = "under construction")]

mod figure;
mod stats;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};

use crate::build;

/// How the result is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// The same on standard error, and one JSON document as the last line of standard output.
    Json,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_precedence_over_arg = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    other: Option<OtherBench>,
}

/// What else is measured, apart from throughput and cost.
#[derive(Debug, Subcommand)]
enum OtherBench {}

/// Runs it.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    match &args.other {
        Some(other) => match *other {},
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Where pictures and documents go, made if it is not there: `target/lab/bench`.
pub(crate) fn artefacts() -> Result<PathBuf> {
    let directory = build::target_directory()?.join("lab/bench");
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}
