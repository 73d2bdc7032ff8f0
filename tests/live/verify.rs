//! Verification on two databases that nobody writes to, so that the only difference is the planted one.

use std::sync::Arc;
use std::time::Duration;

use changeover::model::{Aligned, Column, Datum, Lsn, Misaligned, Relation, ReplicaIdentity, SnapshotSet, TableName};
use changeover::model::{Touched, TupleBuilder};
use changeover::verify::{
    AlignError, AlignFuture, Aligner, DifferingKind, DirtyKeys, Error, Fenced, KeyColumn, Options, Progress, Report,
    Table, Verdict, verify, verify_dirty,
};
use changeover::wire::Endpoint;

use crate::support::{Db, Pair, cluster_of, source_and_target};

/// Both databases stand still, so they are aligned wherever one looks. The first `misses` snapshots are refused.
pub(crate) struct Still {
    misses: std::sync::atomic::AtomicU32,
    held: std::sync::atomic::AtomicI32,
}

impl Still {
    pub(crate) fn new(misses: u32) -> Self {
        Self { misses: misses.into(), held: 0.into() }
    }

    fn held(&self) -> i32 {
        self.held.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl Aligner for Still {
    fn hold(&self) -> AlignFuture<'_, Lsn> {
        self.held.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Box::pin(async { Ok(Lsn::new(1).unwrap()) })
    }

    fn advance_to(&self, _snapshot: SnapshotSet, until: Lsn) -> AlignFuture<'_, Aligned> {
        assert_eq!(self.held(), 1);
        let misses = self.misses.load(std::sync::atomic::Ordering::SeqCst);
        Box::pin(async move {
            if misses > 0 {
                self.misses.store(misses - 1, std::sync::atomic::Ordering::SeqCst);
                return Err(AlignError::Misaligned(Misaligned::OutOfOrder));
            }
            Ok(Aligned { position: until })
        })
    }

    fn release(&self) -> AlignFuture<'_, ()> {
        self.held.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
        Box::pin(async { Ok(()) })
    }
}

pub(crate) fn options(pair: &Pair) -> Options {
    Options {
        migration: "shop".parse().unwrap(),
        source: Endpoint::parse(pair.source.url()).unwrap(),
        target: Endpoint::parse(pair.target.url()).unwrap(),
        workers: 2,
        keys_max: 10,
        snapshot_age_max: Duration::from_secs(60),
    }
}

pub(crate) fn table(name: &str, columns: &[&str], key: &[(&str, &str)]) -> Table {
    Table {
        source: TableName::new("public", name),
        target: TableName::new("public", name),
        columns: columns.iter().map(|&column| column.to_owned()).collect(),
        key: key.iter().map(|&(name, sql)| KeyColumn { name: name.to_owned(), type_sql: sql.to_owned() }).collect(),
        leaves: Vec::new(),
        rows: None,
    }
}

pub(crate) fn keys(tables: Vec<Table>) -> DirtyKeys {
    DirtyKeys::new(tables.into(), 1 << 20)
}

async fn compare(pair: &Pair, dirty: &DirtyKeys) -> Report {
    let aligner = Still::new(0);
    let report = verify(&options(pair), &aligner, dirty, &Arc::new(Progress::default())).await.unwrap();
    assert_eq!(aligner.held(), 0, "the applier goes on");
    report
}

async fn both(pair: &Pair, sql: &str) -> (Db, Db) {
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    source.exec(sql).await;
    target.exec(sql).await;
    (source, target)
}

pub(crate) fn relation(name: &str, columns: &[&str]) -> Relation {
    let column = |name: &&str| Column {
        name: (*name).to_owned(),
        type_oid: 25,
        type_modifier: -1,
        in_identity: true,
        type_name: None,
    };
    Relation {
        binary: false,
        oid: 7,
        name: TableName::new("public", name),
        identity: ReplicaIdentity::Default,
        columns: columns.iter().map(column).collect(),
    }
}

pub(crate) fn touch(dirty: &DirtyKeys, relation: &Relation, values: &[&str]) {
    let mut tuple = TupleBuilder::default();
    for value in values {
        tuple.push(Datum::Text(value.as_bytes()));
    }
    dirty.row(&relation.name, relation, &tuple.finish());
}

