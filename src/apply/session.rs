//! Our session on the target: what it is allowed, and pipelines of statements it has prepared.

use std::collections::{HashMap, VecDeque};

use bytes::BytesMut;
use tracing::{info, warn};

use crate::model::{Lsn, MigrationName, POSTGRES_EPOCH_US};
use crate::wire::{self, Answer, Endpoint, Mode, RawConnection, ServerError, sqlstate};

use super::encode::{self, Columns, INT8, PG_LSN, TEXT, TIMESTAMPTZ};
use super::error::Error;
use super::lanes::Lane;
use super::position;
use super::sql::Shape;
use super::transaction::WRONG_COUNT;

/// What our sets are planned with: they are made of small arrays and large tables, and a plan is made once for arrays
/// of any size, so only the way by index is right, a descent a row (for neighbours see [`super::near`]). Plans are cached,
/// so compiling them would never pay. The arrays themselves are held in memory by the server, a group at a time.
const SETTINGS: &str = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
     SET plan_cache_mode = force_generic_plan; SET jit = off; SET work_mem = '64MB'";

/// After each checkpoint the first change of a page logs the whole page (`full_page_writes`), and rows at random keys
/// log little else. Compressing those pages costs less time than checksumming and writing them: 10 times less log, and
/// half the processor time, for pgbench's accounts.
const COMPRESS: &str = "SET wal_compression = 'lz4'";

/// Prepared statements kept. Beyond this many (thousands of tables, or columns left out in many combinations) all are
/// forgotten and made again as they come up.
const STATEMENTS_MAX: usize = 2_000;

pub(super) struct Target {
    connection: RawConnection,
    /// `session_replication_role = replica` is ours: nothing fires.
    pub(super) replica: bool,
    statements: HashMap<Statement, u64>,
    /// Never used twice, so that it does not matter which of a failed pipeline's statements were prepared.
    next_name: u64,
    /// Reused from statement to statement.
    pub(super) columns: Columns,
    claim: Claim,
    /// What it writes is marked with an origin.
    pub(super) has_origin: bool,
}

/// What makes a position ours.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) migration: MigrationName,
    pub(super) lane: Lane,
    pub(super) epoch: i64,
    /// Of the division of the tables that the caller knows.
    pub(super) generation: i64,
}

/// What stands in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Statement {
    Fixed(&'static str),
    /// By [`super::table::Table::id`].
    Of(u32, Shape),
    /// The same without a count of its rows.
    Uncounted(u32, Shape),
}

/// A pipeline under construction: messages, and what each statement is for.
pub(super) struct Script<L> {
    pub(super) out: BytesMut,
    pub(super) labels: Vec<L>,
    /// See [`Script::checked_here`].
    checks_here: bool,
    /// Which statements, by place, have to find how many rows.
    expected: VecDeque<(usize, u64)>,
}

/// A pipeline that was sent.
pub(super) struct Sent<L> {
    labels: Vec<L>,
    expected: VecDeque<(usize, u64)>,
    completed: usize,
    failed: Option<(usize, ServerError)>,
}

/// How a pipeline ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome<L> {
    Done,
    /// The statement with this label failed; everything behind it was skipped.
    Failed {
        label: L,
        error: ServerError,
    },
}

impl Target {
    /// `origin`: what its writes are marked with.
    pub(super) async fn open(endpoint: &Endpoint, claim: Claim, origin: &str) -> Result<Self, Error> {
        let connect = wire::connect_raw(endpoint, Mode::Sql, "apply").await;
        let mut connection = connect.map_err(Error::Connect)?;
        connection.simple_query(SETTINGS).await.map_err(Error::Connect)?;
        let compresses = may(&mut connection, COMPRESS).await?;
        let replica = may(&mut connection, "SET session_replication_role = replica").await?;
        if !replica {
            warn!("session_replication_role may not be set: constraints are checked, deferred where they can be");
        }
        let has_origin = set_up_origin(&mut connection, origin).await?;
        info!(replica, origin = has_origin.then_some(origin), compresses, "target session opened");
        Ok(Self {
            connection,
            replica,
            statements: HashMap::new(),
            next_name: 0,
            columns: Columns::default(),
            claim,
            has_origin,
        })
    }

