//! The demo from beginning to end.

use std::collections::HashMap;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::clients::Load;
use super::ledger::{Faults, Ledger, compare};
use super::screen::Screen;
use super::stage::{CutOver, Daemon, Stage, Verified, blocking};
use super::{DemoOptions, DemoReport, Error, Verdict, keep, shop, stream};
use crate::pipeline::{Phase, Status};

/// The copy of the usual rows takes seconds; the whole demo is to end in two minutes.
const COPY_PATIENCE: Duration = Duration::from_secs(90);
/// How long the clients go on writing to green.
const AFTERWARDS: Duration = Duration::from_secs(4);
/// The stream must be this close before the cutover is asked for.
const LAG_SECONDS_MAX: f64 = 1.0;

/// The migration's part of the story.
struct Migrated {
    verified: Verified,
    cutover: CutOver,
    /// When the cutover was asked for and when it was answered.
    between: (Instant, Instant),
    last_status: Status,
    /// What each client had begun when the slot was there.
    begun_before: HashMap<usize, u64>,
}

/// Moves a live database between two throw-away clusters with clients writing to it all the while, and compares what the
/// clients were told with what green holds. What is going on goes to standard error. Cleans up, also when interrupted
/// and when it is dropped half-way.
pub async fn run(options: DemoOptions) -> Result<DemoReport, Error> {
    tokio::select! { biased;
        // A drop of the story ends its servers; the other way round an interrupt would wait for it.
        () = interrupted() => Err(Error::Interrupted),
        ended = tell(&options) => ended,
    }
}

async fn tell(options: &DemoOptions) -> Result<DemoReport, Error> {
    let screen = Screen::new();
    screen.live("starting two clusters and a pooler".to_owned());
    let stage = Stage::set(options).await?;
    screen.say(&format!(
        "blue: PostgreSQL {} · green: PostgreSQL {} · PgBouncer in transaction pooling",
        stage.blue.programs().version,
        stage.green.programs().version
    ));
    screen.live("loading Chinook and generated rows".to_owned());
    let accounts = shop::fill(&stage.blue_url(), options.rows).await?;
    let load = Load::start(stage.pooler.url(shop::DATABASE), accounts, options.clients, options.rate);
    screen.say(&format!("loaded; {} clients write through the pooler", options.clients));

    let mut daemon = Daemon::start(&stage, options.kafka.as_deref())?;
    let migrated = migrate(&mut daemon, &load, options, &screen).await?;
    go_on(AFTERWARDS, &load, &screen, "writing to green").await;
    let ledgers = load.stop().await;

    screen.live("comparing what clients were told with what green holds".to_owned());
    let mut faults = compare(&ledgers, &shop::held(&stage.green_url()).await?);
    let mut notes = vec![pause_note(&migrated)];
    if let Some(bootstrap) = &options.kafka {
        let (of_stream, rows) = check_stream(&stage, bootstrap, migrated.begun_before.clone()).await?;
        faults = Faults { lost: faults.lost + of_stream.lost, duplicated: faults.duplicated + of_stream.duplicated };
        notes.push(format!(
            "Kafka: {rows} rows of the write log read back, {} lost, {} twice",
            of_stream.lost, of_stream.duplicated
        ));
    }
    if !migrated.verified.differing.is_empty() {
        notes.push(format!("tables that differ: {}", migrated.verified.differing.join(", ")));
    }
    if options.keep {
        keep::keep(stage, daemon).iter().for_each(|line| screen.say(line));
    }
    Ok(report(&migrated, &ledgers, faults, notes))
}

