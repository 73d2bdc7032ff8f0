//! The copy of rows, and its hand-over to the stream.

#[path = "snapshot/interrupted.rs"]
mod interrupted;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use changeover::demo::PostgresPrograms;
use changeover::model::{RowFilters, TableHandover, TableName, Xid};
use changeover::schema::{self, Catalog, CopyOptions};
use changeover::snapshot::{self, CopyState, LoadLimits, Progress, Throttle, ThrottleOptions};
use changeover::wire;
use tokio_util::sync::CancellationToken;

use crate::schema::{NASTY, chinook, everything, migration, only, prepared, prepared_on};
use crate::support::{Db, Pair, source_and_target};

/// Small enough that tables of a few hundred kilobytes are split.
const SPLIT_BYTES: u64 = 64 * 1024;

/// Makes each row of the target's table `t` take its time.
const SLOW: &str = "
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_catalog.pg_sleep(0.01); RETURN NEW; END $$;
    CREATE TRIGGER slow BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION slow();
    ALTER TABLE t ENABLE ALWAYS TRIGGER slow";

async fn catalog_of(options: &CopyOptions) -> Catalog {
    let source = wire::connect(&options.source, "test").await.unwrap();
    schema::read_catalog(&source, &everything()).await.unwrap()
}

fn copying(options: &CopyOptions) -> snapshot::Options {
    snapshot::Options {
        source: options.source.clone(),
        target: options.target.clone(),
        migration: migration(),
        workers: 3,
        split_bytes: SPLIT_BYTES,
        snapshot_age_max: None,
        rows: RowFilters::default(),
        throttle: Arc::new(Throttle::new(unlimited(&options.source))),
    }
}

/// Nothing holds a copy.
fn unlimited(source: &wire::Endpoint) -> ThrottleOptions {
    let second = std::time::Duration::from_secs(1);
    ThrottleOptions {
        source: source.clone(),
        limits: LoadLimits::default(),
        interval: second,
        query_timeout: second,
        hold_max: second,
        rate_max: None,
    }
}

async fn copy(
    options: &CopyOptions,
    catalog: &Catalog,
    progress: &Arc<Progress>,
) -> Result<Vec<TableHandover>, snapshot::Error> {
    snapshot::run(copying(options), catalog, Arc::clone(progress), CancellationToken::new()).await
}

/// The schema, then the rows, of everything in the source.
async fn migrate(options: &CopyOptions) -> (Catalog, Arc<Progress>) {
    let catalog = catalog_of(options).await;
    schema::copy_pre_data(options, &catalog).await.unwrap();
    let progress = Arc::new(Progress::default());
    let handovers = copy(options, &catalog, &progress).await.unwrap();
    assert_eq!(handovers.len(), catalog.row_tables().count());
    (catalog, progress)
}

async fn assert_equal(pair: &Pair, catalog: &Catalog) {
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    for table in catalog.row_tables() {
        let only = format!("ONLY {}", table.name.quoted());
        assert_eq!(source.rows(&only).await, target.rows(&only).await, "{}", table.name);
    }
}

#[tokio::test]
async fn every_row_of_chinook_is_copied() {
    let (pair, options) = prepared(chinook()).await;
    let (catalog, progress) = migrate(&options).await;
    assert_equal(&pair, &catalog).await;
    let source = pair.source.connect().await;
    for (name, counts) in progress.read().tables {
        let rows = source.scalar(&format!("SELECT count(*) FROM {}", name.quoted())).await;
        assert_eq!((counts.state, counts.rows_copied.to_string()), (CopyState::Copied, rows), "{name}");
    }
}

#[tokio::test]
async fn values_names_and_shapes_that_are_difficult_are_copied_as_they_are() {
    let (pair, options) = prepared(NASTY).await;
    let (catalog, _) = migrate(&options).await;
    assert_equal(&pair, &catalog).await;
}

/// The oldest server reads no block range by itself, so that a table's parts come out of one pass over it.
const IN_ORDER: (u32, u32) = (13, 15);

async fn in_order(sql: &str) -> (Pair, CopyOptions) {
    prepared_on(Pair::of(IN_ORDER.0, IN_ORDER.1), sql).await
}

