//! `changeover resync`

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::exit::{Exit, Failure};
use super::options::{ConfigFile, Output};
use super::report;
use crate::control::Client;
use crate::pipeline::ResyncRequest;

/// How often the daemon is asked how far it is.
const ASK_INTERVAL: Duration = Duration::from_millis(300);

/// Copies tables again while everything else streams on
#[derive(Debug, Args)]
#[command(
    after_help = "The daemon finishes it over any restart, also when this command is interrupted. Tables are added to and removed from the\nmigration by [tables] include and exclude and a restart of the daemon.\n\nExamples:\n  changeover resync public.orders\n  changeover resync 'billing.*' --no-wait --json"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
    /// schema.table, with * for any run of characters; a partitioned table stands for its partitions
    #[arg(required = true, value_name = "TABLE")]
    tables: Vec<String>,
    /// Return as soon as the daemon has begun
    #[arg(long)]
    no_wait: bool,
}

/// The daemon's answer.
#[derive(Debug, Deserialize)]
struct Begun {
    tables: Vec<String>,
    position: String,
}

pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let client = arguments.config.client()?;
    let begun: Begun = report::read(&client.resync(&ResyncRequest { tables: arguments.tables })?)?;
    if !arguments.no_wait {
        wait(&client, &begun)?;
    }
    let state = if arguments.no_wait { "begun" } else { "done" };
    let printed = json!({ "state": state, "tables": begun.tables, "position": begun.position });
    arguments.output.print(&printed, |_| {
        let lines = begun.tables.iter().map(|table| match arguments.no_wait {
            true => format!("set apart  {table}  at {}", begun.position),
            false => format!("copied     {table}  streams with the others again: `changeover verify` compares it"),
        });
        lines.collect::<Vec<_>>().join("\n")
    });
    Ok(Exit::Done)
}

/// Until the daemon has nothing under way with them, or says that it stands still.
fn wait(client: &Client, begun: &Begun) -> Result<(), Failure> {
    let tables: BTreeSet<&String> = begun.tables.iter().collect();
    loop {
        let status = client.status()?;
        let under_way = status.resync.as_ref().is_some_and(|resync| resync.tables.iter().any(|it| tables.contains(it)));
        if !under_way {
            return Ok(());
        }
        if let Some(trouble) = status.halted.iter().find(|trouble| trouble.part == "resync") {
            return Err(Failure::new(Exit::Failed, format!("resync: {}", trouble.error), trouble.hint.clone()));
        }
        thread::sleep(ASK_INTERVAL);
    }
}
