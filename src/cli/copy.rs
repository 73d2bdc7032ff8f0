//! `changeover copy`

use std::sync::Arc;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure};
use super::options::{ConfigFile, Output, block_on};
use crate::config::{Config, format_size};
use crate::pipeline::{self, Copied};
use crate::snapshot::Progress;
use crate::telemetry;

/// Copies schema and rows once, as of one moment, and ends: no stream, no slot
#[derive(Debug, Args)]
#[command(
    after_help = "What is written to the source meanwhile is not copied; `changeover run` follows it instead.\n\nExample:\n  changeover copy --config shop.toml --json"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let config = arguments.config.load()?;
    telemetry::init_logs(config.log.format, config.log.level);
    let copied = block_on(copy(&config))?;
    arguments.output.print(&copied, text);
    Ok(Exit::Done)
}

async fn copy(config: &Config) -> Result<Copied, Failure> {
    let stop = CancellationToken::new();
    let copying = pipeline::copy(config, Arc::new(Progress::default()), stop.clone());
    tokio::pin!(copying);
    tokio::select! {
        copied = &mut copying => return Ok(copied?),
        _ = tokio::signal::ctrl_c() => stop.cancel(),
    }
    Ok(copying.await?)
}

fn text(copied: &Copied) -> String {
    format!(
        "copied {} rows ({}) of {} tables, {} sequences, {} large objects",
        copied.rows,
        format_size(copied.bytes),
        copied.tables,
        copied.sequences,
        copied.large_objects
    )
}
