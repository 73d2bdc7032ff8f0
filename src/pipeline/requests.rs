//! Answers what operators ask of the running daemon.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tracing::{debug, info};

use super::board::Board;
use super::commands::Commands;
use super::error::Error;
use super::flow::Flow;
use super::gathered::gathered_by;
use super::handle::{Answer, Refused, Request, ThrottleRequest, VerifyRequest};
use super::resync::SettingApart;
use super::status::Phase;
use super::strangers::Strangers;
use super::supervise::Supervisor;
use super::touched::{Chosen, Listeners};
use crate::config::{COPY_RATE_MIN, Config};
use crate::link;
use crate::model::{Disposition, RowFilters, TableFilter, TableName, TablePattern};
use crate::schema::Catalog;
use crate::telemetry::chain;
use crate::verify::{self, Aligner, Table};

/// Past this a verification goes on under a new pair of snapshots: an open one keeps both servers from clearing dead
/// rows, and the apply of hot rows slows down by its age.
const SNAPSHOT_AGE_MAX: Duration = Duration::from_secs(60);

/// Keys that a verification of chosen tables may keep; past it whole tables are looked at again.
const CHOSEN_KEYS_BYTES: usize = 8 << 20;

#[derive(Clone)]
pub(super) struct Requests {
    pub(super) config: Arc<Config>,
    pub(super) board: Board,
    pub(super) flow: Arc<Flow>,
    pub(super) commands: Commands,
    pub(super) listeners: Arc<Listeners>,
    pub(super) supervisor: Supervisor,
    pub(super) catalog: Arc<Catalog>,
    pub(super) setting_apart: SettingApart,
    pub(super) epoch: i64,
    /// One at a time: verification and cutover both make the applier stand still.
    pub(super) turn: Arc<Mutex<()>>,
    pub(super) strangers: Arc<Strangers>,
}

impl Requests {
    /// Serves until the daemon stops. Long requests run beside the short ones.
    pub(super) async fn serve(self, mut requests: link::Receiver<Request>) {
        let mut running = JoinSet::new();
        loop {
            tokio::select! { biased;
                () = self.supervisor.stop.cancelled() => break,
                Some(ended) = running.join_next(), if !running.is_empty() => {
                    if let Err(failure) = ended {
                        std::panic::resume_unwind(failure.into_panic());
                    }
                }
                request = requests.recv() => match request {
                    Some(parcel) => {
                        let requests = self.clone();
                        running.spawn(async move { requests.answer(parcel.item).await });
                    }
                    None => break,
                },
            }
        }
        // A cutover past its commit point must be finished, and one before it undone, before the process ends.
        while running.join_next().await.is_some() {}
    }

    async fn answer(&self, request: Request) {
        let reply = |answer: Answer, result| {
            // An asker who has gone away misses the answer, nothing else.
            drop(answer.send(result));
        };
        match request {
            Request::Verify(request, answer) => {
                let result = tokio::select! {
                    () = self.supervisor.stop.cancelled() => Err(stopping()),
                    result = self.verify(request) => result,
                };
                reply(answer, result);
            }
            Request::Cutover(request, answer) => reply(answer, self.cut_over(request).await),
            Request::Resync(request, answer) => reply(answer, self.resync(request).await),
            Request::Pause(answer) => reply(answer, self.pause().await),
            Request::Resume(answer) => reply(answer, self.resume().await),
            Request::Throttle(request, answer) => reply(answer, self.throttle(request)),
            Request::Stop(answer) => {
                reply(answer, Ok(serde_json::json!({ "stopping": true })));
                self.supervisor.stop.cancel();
            }
        }
    }

