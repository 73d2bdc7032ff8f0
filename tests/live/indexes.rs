//! Indexes, keys and statistics: built beside the copy, side by side, and through every crash what they were on the source.

use std::collections::BTreeSet;
use std::time::Duration;

use changeover::demo::StopMode;
use changeover::model::TableName;
use changeover::schema::{self, Rows, Steps};
use changeover::wire;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::schema::{copy_schema, everything, prepared, prepared_on};
use crate::support::{Daemon, Db, Pair, TestConfig, source_and_target};

/// A row passes `gate(n, ..)` while nobody holds the advisory lock `n` of that server: whatever computes it stands still
/// until then. It asks again and again, because waiting for the lock would run into `lock_timeout`.
const GATE: &str = "
    CREATE FUNCTION public.gate(n integer, value bigint) RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS $$
    BEGIN
        WHILE NOT pg_catalog.pg_try_advisory_lock_shared(n) LOOP PERFORM pg_catalog.pg_sleep(0.02); END LOOP;
        PERFORM pg_catalog.pg_advisory_unlock_shared(n);
        RETURN value;
    END $$;";

/// `large` cannot be copied while gate 1 is closed, and three indexes of `small` cannot be built while gate 2 is.
const LARGE_AND_SMALL: &str = "
    CREATE TABLE public.large (id bigint PRIMARY KEY, v bigint CHECK (public.gate(1, v) >= 0));
    CREATE TABLE public.small (id bigint PRIMARY KEY, a bigint UNIQUE DEFERRABLE, b bigint);
    CREATE INDEX small_one ON public.small ((public.gate(2, b) + 1));
    CREATE INDEX small_two ON public.small ((public.gate(2, b) + 2));
    CREATE INDEX small_three ON public.small ((public.gate(2, b) + 3)) WHERE a > 0;
    CREATE STATISTICS public.small_stats (dependencies) ON a, b FROM public.small;
    INSERT INTO public.large SELECT n, n FROM generate_series(1, 200) n;
    INSERT INTO public.small SELECT n, n, n FROM generate_series(1, 500) n;";

const PATIENCE: Duration = Duration::from_secs(60);

async fn large_and_small() -> Pair {
    let pair = source_and_target().await;
    pair.source.connect().await.exec(&format!("{GATE}{LARGE_AND_SMALL}")).await;
    pair
}

fn config(name: &str, pair: &Pair) -> TestConfig {
    let snapshot = "mode = \"full\"\nworkers = 2\nindex_workers = 4\nindex_parallel_workers = 0".to_owned();
    TestConfig { snapshot, ..TestConfig::new(name, pair) }
}

async fn close(target: &Db, gate: u32) {
    target.exec(&format!("SELECT pg_advisory_lock({gate})")).await;
}

async fn open(target: &Db, gate: u32) {
    target.exec(&format!("SELECT pg_advisory_unlock({gate})")).await;
}

