//! Our session on the target: what it is allowed, and pipelines of statements it has prepared.

use std::collections::{BTreeMap, HashMap};

use bytes::BytesMut;
use tracing::{info, warn};

use crate::model::{Lsn, MigrationName, Tuple};
use crate::wire::{self, Answer, Endpoint, Mode, RawConnection, ServerError, sqlstate};

use super::encode::{self, Binary, Columns, INT8, PG_LSN, TEXT, TEXT_ARRAY, TIMESTAMPTZ};
use super::error::Error;
use super::fold::{Layer, Run, Truncate};
use super::key::Present;
use super::net::{Net, NetRow};
use super::position;
use super::sql::{self, Shape};
use super::table::{RowKey, Table};

/// What our sets are planned with: they are made of small arrays and large tables, and a plan is made once for arrays
/// of any size, so only the way by index is right. Plans are cached, so compiling them would never pay. The arrays
/// themselves are held in memory by the server, a group at a time.
const SETTINGS: &str = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
     SET plan_cache_mode = force_generic_plan; SET jit = off; SET work_mem = '64MB'";

/// Prepared statements kept. Beyond this many (thousands of tables, or columns left out in many combinations) all are
/// forgotten and made again as they come up.
const STATEMENTS_MAX: usize = 2_000;

/// From this many rows on, COPY is cheaper than arrays: it parses less and writes whole pages of rows to the log, but
/// costs more to begin.
const COPY_ROWS_MIN: usize = 64;

pub(super) struct Target {
    connection: RawConnection,
    /// `session_replication_role = replica` is ours: nothing fires.
    pub(super) replica: bool,
    statements: HashMap<Statement, u64>,
    /// Never used twice, so that it does not matter which of a failed pipeline's statements were prepared.
    next_name: u64,
    columns: Columns,
    migration: String,
    epoch: i64,
}

/// What stands in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Statement {
    Fixed(&'static str),
    Of(u32, Shape),
}

/// A pipeline under construction: messages, and what each statement is for.
pub(super) struct Script<L> {
    out: BytesMut,
    labels: Vec<L>,
}

