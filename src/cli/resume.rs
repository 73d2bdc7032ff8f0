//! `changeover resume`

use clap::Args;

use super::exit::{Exit, Failure};
use super::options::{ConfigFile, Output};

/// Ends a pause, and makes halted parts try again
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let answer = arguments.config.client()?.resume()?;
    arguments.output.print(&answer, |_| "resumed".to_owned());
    Ok(Exit::Done)
}
