//! `changeover throttle`

use clap::Args;

use super::exit::{Exit, Failure};
use super::options::{ConfigFile, Output};
use crate::config::{format_size, parse_size};
use crate::pipeline::ThrottleRequest;

/// Limits how fast the copy reads the source, all its workers together, until it is changed or the daemon ends
#[derive(Debug, Args)]
#[command(
    after_help = "The limits on load stand in the configuration ([snapshot.throttle]); `changeover status` says what holds the copy.\n\nExamples:\n  changeover throttle --max-rate 50MiB\n  changeover throttle --off"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
    /// Bytes a second, such as 50MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size, required_unless_present = "off")]
    max_rate: Option<u64>,
    /// No limit to the rate
    #[arg(long, conflicts_with = "max_rate")]
    off: bool,
}

pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let request = ThrottleRequest { max_rate_bytes: arguments.max_rate, off: arguments.off };
    let answer = arguments.config.client()?.throttle(&request)?;
    arguments.output.print(&answer, |answer| match answer["max_rate_bytes"].as_u64() {
        Some(rate) => format!("the copy reads at most {} a second", format_size(rate)),
        None => "the copy reads as fast as it can".to_owned(),
    });
    Ok(Exit::Done)
}
