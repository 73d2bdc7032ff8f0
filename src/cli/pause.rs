//! `changeover pause`

use clap::Args;

use super::exit::{Exit, Failure};
use super::options::{ConfigFile, Output};

/// The copy begins no further part of a table, and the target takes no more changes, until `resume` or a restart
#[derive(Debug, Args)]
#[command(
    after_help = "Parts that are being copied come to their end, so that no snapshot stays open on the source (a table without a key excepted); the stream is kept in the spool."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let answer = arguments.config.client()?.pause()?;
    arguments.output.print(&answer, |_| "paused".to_owned());
    Ok(Exit::Done)
}
