//! `changeover inspect`

use clap::Args;

use super::exit::{Exit, Failure};
use super::options::{ConfigFile, Output, block_on};
use crate::model::TableFilter;
use crate::preflight::{self, Inventory};
use crate::wire::Endpoint;

/// What the source holds: tables, sizes, keys, and what needs care. Changes nothing
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  changeover inspect\n  changeover inspect --source postgres://mover@blue/shop --json"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Look at this database instead of the configuration's source
    #[arg(long, value_name = "URL")]
    source: Option<String>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let (endpoint, tables) = match &arguments.source {
        Some(url) => (endpoint(url)?, TableFilter::everything()),
        None => {
            let config = arguments.config.load()?;
            (config.source.endpoint, config.tables)
        }
    };
    let inventory = block_on(async { Ok(preflight::inspect(&endpoint, &tables).await?) })?;
    arguments.output.print(&inventory, Inventory::to_string);
    Ok(Exit::Done)
}

pub(super) fn endpoint(url: &str) -> Result<Endpoint, Failure> {
    Endpoint::parse(url).map_err(|error| Failure::new(Exit::Usage, crate::telemetry::chain(&error), None))
}
