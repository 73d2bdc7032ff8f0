//! `changeover verify`

use clap::Args;

use super::exit::{Exit, Failure};
use super::options::{ConfigFile, Output};
use super::report;
use crate::pipeline::VerifyRequest;

/// Compares tables exactly at one position, while both sides are written to
#[derive(Debug, Args)]
#[command(
    after_help = "Exits 1 when a difference was found.\n\nExamples:\n  changeover verify\n  changeover verify --table public.orders --table 'billing.*' --json"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
    /// Only these tables: schema.table, with * for any run of characters; may be given several times
    #[arg(short, long = "table", value_name = "TABLE")]
    tables: Vec<String>,
}

pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let answer = arguments.config.client()?.verify(&VerifyRequest { tables: arguments.tables })?;
    let verified = report::read(&answer)?;
    arguments.output.print(&answer, |_| report::verification(&verified));
    Ok(report::verification_exit(&verified))
}