/// A pipeline that was sent.
pub(super) struct Sent<L> {
    labels: Vec<L>,
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
    pub(super) async fn open(endpoint: &Endpoint, migration: &MigrationName, epoch: i64) -> Result<Self, Error> {
        let connect = wire::connect_raw(endpoint, Mode::Sql, "apply").await;
        let mut connection = connect.map_err(Error::Connect)?;
        connection.simple_query(SETTINGS).await.map_err(Error::Connect)?;
        let replica = may(&mut connection, "SET session_replication_role = replica").await?;
        if !replica {
            warn!("session_replication_role may not be set: constraints are checked, deferred where they can be");
        }
        let origin = set_up_origin(&mut connection, migration).await?;
        info!(replica, origin, "target session opened");
        Ok(Self {
            connection,
            replica,
            statements: HashMap::new(),
            next_name: 0,
            columns: Columns::default(),
            migration: migration.to_string(),
            epoch,
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
        let types = || (position::MOVE.to_owned(), vec![PG_LSN, TIMESTAMPTZ, TEXT, INT8]);
        let name = self.prepared(script, Statement::Fixed(position::MOVE), types);
        encode::bind_execute(&mut script.out, &name, 4, |out| {
            encode::put_int8(out, through.get().cast_signed());
            match committed_at_us {
                Some(unix_us) => encode::put_int8(out, unix_us - position::POSTGRES_EPOCH_US),
                None => encode::put_null(out),
            }
            encode::put_text(out, &self.migration);
            encode::put_int8(out, self.epoch);
        });
        script.labels.push(label);
    }

    /// The statements of one layer, in the order that frees unique values before they are taken.
    pub(super) fn layer<L: Copy>(&mut self, script: &mut Script<L>, layer: &Layer, label: L) -> Result<(), Error> {
        match layer {
            Layer::Net { table, net } => self.net(script, table, net, label),
            Layer::Run { table, run } => self.run(script, table, run, label),
            Layer::Truncate(truncate) => {
                self.truncate(script, truncate, label);
                Ok(())
            }
        }
    }

    fn net<L: Copy>(&mut self, script: &mut Script<L>, table: &Table, net: &Net, label: L) -> Result<(), Error> {
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        let mut changed: BTreeMap<Present, Vec<&Tuple>> = BTreeMap::new();
        for row in net.rows() {
            match row {
                NetRow::Inserted(row) => new.push(row),
                NetRow::Updated(row) => changed.entry(Present::of(row)).or_default().push(row),
                NetRow::Deleted(row) => gone.push(row),
                NetRow::Replaced(row) => {
                    gone.push(row);
                    new.push(row);
                }
                NetRow::Passed => {}
            }
        }
        self.delete(script, table, &gone, label)?;
        for (present, rows) in &changed {
            self.update(script, table, present, rows, label)?;
        }
        self.insert(script, table, &new, label)
    }

    fn run<L: Copy>(&mut self, script: &mut Script<L>, table: &Table, run: &Run, label: L) -> Result<(), Error> {
        let all = |rows| Vec::from_iter::<std::slice::Iter<'_, Tuple>>(rows);
        match run {
            Run::Insert(rows) => self.insert(script, table, &all(rows.iter()), label),
            Run::Delete(rows) => self.delete(script, table, &all(rows.iter()), label),
            Run::Update { present, rows, .. } => self.update(script, table, present, &all(rows.iter()), label),
            Run::Move { present, rows, .. } => self.move_rows(script, table, present, rows, label),
            Run::UpdateOne { old, new } => self.update_one(script, table, old, new, label),
            Run::DeleteOne { old } => self.delete_one(script, table, old, label),
        }
    }

    fn insert<L>(&mut self, script: &mut Script<L>, table: &Table, rows: &[&Tuple], label: L) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        // A table without columns has no arrays to unnest.
        if table.copies && (rows.len() >= COPY_ROWS_MIN || table.columns.is_empty()) {
            return self.copy(script, table, rows, label);
        }
        let count = table.columns.len();
        self.columns.start(count);
        for row in rows {
            self.columns.add(row, 0, |_| true).map_err(|Binary| binary_in(table))?;
            self.columns.end_row();
        }
        let name = self.shape(script, table, Shape::Insert, || vec![TEXT_ARRAY; count]);
        encode::bind_execute(&mut script.out, &name, count, |out| self.columns.write_arrays(out));
        script.labels.push(label);
        Ok(())
    }

    fn copy<L>(&mut self, script: &mut Script<L>, table: &Table, rows: &[&Tuple], label: L) -> Result<(), Error> {
        let name = self.shape(script, table, Shape::Copy, Vec::new);
        encode::bind_execute(&mut script.out, &name, 0, |_| {});
        encode::copy_rows(&mut script.out, rows.iter().copied()).map_err(|Binary| binary_in(table))?;
        script.labels.push(label);
        Ok(())
    }

    fn update<L>(
        &mut self,
        script: &mut Script<L>,
        table: &Table,
        present: &Present,
        rows: &[&Tuple],
        label: L,
    ) -> Result<(), Error> {
        if !sql::sets_anything(table, present) {
            return Ok(());
        }
        let used = sql::update_columns(table, present);
        self.columns.start(used.iter().filter(|used| **used).count());
        for row in rows {
            self.columns.add(row, 0, |at| used[at]).map_err(|Binary| binary_in(table))?;
            self.columns.end_row();
        }
        self.counted(script, table, Shape::Update(present.clone()), rows.len(), label);
        Ok(())
    }

    fn move_rows<L>(
        &mut self,
        script: &mut Script<L>,
        table: &Table,
        present: &Present,
        rows: &[(Tuple, Tuple)],
        label: L,
    ) -> Result<(), Error> {
        let key = sql::key_columns(table);
        let set = (0..table.columns.len()).filter(|at| present.has(*at)).count();
        self.columns.start(key.len() + set);
        for (old, new) in rows {
            let next = self.columns.add(old, 0, |at| key.contains(&at)).map_err(|Binary| binary_in(table))?;
            self.columns.add(new, next, |at| present.has(at)).map_err(|Binary| binary_in(table))?;
            self.columns.end_row();
        }
        self.counted(script, table, Shape::Move(present.clone()), rows.len(), label);
        Ok(())
    }

    fn delete<L>(&mut self, script: &mut Script<L>, table: &Table, rows: &[&Tuple], label: L) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let key = sql::key_columns(table);
        self.columns.start(key.len());
        for row in rows {
            self.columns.add(row, 0, |at| key.contains(&at)).map_err(|Binary| binary_in(table))?;
            self.columns.end_row();
        }
        self.counted(script, table, Shape::Delete, rows.len(), label);
        Ok(())
    }

    fn update_one<L>(
        &mut self,
        script: &mut Script<L>,
        table: &Table,
        old: &Tuple,
        new: &Tuple,
        label: L,
    ) -> Result<(), Error> {
        let (present, nulls) = (Present::of(new), nulls_of(old));
        let set = (0..table.columns.len()).filter(|at| present.has(*at)).count();
        if set == 0 {
            return Ok(());
        }
        self.columns.start(nulls.iter().filter(|null| !**null).count() + set);
        let next = self.columns.add(old, 0, |at| !nulls[at]).map_err(|Binary| binary_in(table))?;
        self.columns.add(new, next, |at| present.has(at)).map_err(|Binary| binary_in(table))?;
        self.counted_one(script, table, Shape::UpdateOne { present, nulls }, label);
        Ok(())
    }

    fn delete_one<L>(&mut self, script: &mut Script<L>, table: &Table, old: &Tuple, label: L) -> Result<(), Error> {
        let nulls = nulls_of(old);
        self.columns.start(nulls.iter().filter(|null| !**null).count());
        self.columns.add(old, 0, |at| !nulls[at]).map_err(|Binary| binary_in(table))?;
        self.counted_one(script, table, Shape::DeleteOne { nulls }, label);
        Ok(())
    }

