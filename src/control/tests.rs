//! Both ends of the HTTP side, over a real socket; and the status as it is drawn.

use std::net::SocketAddr;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::{Environment, parse};
use crate::model::{Secret, SinkName};
use crate::pipeline::{
    self, LatencyStatus, Owner, Phase, ResyncStage, ResyncStatus, SinkStatus, SnapshotStatus, SourceStatus,
    SpoolStatus, Status, StepStatus, TableState, TableStatus, TableVerdictStatus, ThrottleStatus, Trouble,
    VerificationStatus, WorkUnit,
};
use crate::telemetry;

/// Serves a daemon that has not started yet, and never will.
async fn served(token: Option<&str>) -> (SocketAddr, pipeline::Daemon, JoinSet<()>) {
    let text = "[migration]\nname = \"shop\"\n[source]\nurl = \"postgres://a@blue/x\"\n[target]\nurl = \"postgres://a@green/x\"";
    let (handle, daemon) = pipeline::daemon(parse(text, &Environment::new()).unwrap());
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = telemetry::metrics::install_recorder(&"shop".parse().unwrap());
    let options = Options { handle, metrics, token: token.map(Secret::new) };
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { serve(listener, options, CancellationToken::new()).await.unwrap() });
    (address, daemon, tasks)
}

async fn ask<T: Send + 'static>(
    address: SocketAddr,
    token: Option<&str>,
    question: impl FnOnce(Client) -> T + Send + 'static,
) -> T {
    let client = Client::new(address, token.map(Secret::new));
    tokio::task::spawn_blocking(move || question(client)).await.unwrap()
}

