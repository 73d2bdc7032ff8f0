//! A schema's way to the target: what arrives is what was there.

use std::process::Command;
use std::sync::Arc;

use changeover::model::{MigrationName, TableFilter, TableName, TablePattern};
use changeover::schema::{
    self, CopyOptions, DifferenceKind, NotStreamedKind, Rows, SequenceOwner, Steps, TableKind, TriggerState,
};
use changeover::wire::{self, Endpoint};
use tokio_util::sync::CancellationToken;

use crate::support::{Db, Pair, cluster, source_and_target};

pub(crate) const NASTY: &str = include_str!("../fixtures/nasty.sql");

/// The Chinook database, without the lines at the top that make the database and connect psql to it.
pub(crate) fn chinook() -> &'static str {
    let text = include_str!("../fixtures/chinook.sql");
    let (_, statements) = text.split_once("\\c chinook;").unwrap();
    statements
}

pub(crate) fn everything() -> TableFilter {
    only(&["*.*"])
}

pub(crate) fn only(patterns: &[&str]) -> TableFilter {
    let include = patterns.iter().map(|pattern| TablePattern::parse(pattern).unwrap()).collect();
    TableFilter { include, exclude: Vec::new() }
}

pub(crate) fn migration() -> MigrationName {
    "test".parse().unwrap()
}

pub(crate) async fn options(pair: &Pair) -> CopyOptions {
    let source = Endpoint::parse(pair.source.url()).unwrap();
    let session = wire::connect(&source, "test").await.unwrap();
    CopyOptions {
        pg_dump: schema::find_pg_dump(session.server_version_num() / 10_000, None).await.unwrap(),
        post_data: Arc::default(),
        source,
        target: Endpoint::parse(pair.target.url()).unwrap(),
        migration: migration(),
        workers: 3,
        maintenance_work_mem: Some("32MB".to_owned()),
        parallel_maintenance_workers: Some(1),
    }
}

/// A pair whose target has the state's schema and whose source was given `sql`.
pub(crate) async fn prepared(sql: &str) -> (Pair, CopyOptions) {
    prepared_on(source_and_target().await, sql).await
}

pub(crate) async fn prepared_on(pair: Pair, sql: &str) -> (Pair, CopyOptions) {
    pair.source.connect().await.exec(sql).await;
    let options = options(&pair).await;
    let target = wire::connect(&options.target, "test").await.unwrap();
    schema::install_state(&target).await.unwrap();
    (pair, options)
}

pub(crate) async fn copy_schema(options: &CopyOptions, filter: &TableFilter) {
    let source = wire::connect(&options.source, "test").await.unwrap();
    let catalog = schema::read_catalog(&source, filter).await.unwrap();
    let steps = Steps::default();
    schema::copy_pre_data(options, &catalog).await.unwrap();
    for _ in 0..2 {
        schema::copy_indexes(options, &catalog, &steps, Rows::Complete, CancellationToken::new()).await.unwrap();
        schema::copy_post_data(options, &catalog, &steps, CancellationToken::new()).await.unwrap();
        let read = steps.read();
        assert_eq!((read.done, read.running.len()), (read.total, 0));
    }
}

/// What pg_dump says of a database's schema, without what differs from run to run.
fn dump(options: &CopyOptions, endpoint: &Endpoint) -> String {
    let output = Command::new(&options.pg_dump.path)
        .args(["--schema-only", "--exclude-schema=changeover", "--no-sync"])
        .envs(endpoint.libpq_env())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let kept = text.lines().filter(|line| !line.starts_with('\\') && !line.starts_with("-- Dumped "));
    kept.collect::<Vec<_>>().join("\n")
}

fn assert_same(source: &str, target: &str) {
    let difference = source.lines().zip(target.lines()).position(|(left, right)| left != right);
    if let Some(line) = difference {
        let around = |text: &str| text.lines().skip(line.saturating_sub(8)).take(16).collect::<Vec<_>>().join("\n");
        panic!("the schemas differ at line {line}\n--- source\n{}\n--- target\n{}", around(source), around(target));
    }
    assert_eq!(source.lines().count(), target.lines().count());
}

#[tokio::test]
async fn chinook_arrives_as_it_was() {
    let (_pair, options) = prepared(chinook()).await;
    copy_schema(&options, &everything()).await;
    assert_same(&dump(&options, &options.source), &dump(&options, &options.target));
}

