//! `changeover pause`

use clap::Args;

use super::exit::{Exit, Failure};
use super::options::{ConfigFile, Output};

/// The target takes no more changes until `resume`; the stream is kept in the spool meanwhile
#[derive(Debug, Args)]
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
