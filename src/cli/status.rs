//! `changeover status`

use std::io::IsTerminal;
use std::thread;
use std::time::Duration;

use clap::Args;
use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::exit::{Exit, Failure};
use super::options::{ConfigFile, Output};
use crate::control::{Client, Screen};
use crate::telemetry;

/// Often enough to see it move, rarely enough to cost nothing.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Without a terminal to measure: what fits most pages and mails.
const COLUMNS_DEFAULT: usize = 100;
/// Lines above and below the tables.
const LINES_AROUND_TABLES: usize = 12;

/// What the daemon is doing: phase, lag, sinks, spool, each table's progress and verdict
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  changeover status --watch\n  changeover status --json | jq .lag_seconds")]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
    /// Keep showing it, every second, until interrupted
    #[arg(short, long, conflicts_with = "json")]
    watch: bool,
}

pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let client = arguments.config.client()?;
    if arguments.watch && std::io::stdout().is_terminal() {
        return watch(&client);
    }
    let status = client.status()?;
    let columns = Term::stdout().size_checked().map_or(COLUMNS_DEFAULT, |(_, columns)| columns.into());
    arguments.output.print(&status, |status| Screen::new(columns, None).draw(status).join("\n"));
    Ok(Exit::Done)
}

/// Ends with the program: by Ctrl-C.
fn watch(client: &Client) -> Result<Exit, Failure> {
    // The first answer decides whether there is anything to watch; later ones may fail while the daemon restarts.
    client.status()?;
    let terminal = Term::stdout();
    let drawn = ProgressBar::with_draw_target(None, ProgressDrawTarget::term(terminal.clone(), 20));
    drawn.set_style(ProgressStyle::with_template("{msg}").expect("the template is a constant"));
    loop {
        let (lines, columns) = terminal.size();
        let tables_max = usize::from(lines).saturating_sub(LINES_AROUND_TABLES).max(3);
        let text = match client.status() {
            Ok(status) => Screen::new(columns.into(), Some(tables_max)).draw(&status).join("\n"),
            Err(error) => telemetry::chain(&error),
        };
        drawn.set_message(text);
        drawn.tick();
        thread::sleep(WATCH_INTERVAL);
    }
}
