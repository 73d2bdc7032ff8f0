//! What an attempt works with: sessions that are open and warm, the prepared fence, the answers of the gates.

use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::driver::{Options, Parts};
use super::error::{BLUE, Error, GREEN, query};
use super::fence::Fence;
use super::forecast::{self, Measured};
use super::gates::{self, Gate};
use super::journal;
use crate::model::{Lsn, TableName, marker_prefix};
use crate::telemetry::chain;
use crate::verify::{self, Fenced};
use crate::wire::{self, Endpoint, Session};

/// A step that must succeed is given up after this long, to be tried again on another session.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(5);

pub(super) struct Stage<'p> {
    pub(super) options: Options,
    parts: Parts<'p>,
    /// Direct connections. The second of each side is for sequences: a query that is dropped half-way must not stand
    /// in front of the compensation.
    pub(super) blue: Session,
    pub(super) green: Session,
    blue_sequences: Session,
    green_sequences: Session,
    /// 0 in a dry run.
    pub(super) attempt: i32,
    fence: Option<Fence>,
    fenced: Option<Fenced>,
    pub(super) gates: Vec<Gate>,
    pub(super) measured: Measured,
}

impl<'p> Stage<'p> {
    pub(super) async fn open(options: &Options, parts: &Parts<'p>) -> Result<Self, Error> {
        let (source, target) = (&options.verify.source, &options.verify.target);
        let (blue, green, blue_sequences, green_sequences) =
            tokio::try_join!(open(source, BLUE), open(target, GREEN), open(source, BLUE), open(target, GREEN))?;
        // The commit point comes later in the same log and is flushed: so are they then.
        let unflushed = green_sequences.batch_execute("SET synchronous_commit = off").await;
        unflushed.map_err(query(GREEN, "set up a session"))?;
        let attempt = if options.dry_run { 0 } else { journal::begin(&green, &options.verify.migration).await? };
        Ok(Self {
            options: options.clone(),
            parts: parts.clone(),
            blue,
            green,
            blue_sequences,
            green_sequences,
            attempt,
            fence: None,
            fenced: None,
            gates: Vec::new(),
            measured: Measured::default(),
        })
    }

    /// Asks every gate, and makes everything ready on the way. The cheap ones first: while one of them is closed, the
    /// load of the others is spared.
    pub(super) async fn check_gates(&mut self) {
        let (ports, dirty) = (self.parts.ports, self.parts.dirty);
        self.gates =
            vec![gates::streaming(ports), gates::lag(ports, self.options.max_lag_bytes), gates::verified(dirty)];
        let (blue, green, max_pause) = (&self.blue, &self.green, self.options.max_pause);
        let asked = [
            ("no_long_transactions", gates::no_long_transactions(blue, max_pause).await),
            ("no_prepared_transactions", gates::no_prepared_transactions(blue).await),
            ("green_complete", gates::green_complete(blue, green, dirty).await),
            ("no_dead_letters", gates::no_dead_letters(green, &self.options.verify.migration).await),
            ("green_analyzed", gates::green_analyzed(green, dirty).await),
            ("fence_allowed", gates::fence_allowed(blue, dirty).await),
        ];
        for (name, outcome) in asked {
            self.gates.push(outcome.unwrap_or_else(|error| gates::failed(name, &error)));
        }
        match gates::partitions_stream(&self.blue, dirty).await {
            Ok(gate) => self.gates.extend(gate),
            Err(error) => self.gates.push(gates::failed("partitions_stream", &error)),
        }
        self.check_routers().await;
        if self.are_open() {
            self.gates.push(gates::schema_equal(ports, &self.blue, &self.green).await);
        }
        if self.are_open() {
            self.measure().await;
        }
    }

    fn are_open(&self) -> bool {
        self.gates.iter().all(|gate| gate.open)
    }

    async fn check_routers(&mut self) {
        for router in self.parts.routers {
            let gate = gates::router_answers(&**router).await;
            let again = Instant::now();
            if gate.open && router.check().await.is_ok() {
                // The first call also connected.
                self.measured.routers += again.elapsed();
            }
            self.gates.push(gate);
        }
    }

    /// Prepares what the pause will use, measuring it. What fails here closes a gate.
    async fn measure(&mut self) {
        let sequences = Instant::now();
        let set = self.parts.ports.set_sequences(&self.blue_sequences, &self.green_sequences).await;
        self.measured.sequences = sequences.elapsed();
        self.gates.push(gates::sequences(&set));
        for (name, outcome) in
            [("fence_ready", self.prepare_fence().await), ("pause_ready", self.prepare_pause().await)]
        {
            if let Err(error) = outcome {
                self.gates.push(gates::failed(name, &error));
            }
        }
        let dirty_pass = verify::verify_dirty(&self.options.verify, self.parts.aligner, self.parts.dirty).await;
        self.gates.push(gates::still_equal(&dirty_pass));
        self.measured.dirty_keys = u32::try_from(self.parts.dirty.summary().keys).unwrap_or(u32::MAX);
        let expected = forecast::total(&self.measured.steps());
        self.gates.push(gates::forecast(expected, self.options.max_pause));
    }