#[tokio::test]
async fn everything_that_is_difficult_arrives_as_it_was() {
    let (pair, options) = prepared(NASTY).await;
    copy_schema(&options, &everything()).await;
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    // Ours is not theirs to have, and is no difference.
    source.exec("DROP PUBLICATION changeover_ours").await;
    assert_same(&dump(&options, &options.source), &dump(&options, &options.target));
    for sql in [
        "SELECT conname, convalidated FROM pg_constraint WHERE contype IN ('f', 'c')
         ORDER BY conname, conrelid::regclass::text",
        "SELECT relname, relispopulated FROM pg_class WHERE relkind = 'm' ORDER BY relname",
        "SELECT indexrelid::regclass::text, indisvalid, indisclustered, indisreplident FROM pg_index i
         JOIN pg_class c ON c.oid = indrelid WHERE relnamespace = 'public'::regnamespace ORDER BY 1",
        "SELECT rolname, rolcanlogin, rolcreatedb, rolinherit, rolconnlimit, rolvaliduntil, rolpassword
         FROM pg_authid WHERE rolname LIKE 'nasty%' ORDER BY 1",
        "SELECT roleid::regrole::text, member::regrole::text, admin_option FROM pg_auth_members
         WHERE member >= 16384 ORDER BY 1, 2",
        "SELECT setrole::regrole::text, setconfig FROM pg_db_role_setting ORDER BY 1",
    ] {
        assert_eq!(source.query_text(sql).await, target.query_text(sql).await, "{sql}");
    }
}

#[tokio::test]
async fn a_catalog_says_what_matters_to_a_migration() {
    let (_pair, options) = prepared(NASTY).await;
    let session = wire::connect(&options.source, "test").await.unwrap();
    let catalog = schema::read_catalog(&session, &everything()).await.unwrap();
    let table = |schema: &str, name: &str| catalog.table(&TableName::new(schema, name)).unwrap();

    let weird = table("Mixed Case", "Weird \"name; -- x");
    assert_eq!(weird.primary_key, Some(vec!["ID".to_owned()]));
    assert_eq!(weird.copied_columns().count(), 6);
    assert!(weird.binary_copy_to(140_000) && !weird.binary_copy_to(130_000));

    let serials = table("public", "serials");
    assert!(!serials.binary_copy_to(180_000), "regclass travels as text");
    assert_eq!(serials.identity_columns.len(), serials.columns.len());

    assert_eq!(table("public", "booking").identity_columns, ["id"]);
    assert!(!table("public", "no_key").has_identity());
    let states: Vec<TriggerState> = table("public", "no_key").triggers.iter().map(|trigger| trigger.enabled).collect();
    assert_eq!(states, [TriggerState::Always, TriggerState::Disabled, TriggerState::Origin, TriggerState::Origin]);

    let measure = table("public", "measure");
    assert_eq!(measure.kind, TableKind::Partitioned);
    let leaf = table("types", "measure_2024_rest").partition.as_ref().unwrap();
    assert_eq!((leaf.parent.name.as_str(), leaf.bounds.as_str()), ("measure_2024", "DEFAULT"));
    assert_eq!(table("public", "bird").inherits, [TableName::new("public", "animal")]);

    let hen = table("public", "hen");
    let keys: Vec<_> = hen.foreign_keys.iter().map(|key| (&*key.name, key.deferrable, key.validated)).collect();
    assert_eq!(keys, [("hen_egg", true, true), ("hen_other", false, false)]);

    let why = |name: &str| catalog.not_streamed.iter().find(|table| table.name.name == name).map(|table| table.why);
    assert_eq!(why("unlogged_one"), Some(NotStreamedKind::Unlogged));
    assert_eq!(why("first_mv"), Some(NotStreamedKind::MaterializedView));

    let sequence = |name: &str| catalog.sequences.iter().find(|sequence| sequence.name.name == name).unwrap();
    assert_eq!((sequence("free_standing").last_value, sequence("never_called").last_value), (Some(-22), None));
    assert!(matches!(&sequence("serials_id_seq").owner, SequenceOwner::Column { column, .. } if column == "id"));
    assert!(catalog.sequences.iter().any(|sequence| matches!(sequence.owner, SequenceOwner::Identity { .. })));
    assert_eq!(catalog.large_object_count, 2);
}

#[tokio::test]
async fn what_a_filter_leaves_out_stays_and_what_needs_it_too() {
    let sql = "CREATE TABLE kept (id serial PRIMARY KEY, left_out integer);
               CREATE TABLE left_out (id serial PRIMARY KEY);
               ALTER TABLE kept ADD FOREIGN KEY (left_out) REFERENCES left_out;
               CREATE VIEW over_both AS SELECT k.id FROM kept k JOIN left_out l ON l.id = k.left_out;
               CREATE VIEW over_view AS SELECT * FROM over_both;
               CREATE VIEW over_kept AS SELECT * FROM kept;
               CREATE TYPE mood AS ENUM ('x')";
    let (pair, options) = prepared(sql).await;
    copy_schema(&options, &only(&["public.kept"])).await;
    let relations = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY relname";
    let target = pair.target.connect().await;
    assert_eq!(target.query_text(relations).await, ["kept", "kept_id_seq", "kept_pkey", "over_kept"]);
    assert_eq!(target.scalar("SELECT count(*) FROM pg_type WHERE typname = 'mood'").await, "1");
}