/// One column of every kind that a careless text form would get wrong.
const KINDS: &str = r#"
    SET extra_float_digits = 0; SET bytea_output = escape;
    CREATE TYPE mood AS ENUM ('sad', 'it''s "ok"');
    CREATE TYPE pair AS (a int, b text);
    CREATE TABLE kinds (id bigint, sub text, t text, u text, c char(5), q "char", n numeric, f float8, r real, b bytea,
        ts timestamptz, iv interval, j json, jb jsonb, a text[], m mood, p pair, i inet, rg int4range, bt bit(3),
        mny money, g int GENERATED ALWAYS AS (1 + 1) STORED, PRIMARY KEY (id, sub));
    INSERT INTO kinds SELECT n, 'k' || n, 'text ' || n, NULL, 'ab', 'x', 1.50, 0.1, 0.3, '\x00ff', '2020-01-01 00:00+00',
        '1 mon 2 days', '{"a": 1, "a":2}', '{"a": 1}', ARRAY['a', NULL, 'x"y'], 'sad', '(1,x)'::pair, '10.0.0.1/8', '[1,3)',
        B'101', 12.30
    FROM generate_series(1, 50) AS n;
"#;
const COLUMNS: &[&str] = &[
    "id", "sub", "t", "u", "c", "q", "n", "f", "r", "b", "ts", "iv", "j", "jb", "a", "m", "p", "i", "rg", "bt", "mny",
    "g",
];

fn kinds() -> Table {
    table("kinds", COLUMNS, &[("id", "bigint"), ("sub", "text")])
}

/// Each changes one row of 50 in one way; the last two are compensating errors that XOR would not see.
const PLANTED: &[(&str, DifferingKind)] = &[
    ("UPDATE kinds SET t = t || ' ' WHERE id = 1", DifferingKind::Different),
    ("UPDATE kinds SET u = '' WHERE id = 50", DifferingKind::Different),
    ("UPDATE kinds SET t = u, u = t WHERE id = 25", DifferingKind::Different),
    ("UPDATE kinds SET c = ' ab' WHERE id = 2", DifferingKind::Different),
    ("UPDATE kinds SET q = '' WHERE id = 2", DifferingKind::Different),
    ("UPDATE kinds SET n = 1.5 WHERE id = 3", DifferingKind::Different),
    ("UPDATE kinds SET n = 'NaN' WHERE id = 3", DifferingKind::Different),
    ("UPDATE kinds SET f = 0.1::float8 + 1e-17::float8 + 2e-17 WHERE id = 3", DifferingKind::Different),
    ("UPDATE kinds SET r = '0.30000004' WHERE id = 3", DifferingKind::Different),
    ("UPDATE kinds SET b = '\\x00fe' WHERE id = 4", DifferingKind::Different),
    ("UPDATE kinds SET ts = ts + interval '1 microsecond' WHERE id = 4", DifferingKind::Different),
    ("UPDATE kinds SET iv = '32 days' WHERE id = 4", DifferingKind::Different),
    ("UPDATE kinds SET j = '{\"a\":2}' WHERE id = 4", DifferingKind::Different),
    ("UPDATE kinds SET a = ARRAY['a', 'NULL', 'x\"y'] WHERE id = 5", DifferingKind::Different),
    ("UPDATE kinds SET a = '[2:4]={a,NULL,\"x\\\"y\"}' WHERE id = 5", DifferingKind::Different),
    ("UPDATE kinds SET p = (1, NULL)::pair WHERE id = 6", DifferingKind::Different),
    ("UPDATE kinds SET m = 'it''s \"ok\"' WHERE id = 7", DifferingKind::Different),
    ("UPDATE kinds SET i = '10.0.0.1' WHERE id = 8", DifferingKind::Different),
    ("UPDATE kinds SET rg = '[1,4)' WHERE id = 9", DifferingKind::Different),
    ("DELETE FROM kinds WHERE id = 1", DifferingKind::MissingOnTarget),
    ("DELETE FROM kinds WHERE id = 50", DifferingKind::MissingOnTarget),
    ("INSERT INTO kinds (id, sub) VALUES (-1, 'x')", DifferingKind::ExtraOnTarget),
    ("INSERT INTO kinds (id, sub) VALUES (9223372036854775807, 'x')", DifferingKind::ExtraOnTarget),
];

