//! `changeover demo`

use std::time::Duration;

use clap::Args;
use tracing_subscriber::filter::LevelFilter;

use super::exit::{Exit, Failure};
use super::options::{Output, block_on};
use crate::config::parse_duration;
use crate::demo::{self, DemoOptions};
use crate::telemetry::{self, LogFormat};

/// Moves a live database between two throw-away clusters while clients write to it, and proves that nothing was lost. Needs
/// the PostgreSQL and PgBouncer programs and nothing else; takes less than two minutes and leaves nothing behind
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  changeover demo\n  changeover demo --json\n  changeover demo --source-version 13 --target-version 18\n  changeover demo --keep"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    output: Output,
    /// Concurrent clients that write through the pooler
    #[arg(long, value_name = "N", default_value_t = DemoOptions::CLIENTS, value_parser = clients)]
    clients: usize,
    /// Transactions a second, of all clients together
    #[arg(long, value_name = "N", default_value_t = DemoOptions::RATE, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// Rows generated beside the Chinook database
    #[arg(long, value_name = "N", default_value_t = DemoOptions::ROWS)]
    rows: u64,
    /// How long the stream is followed before the cutover
    #[arg(long, value_name = "DURATION", default_value = "8s", value_parser = parse_duration)]
    duration: Duration,
    /// Major version of the source; the newest complete one that is installed when left out
    #[arg(long, value_name = "MAJOR")]
    source_version: Option<u32>,
    /// Major version of the target; the newest that is installed when left out
    #[arg(long, value_name = "MAJOR")]
    target_version: Option<u32>,
    /// Publish the stream to this broker too, read it back and compare
    #[arg(long, value_name = "BOOTSTRAP")]
    kafka: Option<String>,
    /// Leave everything running, and say how to look around and how to stop it
    #[arg(long)]
    keep: bool,
}

pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    // Progress is told by the demo itself; its daemon has a log of its own.
    telemetry::init_logs(LogFormat::Text, LevelFilter::WARN);
    let options = DemoOptions {
        clients: arguments.clients,
        rate: arguments.rate,
        rows: arguments.rows,
        duration: arguments.duration,
        source_version: arguments.source_version,
        target_version: arguments.target_version,
        kafka: arguments.kafka,
        keep: arguments.keep,
    };
    let report = block_on(async { Ok(demo::run(options).await?) })?;
    arguments.output.print(&report, demo::DemoReport::text);
    Ok(if report.is_well() { Exit::Done } else { Exit::Refused })
}

/// PgBouncer is set up for these many.
fn clients(text: &str) -> Result<usize, String> {
    const CLIENTS_MAX: usize = 50;
    match text.parse() {
        Ok(count @ 1..=CLIENTS_MAX) => Ok(count),
        Ok(_) | Err(_) => Err(format!("write a number from 1 to {CLIENTS_MAX}")),
    }
}
