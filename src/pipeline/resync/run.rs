//! Carries tables through their copy, one recorded step after the other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::apart::SettingApart;
use super::empty::{acts_as_replica, places};
use crate::apply::{self, Member, MemberStep, Standstill};
use crate::config::SnapshotMode;
use crate::model::{Lsn, ReplicaIdentity, Settled, SinkName, TableName};
use crate::pipeline::board::Board;
use crate::pipeline::commands::Commands;
use crate::pipeline::error::Error;
use crate::pipeline::gathered::with_new_leaves;
use crate::pipeline::membership::restricted;
use crate::pipeline::migrate::{schema_options, snapshot_options};
use crate::pipeline::sinks::{Feed, TargetSink};
use crate::pipeline::status::{Phase, ResyncStage};
use crate::pipeline::supervise::Supervisor;
use crate::schema::{self, Catalog, Steps};
use crate::wire::{self, Session};
use crate::{snapshot, source};

/// How often we look whether something that nobody tells about has come.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// What the lane may be behind the main one when that is made to stand still: it is gone through in milliseconds.
const CLOSE_BYTES: u64 = 256 << 10;
/// How long the main lane stands still at most for the other one to reach it. That writes its position every 50 ms.
const STANDSTILL_MAX: Duration = Duration::from_millis(500);
const REACHED_INTERVAL: Duration = Duration::from_millis(5);
/// Between two such attempts, so that a lane that cannot move costs the others little.
const REST_MAX: Duration = Duration::from_secs(10);

pub(in crate::pipeline) struct Resync {
    pub(in crate::pipeline) setting_apart: SettingApart,
    pub(in crate::pipeline) board: Board,
    pub(in crate::pipeline) supervisor: Supervisor,
    /// Verification and cutover hold it.
    pub(in crate::pipeline) turn: Arc<Mutex<()>>,
    /// Every table, those that are to join included.
    pub(in crate::pipeline) catalog: Arc<Catalog>,
    pub(in crate::pipeline) joining: BTreeSet<TableName>,
    /// How the tables that are set apart are applied to.
    pub(in crate::pipeline) apply: apply::Options,
    pub(in crate::pipeline) link_bytes: usize,
}

/// What a look at the state came to.
enum Found {
    Nothing,
    Done,
}

impl Resync {
    /// Runs until the daemon stops.
    pub(in crate::pipeline) async fn run(self) {
        while !self.supervisor.stop.is_cancelled() {
            match self.supervisor.keep("resync", || self.once()).await {
                None => return,
                Some(Found::Done) => {}
                Some(Found::Nothing) => tokio::select! { biased;
                    () = self.supervisor.stop.cancelled() => return,
                    () = self.setting_apart.desk.begun.notified() => {}
                },
            }
        }
    }

    /// One step. Everything that it rests on is read from the target, so it may be tried again after any failure.
    async fn once(&self) -> Result<Found, Error> {
        let target = wire::connect(self.target(), "resync").await.map_err(Error::Target)?;
        let members = {
            let _gate = self.setting_apart.desk.gate.lock().await;
            let members = apply::read_members(&target, &self.setting_apart.config.migration).await?;
            if members.iter().all(|member| member.step.is_none()) {
                self.setting_apart.release();
                let waiting = self.waiting(&members);
                self.setting_apart.desk.begin(waiting.iter().cloned().collect());
            }
            members
        };
        let Some(step) = members.iter().filter_map(|member| member.step).min() else {
            let waiting = self.waiting(&members);
            if !waiting.is_empty() {
                return self.join(&waiting, true).await;
            }
            let grown = self.grown().await?;
            return if grown.is_empty() { Ok(Found::Nothing) } else { self.join(&grown, false).await };
        };
        let (mut tables, mut added) = (Vec::new(), BTreeSet::new());
        for member in members.iter().filter(|member| member.step == Some(step)) {
            tables.push(member.table.clone());
            added.extend(member.added.then(|| member.table.clone()));
        }
        match step {
            MemberStep::SetApart => self.unless_stopped(self.make_ready(&target, &tables, &added)).await?,
            MemberStep::Ready => self.copy(&target, &tables).await?,
            // On the heap, with the applier that is part of it.
            MemberStep::Copied => Box::pin(self.catch_up(&tables, &added)).await?,
            MemberStep::Merged => {
                let after = members.iter().filter_map(|member| member.after).max();
                self.finish(&target, &tables, &added, after).await?;
            }
        }
        Ok(Found::Done)
    }