#[tokio::test]
async fn every_kind_of_difference_is_found_and_named() {
    let pair = source_and_target().await;
    let (_source, target) = both(&pair, KINDS).await;
    let dirty = keys(vec![kinds()]);
    let report = compare(&pair, &dirty).await;
    assert_eq!(report.verdict, Verdict::Equal, "{report:?}");
    assert_eq!((report.rows_verified, report.tables.len()), (50, 1));
    assert_eq!(dirty.summary().tables_clean, 1);
    for (planted, kind) in PLANTED {
        target.exec(&format!("CREATE TABLE saved AS TABLE kinds; {planted}")).await;
        let report = compare(&pair, &dirty).await;
        assert_eq!(report.verdict, Verdict::Different, "{planted}");
        let differences = report.tables[0].differences.clone().unwrap();
        assert_eq!((differences.row_count(), differences.exact, differences.keys.len()), (1, true, 1), "{planted}");
        assert_eq!(differences.keys[0].kind, *kind, "{planted}");
        assert_eq!(dirty.summary().tables_clean, 0, "{planted}");
        let columns: Vec<&str> = COLUMNS.iter().copied().filter(|column| *column != "g").collect();
        let columns = columns.join(", ");
        target
            .exec(&format!(
                "DELETE FROM kinds; INSERT INTO kinds ({columns}) SELECT {columns} FROM saved; DROP TABLE saved"
            ))
            .await;
    }
    assert_eq!(compare(&pair, &dirty).await.verdict, Verdict::Equal);
}

#[tokio::test]
async fn errors_that_cancel_each_other_are_found() {
    let pair = source_and_target().await;
    let (source, target) =
        both(&pair, "CREATE TABLE t (v int, w float8); INSERT INTO t VALUES (1, 1), (2, 2), (3, 0)").await;
    // Twice the same wrong row in place of twice another: XOR of hashes sees nothing in either.
    source.exec("INSERT INTO t VALUES (7, 7), (7, 7)").await;
    target.exec("INSERT INTO t VALUES (8, 8), (8, 8)").await;
    let dirty = keys(vec![table("t", &["v", "w"], &[])]);
    let report = compare(&pair, &dirty).await;
    let differences = report.tables[0].differences.clone().unwrap();
    assert_eq!((differences.missing_on_target, differences.extra_on_target), (2, 2));
    // Values exchanged between rows, and a zero that has lost its sign.
    target.exec("TRUNCATE t; INSERT INTO t VALUES (1, 2), (2, 1), (3, '-0'), (7, 7), (7, 7)").await;
    let report = compare(&pair, &dirty).await;
    assert_eq!(report.tables[0].differences.clone().unwrap().missing_on_target, 3);
    assert!(report.tables[0].differences.clone().unwrap().keys.is_empty());
}

#[tokio::test]
async fn tables_without_rows_columns_or_plain_names_are_compared_too() {
    let pair = source_and_target().await;
    let sql = r#"CREATE TABLE empty (id int PRIMARY KEY); CREATE TABLE none (); INSERT INTO none DEFAULT VALUES;
        CREATE SCHEMA "S p"; CREATE TABLE "S p"."T ""x" ("Id" int PRIMARY KEY, "select" text); INSERT INTO "S p"."T ""x" VALUES (1, 'a');
        CREATE TABLE parent (id int); CREATE TABLE child () INHERITS (parent); INSERT INTO child VALUES (1);
        CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY HASH (id); INSERT INTO child VALUES (2);
        CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 1, REMAINDER 0); INSERT INTO parts SELECT generate_series(1, 9);"#;
    let (_source, target) = both(&pair, sql).await;
    let odd = TableName::new("S p", "T \"x");
    let odd = Table { source: odd.clone(), target: odd, ..table("", &["Id", "select"], &[("Id", "integer")]) };
    let tables = vec![
        table("empty", &["id"], &[("id", "integer")]),
        table("none", &[], &[]),
        odd,
        table("parent", &["id"], &[]),
        table("child", &["id"], &[]),
        table("parts", &["id"], &[("id", "integer")]),
    ];
    let dirty = keys(tables);
    let report = compare(&pair, &dirty).await;
    let rows: Vec<u64> = report.tables.iter().map(|table| table.rows_source).collect();
    assert_eq!((report.verdict, rows), (Verdict::Equal, vec![0, 1, 1, 0, 2, 9]));
    target.exec("INSERT INTO none DEFAULT VALUES; INSERT INTO empty VALUES (1); DELETE FROM parts WHERE id = 9").await;
    let report = compare(&pair, &dirty).await;
    let equal: Vec<bool> = report.tables.iter().map(|table| table.equal).collect();
    assert_eq!(equal, [false, false, true, true, true, false]);
}

