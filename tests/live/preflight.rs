//! What `check`, `inspect` and `init` say of real servers; and that the remedy printed is one that helps.

use changeover::config::{self, Config, Environment};
use changeover::model::TableFilter;
use changeover::preflight::{Finding, Report, Verdict, check, inspect};
use changeover::wire::Endpoint;

use crate::support::{Db, Pair, cluster, source_and_target};

/// A configuration for two URLs; `more` is TOML behind the rest.
fn config(source: &str, target: &str, more: &str) -> Config {
    let spool = std::env::temp_dir().join(format!("changeover-preflight-{}", std::process::id()));
    let text = format!(
        "[migration]\nname = \"shop\"\n[source]\nurl = {source:?}\n{}\n[target]\nurl = {target:?}\n\
         [limits]\nspool = \"64MiB\"\nspool_dir = {spool:?}\n{}",
        more.split_once("---").map_or("", |(source, _)| source),
        more.split_once("---").map_or(more, |(_, rest)| rest),
    );
    config::parse(&text, &Environment::new()).unwrap_or_else(|problems| panic!("{problems:?}\n{text}"))
}

async fn check_pair(pair: &Pair, more: &str) -> Report {
    check(&config(pair.source.url(), pair.target.url(), more)).await
}

#[track_caller]
fn finding<'a>(report: &'a Report, name: &str) -> &'a Finding {
    report.findings.iter().find(|finding| finding.check == name).unwrap_or_else(|| panic!("no {name} in\n{report}"))
}

#[track_caller]
fn assert_fails(report: &Report, name: &str, words: &str) -> String {
    let found = finding(report, name);
    assert_eq!(found.verdict, Verdict::Fail, "{report}");
    assert!(found.message.contains(words), "{found}");
    found.remedy.clone().expect("a failure says what to do")
}

#[track_caller]
fn assert_passes(report: &Report, name: &str) {
    assert_eq!(finding(report, name).verdict, Verdict::Pass, "{report}");
}

