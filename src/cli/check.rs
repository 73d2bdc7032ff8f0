//! `changeover check`

use clap::Args;

use super::exit::{Exit, Failure};
use super::options::{ConfigFile, Output, block_on};
use crate::preflight::{self, Report};

/// Whether both sides are ready: PASS, WARN or FAIL for each check, with what to do. Changes nothing
#[derive(Debug, Args)]
#[command(
    after_help = "Exits 1 when a check fails. Examples:\n  changeover check\n  changeover check --json | jq '.findings[] | select(.verdict == \"fail\")'"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let config = arguments.config.load()?;
    let report = block_on(async { Ok(preflight::check(&config).await) })?;
    arguments.output.print(&report, Report::to_string);
    Ok(if report.failed() > 0 { Exit::Refused } else { Exit::Done })
}