    /// A statement whose parameters are the collected columns, and the count of rows it must find.
    fn counted<L>(&mut self, script: &mut Script<L>, table: &Table, shape: Shape, rows: usize, label: L) {
        let count = self.columns.count();
        let name = self.shape(script, table, shape, || [vec![TEXT_ARRAY; count], vec![INT8]].concat());
        encode::bind_execute(&mut script.out, &name, count + 1, |out| {
            self.columns.write_arrays(out);
            encode::put_int8(out, i64::try_from(rows).expect("a group's rows fit memory"));
        });
        script.labels.push(label);
    }

    fn counted_one<L>(&mut self, script: &mut Script<L>, table: &Table, shape: Shape, label: L) {
        self.columns.end_row();
        let count = self.columns.count();
        let name = self.shape(script, table, shape, || [vec![TEXT; count], vec![INT8]].concat());
        encode::bind_execute(&mut script.out, &name, count + 1, |out| {
            self.columns.write_values(out);
            encode::put_int8(out, 1);
        });
        script.labels.push(label);
    }

    fn truncate<L>(&mut self, script: &mut Script<L>, truncate: &Truncate, label: L) {
        encode::parse(&mut script.out, "", &sql::truncate(truncate), &[]);
        encode::bind_execute(&mut script.out, "", 0, |_| {});
        script.labels.push(label);
    }

    fn shape<L>(
        &mut self,
        script: &mut Script<L>,
        table: &Table,
        shape: Shape,
        types: impl FnOnce() -> Vec<u32>,
    ) -> String {
        let text = || (sql::text_of(table, &shape), types());
        self.prepared(script, Statement::Of(table.id, shape.clone()), text)
    }

    /// The statement's name; it is prepared by this pipeline when it is new.
    fn prepared<L>(
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

    /// Sends the pipeline with the next [`Self::outcome`].
    pub(super) fn send<L>(&mut self, mut script: Script<L>) -> Sent<L> {
        encode::sync(&mut script.out);
        self.connection.queue(script.out);
        Sent { labels: script.labels, completed: 0, failed: None }
    }

    /// Waits for the end of the pipeline. Cancel-safe: what was heard is kept in `sent`.
    pub(super) async fn outcome<L: Copy>(&mut self, sent: &mut Sent<L>) -> Result<Outcome<L>, Error> {
        loop {
            match self.connection.next_answer().await.map_err(Error::Talk)? {
                Answer::Completed => sent.completed += 1,
                Answer::Failed(error) => {
                    sent.failed.get_or_insert((sent.completed, error));
                }
                Answer::Ready => break,
            }
        }
        let Some((at, error)) = sent.failed.take() else { return Ok(Outcome::Done) };
        // Some of its statements may not have been prepared, and it does not pay to find out which.
        // Names are never used twice, so those that were stay behind, unused, until the session ends.
        self.statements.clear();
        match sent.labels.get(at) {
            Some(label) => Ok(Outcome::Failed { label: *label, error }),
            // Behind the last statement only the Sync is left, and an error there is the connection's end.
            None => Err(Error::Refused { what: "commit a group", source: error }),
        }
    }

    /// Runs one pipeline from its beginning to its end.
    pub(super) async fn perform<L: Copy>(&mut self, script: Script<L>) -> Result<Outcome<L>, Error> {
        let mut sent = self.send(script);
        self.outcome(&mut sent).await
    }

    pub(super) fn superseded(&self) -> Error {
        Error::Superseded { migration: self.migration.clone(), epoch: self.epoch }
    }
}

impl<L> Script<L> {
    pub(super) fn new() -> Self {
        Self { out: BytesMut::new(), labels: Vec::new() }
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.out.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

fn name_of(number: u64) -> String {
    format!("c{number}")
}

fn nulls_of(tuple: &Tuple) -> Box<[bool]> {
    tuple.iter().map(|datum| datum == crate::model::Datum::Null).collect()
}

fn binary_in(table: &Table) -> Error {
    debug_assert!(table.key != RowKey::Nothing || !table.columns.is_empty(), "a value belongs to a column");
    Error::BinaryValue { table: table.relation.name.clone() }
}

/// Runs what only some roles may run; `false` when ours may not.
async fn may(connection: &mut RawConnection, sql: &str) -> Result<bool, Error> {
    match connection.simple_query(sql).await {
        Ok(_) => Ok(true),
        Err(error) if error.server().is_some_and(|it| it.sqlstate() == sqlstate::INSUFFICIENT_PRIVILEGE) => Ok(false),
        Err(error) => Err(Error::Connect(error)),
    }
}

/// Marks what we write with an origin, so that a stream from the target back to the source can leave it out
/// (PITFALLS 30). The position is in our own row and not in the origin, which needs more rights than some have.
async fn set_up_origin(connection: &mut RawConnection, migration: &MigrationName) -> Result<bool, Error> {
    let name = migration.object_name();
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