    /// Tables that the configuration names and the migration does not have.
    fn waiting(&self, members: &[Member]) -> Vec<TableName> {
        let known: BTreeSet<&TableName> = members.iter().map(|member| &member.table).collect();
        self.joining.iter().filter(|name| !known.contains(name)).cloned().collect()
    }

    /// Gathered tables with a partition that is not in the stream yet.
    async fn grown(&self) -> Result<Vec<TableName>, Error> {
        if self.board.phase() == Phase::CutOver || !self.catalog.tables.iter().any(schema::Table::is_gathered) {
            return Ok(Vec::new());
        }
        let source = wire::connect(self.source(), "resync").await.map_err(Error::Source)?;
        with_new_leaves(&self.setting_apart.config, &source, &self.catalog).await
    }

    /// They are set apart as soon as the migration streams; `added` when they join with it.
    async fn join(&self, tables: &[TableName], added: bool) -> Result<Found, Error> {
        loop {
            match self.board.phase() {
                Phase::Streaming => {}
                Phase::CutOver => {
                    warn!(tables = tables.len(), "green owns the writes: no table joins any more");
                    self.setting_apart.desk.begin(BTreeSet::new());
                    self.supervisor.stop.cancelled().await;
                    return Ok(Found::Nothing);
                }
                Phase::Preparing | Phase::Copying | Phase::Indexing | Phase::CatchingUp | Phase::CuttingOver => {
                    self.pause().await?;
                    continue;
                }
            }
            self.may_be_published(tables).await?;
            let _turn = self.unless_stopped(async { Ok(self.turn.lock().await) }).await?;
            if self.board.phase() == Phase::Streaming {
                let _gate = self.setting_apart.desk.gate.lock().await;
                let position = self.unless_stopped(self.setting_apart.perform(tables, added)).await?;
                info!(%position, tables = tables.len(), added, "tables join, or are copied again with new partitions");
                return Ok(Found::Done);
            }
        }
    }

    /// An UPDATE of a table without identity fails once it is published (PITFALLS 6).
    async fn may_be_published(&self, tables: &[TableName]) -> Result<(), Error> {
        let source = wire::connect(self.source(), "resync").await.map_err(Error::Source)?;
        let now = schema::read_catalog(&source, &self.setting_apart.config.tables).await?;
        let leaves = self.catalog.gathered_leaves();
        let without: Vec<&TableName> = now
            .row_tables()
            .filter(|table| table.identity_columns.is_empty() || table.replica_identity == ReplicaIdentity::Nothing)
            .map(|table| &table.name)
            .filter(|name| tables.contains(leaves.member(name)))
            .collect();
        if without.is_empty() {
            return Ok(());
        }
        let statement = |table: &&TableName| format!("ALTER TABLE {} REPLICA IDENTITY FULL", table.quoted());
        Err(Error::NoReplicaIdentity {
            tables: listed(without.iter().copied()),
            statement: without.iter().map(statement).collect::<Vec<_>>().join("; "),
        })
    }