#[tokio::test]
async fn a_large_table_is_copied_in_parts_whose_rows_are_each_there_once() {
    let sql = "CREATE TABLE large (id bigint PRIMARY KEY, t text);
               INSERT INTO large SELECT n, repeat('x', 100) FROM generate_series(1, 20000) n;
               DELETE FROM large WHERE id % 3 = 0; UPDATE large SET t = 'updated' WHERE id % 7 = 0";
    for (pair, options) in [prepared(sql).await, in_order(sql).await] {
        let (catalog, _) = migrate(&options).await;
        assert_equal(&pair, &catalog).await;
        let target = pair.target.connect().await;
        let parts = "SELECT count(*) > 20, count(*) FILTER (WHERE complete), count(DISTINCT snapshot), sum(row_count)
                     FROM changeover.unit";
        assert_eq!(target.query_text(parts).await, ["t|1|1|13334"]);
    }
}

/// Values that travel as text, blocks without a wanted row, and a condition that an index would answer faster.
#[tokio::test]
async fn one_pass_over_a_table_gives_its_rows_in_text_and_by_a_condition() {
    let sql = "CREATE TYPE mood AS ENUM ('ok', 'a,b)'); CREATE DOMAIN tabbed AS text;
               CREATE TABLE odd (id int PRIMARY KEY, mood mood, t tabbed, a text[], n numeric);
               INSERT INTO odd SELECT n, 'a,b)', E'(1,2)\t\\\n' || n, ARRAY[E'\t', NULL], 'NaN' FROM generate_series(1, 9000) n;
               CREATE INDEX ON odd (n, id); DELETE FROM odd WHERE id BETWEEN 2000 AND 6000; ANALYZE odd";
    let (pair, options) = in_order(sql).await;
    let catalog = catalog_of(&options).await;
    schema::copy_pre_data(&options, &catalog).await.unwrap();
    let target = pair.target.connect().await;
    target.exec("ALTER TABLE odd ALTER n TYPE text").await;
    let few = (TableName::new("public", "odd"), "id < 100 OR id = 8999 -- few".to_owned());
    let rows = RowFilters::from_iter([few]);
    let options = snapshot::Options { rows, ..copying(&options) };
    snapshot::run(options, &catalog, Arc::default(), CancellationToken::new()).await.unwrap();
    let wanted =
        pair.source.connect().await.query_text("SELECT * FROM odd WHERE id < 100 OR id = 8999 ORDER BY id").await;
    assert_eq!(target.query_text("SELECT * FROM odd ORDER BY id").await, wanted);
    assert_eq!(target.scalar("SELECT count(*) > 10 AND sum(row_count) = 100 FROM changeover.unit").await, "t");
}

#[tokio::test]
async fn what_is_copied_is_exactly_what_the_recorded_snapshot_sees() {
    exactly_what_the_snapshot_sees(source_and_target().await, None).await;
}

/// Each part under a snapshot of its own, while rows come, go and move.
#[tokio::test]
async fn the_same_holds_when_no_snapshot_may_grow_old() {
    exactly_what_the_snapshot_sees(source_and_target().await, Some(Duration::ZERO)).await;
}

#[tokio::test]
async fn the_same_holds_for_parts_out_of_one_pass_or_of_one_pass_each() {
    for snapshot_age_max in [None, Some(Duration::ZERO)] {
        exactly_what_the_snapshot_sees(Pair::of(IN_ORDER.0, IN_ORDER.1), snapshot_age_max).await;
    }
}