async fn get(address: SocketAddr, path: &'static str) -> (u16, String) {
    let url = format!("http://{address}{path}");
    let call = move || {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
        let mut answer = agent.get(url).call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    tokio::task::spawn_blocking(call).await.unwrap()
}

#[tokio::test]
async fn what_goes_on_is_told_to_everybody() {
    let (address, _daemon, _serving) = served(Some("key")).await;
    let status = ask(address, None, |client| client.status()).await.unwrap();
    assert_eq!((status.migration.as_str(), status.phase), ("shop", Phase::Preparing));
    assert_eq!(get(address, "/healthz").await, (200, "alive\n".to_owned()));
    assert_eq!(get(address, "/readyz").await, (503, "preparing\n".to_owned()));
    let (code, metrics) = get(address, "/metrics").await;
    assert_eq!(code, 200);
    assert!(metrics.contains("changeover_build_info{migration=\"shop\""), "{metrics}");
    assert!(metrics.contains("# HELP changeover_cutover_ready "), "{metrics}");
    let (code, page) = get(address, "/").await;
    assert!(code == 200 && page.contains("<title>changeover</title>"));
    assert_eq!(get(address, "/api/v2/status").await.0, 404);
}

#[tokio::test]
async fn nothing_is_changed_without_the_token() {
    let (address, daemon, _serving) = served(Some("key")).await;
    for wrong in [None, Some("kez")] {
        let error = ask(address, wrong, |client| client.pause()).await.unwrap_err();
        let ClientError::Refused(refused) = &error else { panic!("{error:?}") };
        assert!(refused.reason.contains("token"), "{refused:?}");
        assert!(error.hint().unwrap().contains("control.token_file"));
    }
    // With it, the request reaches the daemon: which is gone, and says so.
    drop(daemon);
    let error = ask(address, Some("key"), |client| client.pause()).await.unwrap_err();
    assert_eq!(error.to_string(), "the daemon is stopping");
}

#[tokio::test]
async fn a_request_that_nobody_understands_is_refused_by_name() {
    let (address, _daemon, _serving) = served(None).await;
    let call = move || {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
        let mut answer = agent.post(format!("http://{address}/api/v1/verify")).send(r#"{"tabels": []}"#).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    let (code, answer) = tokio::task::spawn_blocking(call).await.unwrap();
    assert_eq!(code, 400);
    assert!(answer.contains("unknown field `tabels`"), "{answer}");
}

#[tokio::test]
async fn an_absent_daemon_is_met_with_what_to_do() {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = ask(address, None, |client| client.status()).await.unwrap_err();
    assert!(error.to_string().starts_with("no daemon answers at http://127.0.0.1:"), "{error}");
    assert!(error.hint().unwrap().contains("changeover run"));
}

#[tokio::test]
async fn a_second_daemon_on_the_address_is_told_so() {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let error = bind(listener.local_addr().unwrap()).await.unwrap_err();
    let crate::model::Disposition::Halt { hint } = error.disposition() else { panic!("{error:?}") };
    assert!(hint.contains("perhaps another daemon"), "{hint}");
}

fn table(name: &str, state: TableState) -> TableStatus {
    TableStatus {
        table: name.to_owned(),
        state,
        rows_copied: 500,
        rows_estimated: 1000,
        bytes_copied: 1 << 20,
        bytes_total: 1 << 21,
        progress_ratio: match state {
            TableState::Waiting => 0.0,
            TableState::Copying => 0.5,
            TableState::Copied
            | TableState::Indexing
            | TableState::Indexed
            | TableState::CatchingUp
            | TableState::Streaming => 1.0,
        },
        bytes_per_second: 2e6,
        rows_per_second: 1e4,
        eta_seconds: (state == TableState::Copying).then_some(75.0),
        inserts: 1_234_567,
        updates: 0,
        deletes: 0,
        truncates: 0,
        rows: 123_456_789,
        lag_seconds: 0.0,
        verdict: None,
    }
}

fn step(title: &str, waits_for: Option<&str>, total: u64) -> StepStatus {
    StepStatus {
        step: title.to_owned(),
        table: Some("public.copied".to_owned()),
        running_seconds: 75.0,
        waits_for: waits_for.map(str::to_owned),
        phase: Some("building index: scanning table".to_owned()),
        unit: Some(WorkUnit::Blocks),
        done: total / 4,
        total,
    }
}

fn status() -> Status {
    let differs = TableVerdictStatus { equal: false, rows: 1, differing_rows: 1, position: "0/1".into() };
    let different = TableStatus { verdict: Some(differs), ..table("public.different", TableState::Streaming) };
    Status {
        migration: "shop".into(),
        version: "0.1.0".into(),
        phase: Phase::Copying,
        owner: Owner::Blue,
        paused: false,
        halted: vec![Trouble {
            part: "kafka".into(),
            error: "connect to the broker: ".to_owned() + &"a long way down ".repeat(12),
            hint: Some("start the broker".into()),
            since_us: 0,
        }],
        retrying: Vec::new(),
        warnings: Vec::new(),
        started_at_us: 0,
        source: SourceStatus { connected: true, slot_retained_bytes: Some(3 << 30), ..SourceStatus::default() },
        lag_bytes: 5 << 20,
        lag_seconds: 1.25,
        throttle: ThrottleStatus {
            held: vec![
                "standby a_standby_with_a_long_name is 123456789 bytes behind".into(),
                "hold_query says true".into(),
            ],
            held_since_us: Some(telemetry::clock::unix_us() - 200_000_000),
            max_rate_bytes: Some(50 << 20),
            ..ThrottleStatus::default()
        },
        latency: LatencyStatus { p50_ms: Some(3.0), p99_ms: Some(17.0) },
        sinks: vec![SinkStatus {
            sink: SinkName::Target,
            through: Some("16/B374D848".into()),
            lag_bytes: 5 << 20,
            lag_seconds: 1.25,
            transactions_total: 1_000_000,
            rows_total: 12_345_678,
        }],
        spool: SpoolStatus {
            memory_bytes: 1 << 20,
            disk_bytes: 1 << 30,
            disk_capacity_bytes: 20 << 30,
            full: false,
            releases_source_wal: true,
            released_bytes: 1 << 30,
        },
        snapshot: SnapshotStatus {
            tables_total: 4,
            tables_done: 1,
            bytes_copied: 3 << 30,
            bytes_total: 9 << 30,
            bytes_per_second: 1e8,
            progress_ratio: 1.0 / 3.0,
            eta_seconds: Some(3700.0),
            indexes_total: 12,
            indexes_done: 3,
            ..SnapshotStatus::default()
        },
        steps: vec![
            step("INDEX public.copied_by_a_rather_long_list_of_its_columns", None, 1_200_000),
            step("ANALYZE public.copied", Some("process 4711 (psql of me, ShareLock)"), 0),
        ],
        tables: vec![
            different,
            table("public.waiting", TableState::Waiting),
            table("public.copying", TableState::Copying),
            table("a_rather_long_schema_name.with_a_table_of_a_long_name_too", TableState::Copied),
        ],
        verification: Some(VerificationStatus {
            running: false,
            ratio: 1.0,
            equal: Some(true),
            position: Some("0/1".into()),
        }),
        cutover: None,
        resync: None,
    }
}

#[test]
fn a_resync_is_shown_with_its_stage_and_its_table_before_those_that_stream() {
    let mut status = status();
    status.phase = Phase::Streaming;
    status.tables.push(table("public.again", TableState::CatchingUp));
    let (lag_bytes, lag_seconds) = (5 << 10, 0.5);
    let tables = vec!["public.again".to_owned()];
    status.resync = Some(ResyncStatus { tables, stage: ResyncStage::CatchingUp, lag_bytes, lag_seconds });
    let lines = Screen::new(100, None).draw(&status);
    let at = |word: &str| lines.iter().position(|line| line.contains(word)).unwrap_or_else(|| panic!("{lines:#?}"));
    assert!(lines[at("resync ")].contains("catching up · 1 tables · 5.0 KiB behind, 0.5 s"), "{lines:#?}");
    assert!(lines[at("public.again")].ends_with("catching up") && at("public.again") < at("public.different"));
}

#[test]
fn the_status_fits_the_terminal_and_shows_what_moves_first() {
    for columns in [60, 80, 120] {
        let lines = Screen::new(columns, None).draw(&status());
        for line in &lines {
            assert!(line.chars().count() <= columns, "{columns} columns: {line:?}");
        }
        let at = |word: &str| {
            lines.iter().position(|line| line.contains(word)).unwrap_or_else(|| panic!("{word}: {lines:#?}"))
        };
        assert!(at("public.copying") < at("public.waiting") && at("public.waiting") < at("public.different"));
        assert!(columns < 120 || lines[at("copy  ")].contains("/s (limit 50 MiB/s)"), "{lines:#?}");
        assert!(lines[at("held for")].starts_with("held for 3m 2"), "{lines:#?}");
        assert!(at("held for") <= at("hold_query says"));
        assert!(at("HALTED kafka") < at("hint: start the broker"));
        assert!(lines[at("public.copying")].contains(" 50%"), "{lines:#?}");
        assert!(at("3 of 12 steps done · 2 running") < at("  INDEX public.copied"), "{lines:#?}");
        let build = &lines[at("  INDEX public.copied")];
        assert!(build.contains("▌") || build.contains("██"), "a bar: {build}");
        assert!(build.contains(" 25%  1m 15s  scanning") && lines[at("  ANALYZE")].contains("waits for process 4711"));
        assert!(lines[0].starts_with("shop  copying") && lines[0].ends_with("writes: blue"));
    }
}

#[test]
fn a_long_list_is_cut_and_counted() {
    let lines = Screen::new(80, Some(2)).draw(&status());
    assert_eq!(lines.last().unwrap(), "… and 2 more tables");
}

#[test]
fn durations_are_words() {
    for (seconds, words) in [(0.0, "0s"), (41.2, "42s"), (200.0, "3m 20s"), (7500.0, "2h 5m"), (349_200.0, "4d 1h")] {
        assert_eq!(duration_words(seconds), words);
    }
}
