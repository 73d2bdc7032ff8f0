//! `changeover cutover`

use std::io::{self, BufRead, IsTerminal};
use std::time::Duration;

use clap::Args;

use super::exit::{Exit, Failure};
use super::options::{ConfigFile, Output};
use super::report;
use crate::config::parse_duration;
use crate::control::Client;
use crate::pipeline::CutoverRequest;

/// Hands the writes over to green: gates, pause, fence, drain, verify, flip. Any failure before the commit point leaves
/// blue as it was
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  changeover cutover --dry-run\n  changeover cutover --max-pause 300ms --yes --json"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
    /// Print the gates and the forecast, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Longest pause that clients may see, such as 300ms; the configuration's when left out
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    max_pause: Option<Duration>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let client = arguments.config.client()?;
    if !arguments.dry_run && !arguments.yes {
        confirm(&client)?;
    }
    let max_pause_ms = arguments.max_pause.map(|pause| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
    let answer = client.cutover(&CutoverRequest { dry_run: arguments.dry_run, max_pause_ms })?;
    let report = report::read(&answer)?;
    arguments.output.print(&answer, |_| report::cutover(&report));
    Ok(report::cutover_exit(&report))
}

fn confirm(client: &Client) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        let hint = "say --yes when nobody is there to be asked, or --dry-run to see the gates".to_owned();
        return Err(Failure::new(Exit::Usage, "cut over without being asked to confirm", Some(hint)));
    }
    let migration = client.status()?.migration;
    eprint!("Clients of {migration} will be held for a moment and then write to green. Cut over? [y/N] ");
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    match (read, line.trim()) {
        (Ok(_), "y" | "Y" | "yes") => Ok(()),
        (Ok(_) | Err(_), _) => Err(Failure::new(Exit::Refused, "not confirmed: nothing was changed", None)),
    }
}