async fn exactly_what_the_snapshot_sees(pair: Pair, snapshot_age_max: Option<Duration>) {
    let sql = "CREATE TABLE busy (id bigserial PRIMARY KEY, xid xid8 DEFAULT pg_current_xact_id(), pad text);
               CREATE TABLE busy_too (id bigserial PRIMARY KEY, xid xid8 DEFAULT pg_current_xact_id(), pad text);
               INSERT INTO busy (pad) SELECT repeat('x', 200) FROM generate_series(1, 10000);
               INSERT INTO busy_too (pad) SELECT repeat('x', 200) FROM generate_series(1, 10000)";
    let (pair, options) = prepared_on(pair, sql).await;
    let writers: Vec<Db> =
        [pair.source.connect().await, pair.source.connect().await, pair.source.connect().await].into();
    let straggler = pair.source.connect().await;
    // Open while the snapshot is taken, committed before the copy ends.
    straggler.exec("BEGIN; INSERT INTO busy (pad) VALUES ('late')").await;
    let catalog = catalog_of(&options).await;
    schema::copy_pre_data(&options, &catalog).await.unwrap();
    let done = CancellationToken::new();
    let write = async |db: &Db, table: &str| {
        while !done.is_cancelled() {
            let insert = format!("INSERT INTO {table} (pad) VALUES ('a')");
            db.exec(&format!("BEGIN; {insert}; SAVEPOINT s; {insert}; COMMIT")).await;
            // One row a transaction: two writers of a table would otherwise wait for each other.
            db.exec(&format!(
                "DELETE FROM {table} WHERE id = (SELECT max(id) FROM {table} WHERE xid <> pg_current_xact_id())"
            ))
            .await;
            db.exec(&format!(
                "UPDATE {table} SET xid = pg_current_xact_id(), pad = repeat('y', 150)
                 WHERE id = (SELECT 1 + (random() * 9990)::int)"
            ))
            .await;
        }
    };
    let progress = Arc::new(Progress::default());
    let copying = async {
        let options = snapshot::Options { snapshot_age_max, ..copying(&options) };
        let copied = snapshot::run(options, &catalog, Arc::clone(&progress), CancellationToken::new()).await;
        let handovers = copied.unwrap();
        straggler.exec("COMMIT").await;
        done.cancel();
        handovers
    };
    let (handovers, ..) =
        tokio::join!(copying, write(&writers[0], "busy"), write(&writers[1], "busy_too"), write(&writers[2], "busy"));
    let target = pair.target.connect().await;
    let several = "SELECT count(DISTINCT snapshot) > 20 FROM changeover.unit";
    assert_eq!(target.scalar(several).await, if snapshot_age_max.is_some() { "t" } else { "f" });
    for handover in handovers {
        let name = handover.table.quoted();
        let sees = |row: &String| handover.snapshot.sees(Xid(row.parse::<u64>().unwrap() as u32));
        let copied = target.query_text(&format!("SELECT xid FROM {name}")).await;
        assert!(copied.iter().all(sees), "a row of a transaction that the snapshot does not see");
        // What is on the source, seen by the snapshot, and was not deleted since, must have been copied.
        let ids = |rows: Vec<String>| -> BTreeMap<String, String> {
            rows.iter()
                .map(|row| row.split_once('|').unwrap())
                .map(|(id, xid)| (id.to_owned(), xid.to_owned()))
                .collect()
        };
        let source = ids(writers[0].query_text(&format!("SELECT id, xid FROM {name}")).await);
        let target = ids(target.query_text(&format!("SELECT id, xid FROM {name}")).await);
        let lost: Vec<_> = source.iter().filter(|(id, xid)| sees(xid) && !target.contains_key(*id)).collect();
        assert!(lost.is_empty(), "{lost:?}");
        assert!(target.len() >= 9_900, "{} rows", target.len());
    }
}

#[tokio::test]
async fn finished_tables_are_not_copied_again_and_unfinished_ones_without_key_from_the_start() {
    let sql = "CREATE TABLE done (id int); INSERT INTO done SELECT generate_series(1, 1000);
               CREATE TABLE split (id int, pad text);
               INSERT INTO split SELECT n, repeat('x', 500) FROM generate_series(1, 2000) n;
               CREATE TABLE broken (id int); INSERT INTO broken VALUES (1)";
    let (pair, options) = prepared(sql).await;
    let catalog = catalog_of(&options).await;
    schema::copy_pre_data(&options, &catalog).await.unwrap();
    let target = pair.target.connect().await;
    // One worker takes the largest units first, so this one fails behind all others.
    target.exec("ALTER TABLE broken ADD CHECK (id > 1)").await;
    let one = snapshot::Options { workers: 1, ..copying(&options) };
    let progress = Arc::new(Progress::default());
    let failed = snapshot::run(one.clone(), &catalog, Arc::clone(&progress), CancellationToken::new()).await;
    assert!(failed.unwrap_err().to_string().contains("public.broken"));
    // As if the daemon had died inside the split table.
    target
        .exec(
            "UPDATE changeover.unit SET complete = false WHERE table_name = 'split';
             DELETE FROM changeover.unit WHERE table_name = 'split' AND part = 1",
        )
        .await;
    let snapshot_of_done = "SELECT snapshot, finished_at FROM changeover.unit WHERE table_name = 'done'";
    let before = target.query_text(snapshot_of_done).await;

    target.exec("ALTER TABLE broken DROP CONSTRAINT broken_id_check").await;
    pair.source.connect().await.exec("INSERT INTO done VALUES (1001)").await;
    let handovers = snapshot::run(one, &catalog, Arc::clone(&progress), CancellationToken::new()).await.unwrap();
    assert_eq!(handovers.len(), 3);
    assert_eq!(target.query_text(snapshot_of_done).await, before);
    assert_eq!(target.scalar("SELECT count(*) FROM done").await, "1000");
    assert_eq!(target.scalar("SELECT count(*) || '|' || count(DISTINCT id) FROM split").await, "2000|2000");
    let counts = progress.read().tables;
    assert_eq!(counts[&TableName::new("public", "split")].rows_copied, 2000);
    assert_eq!(counts[&TableName::new("public", "done")].rows_copied, 1000);
    let session = wire::connect(&options.target, "test").await.unwrap();
    assert_eq!(snapshot::handovers(&session, &migration()).await.unwrap(), handovers);
}