    async fn make_ready(
        &self,
        target: &Session,
        tables: &[TableName],
        added: &BTreeSet<TableName>,
    ) -> Result<(), Error> {
        self.enter(ResyncStage::Preparing);
        // Before it is empty: what a new partition of it holds is copied with the rest.
        let grown = self.grown().await?;
        let published = added.iter().chain(tables.iter().filter(|table| grown.contains(table)));
        self.publish(&published.cloned().collect()).await?;
        let again: Vec<TableName> = tables.iter().filter(|table| !added.contains(*table)).cloned().collect();
        if !again.is_empty() {
            acts_as_replica(target).await?;
            for place in places(target, &again).await? {
                place.empty(target, &self.setting_apart.config.migration, self.setting_apart.epoch).await?;
                info!(table = %place.table, "emptied, to be copied again");
            }
        }
        if added.is_empty() {
            return Ok(());
        }
        let names: Vec<TableName> = added.iter().cloned().collect();
        let (migration, epoch) = (&self.setting_apart.config.migration, self.setting_apart.epoch);
        if self.copies_schema() {
            let ready = apply::entering(migration, epoch, &names, MemberStep::Ready);
            let options = self.schema_options().await?;
            schema::copy_added_pre_data(&options, &self.catalog, added, &ready).await?;
        } else {
            apply::enter_step(target, migration, epoch, &names, MemberStep::Ready).await?;
        }
        Ok(())
    }

    /// From here on their changes are in the stream, but for what open transactions have written already: `copy` waits
    /// for those.
    async fn publish(&self, tables: &BTreeSet<TableName>) -> Result<(), Error> {
        if tables.is_empty() {
            return Ok(());
        }
        let source = wire::connect(self.source(), "resync").await.map_err(Error::Source)?;
        let publication = &self.setting_apart.config.source.publication;
        let published = source::publication_tables(&source, &publication.name).await?.unwrap_or_default();
        let stored =
            self.catalog.row_tables().filter(|table| tables.contains(&table.name)).flat_map(schema::Table::stored);
        let wanted: Vec<TableName> =
            stored.map(|table| &table.name).filter(|name| !published.contains(name)).cloned().collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let rows = &self.setting_apart.config.rows;
        if publication.adopted {
            return Err(Error::NotPublished {
                publication: publication.name.clone(),
                tables: listed(wanted.iter()),
                statement: source::addition(&publication.name, &wanted, rows),
            });
        }
        source::add_to_publication(&source, &publication.name, &wanted, rows).await?;
        info!(publication = publication.name, tables = wanted.len(), "published too");
        Ok(())
    }

    /// Under a snapshot that sees everything that was applied before they were set apart. A commit may be decoded and
    /// applied before it is visible (PITFALLS 1), and what was written before a table was published is in no stream
    /// (PITFALLS 20): so transactions that are open now are waited for.
    async fn copy(&self, target: &Session, tables: &[TableName]) -> Result<(), Error> {
        self.enter(ResyncStage::Copying);
        let config = &self.setting_apart.config;
        let source = wire::connect(self.source(), "resync").await.map_err(Error::Source)?;
        let patience = config.source.slot_timeout.max(Duration::from_secs(1));
        let waiting = async { Ok(source::wait_out_running_transactions(&source, patience).await) };
        match self.unless_stopped(waiting).await? {
            Err(source::Error::TransactionsOpen { blockers, .. }) => {
                return Err(Error::TransactionsOpen { blockers: blockers.to_string() });
            }
            ended => ended?,
        }
        let catalog = restricted(&self.catalog, |table| tables.contains(table));
        let stop = self.supervisor.stop.child_token();
        let throttle = self.board.throttle();
        let options = snapshot_options(config, Arc::clone(&throttle));
        let copying = snapshot::run(options, &catalog, self.setting_apart.desk.progress(), stop);
        throttle.beside(Box::pin(copying)).await?;
        let epoch = self.setting_apart.epoch;
        apply::enter_step(target, &config.migration, epoch, tables, MemberStep::Copied).await?;
        Ok(())
    }