    /// BEGIN, and what has to be said in each transaction.
    pub(super) fn begin<L: Copy>(&mut self, script: &mut Script<L>, label: L) {
        self.fixed(script, "BEGIN", label);
        if !self.replica {
            self.fixed(script, "SET CONSTRAINTS ALL DEFERRED", label);
        }
    }

    /// A statement without parameters, prepared once.
    pub(super) fn fixed<L>(&mut self, script: &mut Script<L>, text: &'static str, label: L) {
        let name = self.prepared(script, Statement::Fixed(text), || (text.to_owned(), Vec::new()));
        encode::bind_execute(&mut script.out, &name, 0, |_| {});
        script.labels.push(label);
    }

    /// Moves the position. Fails the transaction when it is not ours any more.
    pub(super) fn position<L>(&mut self, script: &mut Script<L>, through: Lsn, committed_at_us: Option<i64>, label: L) {
        let types = || (position::MOVE.to_owned(), vec![PG_LSN, TIMESTAMPTZ, TEXT, INT8, INT8, INT8]);
        let name = self.prepared(script, Statement::Fixed(position::MOVE), types);
        encode::bind_execute(&mut script.out, &name, 6, |out| {
            encode::put_int8(out, through.get().cast_signed());
            match committed_at_us {
                Some(unix_us) => encode::put_int8(out, unix_us - POSTGRES_EPOCH_US),
                None => encode::put_null(out),
            }
            let Claim { migration, lane, epoch, generation } = &self.claim;
            encode::put_text(out, migration.as_str());
            for number in [i64::from(lane.number()), *epoch, *generation] {
                encode::put_int8(out, number);
            }
        });
        script.labels.push(label);
    }

    /// The statement's name; it is prepared by this pipeline when it is new.
    pub(super) fn prepared<L>(
        &mut self,
        script: &mut Script<L>,
        statement: Statement,
        text: impl FnOnce() -> (String, Vec<u32>),
    ) -> String {
        if let Some(number) = self.statements.get(&statement) {
            return name_of(*number);
        }
        if self.statements.len() >= STATEMENTS_MAX {
            for number in self.statements.drain().map(|(_, number)| number) {
                encode::close(&mut script.out, &name_of(number));
            }
        }
        self.next_name += 1;
        let (sql, types) = text();
        encode::parse(&mut script.out, &name_of(self.next_name), &sql, &types);
        self.statements.insert(statement, self.next_name);
        name_of(self.next_name)
    }

    /// Sends the pipeline: what the socket takes at once now, the rest with the next [`Self::outcome`].
    pub(super) async fn send<L>(&mut self, mut script: Script<L>) -> Sent<L> {
        encode::sync(&mut script.out);
        self.connection.queue(script.out);
        self.connection.send_at_once().await;
        Sent { labels: script.labels, expected: script.expected, completed: 0, failed: None }
    }

    /// Waits for the end of the pipeline. Cancel-safe: what was heard is kept in `sent`.
    pub(super) async fn outcome<L: Copy>(&mut self, sent: &mut Sent<L>) -> Result<Outcome<L>, Error> {
        loop {
            match self.connection.next_answer().await.map_err(Error::Talk)? {
                Answer::Completed { rows } => {
                    sent.check(rows);
                    sent.completed += 1;
                }
                Answer::Failed(error) => {
                    sent.failed.get_or_insert((sent.completed, error));
                }
                Answer::Ready => break,
            }
        }
        let Some((at, error)) = sent.failed.take() else { return Ok(Outcome::Done) };
        // Not before the end: what is written for the session meanwhile may never be sent.
        self.forget_statements();
        match sent.labels.get(at) {
            Some(label) => Ok(Outcome::Failed { label: *label, error }),
            // Behind the last statement only the Sync is left, and an error there is the connection's end.
            None => Err(Error::Refused { what: "commit a group", source: error }),
        }
    }