/// A `char(n)` of nothing but blanks does not travel where the target puts them back, and does where it does not.
#[tokio::test]
async fn blanks_are_there_as_they_were() {
    let sql = "CREATE DOMAIN code AS char(5);
               CREATE COLLATION loose (provider = icu, locale = 'und-u-ka-shifted-ks-level1', deterministic = false);
               CREATE TABLE padded (id int PRIMARY KEY, a char(6) COLLATE loose, b char(6), c bpchar, d bpchar, e code, f char(4)[], h char(3));
               INSERT INTO padded SELECT n, v, v, v || ' ', v || '  ', v, ARRAY[v], v FROM (VALUES
                   (1, ''), (2, ' '), (3, 'ab'), (4, ' ab'), (5, NULL), (6, 'é€'), (7, E'\\t'), (8, E'\\\\ '), (9, '-.')) AS t (n, v)";
    const OF_SOURCE: &str =
        "SELECT id, a, octet_length(a), octet_length(b), octet_length(c), octet_length(d::char(9)), e, f,
                                    octet_length(e), octet_length(f[1]), octet_length(h) FROM padded ORDER BY id";
    for (pair, options) in [prepared(sql).await, in_order(sql).await] {
        let catalog = catalog_of(&options).await;
        schema::copy_pre_data(&options, &catalog).await.unwrap();
        let (source, target) = (pair.source.connect().await, pair.target.connect().await);
        target.exec("ALTER TABLE padded ALTER b TYPE text, ALTER d TYPE char(9), ALTER h TYPE char(2)").await;
        let refused = copy(&options, &catalog, &Arc::default()).await.unwrap_err();
        assert!(refused.to_string().contains("public.padded"), "{refused}");
        target.exec("ALTER TABLE padded ALTER h TYPE char(3)").await;
        for split_bytes in [u64::MAX, 1] {
            target.exec("TRUNCATE padded, changeover.unit, changeover.split").await;
            let options = snapshot::Options { split_bytes, ..copying(&options) };
            snapshot::run(options, &catalog, Arc::default(), CancellationToken::new()).await.unwrap();
            let wanted = source.query_text(OF_SOURCE).await;
            assert_eq!(target.query_text(&OF_SOURCE.replace("d::char(9)", "d")).await, wanted);
        }
    }
}