#[tokio::test]
async fn an_interrupted_copy_of_the_schema_goes_on_where_it_stopped() {
    let (pair, options) =
        prepared("CREATE TABLE t (id int PRIMARY KEY, a int UNIQUE REFERENCES t, b int); CREATE INDEX t_b ON t (b)")
            .await;
    let source = wire::connect(&options.source, "test").await.unwrap();
    let catalog = schema::read_catalog(&source, &everything()).await.unwrap();
    schema::copy_pre_data(&options, &catalog).await.unwrap();
    schema::copy_pre_data(&options, &catalog).await.unwrap();

    // The second of three steps fails: its name is taken.
    let target = pair.target.connect().await;
    target.exec("CREATE TABLE t_b (x int)").await;
    let steps = Steps::default();
    let outcome = schema::copy_indexes(&options, &catalog, &steps, Rows::Complete, CancellationToken::new()).await;
    assert!(outcome.unwrap_err().to_string().contains("INDEX public.t_b"));
    target.exec("DROP TABLE t_b").await;
    schema::copy_indexes(&options, &catalog, &steps, Rows::Complete, CancellationToken::new()).await.unwrap();
    let indexes =
        "SELECT relname FROM pg_class WHERE relkind = 'i' AND relnamespace = 'public'::regnamespace ORDER BY 1";
    assert_eq!(target.query_text(indexes).await, ["t_a_key", "t_b", "t_pkey"]);

    let stopped = CancellationToken::new();
    stopped.cancel();
    let outcome = schema::copy_post_data(&options, &catalog, &steps, stopped).await;
    assert!(matches!(outcome, Err(schema::Error::Stopped)));
}

/// A server goes on with the statement of a daemon that was killed.
#[tokio::test]
async fn two_attempts_at_once_make_everything_once() {
    let (_pair, options) = prepared(NASTY).await;
    let source = wire::connect(&options.source, "test").await.unwrap();
    let catalog = schema::read_catalog(&source, &everything()).await.unwrap();
    schema::copy_pre_data(&options, &catalog).await.unwrap();
    let (one, two) = (Steps::default(), Steps::default());
    let (first, second) = tokio::join!(
        schema::copy_indexes(&options, &catalog, &one, Rows::Complete, CancellationToken::new()),
        schema::copy_indexes(&options, &catalog, &two, Rows::Complete, CancellationToken::new()),
    );
    first.unwrap();
    second.unwrap();
    assert_eq!((one.read().done, two.read().done), (one.read().total, two.read().total));
}

#[tokio::test]
async fn sequences_go_on_where_they_stood() {
    let (pair, options) = prepared(NASTY).await;
    copy_schema(&options, &everything()).await;
    let source = wire::connect(&options.source, "test").await.unwrap();
    let target = wire::connect(&options.target, "test").await.unwrap();
    let catalog = schema::read_catalog(&source, &everything()).await.unwrap();
    let set = schema::copy_sequences(&source, &target, &catalog.sequences, 10).await.unwrap();
    assert_eq!(set, catalog.sequences.len());
    let there = pair.target.connect().await;
    assert_eq!(there.scalar("SELECT nextval('public.free_standing')").await, (-22 - 30 - 3).to_string());
    assert_eq!(there.scalar("SELECT nextval('public.never_called')").await, "42");
    assert_eq!(there.scalar("SELECT nextval('public.serials_id_seq')").await, "13");

    there.exec("DROP SEQUENCE public.never_called").await;
    let missing = schema::copy_sequences(&source, &target, &catalog.sequences, 0).await.unwrap_err();
    assert_eq!(missing.to_string(), "set the sequence public.never_called, which is not on that side");
}

#[tokio::test]
async fn large_objects_are_copied_with_their_owner() {
    let (pair, options) = prepared(NASTY).await;
    copy_schema(&options, &everything()).await;
    for _ in 0..2 {
        assert_eq!(schema::copy_large_objects(&options, CancellationToken::new()).await.unwrap(), 2);
    }
    let there = pair.target.connect().await;
    let sql = "SELECT oid, lomowner::regrole::text, lo_get(oid) FROM pg_largeobject_metadata ORDER BY oid";
    assert_eq!(there.query_text(sql).await, ["4242|nasty_owner|\\x010203", "4243|postgres|\\x"]);
}