    async fn verify(&self, request: VerifyRequest) -> Result<serde_json::Value, Refused> {
        self.streaming("verify")?;
        let _turn = self.turn()?;
        let left_out = self.board.resync().tables();
        let chosen = self.chosen(&request, &left_out)?;
        // Noticed afterwards, an earlier write would make a later verdict doubtful.
        self.strangers.look().await;
        self.board.verifying(true);
        let dirty = chosen.as_ref().map_or(&**self.listeners.all(), Chosen::keys);
        let report = verify::verify(&self.verify_options(), &self.commands, dirty, &self.board.verification()).await;
        self.board.verifying(false);
        let mut report = report.map_err(|error| refused(&error.into()))?;
        report.left_out = left_out.iter().map(TableName::to_string).collect();
        for table in report.tables.iter().filter(|table| !table.equal) {
            // Chosen tables keep keys of their own, and what they find must not let a cutover through.
            self.listeners.all().distrust(&table.table);
        }
        info!(verdict = ?report.verdict, position = %report.position, rows = report.rows_verified, "verified");
        let value = serde_json::to_value(&report).expect("a report is plain data");
        self.board.verified(report);
        Ok(value)
    }

    /// `None` when all tables are meant. Those of `left_out` are no part of the one state of the source.
    fn chosen(&self, request: &VerifyRequest, left_out: &BTreeSet<TableName>) -> Result<Option<Chosen>, Refused> {
        if request.tables.is_empty() && left_out.is_empty() {
            return Ok(None);
        }
        let patterns = request.tables.iter().map(|text| TablePattern::parse(text));
        let include = patterns
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Refused::now(error.to_string(), "write it as schema.table"))?;
        let filter = match request.tables.is_empty() {
            true => TableFilter::everything(),
            false => TableFilter { include, exclude: Vec::new() },
        };
        let named = self.listeners.all().tables().iter().filter(|table| filter.matches(&table.source));
        let (out, tables): (Vec<Table>, Vec<Table>) =
            named.cloned().partition(|table| left_out.contains(&table.source));
        if let (Some(table), true) = (out.first(), tables.is_empty()) {
            return Err(Refused::now(
                format!("{} is being copied", table.source),
                "verify it once `changeover status` says that it streams",
            ));
        }
        if tables.is_empty() {
            if let Some((partition, root)) = filter.include.iter().find_map(|it| gathered_by(&self.catalog, it)) {
                return Err(Refused::now(
                    format!(
                        "verify {partition}: the target partitions {root} otherwise, so it is compared as one table"
                    ),
                    format!("`changeover verify --table {root}`"),
                ));
            }
            return Err(Refused::now(
                format!("no table of the migration matches {}", request.tables.join(", ")),
                "`changeover status` lists its tables",
            ));
        }
        Ok(Some(self.listeners.choose(tables, CHOSEN_KEYS_BYTES)))
    }

    async fn pause(&self) -> Result<serde_json::Value, Refused> {
        let _turn = self.turn()?;
        match self.board.phase() {
            // Nothing is applied yet. The phase is not left before the pause has ended.
            Phase::Preparing | Phase::Copying => {
                self.board.throttle().pause();
                self.board.paused(true);
                info!("paused as asked: no part of a table is begun");
                return Ok(serde_json::json!({ "paused": true, "through": null }));
            }
            Phase::Indexing => {
                return Err(Refused::now(
                    "pause while indexing: what is built on the target is built to its end",
                    "ask again once `changeover status` says catching_up or streaming",
                ));
            }
            Phase::CatchingUp | Phase::Streaming | Phase::CuttingOver | Phase::CutOver => {}
        }
        if let Some(what) = self.board.resync().why_not_whole() {
            return Err(Refused::now(
                format!("pause while a resync is under way ({what})"),
                "wait for it: `changeover status --watch` shows it",
            ));
        }
        let through = self.commands.hold().await.map_err(|error| Refused::now(error.to_string(), "try again later"))?;
        self.board.throttle().pause();
        self.board.paused(true);
        info!(%through, "paused as asked");
        Ok(serde_json::json!({ "paused": true, "through": through.to_string() }))
    }

    async fn resume(&self) -> Result<serde_json::Value, Refused> {
        self.supervisor.resume.notify_waiters();
        self.board.throttle().resume();
        if self.board.status().paused {
            // An applier that is not there, or is there anew, is not held.
            if let Err(error) = self.commands.release().await {
                debug!(%error, "no applier to let go");
            }
            self.board.paused(false);
        }
        info!("resumed as asked");
        Ok(serde_json::json!({ "paused": false }))
    }

    fn throttle(&self, request: ThrottleRequest) -> Result<serde_json::Value, Refused> {
        let rate = match (request.max_rate_bytes, request.off) {
            (Some(rate), false) if rate >= COPY_RATE_MIN => Some(rate),
            (Some(rate), false) => {
                return Err(Refused::now(
                    format!("limit the copy to {rate} bytes a second: its snapshots would stay open for too long"),
                    format!("ask for at least {COPY_RATE_MIN}, or `changeover pause`"),
                ));
            }
            (None, true) => None,
            (Some(_), true) | (None, false) => {
                return Err(Refused::now("limit the copy to what?", "send either max_rate_bytes or off"));
            }
        };
        self.board.throttle().limit_rate(rate);
        Ok(serde_json::json!({ "max_rate_bytes": rate }))
    }

    pub(super) fn turn(&self) -> Result<tokio::sync::OwnedMutexGuard<()>, Refused> {
        Arc::clone(&self.turn).try_lock_owned().map_err(|_| {
            Refused::now(
                "a verification, a cutover or a resync is under way",
                "wait for it: `changeover status --watch` shows it",
            )
        })
    }

    /// Refuses unless the target is one state of the source.
    pub(super) fn streaming(&self, what: &str) -> Result<(), Refused> {
        let status = self.board.status();
        if let Some(trouble) = status.halted.first() {
            let hint = trouble.hint.clone().unwrap_or_default();
            return Err(Refused::now(format!("{what} while {} stands still: {}", trouble.part, trouble.error), hint));
        }
        self.in_phase(what)
    }

    /// The same though a part may stand still.
    pub(super) fn in_phase(&self, what: &str) -> Result<(), Refused> {
        let status = self.board.status();
        if status.paused {
            return Err(Refused::now(format!("{what} while paused"), "`changeover resume` first"));
        }
        match status.phase {
            Phase::Streaming => Ok(()),
            Phase::CutOver => {
                Err(Refused::now(format!("{what} after the cutover: green owns the writes"), "`changeover complete`"))
            }
            Phase::Preparing | Phase::Copying | Phase::Indexing | Phase::CatchingUp | Phase::CuttingOver => {
                Err(Refused::now(
                    format!("{what} while {}", status.phase.as_str()),
                    "wait until `changeover status` says streaming",
                ))
            }
        }
    }

    pub(super) fn verify_options(&self) -> verify::Options {
        verify::Options {
            migration: self.config.migration.clone(),
            source: self.config.source.endpoint.clone(),
            target: self.config.target.endpoint.clone(),
            workers: self.config.verify.workers,
            keys_max: self.config.verify.keys_listed,
            snapshot_age_max: SNAPSHOT_AGE_MAX,
        }
    }
}