#[tokio::test]
async fn rows_that_are_not_ours_are_never_removed() {
    let (pair, options) = prepared("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await;
    let target = pair.target.connect().await;
    target.exec("CREATE TABLE t (id int); INSERT INTO t VALUES (7)").await;
    let catalog = catalog_of(&options).await;
    let refused = copy(&options, &catalog, &Arc::default()).await.unwrap_err();
    assert!(matches!(refused, snapshot::Error::NotEmpty { .. }));
    assert_eq!(target.rows("t").await, ["(7)"]);
}

#[tokio::test]
async fn rows_fit_into_a_target_of_another_shape() {
    let sql = "CREATE TABLE p (id int, at date) PARTITION BY RANGE (at);
               CREATE TABLE p1 PARTITION OF p FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
               CREATE TABLE p2 PARTITION OF p DEFAULT;
               INSERT INTO p SELECT n, DATE '2023-06-01' + n FROM generate_series(1, 500) n;
               CREATE TABLE parent (id int PRIMARY KEY); INSERT INTO parent VALUES (1);
               CREATE TABLE child (parent int REFERENCES parent, small int); INSERT INTO child VALUES (1, 2)";
    let (pair, options) = prepared(sql).await;
    let target = pair.target.connect().await;
    target
        .exec(
            "CREATE TABLE p (at date, extra text DEFAULT 'x', id int) PARTITION BY HASH (id);
             CREATE TABLE p_0 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE p_1 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 1);
             CREATE TABLE parent (id int PRIMARY KEY);
             CREATE TABLE child (small bigint, parent int REFERENCES parent)",
        )
        .await;
    let ends = [&options.source, &options.target].map(|end| wire::connect(end, "test"));
    let [source, there] = ends;
    let (source, there) = (source.await.unwrap(), there.await.unwrap());
    let named = catalog_of(&options).await;
    let found = schema::gather(&source, &there, &named, &RowFilters::default(), &schema::Settled::default()).await;
    let catalog = found.unwrap().catalog;
    copy(&options, &catalog, &Arc::default()).await.unwrap();
    let source = pair.source.connect().await;
    let sorted = "SELECT id, at FROM p ORDER BY id";
    assert_eq!(source.query_text(sorted).await, target.query_text(sorted).await);
    assert_eq!(target.rows("child").await, ["(2,1)"]);
}

#[tokio::test]
async fn a_role_that_may_not_act_as_a_replica_copies_where_nothing_fires() {
    let sql = "CREATE TABLE plain (id int); INSERT INTO plain VALUES (1);
               CREATE TABLE parent (id int PRIMARY KEY); INSERT INTO parent VALUES (1);
               CREATE TABLE child (parent int REFERENCES parent); INSERT INTO child VALUES (1)";
    let (pair, mut options) = prepared(sql).await;
    let target = pair.target.connect().await;
    target
        .exec(
            "CREATE ROLE mover LOGIN; GRANT ALL ON SCHEMA changeover, public TO mover;
             GRANT ALL ON ALL TABLES IN SCHEMA changeover TO mover; SET ROLE mover;
             CREATE TABLE plain (id int); CREATE TABLE parent (id int PRIMARY KEY);
             CREATE TABLE child (parent int REFERENCES parent)",
        )
        .await;
    options.target = wire::Endpoint::parse(&pair.target.url().replace("postgres@", "mover@")).unwrap();
    let catalog = catalog_of(&options).await;
    let refused = copy(&options, &catalog, &Arc::default()).await.unwrap_err();
    assert!(matches!(refused, snapshot::Error::WouldFire { .. }), "{refused}");
    let source = wire::connect(&options.source, "test").await.unwrap();
    let without = schema::read_catalog(&source, &only(&["public.plain", "public.parent"])).await.unwrap();
    copy(&options, &without, &Arc::default()).await.unwrap();
    assert_eq!(target.rows("plain").await, ["(1)"]);
}