#[tokio::test]
async fn a_target_that_does_not_fit_is_described_column_by_column() {
    let pair = source_and_target().await;
    let source = "CREATE TABLE a (id int PRIMARY KEY, t text, n int); CREATE TABLE b (x int)";
    let target =
        "CREATE TABLE a (id bigint PRIMARY KEY, n int NOT NULL, extra int NOT NULL, filled int NOT NULL DEFAULT 1)";
    pair.source.connect().await.exec(source).await;
    pair.target.connect().await.exec(target).await;
    let read = async |url: &str| {
        let session = wire::connect(&Endpoint::parse(url).unwrap(), "test").await.unwrap();
        let catalog = schema::read_catalog(&session, &everything()).await.unwrap();
        let design = schema::read_design(&session, &catalog).await.unwrap();
        (catalog, design)
    };
    let ((source, here), (target, there)) = (read(pair.source.url()).await, read(pair.target.url()).await);
    let described = |catalog, design| schema::Described { catalog, design };
    let found = schema::compare(described(&source, &here), described(&target, &there), true);
    let printed: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        printed,
        [
            "column id of table public.a: it is integer on the source and bigint on the target",
            "column t of table public.a: it is not on the target",
            "column n of table public.a: the target refuses NULL and the source allows it",
            "column extra of table public.a: only the target has it, NOT NULL and without a default",
            "column filled of table public.a: only the target has it; no row brings a value for it",
            "table public.b: it is not on the target",
        ]
    );
    assert_eq!(found[5].kind, DifferenceKind::MissingTable);
    assert_eq!(found.iter().map(schema::Difference::breaks).collect::<Vec<_>>(), [true, true, true, true, false, true]);
}

#[tokio::test]
async fn one_daemon_leads_and_the_next_is_told_who_does() {
    let server = cluster(|options| options);
    let endpoint = Endpoint::parse(&server.url("postgres")).unwrap();
    let first = wire::connect(&endpoint, "first").await.unwrap();
    let second = wire::connect(&endpoint, "second").await.unwrap();
    schema::lead(&first, &migration()).await.unwrap();
    let refused = schema::lead(&second, &migration()).await.unwrap_err().to_string();
    let pid = first.backend_pid().to_string();
    assert!(refused.contains(&pid) && refused.contains("changeover first"), "{refused}");
    schema::lead(&second, &"other".parse().unwrap()).await.unwrap();
}

#[tokio::test]
async fn state_comes_and_goes_with_its_migrations() {
    let server = cluster(|options| options);
    let endpoint = Endpoint::parse(&server.url("postgres")).unwrap();
    let session = wire::connect(&endpoint, "test").await.unwrap();
    schema::install_state(&session).await.unwrap();
    schema::install_state(&session).await.unwrap();
    let new = |name: &str| schema::Migration {
        name: name.parse().unwrap(),
        phase: "preparing".to_owned(),
        source: changeover::model::SourceIdentity { system_identifier: "7".to_owned(), timeline: 1 },
        slot: "s".to_owned(),
        slot_is_ours: true,
        publication: "p".to_owned(),
        publication_is_ours: false,
        consistent_point: None,
        epoch: 0,
    };
    let (one, two) = (new("one"), new("two"));
    for migration in [&one, &two] {
        schema::insert_migration(&session, migration).await.unwrap();
    }
    let epoch = schema::bump_epoch(&session, &one.name).await.unwrap();
    let point = "16/B374D848".parse().unwrap();
    schema::set_phase(&session, &one.name, epoch, "copying").await.unwrap();
    schema::set_consistent_point(&session, &one.name, epoch, point).await.unwrap();
    let superseded = schema::set_phase(&session, &one.name, epoch - 1, "streaming").await;
    assert!(matches!(superseded, Err(schema::Error::Superseded { .. })));
    let expected =
        schema::Migration { phase: "copying".to_owned(), consistent_point: Some(point), epoch, ..one.clone() };
    assert_eq!(schema::read_migration(&session, &one.name).await.unwrap(), Some(expected));

    let db = Db::connect(&server.url("postgres")).await;
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'changeover'";
    schema::drop_state(&session, &one.name).await.unwrap();
    assert_eq!(db.scalar(schemas).await, "1");
    schema::drop_state(&session, &two.name).await.unwrap();
    schema::drop_state(&session, &two.name).await.unwrap();
    assert_eq!(db.scalar(schemas).await, "0");
}