async fn wait_until(db: &Db, sql: &str, expected: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = db.query_text(sql).await;
        if found == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{sql}\nsays {found:?} and not {expected:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn table<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["tables"].as_array().unwrap().iter().find(|table| table["table"] == name).unwrap()
}

fn steps(status: &Value) -> &Vec<Value> {
    status["steps"].as_array().unwrap()
}

/// Both sides' keys and indexes, down to what no definition tells.
async fn assert_same_indexes(source: &Db, target: &Db) {
    for sql in [
        "SELECT conrelid::regclass, conname, contype, pg_get_constraintdef(oid), condeferrable, condeferred,
                conindid::regclass, obj_description(oid, 'pg_constraint')
         FROM pg_constraint WHERE contype IN ('p', 'u', 'x') AND connamespace = 'public'::regnamespace
         ORDER BY conrelid::regclass::text, conname",
        "SELECT i.indexrelid::regclass, pg_get_indexdef(i.indexrelid), i.indisunique, i.indisprimary, i.indimmediate,
                i.indisvalid, i.indisready, i.indisclustered, i.indisreplident, i.indisexclusion, c.reloptions,
                t.spcname, obj_description(c.oid, 'pg_class'), inhparent::regclass,
                (SELECT string_agg(a.attname || ' ' || coalesce(a.attstattarget, -1), ',' ORDER BY a.attnum)
                 FROM pg_attribute a WHERE a.attrelid = c.oid)
         FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid LEFT JOIN pg_tablespace t ON t.oid = c.reltablespace
         LEFT JOIN pg_inherits ON inhrelid = c.oid WHERE c.relnamespace = 'public'::regnamespace ORDER BY c.relname",
        "SELECT relname, relreplident FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace
         ORDER BY 1",
        "SELECT pg_get_statisticsobjdef(oid) FROM pg_statistic_ext ORDER BY 1",
    ] {
        let (there, here) = (source.query_text(sql).await, target.query_text(sql).await);
        assert!(!there.is_empty(), "{sql}");
        assert_eq!(there, here, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_tables_indexes_are_there_while_a_large_one_is_still_copied() {
    let pair = large_and_small().await;
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    close(&green, 1).await;
    let mut daemon = Daemon::start(&config("beside", &pair));
    let status = daemon.wait_for("small indexed", |status| {
        let tables = status["tables"].as_array().unwrap();
        tables.iter().any(|table| table["table"] == "public.small" && table["state"] == "indexed")
    });
    assert_eq!(status["phase"], "copying", "{status}");
    assert_eq!(table(&status, "public.large")["state"], "copying", "{status}");
    assert_eq!(green.scalar("SELECT count(*) FROM changeover.unit WHERE table_name = 'large'").await, "0");
    let ready = "SELECT count(*) FROM pg_index WHERE indrelid = 'small'::regclass AND indisvalid";
    assert_eq!(green.scalar(ready).await, "5");
    let analyzed =
        "SELECT reltuples, (SELECT count(*) FROM pg_statistic_ext JOIN pg_statistic_ext_data ON stxoid = oid)
                    FROM pg_class WHERE oid = 'small'::regclass";
    assert_eq!(green.query_text(analyzed).await, ["500|1"], "ANALYZE has filled the statistics object");
    assert_eq!(green.scalar("SELECT count(*) FROM pg_index WHERE indrelid = 'large'::regclass").await, "0");
    open(&green, 1).await;
    daemon.wait_for_phase("streaming");
    assert_same_indexes(&blue, &green).await;
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    // Nothing was made twice: what is done beside the copy is not done again after it.
    let analyzes = "SELECT count(*) FROM changeover.step WHERE step LIKE 'ANALYZE%'";
    assert_eq!(green.scalar(analyzes).await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_indexes_of_one_table_are_built_at_once_and_shown() {
    let pair = large_and_small().await;
    let green = pair.target.connect().await;
    close(&green, 2).await;
    let mut daemon = Daemon::start(&config("at_once", &pair));
    let building = "SELECT relid::regclass, count(*) FROM pg_stat_progress_create_index GROUP BY 1 ORDER BY 1";
    wait_until(&green, building, &["small|3"]).await;
    let status = daemon.wait_for("three builds with their phase", |status| {
        steps(status).iter().filter(|step| step["phase"].is_string()).count() == 3
    });
    let step = &steps(&status)[0];
    assert_eq!((&step["step"], &step["table"]), (&"INDEX public.small_one".into(), &"public.small".into()));
    assert_eq!((&step["phase"], &step["unit"]), (&"building index: scanning table".into(), &"blocks".into()));
    assert!(step["total"].as_u64().unwrap() > 0 && step["waits_for"].is_null(), "{step}");
    assert_eq!(table(&status, "public.small")["state"], "indexing");
    let drawn = String::from_utf8(daemon.command(&["status"]).stdout).unwrap();
    assert!(drawn.contains(" steps done · 3 running"), "{drawn}");
    assert!(drawn.contains("  INDEX public.small_one "), "{drawn}");
    open(&green, 2).await;
    daemon.wait_for_phase("streaming");
}

/// The builds of the killed daemon go on inside the server, and so does its copy: neither may be built or copied twice,
/// and neither may make the next daemon fail.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_during_the_builds_of_one_table_and_the_copy_of_another_loses_nothing() {
    let pair = large_and_small().await;
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    close(&green, 1).await;
    close(&green, 2).await;
    let mut daemon = Daemon::start(&config("killed", &pair));
    let building = "SELECT count(*) FROM pg_stat_progress_create_index";
    wait_until(&green, building, &["3"]).await;
    wait_until(&green, "SELECT count(*) FROM changeover.step WHERE step LIKE 'INDEX public.small%'", &["2"]).await;
    let left_behind = green.query_text("SELECT pid FROM pg_stat_progress_create_index ORDER BY 1").await;
    daemon.kill();
    assert_eq!(daemon.log().matches("phase from=\"copying\"").count(), 0);
    daemon.start_again();
    let status = daemon.wait_for("the builds left behind are waited for", |status| {
        steps(status).iter().filter(|step| step["waits_for"].is_string()).count() == 3
    });
    let holder = steps(&status)[0]["waits_for"].as_str().unwrap().to_owned();
    assert!(left_behind.iter().any(|pid| holder.contains(pid)) && holder.contains("changeover schema"), "{holder}");
    assert_eq!(
        green.query_text("SELECT pid FROM pg_stat_progress_create_index WHERE blocks_total > 0 ORDER BY 1").await,
        left_behind
    );
    open(&green, 1).await;
    open(&green, 2).await;
    daemon.wait_for_phase("streaming");
    assert_same_indexes(&blue, &green).await;
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
}

/// Without a backend left behind: whatever was under way is undone by the server, and begun anew.
#[tokio::test(flavor = "multi_thread")]
async fn builds_that_a_crash_of_the_target_interrupts_are_begun_anew() {
    let mut pair = large_and_small().await;
    let blue = pair.source.connect().await;
    let green = pair.target.connect().await;
    close(&green, 1).await;
    close(&green, 2).await;
    let mut daemon = Daemon::start(&config("crashed", &pair));
    wait_until(&green, "SELECT count(*) FROM pg_stat_progress_create_index", &["3"]).await;
    drop(green);
    pair.target.cluster().stop(StopMode::Immediate);
    pair.target.cluster().start_again().unwrap();
    daemon.wait_for_phase("streaming");
    let green = pair.target.connect().await;
    assert_same_indexes(&blue, &green).await;
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
}

/// Everything a key can be, by version: `since` is the first that has it.
const KEYS: &[(u32, &str)] = &[
    (
        13,
        "CREATE TABLE public.\"Odd \"\"name\" (\"ID\" integer, \"a,)b\" text COLLATE \"C\", n integer,
             CONSTRAINT \"p k\" PRIMARY KEY (\"ID\", \"a,)b\") INCLUDE (n) WITH (fillfactor = 70));
         COMMENT ON CONSTRAINT \"p k\" ON public.\"Odd \"\"name\" IS 'a key; of sorts';
         COMMENT ON INDEX public.\"p k\" IS 'its index';
         CREATE TABLE public.late (
             a integer CONSTRAINT late_a UNIQUE DEFERRABLE,
             b integer CONSTRAINT late_b UNIQUE DEFERRABLE INITIALLY DEFERRED,
             c integer NOT NULL CONSTRAINT late_c UNIQUE, d integer, during tsrange,
             CONSTRAINT late_two UNIQUE (c, d) INCLUDE (a) WITH (deduplicate_items = off) DEFERRABLE INITIALLY DEFERRED,
             CONSTRAINT late_during EXCLUDE USING gist (during WITH &&) WHERE (a > 0) DEFERRABLE INITIALLY DEFERRED);
         ALTER TABLE public.late REPLICA IDENTITY USING INDEX late_c;
         ALTER TABLE public.late CLUSTER ON late_c;
         INSERT INTO public.late SELECT n, n, n, n, NULL FROM generate_series(1, 50) n;
         CREATE INDEX late_expression ON public.late ((a + b), (d * 2)) WITH (fillfactor = 50);
         ALTER INDEX public.late_expression ALTER COLUMN 2 SET STATISTICS 321;
         CREATE UNIQUE INDEX late_plain ON public.late (d DESC NULLS LAST) WHERE d IS NOT NULL;
         CREATE STATISTICS public.late_stats (ndistinct) ON a, b FROM public.late;
         ALTER STATISTICS public.late_stats SET STATISTICS 77;
         CREATE TABLE public.parted (k integer, at date, v integer, PRIMARY KEY (k, at), UNIQUE (at, v, k))
             PARTITION BY RANGE (at);
         CREATE TABLE public.parted_a PARTITION OF public.parted FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')
             PARTITION BY LIST (k);
         CREATE TABLE public.parted_a1 PARTITION OF public.parted_a DEFAULT;
         CREATE TABLE public.parted_b PARTITION OF public.parted DEFAULT;
         ALTER TABLE public.parted_b ADD CONSTRAINT own UNIQUE (v) DEFERRABLE;
         CREATE INDEX parted_v ON public.parted (v);
         INSERT INTO public.parted SELECT n, DATE '2023-12-30' + n, n FROM generate_series(1, 400) n;",
    ),
    (14, "CREATE STATISTICS public.late_expr ON (a + 1), EXTRACT(year FROM lower(during)) FROM public.late"),
    (
        15,
        "CREATE TABLE public.nulls (a integer, b integer, c text,
             CONSTRAINT nulls_one UNIQUE NULLS NOT DISTINCT (a),
             CONSTRAINT nulls_two UNIQUE NULLS NOT DISTINCT (b, a) INCLUDE (c) WITH (fillfactor = 60) DEFERRABLE);
         INSERT INTO public.nulls VALUES (NULL, 1, 'x'), (1, NULL, 'y');
         CREATE UNIQUE INDEX nulls_three ON public.nulls (c) NULLS NOT DISTINCT",
    ),
    (
        18,
        "CREATE TABLE public.stay (room int4range, during tsrange,
             CONSTRAINT stay_key PRIMARY KEY (room, during WITHOUT OVERLAPS),
             CONSTRAINT stay_other UNIQUE (during, room WITHOUT OVERLAPS))",
    ),
];

async fn keys_arrive(source: u32, target: u32) {
    let sql: Vec<&str> = KEYS.iter().filter(|(since, _)| *since <= source).map(|(_, sql)| *sql).collect();
    let (pair, options) = prepared_on(Pair::of(source, target), &sql.join(";")).await;
    copy_schema(&options, &everything()).await;
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    assert_same_indexes(&blue, &green).await;
    // They hold what they promise, and when they promise it.
    green
        .exec("BEGIN; INSERT INTO late (a, b, c) VALUES (1, 1, 1), (2, 2, 2); UPDATE late SET b = 3 - b; COMMIT")
        .await;
    let refused = green.batch_execute("INSERT INTO late (a, b, c) VALUES (3, 1, 3)").await.unwrap_err();
    assert_eq!(refused.code().map(|code| code.code()), Some("23505"));
}

#[tokio::test]
async fn every_kind_of_key_arrives_from_13_as_it_was() {
    keys_arrive(13, 15).await;
}

#[tokio::test]
async fn every_kind_of_key_arrives_from_15_as_it_was() {
    keys_arrive(15, 18).await;
}

#[tokio::test]
async fn every_kind_of_key_arrives_from_17_as_it_was() {
    keys_arrive(17, 17).await;
}

#[tokio::test]
async fn every_kind_of_key_arrives_from_18_as_it_was() {
    keys_arrive(18, 18).await;
}

/// What the copy tells may be older than a crash of the target that took rows back.
#[tokio::test]
async fn a_table_whose_rows_are_told_and_not_recorded_is_waited_for() {
    let sql = "CREATE TABLE recorded (id int PRIMARY KEY); CREATE TABLE told (id int PRIMARY KEY)";
    let (pair, options) = prepared(sql).await;
    let source = wire::connect(&options.source, "test").await.unwrap();
    let catalog = schema::read_catalog(&source, &everything()).await.unwrap();
    schema::copy_pre_data(&options, &catalog).await.unwrap();
    let green = pair.target.connect().await;
    let record = |table: &str| {
        format!(
            "INSERT INTO changeover.unit (migration, table_schema, table_name, part, snapshot, until, row_count,
                 byte_count, complete) VALUES ('test', 'public', '{table}', 0, '1:1:', '0/1', 0, 0, true)"
        )
    };
    green.exec(&record("recorded")).await;
    let (recorded, told) = (TableName::new("public", "recorded"), TableName::new("public", "told"));
    let tell = watch::Sender::new(BTreeSet::from([recorded.clone(), told.clone()]));
    let steps = Steps::default();
    let building =
        schema::copy_indexes(&options, &catalog, &steps, Rows::Arriving(tell.subscribe()), CancellationToken::new());
    let looking = async {
        while !steps.read().indexed.contains(&recorded) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let keys = "SELECT conname FROM pg_constraint WHERE contype = 'p' AND connamespace = 'public'::regnamespace";
        assert_eq!(green.query_text(keys).await, ["recorded_pkey"]);
        green.exec(&record("told")).await;
        tell.send_modify(|_| {});
    };
    let building = async { building.await.unwrap() };
    tokio::join!(building, looking);
    assert_eq!(steps.read().indexed, BTreeSet::from([recorded, told]));
}

/// An index is ours by its record and by nothing else.
#[tokio::test]
async fn an_index_of_that_name_that_nobody_recorded_is_not_taken_for_a_finished_one() {
    let (pair, options) = prepared("CREATE TABLE t (id int PRIMARY KEY, b int); CREATE INDEX t_b ON t (b)").await;
    let source = wire::connect(&options.source, "test").await.unwrap();
    let catalog = schema::read_catalog(&source, &everything()).await.unwrap();
    schema::copy_pre_data(&options, &catalog).await.unwrap();
    let green = pair.target.connect().await;
    // As an interrupted CREATE INDEX CONCURRENTLY of somebody else leaves it.
    green.exec("CREATE UNIQUE INDEX t_pkey ON t (b); UPDATE pg_index SET indisvalid = false WHERE indexrelid = 't_pkey'::regclass").await;
    let steps = Steps::default();
    let build = || schema::copy_indexes(&options, &catalog, &steps, Rows::Complete, CancellationToken::new());
    let refused = build().await.unwrap_err();
    assert_eq!(refused.to_string(), "make INDEX public.t_pkey");
    green.exec("DROP INDEX t_pkey").await;
    build().await.unwrap();
    let keys = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 't'::regclass AND contype = 'p'";
    assert_eq!(green.query_text(keys).await, ["PRIMARY KEY (id)"]);
}

#[tokio::test]
async fn rows_that_break_a_key_are_refused_without_their_values() {
    let (pair, options) = prepared("CREATE TABLE t (id int PRIMARY KEY)").await;
    let source = wire::connect(&options.source, "test").await.unwrap();
    let catalog = schema::read_catalog(&source, &everything()).await.unwrap();
    schema::copy_pre_data(&options, &catalog).await.unwrap();
    pair.target.connect().await.exec("INSERT INTO t VALUES (4711), (4711)").await;
    let steps = Steps::default();
    let outcome = schema::copy_indexes(&options, &catalog, &steps, Rows::Complete, CancellationToken::new()).await;
    let error = outcome.unwrap_err();
    let told = changeover::telemetry::chain(&error);
    assert_eq!(told, "make INDEX public.t_pkey: the rows do not allow it: could not create unique index \"t_pkey\"");
    assert!(matches!(error.disposition(), changeover::model::Disposition::Halt { .. }));
}