#[tokio::test]
async fn a_stop_ends_the_copy_and_leaves_nothing_half_done() {
    let sql =
        "CREATE TABLE t (id int, pad text); INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 20000) n";
    let (pair, options) = prepared(sql).await;
    let catalog = catalog_of(&options).await;
    schema::copy_pre_data(&options, &catalog).await.unwrap();
    // So that the stop comes in the middle.
    let target = pair.target.connect().await;
    target.exec(SLOW).await;
    let (stop, progress) = (CancellationToken::new(), Arc::new(Progress::default()));
    let whole = snapshot::Options { split_bytes: u64::MAX, ..copying(&options) };
    let running = snapshot::run(whole.clone(), &catalog, Arc::clone(&progress), stop.clone());
    let stopping = async {
        while progress.read().tables.values().all(|table| table.rows_copied == 0) {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(running, stopping);
    assert!(matches!(outcome, Err(snapshot::Error::Stopped)), "{outcome:?}");
    target.exec("DROP TRIGGER slow ON t").await;
    assert_eq!(target.scalar("SELECT count(*) FROM changeover.unit").await, "0");
    assert_eq!(target.scalar("SELECT count(*) FROM t").await, "0");
    snapshot::run(whole, &catalog, progress, CancellationToken::new()).await.unwrap();
    assert_eq!(target.scalar("SELECT count(*) FROM t").await, "20000");
}

#[tokio::test]
async fn a_table_that_is_being_altered_is_waited_for() {
    let (pair, options) = prepared("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await;
    let catalog = catalog_of(&options).await;
    schema::copy_pre_data(&options, &catalog).await.unwrap();
    let blocker = pair.source.connect().await;
    blocker.exec("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await;
    let progress = Arc::default();
    let copying = copy(&options, &catalog, &progress);
    let watching = pair.source.connect().await;
    let releasing = async {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 't'::regclass";
        watching.until_not(waiting, "0").await;
        blocker.exec("COMMIT").await;
    };
    let (outcome, ()) = tokio::join!(copying, releasing);
    assert_eq!(outcome.unwrap().len(), 1);
}

#[tokio::test]
async fn rows_and_schema_reach_the_newest_installed_version() {
    let mut majors: Vec<u32> = PostgresPrograms::find().unwrap().iter().map(|programs| programs.major).collect();
    // The fixture has a function with BEGIN ATOMIC.
    majors.retain(|major| *major >= 14);
    let (oldest, newest) = (*majors.iter().min().unwrap(), *majors.iter().max().unwrap());
    let (pair, options) = prepared_on(Pair::of(oldest, newest), NASTY).await;
    let (catalog, _) = migrate(&options).await;
    assert_equal(&pair, &catalog).await;
    let steps = schema::Steps::default();
    schema::copy_indexes(&options, &catalog, &steps, schema::Rows::Complete, CancellationToken::new()).await.unwrap();
    schema::copy_post_data(&options, &catalog, &steps, CancellationToken::new()).await.unwrap();
    let target = wire::connect(&options.target, "test").await.unwrap();
    let there = schema::read_catalog(&target, &everything()).await.unwrap();
    let design = schema::Design::default();
    let described = |catalog| schema::Described { catalog, design: &design };
    let mut found = schema::compare(described(&catalog), described(&there), true);
    // That of the fixture fires on both sides.
    found.retain(|difference| !matches!(difference.kind, schema::DifferenceKind::FiringTrigger { .. }));
    assert_eq!(found, []);
}

/// PITFALLS 5: without the lock a TRUNCATE makes a table look empty to a snapshot that is older.
#[tokio::test]
async fn nothing_is_recorded_that_was_read_after_the_locks_had_gone() {
    let sql =
        "CREATE TABLE t (id int, pad text); INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 200) n";
    let (pair, options) = prepared(sql).await;
    let catalog = catalog_of(&options).await;
    schema::copy_pre_data(&options, &catalog).await.unwrap();
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    target.exec(SLOW).await;
    let progress = Arc::new(Progress::default());
    let whole = snapshot::Options { split_bytes: u64::MAX, ..copying(&options) };
    let running = snapshot::run(whole.clone(), &catalog, Arc::clone(&progress), CancellationToken::new());
    let breaking = async {
        while progress.read().tables.values().all(|table| table.rows_copied == 0) {
            tokio::task::yield_now().await;
        }
        let holder =
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'changeover snapshot'";
        assert_eq!(source.query_text(holder).await, ["t"]);
    };
    let (outcome, ()) = tokio::join!(running, breaking);
    assert!(matches!(outcome, Err(snapshot::Error::SnapshotLost(_))), "{outcome:?}");
    assert_eq!(target.scalar("SELECT count(*) FROM changeover.unit").await, "0");
    target.exec("DROP TRIGGER slow ON t").await;
    snapshot::run(whole, &catalog, progress, CancellationToken::new()).await.unwrap();
    assert_eq!(target.scalar("SELECT count(*) FROM t").await, "200");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_side_that_does_not_answer() {
    let (pair, options) = prepared("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await;
    let catalog = catalog_of(&options).await;
    schema::copy_pre_data(&options, &catalog).await.unwrap();
    let (blocker, watching) = (pair.target.connect().await, pair.target.connect().await);
    blocker.exec("BEGIN; SELECT FROM t").await;
    let stop = CancellationToken::new();
    let running = snapshot::run(copying(&options), &catalog, Arc::default(), stop.clone());
    let stopping = async {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 't'::regclass";
        watching.until_not(waiting, "0").await;
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(running, stopping);
    assert!(matches!(outcome, Err(snapshot::Error::Stopped)), "{outcome:?}");
}