pub(super) fn refused(error: &Error) -> Refused {
    let hint = match error.disposition() {
        Disposition::Halt { hint } => Some(hint),
        Disposition::Retry => Some("try again: the cause is expected to pass".to_owned()),
    };
    Refused::failed(chain(error), hint)
}

fn stopping() -> Refused {
    Refused::now("the daemon is stopping", "start it again with `changeover run`")
}

/// What is verified: every table whose rows we bring, with all its columns.
pub(super) fn verified_tables(catalog: &Catalog, rows: &RowFilters) -> Vec<Table> {
    let tables = catalog.row_tables().map(|table| {
        let key = table.primary_key.clone().unwrap_or_else(|| {
            // Under FULL the identity is the whole row, which is no key.
            let index = table.replica_identity == crate::model::ReplicaIdentity::Index;
            if index { table.identity_columns.clone() } else { Vec::new() }
        });
        let key_column = |name: &String| verify::KeyColumn {
            name: name.clone(),
            type_sql: table.column(name).map(|column| column.type_text.clone()).unwrap_or_default(),
        };
        Table {
            source: table.name.clone(),
            target: table.name.clone(),
            columns: table.columns.iter().map(|column| column.name.clone()).collect(),
            key: key.iter().map(key_column).collect(),
            leaves: table.leaves.iter().map(|leaf| leaf.table.name.clone()).collect(),
            rows: rows.of(&table.name).map(str::to_owned),
        }
    });
    tables.collect()
}
