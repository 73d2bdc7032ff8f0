//! `changeover complete`

use clap::Args;

use super::exit::{Exit, Failure};
use super::options::{ConfigFile, Output, block_on};
use super::report;
use crate::pipeline;

/// Ends a migration that has been cut over: removes everything we made, on both sides. The daemon must be stopped
#[derive(Debug, Args)]
#[command(
    after_help = "The fence on blue goes too: nothing keeps applications from writing there again.\n\nExample:\n  changeover complete --config shop.toml"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let config = arguments.config.load()?;
    let removed = block_on(async { Ok(pipeline::complete(&config).await?) })?;
    arguments.output.print(&removed, report::removed);
    Ok(Exit::Done)
}
