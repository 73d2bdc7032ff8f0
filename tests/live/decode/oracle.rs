//! A server as oracle: random transactions with savepoints from several sessions, decoded from two slots (streamed and
//! not), applied to tables in memory, compared with what `SELECT` says.

use std::collections::BTreeMap;
use std::convert::Infallible;

use changeover::decode::{Decoder, Options};
use changeover::demo::PostgresPrograms;
use changeover::model::{
    Batch, Change, ChangeKind, Datum, Frame, FrameBatch, FramePayload, Lsn, OldKind, OldTuple, Relation, Tuple,
};
use changeover::spool::{self, Spool};
use tokio_postgres::SimpleQueryMessage;

use super::{Slot, cluster_that_streams, proto_version_of};
use crate::support::Db;

const TABLES: [&str; 4] = ["by_key", "by_row", "by_index", "appended"];
const SCHEMA: &str = "
    CREATE TABLE by_key (id int PRIMARY KEY, v text, big text);
    CREATE TABLE by_row (id int, v text, big text);
    ALTER TABLE by_row REPLICA IDENTITY FULL;
    CREATE TABLE by_index (id int NOT NULL, v text, big text);
    CREATE UNIQUE INDEX by_index_id ON by_index (id);
    ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_id;
    CREATE TABLE appended (id int, v text, big text);
    ALTER TABLE appended REPLICA IDENTITY NOTHING;
    CREATE PUBLICATION p FOR TABLE by_key, by_row, by_index;
    CREATE PUBLICATION a FOR TABLE appended WITH (publish = 'insert, truncate')";
const SESSIONS: usize = 3;
const STEPS: usize = 250;

/// A column that is missing is NULL: it was added later.
type Row = BTreeMap<String, String>;

#[tokio::test]
async fn streamed_and_unstreamed_transactions_make_the_tables_the_server_has() {
    let base = fastrand::u64(..);
    for (n, programs) in PostgresPrograms::find().unwrap().iter().enumerate() {
        let seed = base.wrapping_add(n as u64);
        println!("PostgreSQL {} with seed {seed}", programs.major);
        compare(programs.major, seed).await;
    }
}

/// `CHANGEOVER_SEED=… CHANGEOVER_TEST_POSTGRES=…` replays one.
#[tokio::test]
async fn one_seed_of_it() {
    let from = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let major = from("CHANGEOVER_TEST_POSTGRES").unwrap_or(u64::from(PostgresPrograms::usual().unwrap().major));
    compare(major as u32, from("CHANGEOVER_SEED").unwrap_or(42)).await;
}

async fn compare(major: u32, seed: u64) {
    let mut dice = fastrand::Rng::with_seed(seed);
    let cluster = cluster_that_streams(major);
    let url = cluster.url("postgres");
    let db = Db::connect(&url).await;
    db.exec(SCHEMA).await;
    let plain = Slot { name: "plain", proto_version: 1, streaming: false };
    let streamed = Slot { name: "streamed", proto_version: proto_version_of(major), streaming: major >= 14 };
    plain.create(&db).await;
    streamed.create(&db).await;
    write_at_random(&url, &mut dice).await;
    for slot in [plain, streamed] {
        let lines = slot.peek(&db, major, "p, a").await;
        let starts = lines.iter().filter(|line| line.contains(" 53")).count();
        assert!(!slot.streaming || starts > 2, "only {starts} chunks were streamed");
        let batches = decode(&lines, slot.proto_version, &mut dice);
        let tables = apply(&batches);
        for table in TABLES {
            let expected = select(&db, table).await;
            let found = tables.get(table).cloned().unwrap_or_default();
            assert!(sorted(found) == expected, "{table} from slot {} of PostgreSQL {major}, seed {seed}", slot.name);
        }
    }
}

// Writing.

/// One session: rows of its own (`id % SESSIONS`), so that none waits for another.
struct Session {
    db: Db,
    number: usize,
    open: bool,
    savepoints: Vec<usize>,
    next_id: usize,
}