    /// Applies what was committed since they were set apart, until the main lane has taken them back.
    async fn catch_up(&self, tables: &[TableName], added: &BTreeSet<TableName>) -> Result<(), Error> {
        if self.copies_schema() && !added.is_empty() {
            self.enter(ResyncStage::Indexing);
            let stop = self.supervisor.stop.child_token();
            let catalog = self.with_ancestors(added);
            let (options, steps) = (self.schema_options().await?, Steps::default());
            schema::copy_indexes(&options, &catalog, &steps, schema::Rows::Complete, stop).await?;
        }
        self.enter(ResyncStage::CatchingUp);
        let until = self.source_position().await?;
        let options = apply::Options { handovers: self.handovers(tables).await?, ..self.apply.clone() };
        let desk = &self.setting_apart.desk;
        let cursor = desk.take_cursor().expect("tables that are set apart have their place in the spool");
        let cursor = Mutex::new(cursor);
        let stop = self.supervisor.stop.child_token();
        let lane = self.lane(options, stop.clone());
        let ended = CancellationToken::new();
        let applying = async {
            lane.feed.supervisor.keep("resync", || lane.once(&cursor)).await;
            ended.cancel();
        };
        let merging = async {
            let merged = self.merge(tables, until, &stop, &ended).await;
            stop.cancel();
            merged
        };
        let ((), merged) = tokio::join!(applying, merging);
        desk.keep(cursor.into_inner());
        merged
    }

    fn lane(&self, options: apply::Options, stop: CancellationToken) -> TargetSink {
        TargetSink {
            sink: SinkName::Resync,
            feed: Feed {
                flow: Arc::clone(&self.setting_apart.flow),
                supervisor: Supervisor { stop, ..self.supervisor.clone() },
                link_bytes: self.link_bytes,
            },
            options,
            commands: Commands::default(),
            ahead: None,
            touched: self.setting_apart.listeners.clone(),
            tally: self.board.tally(),
            // What waited for the copy says nothing about the stream.
            latency: Arc::default(),
            settled: watch::Sender::new(Settled::default()),
        }
    }

    /// Waits until the lane is close behind the main one, lets that one stand still until they are level, ends the lane,
    /// and lets the main one go on with the tables from where it ended.
    async fn merge(
        &self,
        tables: &[TableName],
        until: Lsn,
        lane: &CancellationToken,
        ended: &CancellationToken,
    ) -> Result<(), Error> {
        let (flow, config) = (&self.setting_apart.flow, &self.setting_apart.config);
        tokio::select! { biased;
            () = lane.cancelled() => return Ok(()),
            () = flow.settled_past(SinkName::Resync, until) => {}
        }
        let mut rest = LOOK_INTERVAL;
        loop {
            self.pause_for(rest).await?;
            let [main, apart] = [SinkName::Target, SinkName::Resync].map(|sink| flow.settled_through(sink));
            let is_close = main.zip(apart).is_some_and(|(main, apart)| main.bytes_since(apart) <= CLOSE_BYTES);
            // A pause is the operator's standing still, and ends with the applier that we would make start anew.
            if !is_close || self.board.is_paused() {
                continue;
            }
            let _turn = tokio::select! { biased;
                () = lane.cancelled() => return Ok(()),
                turn = self.turn.lock() => turn,
            };
            let standstill = tokio::select! { biased;
                () = lane.cancelled() => return Ok(()),
                begun = Standstill::begin(self.target(), &config.migration, self.setting_apart.epoch) => begun?,
            };
            if reached(&standstill).await? {
                lane.cancel();
                ended.cancelled().await;
                standstill.merge(tables).await?;
                return Ok(());
            }
            rest = (rest * 4).min(REST_MAX);
        }
    }

    /// The target is one state of the source again when the main lane has passed `after`.
    async fn finish(
        &self,
        target: &Session,
        tables: &[TableName],
        added: &BTreeSet<TableName>,
        after: Option<Lsn>,
    ) -> Result<(), Error> {
        self.enter(ResyncStage::Finishing);
        self.setting_apart.release();
        if let Some(after) = after {
            tokio::select! { biased;
                () = self.supervisor.stop.cancelled() => return Ok(()),
                () = self.setting_apart.flow.settled_past(SinkName::Target, after) => {}
            }
        }
        if self.copies_schema() && !added.is_empty() {
            let stop = self.supervisor.stop.child_token();
            let options = self.schema_options().await?;
            schema::copy_post_data_of(&options, &self.catalog, added, &Steps::default(), stop).await?;
        }
        for table in tables {
            // Its statistics went with its rows.
            let sql = format!("ANALYZE {}", table.quoted());
            let failed = |source| Error::State { what: "analyse a table that was copied", source };
            self.unless_stopped(async { target.batch_execute(&sql).await.map_err(failed) }).await?;
        }
        let (migration, epoch) = (&self.setting_apart.config.migration, self.setting_apart.epoch);
        apply::finish_members(target, migration, epoch, tables).await?;
        for table in tables {
            info!(%table, "streams with the others");
        }
        Ok(())
    }

