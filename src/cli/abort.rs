//! `changeover abort`

use clap::Args;

use super::exit::{Exit, Failure};
use super::options::{ConfigFile, Output, block_on};
use super::report;
use crate::pipeline;

/// Ends a migration that has not been cut over: removes everything we made, on both sides. The daemon must be stopped
#[derive(Debug, Args)]
#[command(
    after_help = "Blue is then as it was before; the copied tables stay on green.\n\nExample:\n  changeover abort --config shop.toml"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let config = arguments.config.load()?;
    let removed = block_on(async { Ok(pipeline::abort(&config).await?) })?;
    arguments.output.print(&removed, report::removed);
    Ok(Exit::Done)
}