async fn write_at_random(url: &str, dice: &mut fastrand::Rng) {
    let mut sessions = Vec::new();
    for number in 0..SESSIONS {
        let db = Db::connect(url).await;
        sessions.push(Session { db, number, open: false, savepoints: Vec::new(), next_id: number });
    }
    let mut added = 0;
    // A table that was altered or emptied is locked to its transaction's end: until then the others would wait for ever.
    let mut locker: Option<usize> = None;
    for step in 0..STEPS {
        let at = locker.unwrap_or_else(|| dice.usize(..SESSIONS));
        let alone = sessions.iter().enumerate().all(|(n, session)| n == at || !session.open);
        if alone && dice.u8(..20) == 0 && added < 3 {
            added += 1;
            let table = TABLES[dice.usize(..TABLES.len())];
            sessions[at].db.exec(&format!("ALTER TABLE {table} ADD added_{added} int")).await;
            locker = Some(at);
        } else if alone && dice.u8(..12) == 0 {
            sessions[at].db.exec(&format!("TRUNCATE {}", TABLES[dice.usize(..TABLES.len())])).await;
            locker = Some(at);
        } else {
            sessions[at].step(step, dice).await;
        }
        if alone && dice.u8(..4) == 0 {
            sessions[at].end("COMMIT").await;
        }
        locker = locker.filter(|at| sessions[*at].open);
    }
    for session in &mut sessions {
        session.end("COMMIT").await;
    }
}

impl Session {
    async fn step(&mut self, step: usize, dice: &mut fastrand::Rng) {
        if !self.open {
            self.open = true;
            self.db.exec("BEGIN").await;
        }
        match dice.u8(..16) {
            0 => self.end("COMMIT").await,
            1 if dice.bool() => self.end("ROLLBACK").await,
            2..=4 => {
                self.savepoints.push(step);
                self.db.exec(&format!("SAVEPOINT s{step}")).await;
            }
            5 | 6 if !self.savepoints.is_empty() => {
                let kept = dice.usize(..self.savepoints.len());
                self.db.exec(&format!("ROLLBACK TO s{}", self.savepoints[kept])).await;
                self.savepoints.truncate(kept + 1);
            }
            7 if !self.savepoints.is_empty() => {
                let released = dice.usize(..self.savepoints.len());
                self.db.exec(&format!("RELEASE s{}", self.savepoints[released])).await;
                self.savepoints.truncate(released);
            }
            _ => self.write(dice).await,
        }
    }

    async fn write(&mut self, dice: &mut fastrand::Rng) {
        let (own, table) = (format!("id % {SESSIONS} = {}", self.number), TABLES[dice.usize(..TABLES.len())]);
        let first = self.next_id;
        // Wide enough to be TOASTed now and then.
        let wide = "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, (random() * 90)::int))";
        let sql = match (table, dice.u8(..6)) {
            (_, 0..=2) | ("appended", _) => {
                let rows = [1, 5, 300][dice.usize(..3)];
                self.next_id += rows * SESSIONS;
                let last = self.next_id - 1;
                format!(
                    "INSERT INTO {table} (id, v, big) SELECT i, NULLIF(i % 7, 0)::text, CASE WHEN i % 5 = 0 THEN {wide} END \
                     FROM generate_series({first}, {last}, {SESSIONS}) i"
                )
            }
            (_, 3) => format!("UPDATE {table} SET v = 'v{first}' WHERE {own} AND random() < 0.3"),
            (_, 4) => {
                self.next_id += 100_000 * SESSIONS;
                let by = 100_000 * SESSIONS;
                format!("UPDATE {table} SET id = id + {by} WHERE {own} AND id < {by} AND random() < 0.2")
            }
            (_, _) => format!("DELETE FROM {table} WHERE {own} AND random() < 0.2"),
        };
        // An update may meet the id that an earlier one gave; that rolls the statement back, nothing else.
        self.db.exec("SAVEPOINT statement").await;
        match self.db.batch_execute(&sql).await {
            Ok(()) => self.db.exec("RELEASE statement").await,
            Err(error) => {
                assert!(error.code() == Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION), "{error:?}");
                self.db.exec("ROLLBACK TO statement; RELEASE statement").await;
            }
        }
    }

    async fn end(&mut self, how: &str) {
        if self.open {
            self.db.exec(how).await;
        }
        self.open = false;
        self.savepoints.clear();
    }
}

// Decoding: reads of any size, batches of any size, and a session that breaks off in the middle.

fn decode(lines: &[String], proto_version: u32, dice: &mut fastrand::Rng) -> Vec<Batch> {
    let frames: Vec<Frame> = lines.iter().map(|line| frame(line)).collect();
    let dir = std::env::temp_dir().join(format!("changeover-oracle-{:016x}", fastrand::u64(..)));
    let spool =
        Spool::open(spool::Options { dir: dir.clone(), memory_bytes: 0, disk_bytes: 1 << 30, sinks: Vec::new() });
    let stash = spool.unwrap().stash(dice.usize(0..100_000));
    let options = Options {
        batch_bytes: dice.usize(1..100_000),
        part_bytes: dice.usize(1..100_000),
        resume_after: Lsn::new(1).unwrap(),
        next_seq: 0,
    };
    let mut decoder = Decoder::new(options, Box::new(stash));
    let mut batches = Vec::new();
    for end in [dice.usize(..frames.len()), frames.len()] {
        decoder.begin_session(proto_version);
        for read in frames[..end].chunks(dice.usize(1..1000)) {
            let read = FrameBatch { frames: read.to_vec(), size_bytes: 0 };
            let fed = decoder.on_frames(&read, &mut |batch| {
                batches.push(batch);
                Ok::<(), Infallible>(())
            });
            fed.unwrap();
        }
    }
    drop(decoder);
    std::fs::remove_dir_all(dir).unwrap();
    batches
}