#[tokio::test]
async fn a_ready_pair_passes_every_check() {
    let pair = source_and_target().await;
    pair.source
        .connect()
        .await
        .exec("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
        .await;
    let report = check_pair(&pair, "").await;
    assert_eq!(report.failed(), 0, "{report}");
    for name in
        ["source.wal_level", "source.replication", "source.slot", "target.empty", "here.pg_dump", "here.spool_dir"]
    {
        assert_passes(&report, name);
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_one_failure_and_hides_nothing_else() {
    let pair = source_and_target().await;
    let report = check(&config("postgres://nobody@127.0.0.1:1/none", pair.target.url(), "")).await;
    let remedy = assert_fails(&report, "source.reach", "127.0.0.1:1");
    assert!(!remedy.is_empty());
    assert_passes(&report, "target.reach");
    assert_passes(&report, "here.spool_dir");
}

#[tokio::test]
async fn wal_level_must_be_logical() {
    let source = cluster(|options| options.setting("wal_level", "replica"));
    let target = cluster(|options| options);
    Db::connect(&source.url("postgres")).await.exec("CREATE TABLE t (id int PRIMARY KEY)").await;
    let report = check(&config(&source.url("postgres"), &target.url("postgres"), "")).await;
    let remedy = assert_fails(&report, "source.wal_level", "it is replica");
    assert!(remedy.contains("ALTER SYSTEM SET wal_level = 'logical'"), "{remedy}");
}

#[tokio::test]
async fn a_table_without_replica_identity_is_named_and_the_remedy_helps() {
    let pair = source_and_target().await;
    let source = pair.source.connect().await;
    source.exec(r#"CREATE TABLE "odd name" (v text); CREATE TABLE fine (id int PRIMARY KEY)"#).await;
    let report = check_pair(&pair, "").await;
    let remedy = assert_fails(&report, "source.replica_identity", "public.odd name");
    assert_eq!(remedy, r#"ALTER TABLE "public"."odd name" REPLICA IDENTITY FULL;"#);
    source.exec(&remedy).await;
    let report = check_pair(&pair, "").await;
    assert_passes(&report, "source.replica_identity");
    assert_eq!(finding(&report, "source.without_key").verdict, Verdict::Warn);
}

#[tokio::test]
async fn what_an_ordinary_user_may_not_do_is_said_with_the_statement_that_allows_it() {
    let pair = source_and_target().await;
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    source.exec("CREATE TABLE t (id int PRIMARY KEY, above int REFERENCES t); CREATE ROLE mover LOGIN").await;
    target.exec("CREATE ROLE mover LOGIN").await;
    let as_mover = |url: &str| url.replace("postgres://postgres@", "postgres://mover@");
    let config = config(&as_mover(pair.source.url()), &as_mover(pair.target.url()), "");
    let report = check(&config).await;
    let select = assert_fails(&report, "source.select", "public.t");
    let replication = assert_fails(&report, "source.replication", "");
    assert!(replication.starts_with("ALTER ROLE mover REPLICATION"), "{replication}");
    let database = assert_fails(&report, "source.publication", "may not create a publication");
    let create = assert_fails(&report, "target.create", "may not create schemas");
    assert_fails(&report, "target.replica_role", "session_replication_role");

    source.exec(&select).await;
    source.exec(&database).await;
    source.exec("ALTER ROLE mover REPLICATION; ALTER TABLE t DROP CONSTRAINT t_above_fkey").await;
    target.exec(&create).await;
    let report = check(&config).await;
    for name in ["source.select", "source.replication", "target.create"] {
        assert_passes(&report, name);
    }
    // Nothing fires any more.
    assert_eq!(finding(&report, "target.replica_role").verdict, Verdict::Warn, "{report}");
    // Now the next one shows: only the owner may publish a table.
    assert_fails(&report, "source.publication", "public.t");
    source.exec("ALTER TABLE t OWNER TO mover").await;
    assert_passes(&check(&config).await, "source.publication");
}

#[tokio::test]
async fn a_target_that_is_not_empty_is_listed() {
    let pair = source_and_target().await;
    pair.source.connect().await.exec("CREATE TABLE t (id int PRIMARY KEY)").await;
    let target = pair.target.connect().await;
    target.exec("CREATE TABLE leftover (id int); CREATE TYPE mood AS ENUM ('sad'); CREATE VIEW w AS SELECT 1").await;
    let report = check_pair(&pair, "").await;
    assert_fails(&report, "target.empty", "table public.leftover, type public.mood, view public.w");
}

#[tokio::test]
async fn a_prepared_schema_is_compared_column_by_column() {
    let pair = source_and_target().await;
    let source = pair.source.connect().await;
    source.exec("CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY)").await;
    let target = pair.target.connect().await;
    target
        .exec("CREATE TABLE a (id bigint PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY); INSERT INTO c VALUES (1)")
        .await;
    let mode = "[snapshot]\nmode = \"data\"\n";
    let report = check_pair(&pair, mode).await;
    let said: Vec<&Finding> = report.findings.iter().filter(|finding| finding.check == "target.schema").collect();
    assert_eq!(said.len(), 3, "{report}");
    for (words, remedy) in [
        ("public.b", "CREATE TABLE \"public\".\"b\""),
        ("column v of table public.a", "ALTER TABLE \"public\".\"a\" ADD COLUMN \"v\""),
        ("column id of table public.a", "ALTER TABLE \"public\".\"a\" ALTER COLUMN \"id\" TYPE integer;"),
    ] {
        let found = said.iter().find(|finding| finding.message.contains(words)).unwrap_or_else(|| panic!("{report}"));
        assert!(found.verdict == Verdict::Fail && found.remedy.as_ref().unwrap().starts_with(remedy), "{found}");
    }
    let remedy = assert_fails(&report, "target.empty", "public.c");
    target.exec(remedy.split(';').next().unwrap()).await;
    target
        .exec("CREATE TABLE b (id int PRIMARY KEY); ALTER TABLE a ADD COLUMN v text, ALTER COLUMN id TYPE integer")
        .await;
    let report = check_pair(&pair, mode).await;
    assert_eq!(report.failed(), 0, "{report}");
}

/// The findings of one check, as `VERDICT message → remedy`.
async fn said(pair: &Pair, check: &str) -> Vec<String> {
    let report = check_pair(pair, "[snapshot]\nmode = \"data\"\n").await;
    let findings = report.findings.iter().filter(|finding| finding.check == check);
    let line = |finding: &Finding| {
        format!("{:?} {} → {}", finding.verdict, finding.message, finding.remedy.as_deref().unwrap_or_default())
    };
    findings.map(line).collect()
}

#[tokio::test]
async fn a_table_may_be_partitioned_otherwise_where_its_rows_can_be_found() {
    let pair = source_and_target().await;
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    let root = "CREATE TABLE p (id int, k int, PRIMARY KEY (id, k)) PARTITION BY RANGE (k)";
    source
        .exec(&format!(
            "{root}; CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (9);
             CREATE TABLE p_2 PARTITION OF p FOR VALUES FROM (9) TO (19);
             CREATE TABLE h (id int PRIMARY KEY) PARTITION BY HASH (id);
             CREATE TABLE h_1 PARTITION OF h FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
        ))
        .await;
    let same = "CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (9);
                CREATE TABLE p_2 PARTITION OF p FOR VALUES FROM (9) TO (19)";
    let hash = "CREATE TABLE h (id int PRIMARY KEY)";
    target.exec(&format!("{root}; {same}; {hash}")).await;
    let found = said(&pair, "target.partitions").await;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("Pass partitioned otherwise on the target, and one table each for us: public.h (1)"));
    assert!(
        found[1].starts_with("Warn the target cannot tell the rows of these partitions") && found[1].contains("h_1")
    );
    // The same name and other bounds; and then another parent.
    target
        .exec("ALTER TABLE p DETACH PARTITION p_2; ALTER TABLE p ATTACH PARTITION p_2 FOR VALUES FROM (9) TO (99)")
        .await;
    assert!(said(&pair, "target.partitions").await[0].contains("public.h (1), public.p (2)"));
    target
        .exec("DROP TABLE p; CREATE TABLE p (id int, k int, at date, PRIMARY KEY (id, at)) PARTITION BY HASH (at)")
        .await;
    let found = said(&pair, "target.partitions").await;
    let missing = "Fail public.p has no unique key over (\"id\", \"k\") on the target";
    assert!(found[1].starts_with(missing) && found[1].contains("p_2\" REPLICA IDENTITY FULL;"), "{found:?}");
    source.exec("ALTER TABLE p_1 REPLICA IDENTITY FULL; ALTER TABLE p_2 REPLICA IDENTITY FULL").await;
    assert!(!said(&pair, "target.partitions").await.iter().any(|line| line.starts_with("Fail")));
    // Its rows could not be compared with all of the source's.
    source.exec("ALTER TABLE p_2 SET UNLOGGED").await;
    let found = said(&pair, "target.partitions").await;
    assert!(
        found[0].starts_with("Fail public.p is partitioned otherwise on the target, and only 1 of its 2"),
        "{found:?}"
    );
}

#[tokio::test]
async fn an_adopted_slot_must_be_one_that_we_can_read() {
    let pair = source_and_target().await;
    let source = pair.source.connect().await;
    source.exec("CREATE TABLE t (id int PRIMARY KEY)").await;
    let adopting = |slot: &str| format!("slot = {slot:?}\n---");
    let none = check_pair(&pair, &adopting("mine")).await;
    let remedy = assert_fails(&none, "source.slot", "does not exist");
    source.exec(remedy.split(';').next().unwrap()).await;
    assert_passes(&check_pair(&pair, &adopting("mine")).await, "source.slot");

    source.exec("SELECT pg_create_physical_replication_slot('physical')").await;
    assert_fails(&check_pair(&pair, &adopting("physical")).await, "source.slot", "not pgoutput");
    source.exec("CREATE DATABASE elsewhere").await;
    let (server, _) = pair.source.url().rsplit_once('/').unwrap();
    Db::connect(&format!("{server}/elsewhere"))
        .await
        .exec("SELECT pg_create_logical_replication_slot('other', 'pgoutput')")
        .await;
    assert_fails(&check_pair(&pair, &adopting("other")).await, "source.slot", "elsewhere");
    // Ours, without a migration that knows of it.
    source.exec("SELECT pg_create_logical_replication_slot('changeover_shop', 'pgoutput')").await;
    let remedy = assert_fails(&check_pair(&pair, "").await, "source.slot", "left over");
    assert_eq!(remedy, "changeover abort");
}

#[tokio::test]
async fn an_adopted_publication_must_hold_everything() {
    let pair = source_and_target().await;
    let source = pair.source.connect().await;
    source.exec("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)").await;
    let adopting = "publication = \"mine\"\n---";
    assert_fails(&check_pair(&pair, adopting).await, "source.publication", "does not exist");
    source.exec("CREATE PUBLICATION mine FOR TABLE t WITH (publish = 'insert')").await;
    let remedy = assert_fails(&check_pair(&pair, adopting).await, "source.publication", "update, delete, truncate");
    source.exec(&remedy).await;
    let remedy = assert_fails(&check_pair(&pair, adopting).await, "source.publication", "lacks public.u");
    source.exec(&remedy).await;
    assert_passes(&check_pair(&pair, adopting).await, "source.publication");
    if source.scalar("SELECT current_setting('server_version_num')::int >= 150000").await == "t" {
        source.exec("ALTER PUBLICATION mine SET TABLE t (id), u").await;
        let remedy =
            assert_fails(&check_pair(&pair, adopting).await, "source.publication", "leaves columns out of public.t");
        source.exec(&remedy).await;
        assert_passes(&check_pair(&pair, adopting).await, "source.publication");
    }
}

#[tokio::test]
async fn a_prepared_transaction_is_in_the_way_of_a_slot() {
    let pair = source_and_target().await;
    let source = pair.source.connect().await;
    source.exec("CREATE TABLE t (id int PRIMARY KEY)").await;
    source.exec("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'half done'").await;
    let remedy = assert_fails(&check_pair(&pair, "").await, "source.prepared", "'half done'");
    assert!(remedy.contains("ROLLBACK PREPARED 'half done';"), "{remedy}");
    source.exec("ROLLBACK PREPARED 'half done'").await;
    assert_passes(&check_pair(&pair, "").await, "source.prepared");
}

#[tokio::test]
async fn what_cannot_be_streamed_is_warned_of() {
    let pair = source_and_target().await;
    let source = pair.source.connect().await;
    source
        .exec(
            "CREATE TABLE t (id int PRIMARY KEY); CREATE UNLOGGED TABLE scratch (id int); SELECT lo_from_bytea(0, 'x')",
        )
        .await;
    source.exec("CREATE MATERIALIZED VIEW m AS SELECT * FROM t").await;
    let report = check_pair(&pair, "").await;
    let found = finding(&report, "source.not_streamed");
    assert_eq!(found.verdict, Verdict::Warn, "{report}");
    assert!(found.message.contains("public.scratch (unlogged)") && found.message.contains("public.m (mat"), "{found}");
    assert_eq!(finding(&report, "source.large_objects").verdict, Verdict::Warn);
}

#[tokio::test]
async fn an_inventory_lists_the_largest_first_and_what_needs_care() {
    let pair = source_and_target().await;
    let source = pair.source.connect().await;
    source.exec("CREATE TABLE small (v text)").await;
    source.exec("CREATE TABLE large (id int PRIMARY KEY, v text); INSERT INTO large SELECT n, repeat('x', 100) FROM generate_series(1, 5000) n; ANALYZE large").await;
    let endpoint = Endpoint::parse(pair.source.url()).unwrap();
    let inventory = inspect(&endpoint, &TableFilter::everything()).await.unwrap();
    let names: Vec<&str> = inventory.tables.iter().map(|table| table.table.as_str()).collect();
    assert_eq!(names, ["public.large", "public.small"]);
    assert_eq!(inventory.tables[0].identity, ["id"]);
    assert_eq!(inventory.tables[0].rows_estimated, Some(5000));
    assert!(inventory.tables[1].notes[0].starts_with("no replica identity"), "{inventory}");
    let text = config::draft(pair.source.url(), Some(pair.target.url()), "postgres", &inventory.notes());
    assert!(config::parse(&text, &Environment::new()).is_ok(), "{text}");
}

#[tokio::test]
async fn slots_to_spare_are_counted() {
    let pair = Pair::of(15, 15);
    let source = pair.source.connect().await;
    let take = |left: u32| {
        format!(
            "SELECT pg_create_logical_replication_slot('s' || {left} || '_' || i, 'pgoutput') FROM generate_series(1, \
             current_setting('max_replication_slots')::int - (SELECT count(*)::int FROM pg_replication_slots) - {left}) i"
        )
    };
    source.exec(&take(3)).await;
    assert_passes(&check_pair(&pair, "").await, "source.slots");
    source.exec(&take(2)).await;
    let report = check_pair(&pair, "").await;
    let found = finding(&report, "source.slots");
    assert_eq!(found.verdict, Verdict::Warn, "{report}");
    assert!(found.message.starts_with("2 free: with fewer than 2 to spare a backlog comes as a stream"), "{found}");
    assert_passes(&check_pair(&pair, "bulk = \"0\"---").await, "source.slots");
    source.exec(&take(0)).await;
    let remedy = assert_fails(&check_pair(&pair, "").await, "source.slots", "every replication slot is taken");
    assert!(remedy.contains("pg_drop_replication_slot"), "{remedy}");
}