/// From the start of the daemon to green owning the writes.
async fn migrate(daemon: &mut Daemon, load: &Load, options: &DemoOptions, screen: &Screen) -> Result<Migrated, Error> {
    let mut phase = None;
    let mut begun_before = None;
    daemon
        .watch("the copy to end", COPY_PATIENCE, |status| {
            if phase.replace(status.phase) != Some(status.phase) {
                screen.say(&format!("phase: {}", status.phase.as_str().replace('_', " ")));
            }
            if status.phase != Phase::Preparing {
                begun_before.get_or_insert_with(|| load.begun());
            }
            screen.live(line(status, load));
            status.phase == Phase::Streaming
        })
        .await?;
    let until = Instant::now() + options.duration;
    let close = |status: &Status| status.lag_seconds <= LAG_SECONDS_MAX && Instant::now() >= until;
    daemon
        .watch("the stream to catch up", options.duration + COPY_PATIENCE, |status| {
            screen.live(line(status, load));
            close(status)
        })
        .await?;
    screen.live("verifying: every row of every table, while clients write".to_owned());
    let verified = daemon.verify().await?;
    screen.say(&format!(
        "verified: {} tables, {} rows: {}",
        verified.tables.len(),
        verified.rows_verified,
        verified.verdict
    ));
    let last_status = daemon.watch("the status", COPY_PATIENCE, |_| true).await?;
    screen.live("cutting over".to_owned());
    let asked = Instant::now();
    let cutover = daemon.cutover().await?;
    let between = (asked, Instant::now());
    screen.say("cut over: green owns the writes");
    let begun_before = begun_before.unwrap_or_default();
    Ok(Migrated { verified, cutover, between, last_status, begun_before })
}

async fn go_on(duration: Duration, load: &Load, screen: &Screen, what: &str) {
    let until = Instant::now() + duration;
    while Instant::now() < until {
        screen.live(format!("{what} · {} transactions", load.committed()));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Blue takes no writes any more, so its write log is all that the stream must hold.
async fn check_stream(stage: &Stage, bootstrap: &str, begun: HashMap<usize, u64>) -> Result<(Faults, u64), Error> {
    let blue = shop::held_log(&stage.blue_url()).await?;
    let (bootstrap, topic) = (bootstrap.to_owned(), format!("{}.public.write_log", stage.topics));
    let held = blocking(move || stream::read(&bootstrap, &topic)).await?;
    Ok((stream::compare(&blue, &held, &begun), held.values().sum()))
}

fn report(migrated: &Migrated, ledgers: &[Ledger], faults: Faults, notes: Vec<String>) -> DemoReport {
    let (start, end) = migrated.between;
    let pause = ledgers.iter().map(|ledger| ledger.longest_gap(start, end)).max().unwrap_or_default();
    let equal =
        migrated.verified.verdict == "equal" && migrated.cutover.verdict.as_deref().is_none_or(|word| word == "equal");
    DemoReport {
        pause_ms: round(pause.as_secs_f64() * 1000.0),
        forecast_ms: migrated.cutover.forecast_ms.map(round),
        clients: ledgers.len(),
        transactions: ledgers.iter().map(Ledger::committed_count).sum(),
        failed_transactions: ledgers.iter().map(Ledger::failed_count).sum(),
        lost_writes: faults.lost,
        duplicated_writes: faults.duplicated,
        tables_verified: migrated.verified.tables.len() as u64,
        rows_verified: migrated.verified.rows_verified,
        verdict: if equal { Verdict::Equal } else { Verdict::Different },
        lag_p50_ms: migrated.last_status.latency.p50_ms.map(round),
        lag_p99_ms: migrated.last_status.latency.p99_ms.map(round),
        notes,
    }
}

fn pause_note(migrated: &Migrated) -> String {
    match migrated.cutover.pause_ms {
        Some(pause) => format!("pause as the daemon measured it: {pause:.0} ms"),
        None => "the daemon held nobody".to_owned(),
    }
}

fn line(status: &Status, load: &Load) -> String {
    let copied = &status.snapshot;
    let progress = match status.phase {
        Phase::Preparing => "preparing".to_owned(),
        Phase::Copying => {
            format!("copied {} of {} tables, {} rows", copied.tables_done, copied.tables_total, copied.rows_copied)
        }
        Phase::Indexing => format!("built {} of {} indexes", copied.indexes_done, copied.indexes_total),
        Phase::CatchingUp => "catching up".to_owned(),
        Phase::Streaming | Phase::CuttingOver | Phase::CutOver => "streaming".to_owned(),
    };
    let p50 = status.latency.p50_ms.map_or_else(String::new, |millis| format!(" (p50 {millis:.0} ms)"));
    format!(
        "{progress} · lag {:.0} ms, {} kB{p50} · {} transactions",
        status.lag_seconds * 1000.0,
        status.lag_bytes / 1024,
        load.committed()
    )
}

/// To a tenth.
fn round(millis: f64) -> f64 {
    (millis * 10.0).round() / 10.0
}

/// Ctrl-C or SIGTERM.
async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the default stands: we end at once, and the watchdogs clean up.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