fn frame(line: &str) -> Frame {
    let (lsn, hex) = line.split_once(' ').unwrap();
    let lsn = lsn.parse().ok();
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    let message = (0..hex.len()).step_by(2).map(byte).collect();
    Frame { wal_end: lsn, sent_at_us: 0, payload: FramePayload::XLogData { wal_start: lsn, message } }
}

// Applying: the plainest applier there is.

fn apply(batches: &[Batch]) -> BTreeMap<String, Vec<Row>> {
    let mut tables = BTreeMap::<String, Vec<Row>>::new();
    for batch in batches {
        for change in batch.transactions.iter().flat_map(|transaction| &transaction.changes) {
            apply_change(batch, change, &mut tables);
        }
    }
    tables
}

fn apply_change(batch: &Batch, change: &Change, tables: &mut BTreeMap<String, Vec<Row>>) {
    let mut rows = |relation: &Relation| std::mem::take(tables.entry(relation.name.name.clone()).or_default());
    match &change.kind {
        ChangeKind::Insert { relation, new } => {
            let relation = batch.relation(*relation);
            let mut rows = rows(relation);
            rows.push(written(relation, new, Row::new()));
            tables.insert(relation.name.name.clone(), rows);
        }
        ChangeKind::Update { relation, old, new } => {
            let relation = batch.relation(*relation);
            let mut rows = rows(relation);
            let at = find(relation, &rows, old.as_ref(), new);
            let before = rows.swap_remove(at);
            rows.push(written(relation, new, before));
            tables.insert(relation.name.name.clone(), rows);
        }
        ChangeKind::Delete { relation, old } => {
            let relation = batch.relation(*relation);
            let mut rows = rows(relation);
            let at = find(relation, &rows, Some(old), &old.tuple);
            rows.swap_remove(at);
            tables.insert(relation.name.name.clone(), rows);
        }
        ChangeKind::Truncate { relations, .. } => {
            for relation in relations {
                rows(batch.relation(*relation));
            }
        }
        ChangeKind::Message { .. } => panic!("nobody wrote a message"),
    }
}

fn find(relation: &Relation, rows: &[Row], old: Option<&OldTuple>, new: &Tuple) -> usize {
    let tuple = old.map_or(new, |old| &old.tuple);
    let full = old.is_some_and(|old| old.kind == OldKind::Full);
    let wanted: Vec<_> = relation
        .columns
        .iter()
        .zip(tuple.iter())
        .filter(|(column, _)| full || column.in_identity)
        .map(|(column, datum)| (&column.name, text(datum)))
        .collect();
    let found = rows.iter().position(|row| wanted.iter().all(|(name, value)| row.get(*name) == value.as_ref()));
    found.unwrap_or_else(|| panic!("no row of {} is the one that was changed", relation.name))
}

fn written(relation: &Relation, new: &Tuple, mut row: Row) -> Row {
    for (column, datum) in relation.columns.iter().zip(new.iter()) {
        if datum == Datum::Unchanged {
            continue;
        }
        match text(datum) {
            Some(value) => drop(row.insert(column.name.clone(), value)),
            None => drop(row.remove(&column.name)),
        }
    }
    row
}

fn text(datum: Datum<'_>) -> Option<String> {
    match datum {
        Datum::Null => None,
        Datum::Text(text) => Some(String::from_utf8(text.to_vec()).unwrap()),
        Datum::Unchanged | Datum::Binary(_) => panic!("not in the row that is looked for, and not asked for"),
    }
}

async fn select(db: &Db, table: &str) -> Vec<Row> {
    let messages = db.simple_query(&format!("SELECT * FROM {table}")).await.unwrap();
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        SimpleQueryMessage::CommandComplete(_) | SimpleQueryMessage::RowDescription(_) | _ => None,
    });
    let row = |row: &tokio_postgres::SimpleQueryRow| {
        let values = row.columns().iter().enumerate();
        values.filter_map(|(n, column)| Some((column.name().to_owned(), row.get(n)?.to_owned()))).collect()
    };
    sorted(rows.map(row).collect())
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort();
    rows
}