#[tokio::test]
async fn the_order_of_columns_and_blocks_does_not_matter() {
    let pair = source_and_target().await;
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    source.exec("CREATE TABLE t (id int PRIMARY KEY, gone int, a text, b text); ALTER TABLE t DROP gone").await;
    target.exec("CREATE TABLE t (b text, id int PRIMARY KEY, a text)").await;
    let rows = "SELECT n, repeat('a', 500) || n, 'b' || n FROM generate_series(1, 200000) AS n";
    source.exec(&format!("INSERT INTO t (id, a, b) {rows}")).await;
    target.exec(&format!("INSERT INTO t (id, a, b) {rows} ORDER BY n DESC")).await;
    let dirty = keys(vec![table("t", &["id", "a", "b"], &[("id", "integer")])]);
    let report = compare(&pair, &dirty).await;
    assert_eq!((report.verdict, report.rows_verified), (Verdict::Equal, 200_000));
    target.exec("UPDATE t SET b = 'x' WHERE id % 400 = 7; DELETE FROM t WHERE id = 200000; INSERT INTO t VALUES ('b', 0, 'a')").await;
    let differences = compare(&pair, &dirty).await.tables[0].differences.clone().unwrap();
    assert_eq!((differences.missing_on_target, differences.extra_on_target, differences.different), (1, 1, 500));
    assert!(differences.exact);
    assert_eq!(differences.keys.len(), 10);
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_reached_is_taken_again() {
    let pair = source_and_target().await;
    both(&pair, "CREATE TABLE t (id int PRIMARY KEY)").await;
    let aligner = Still::new(3);
    let dirty = keys(vec![table("t", &["id"], &[("id", "integer")])]);
    let report = verify(&options(&pair), &aligner, &dirty, &Arc::new(Progress::default())).await.unwrap();
    assert_eq!((report.verdict, aligner.held()), (Verdict::Equal, 0));
}

/// Empties a table on both sides as soon as the first pair of snapshots is taken.
struct Truncating {
    still: Still,
    sides: std::sync::Mutex<Option<(Db, Db)>>,
}

impl Aligner for Truncating {
    fn hold(&self) -> AlignFuture<'_, Lsn> {
        self.still.hold()
    }

    fn advance_to(&self, snapshot: SnapshotSet, until: Lsn) -> AlignFuture<'_, Aligned> {
        self.still.advance_to(snapshot, until)
    }

    fn release(&self) -> AlignFuture<'_, ()> {
        let sides = self.sides.lock().unwrap().take();
        Box::pin(async move {
            if let Some((source, target)) = sides {
                source.exec("TRUNCATE t").await;
                target.exec("INSERT INTO t VALUES (0); TRUNCATE t").await;
            }
            self.still.release().await
        })
    }
}

#[tokio::test]
async fn a_table_that_is_truncated_meanwhile_is_compared_again() {
    let pair = source_and_target().await;
    let sql = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 5); CREATE TABLE u (id int); INSERT INTO u VALUES (1)";
    let (source, target) = both(&pair, sql).await;
    // Both would look empty, and so equal, through the old snapshots.
    target.exec("DELETE FROM t WHERE id = 3").await;
    let aligner = Truncating { still: Still::new(0), sides: Some((source, target)).into() };
    let dirty = keys(vec![table("t", &["id"], &[("id", "integer")]), table("u", &["id"], &[])]);
    let report = verify(&options(&pair), &aligner, &dirty, &Arc::new(Progress::default())).await.unwrap();
    assert_eq!((report.verdict, report.rows_verified), (Verdict::Equal, 1));
    assert!(report.tables[0].full_at > report.tables[1].full_at, "in a round of its own: {report:?}");
    assert!(report.position > report.tables[0].full_at, "and then all of it at one position");
}