    async fn handovers(&self, tables: &[TableName]) -> Result<Vec<crate::model::TableHandover>, Error> {
        let session = wire::connect(self.target(), "hand-over").await.map_err(Error::Target)?;
        let mut handovers = snapshot::handovers(&session, &self.setting_apart.config.migration).await?;
        handovers.retain(|handover| tables.contains(&handover.table));
        Ok(handovers)
    }

    /// Past every snapshot that the copy was made under.
    async fn source_position(&self) -> Result<Lsn, Error> {
        let source = wire::connect(self.source(), "resync").await.map_err(Error::Source)?;
        let failed = |source| Error::State { what: "read the source's position", source };
        let row = source.query_one("SELECT pg_catalog.pg_current_wal_insert_lsn()::text", &[]).await;
        let text: String = row.map_err(failed)?.get(0);
        Ok(text.parse().expect("the server prints positions as it reads them"))
    }

    /// An index of a partition is attached to that of the table above it.
    fn with_ancestors(&self, tables: &BTreeSet<TableName>) -> Catalog {
        let mut names = tables.clone();
        for _ in &self.catalog.tables {
            let above = names.iter().filter_map(|name| self.catalog.table(name)?.partition.as_ref());
            let above: Vec<TableName> = above.map(|it| it.parent.clone()).filter(|it| !names.contains(it)).collect();
            if above.is_empty() {
                break;
            }
            names.extend(above);
        }
        restricted(&self.catalog, |table| names.contains(table))
    }

    fn copies_schema(&self) -> bool {
        self.setting_apart.config.snapshot.mode == SnapshotMode::Full
    }

    async fn schema_options(&self) -> Result<schema::CopyOptions, Error> {
        schema_options(&self.setting_apart.config, self.catalog.major()).await
    }

    fn enter(&self, stage: ResyncStage) {
        info!(stage = stage.as_str(), "resync");
        self.setting_apart.desk.enter(stage);
    }

    /// Gives `work` up when the daemon stops. The server may finish what it was told; the next start reads what came of it.
    async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::select! { biased;
            () = self.supervisor.stop.cancelled() => Err(Error::Snapshot(snapshot::Error::Stopped)),
            done = work => done,
        }
    }

    async fn pause(&self) -> Result<(), Error> {
        self.pause_for(LOOK_INTERVAL).await
    }

    async fn pause_for(&self, interval: Duration) -> Result<(), Error> {
        let sleeping = async {
            tokio::time::sleep(interval).await;
            Ok(())
        };
        self.unless_stopped(sleeping).await
    }

    fn source(&self) -> &wire::Endpoint {
        &self.setting_apart.config.source.endpoint
    }

    fn target(&self) -> &wire::Endpoint {
        &self.setting_apart.config.target.endpoint
    }
}

/// Whether the lane comes as far as the main one stands while that one may be kept waiting.
async fn reached(standstill: &Standstill) -> Result<bool, Error> {
    let deadline = tokio::time::Instant::now() + STANDSTILL_MAX;
    while tokio::time::Instant::now() < deadline {
        if standstill.is_reached().await? {
            return Ok(true);
        }
        tokio::time::sleep(REACHED_INTERVAL).await;
    }
    Ok(false)
}

fn listed<'a>(tables: impl Iterator<Item = &'a TableName>) -> String {
    tables.map(TableName::to_string).collect::<Vec<_>>().join(", ")
}