    async fn prepare_fence(&mut self) -> Result<(), Error> {
        let tables: Vec<TableName> = self.parts.dirty.tables().iter().map(|table| table.source.clone()).collect();
        let fence = Fence::prepare(&self.blue, &self.options.verify.migration, self.attempt, &tables).await?;
        self.measured.fence = fence.rehearse(&self.blue).await?;
        debug!(tables = fence.table_count(), "the fence is prepared");
        self.fence = Some(fence);
        Ok(())
    }

    async fn prepare_pause(&mut self) -> Result<(), Error> {
        let (source, target) = (&self.options.verify.source, &self.options.verify.target);
        let fenced = Fenced::prepare(source, target, self.parts.dirty.tables()).await?;
        self.measured.verify = fenced.round_trip().await?;
        self.fenced = Some(fenced);
        let commit = Instant::now();
        journal::note(&self.green, &self.options.verify.migration, self.attempt, "prepared").await?;
        self.measured.commit = commit.elapsed();
        self.measured.drain = self.measure_drain().await?;
        Ok(())
    }

    /// A marker through the whole pipe, as the fence's message will go.
    async fn measure_drain(&self) -> Result<Duration, Error> {
        let what = "write a marker into the log";
        let started = Instant::now();
        let statement = "SELECT pg_logical_emit_message(true, $1, 'forecast')::text";
        let row = self.blue.query_one(statement, &[&marker_prefix()]).await.map_err(query(BLUE, what))?;
        let text: String = row.try_get(0).map_err(query(BLUE, what))?;
        let marker: Lsn = text.parse().map_err(|_| Error::Answer { side: BLUE, what })?;
        let what = "wait until every sink is durable past a marker";
        let drained = tokio::time::timeout(self.options.max_pause, self.parts.ports.drained(marker)).await;
        match drained {
            Ok(drained) => drained.map_err(|source| Error::Port { what, source })?,
            Err(_) => return Err(Error::NoAnswer { side: GREEN, what, seconds: self.options.max_pause.as_secs() }),
        }
        Ok(started.elapsed())
    }

    pub(super) async fn raise_fence(&self) -> Result<Lsn, Error> {
        self.fence.as_ref().expect("an open gate means a prepared fence").raise(&self.blue).await
    }

    pub(super) async fn judge(&self, barrier: Lsn) -> Result<verify::Report, Error> {
        let fenced = self.fenced.as_ref().expect("an open gate means prepared statements");
        Ok(fenced.judge(self.parts.dirty, barrier).await?)
    }

    pub(super) async fn set_sequences(&self) -> Result<usize, Error> {
        let set = self.parts.ports.set_sequences(&self.blue_sequences, &self.green_sequences).await;
        set.map_err(|source| Error::Port { what: "set the sequences on green", source })
    }

    /// On a new session if the old one is gone or hangs.
    pub(super) async fn lower_fence(&mut self) -> Result<(), Error> {
        let Some(fence) = &self.fence else { return Ok(()) };
        let lowered = answered(BLUE, "lift the fence", fence.lower(&self.blue)).await;
        if let Err(error) = &lowered {
            debug!(error = chain(error), "lifting the fence on another session");
            self.blue = open(&self.options.verify.source, BLUE).await?;
            return answered(BLUE, "lift the fence", fence.lower(&self.blue)).await;
        }
        lowered
    }

    /// Always on a new session: the old one may still be busy with the commit.
    pub(super) async fn resolve(&mut self) -> Result<Option<i32>, Error> {
        self.green = open(&self.options.verify.target, GREEN).await?;
        let resolved = journal::resolve(&self.green, &self.options.verify.migration, self.attempt);
        answered(GREEN, "read the cutover's outcome", resolved).await
    }
}

/// Within the time that a server that is there needs for anything here.
async fn answered<T>(
    side: &'static str,
    what: &'static str,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let late = Error::NoAnswer { side, what, seconds: ANSWER_MAX.as_secs() };
    tokio::time::timeout(ANSWER_MAX, answer).await.unwrap_or(Err(late))
}

pub(super) async fn open(endpoint: &Endpoint, side: &'static str) -> Result<Session, Error> {
    wire::connect(endpoint, "cutover").await.map_err(|source| Error::Connect { side, source })
}