#[tokio::test]
async fn only_touched_keys_are_compared_again_and_what_they_hide_stays_hidden() {
    let pair = source_and_target().await;
    let (source, target) = both(
        &pair,
        "CREATE TABLE t (id text, n text, v text, PRIMARY KEY (id, n)); CREATE TABLE k (v text);
        INSERT INTO t SELECT 'a ' || i, i, i FROM generate_series(1, 100) AS i; INSERT INTO k VALUES ('x')",
    )
    .await;
    let dirty = keys(vec![table("t", &["id", "n", "v"], &[("id", "text"), ("n", "text")]), table("k", &["v"], &[])]);
    let (shape, keyless) = (relation("t", &["n", "v", "id"]), relation("k", &["v"]));
    let fenced = Fenced::prepare(&options(&pair).source, &options(&pair).target, dirty.tables()).await.unwrap();
    let position = Lsn::new(0x99).unwrap();

    // Nothing is known yet.
    touch(&dirty, &shape, &["1", "1", "a 1"]);
    assert_eq!(dirty.summary().keys, 0);
    assert!(matches!(fenced.judge(&dirty, position).await, Err(Error::NotVerified { .. })));

    assert_eq!(compare(&pair, &dirty).await.verdict, Verdict::Equal);
    for db in [&source, &target] {
        db.exec("UPDATE t SET v = 'new' WHERE n IN ('1', '2'); DELETE FROM t WHERE n = '3'").await;
    }
    for n in ["1", "2", "3", "1"] {
        touch(&dirty, &shape, &[n, "whatever", &format!("a {n}")]);
    }
    assert_eq!(dirty.summary().keys, 3);
    let report = verify_dirty(&options(&pair), &Still::new(0), &dirty).await.unwrap();
    assert_eq!((report.verdict, report.rows_compared, report.rows_verified), (Verdict::Equal, 2, 101));
    assert_eq!(dirty.summary().keys, 0);

    // Inside the pause: touched and equal.
    for db in [&source, &target] {
        db.exec("INSERT INTO t VALUES ('it''s', '{x,\"y\"}', NULL); INSERT INTO k VALUES ('y')").await;
    }
    touch(&dirty, &shape, &["{x,\"y\"}", "", "it's"]);
    touch(&dirty, &keyless, &["y"]);
    assert_eq!(dirty.summary().whole_tables, 1);
    let report = fenced.judge(&dirty, position).await.unwrap();
    assert_eq!((report.verdict, report.position, report.rows_compared), (Verdict::Equal, position, 3));

    // Touched and different; a change nobody reported is not seen, as documented.
    target.exec("UPDATE t SET v = 'wrong' WHERE n = '50'").await;
    assert_eq!(fenced.judge(&dirty, position).await.unwrap().verdict, Verdict::Equal);
    touch(&dirty, &shape, &["50", "", "a 50"]);
    let report = fenced.judge(&dirty, position).await.unwrap();
    assert_eq!(report.verdict, Verdict::Different);
    assert!(
        matches!(fenced.judge(&dirty, position).await, Err(Error::NotVerified { .. })),
        "nothing is known of t now"
    );
}

#[tokio::test]
async fn a_failed_look_forgets_no_key_and_too_many_keys_mean_the_whole_table() {
    let pair = source_and_target().await;
    let (_source, target) = both(
        &pair,
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT g, g FROM generate_series(1, 900) g",
    )
    .await;
    let dirty = DirtyKeys::new(vec![table("t", &["id", "v"], &[("id", "integer")])].into(), 20_000);
    let shape = relation("t", &["id", "v"]);
    assert_eq!(compare(&pair, &dirty).await.verdict, Verdict::Equal);
    touch(&dirty, &shape, &["1", "1"]);
    let fenced = Fenced::prepare(&options(&pair).source, &options(&pair).target, dirty.tables()).await.unwrap();
    target
        .exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'changeover%'")
        .await;
    let position = Lsn::new(0x99).unwrap();
    assert!(fenced.judge(&dirty, position).await.is_err());
    assert_eq!(dirty.summary().keys, 1, "it is looked at again");
    for n in 1..=900 {
        touch(&dirty, &shape, &[&n.to_string(), "1"]);
    }
    // The key that is still to be confirmed is kept beside.
    assert_eq!((dirty.summary().keys, dirty.summary().whole_tables), (1, 1));
    target.exec("UPDATE t SET v = 0 WHERE id = 900").await;
    let report = verify_dirty(&options(&pair), &Still::new(0), &dirty).await.unwrap();
    assert_eq!(report.verdict, Verdict::Different);
    assert_eq!(report.tables[0].differences.clone().unwrap().different, 1);
}

#[tokio::test]
async fn all_installed_versions_agree_on_every_digest() {
    let mut majors: Vec<u32> =
        changeover::demo::PostgresPrograms::find().unwrap().iter().map(|programs| programs.major).collect();
    majors.sort_unstable();
    let newest = *majors.last().unwrap();
    for major in majors {
        let pair = Pair { source: cluster_of(major).into(), target: cluster_of(newest).into() };
        both(&pair, KINDS).await;
        let report = compare(&pair, &keys(vec![kinds()])).await;
        assert_eq!(report.verdict, Verdict::Equal, "{major} to {newest}: {report:?}");
    }
}