    /// Some statements may not have been prepared, and it does not pay to find out which. Names are never used twice, so
    /// those that were stay behind, unused, until the session ends.
    pub(super) fn forget_statements(&mut self) {
        self.statements.clear();
    }

    /// Runs one pipeline from its beginning to its end.
    pub(super) async fn perform<L: Copy>(&mut self, script: Script<L>) -> Result<Outcome<L>, Error> {
        let mut sent = self.send(script).await;
        self.outcome(&mut sent).await
    }

    /// Nothing is under way.
    pub(super) async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::debug!(%error, "target session closed");
        }
    }

    /// The backend's process on the server.
    pub(super) fn process(&self) -> i32 {
        self.connection.backend_pid()
    }

    pub(super) fn migration(&self) -> &str {
        self.claim.migration.as_str()
    }

    pub(super) fn superseded(&self) -> Error {
        Error::Superseded { migration: self.claim.migration.to_string(), epoch: self.claim.epoch }
    }
}

impl<L> Script<L> {
    /// The server counts what it finds, and fails.
    pub(super) fn new() -> Self {
        Self { out: BytesMut::new(), labels: Vec::new(), checks_here: false, expected: VecDeque::new() }
    }

    /// For a pipeline that commits nothing: its answers tell how many rows were found, which costs the server less than
    /// to count them itself.
    pub(super) fn checked_here() -> Self {
        Self { checks_here: true, ..Self::new() }
    }

    pub(super) fn checks_here(&self) -> bool {
        self.checks_here
    }

    /// The next statement has to find so many rows.
    pub(super) fn expect(&mut self, rows: usize) {
        debug_assert!(self.checks_here, "what commits must not do so first");
        self.expected.push_back((self.labels.len(), rows as u64));
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.out.len()
    }
}

impl<L> Sent<L> {
    /// A statement found so many rows.
    fn check(&mut self, found: u64) {
        let Some((_, expected)) = self.expected.pop_front_if(|(at, _)| *at == self.completed) else { return };
        if found != expected {
            let error = ServerError::wrong_count(WRONG_COUNT, expected, found);
            self.failed.get_or_insert((self.completed, error));
        }
    }
}

fn name_of(number: u64) -> String {
    format!("c{number}")
}

/// Runs what only some roles may run and some servers know or have room for; `false` where that is not so.
async fn may(connection: &mut RawConnection, sql: &str) -> Result<bool, Error> {
    const UNKNOWN_VALUE: &str = "22023";
    // For an origin: `max_replication_slots` (18: `max_active_replication_origins`) bounds how many are in use.
    const NO_ROOM: &str = "53400";
    match connection.simple_query(sql).await {
        Ok(_) => Ok(true),
        Err(error)
            if error.server().is_some_and(|it| {
                [sqlstate::INSUFFICIENT_PRIVILEGE, UNKNOWN_VALUE, NO_ROOM].contains(&it.sqlstate())
            }) =>
        {
            Ok(false)
        }
        Err(error) => Err(Error::Connect(error)),
    }
}

/// Marks what we write with an origin, so that a stream from the target back to the source can leave it out
/// (PITFALLS 30). The position is in our own row and not in the origin, which needs more rights than some have.
async fn set_up_origin(connection: &mut RawConnection, name: &str) -> Result<bool, Error> {
    let create = format!(
        "SELECT pg_catalog.pg_replication_origin_create('{name}') \
         WHERE pg_catalog.pg_replication_origin_oid('{name}') IS NULL"
    );
    let set_up = format!("SELECT pg_catalog.pg_replication_origin_session_setup('{name}')");
    let usable = may(connection, &create).await? && may(connection, &set_up).await?;
    if !usable {
        warn!("replication origins may not be used: a reverse stream could not tell our writes from others");
    }
    Ok(usable)
}
