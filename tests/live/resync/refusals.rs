//! What is not possible is refused before anything is changed, with what to do.

use std::fs;

use super::world::{TABLES, assert_equal, refused, settle, sides};
use crate::support::{Daemon, TestConfig, source_and_target};

#[tokio::test(flavor = "multi_thread")]
async fn wrong_input_is_answered_with_a_sentence_that_helps() {
    let pair = source_and_target().await;
    let (source, target) = sides(&pair).await;
    source.exec("CREATE SCHEMA apart; CREATE TABLE apart.stranger (id int PRIMARY KEY); CREATE UNLOGGED TABLE apart.fast ()").await;
    let config = TestConfig::new("refuses", &pair);
    let mut daemon = Daemon::prepare(&config);
    let unreachable = daemon.command(&["resync", "public.bag"]);
    assert_eq!(unreachable.status.code(), Some(3), "no daemon runs");
    daemon.start_again();
    daemon.wait_for_phase("streaming");
    let wrong = daemon.command(&["resync"]);
    assert_eq!(wrong.status.code(), Some(2), "no table named");
    for (table, reason, hint) in [
        ("public.bagg", "the source has no table public.bagg", "changeover status"),
        ("apart.stranger", "apart.stranger is on the source, and not of this migration", "[tables] include"),
        ("apart.fast", "apart.fast is no table that can be streamed", "changeover status"),
        ("bag", "\"bag\" is no table pattern", "schema.table"),
    ] {
        let said = refused(&daemon, &["resync", table]);
        assert!(said.contains(reason) && said.contains(hint), "{table}: {said}");
    }
    daemon.json(&["pause"]);
    assert!(refused(&daemon, &["resync", "public.bag"]).contains("resync while paused"));
    daemon.json(&["resume"]);
    target.exec("DROP TABLE scratch_log").await;
    assert!(refused(&daemon, &["resync", "public.scratch_log"]).contains("has no table of its own on the target"));
    assert_eq!(target.scalar("SELECT count(*) FROM changeover.member WHERE step IS NOT NULL").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_copied_again_once_green_owns_the_writes() {
    let pair = source_and_target().await;
    let (_source, target) = sides(&pair).await;
    let mut daemon = Daemon::start(&TestConfig::new("cut_over", &pair));
    daemon.wait_for_phase("streaming");
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    assert_eq!(daemon.json(&["cutover", "--yes"])["outcome"], "cut_over");
    let said = refused(&daemon, &["resync", "public.bag"]);
    assert!(said.contains("resync after the cutover: green owns the writes"), "{said}");
    assert_eq!(target.scalar("SELECT count(*) FROM bag").await, "500");
}

/// With a role that may no longer act as a replica, emptying would be checked by foreign keys and cascade through them.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_empty_a_table_safely_is_told_so() {
    let pair = source_and_target().await;
    let (source, target) = sides(&pair).await;
    target
        .exec(
            "CREATE ROLE plain LOGIN PASSWORD 'x'; GRANT CREATE ON SCHEMA public TO plain; \
               GRANT SET ON PARAMETER session_replication_role TO plain",
        )
        .await;
    let database = target.scalar("SELECT quote_ident(current_database())").await;
    target.exec(&format!("GRANT ALL ON DATABASE {database} TO plain")).await;
    source
        .exec(
            "DROP TRIGGER audited ON purchase; DROP TABLE line; DROP TABLE scratch_log, audit; DROP FUNCTION audited()",
        )
        .await;
    let mut config = TestConfig::new("plain", &pair);
    config.target = config.target.replacen("://postgres", "://plain", 1);
    config.snapshot = "mode = \"data\"\nworkers = 2".to_owned();
    target
        .exec(
            "CREATE TABLE customer (id bigint PRIMARY KEY, name text NOT NULL, version bigint NOT NULL DEFAULT 1);
             CREATE TABLE purchase (
                 id bigint PRIMARY KEY, customer bigint NOT NULL, code text UNIQUE, big text,
                 twice bigint GENERATED ALWAYS AS (customer * 2) STORED, at timestamptz DEFAULT now());
             ALTER TABLE customer OWNER TO plain; ALTER TABLE purchase OWNER TO plain",
        )
        .await;
    config.include = vec!["public.customer".to_owned(), "public.purchase".to_owned()];
    let mut daemon = Daemon::start(&config);
    daemon.wait_for_phase("streaming");
    target.exec("REVOKE SET ON PARAMETER session_replication_role FROM plain").await;
    target
        .exec("ALTER TABLE purchase ADD FOREIGN KEY (customer) REFERENCES customer ON DELETE CASCADE DEFERRABLE")
        .await;
    let said = refused(&daemon, &["resync", "public.customer"]);
    assert!(said.contains("whose foreign keys and triggers on the target would act"), "{said}");
    assert!(said.contains("session_replication_role"), "{said}");
    assert_eq!(target.scalar("SELECT count(*) FROM purchase").await, "3000");
}

/// An adopted publication is the user's: what it lacks is said, with the statement, and the rest streams meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_an_adopted_publication_lacks_waits_for_its_statement() {
    let pair = source_and_target().await;
    let (source, target) = sides(&pair).await;
    source.exec("CREATE PUBLICATION theirs FOR TABLE customer, purchase, line, bag, piece_1, piece_2, scratch, scratch_log, other, audit").await;
    let mut daemon = Daemon::prepare(&TestConfig::new("adopts", &pair));
    let text = fs::read_to_string(daemon.config_path()).unwrap();
    fs::write(daemon.config_path(), text.replace("[source]\n", "[source]\npublication = \"theirs\"\n")).unwrap();
    daemon.start_again();
    daemon.wait_for_phase("streaming");
    daemon.expect_error("halted");
    source.exec("CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1)").await;
    daemon.terminate();
    daemon.start_again();
    let status = daemon.wait_for("a refusal", |status| status["halted"][0]["part"] == "resync");
    let hint = status["halted"][0]["hint"].as_str().unwrap().to_owned();
    let statement = "ALTER PUBLICATION \"theirs\" ADD TABLE ONLY \"public\".\"late\"";
    assert!(hint.contains(statement), "{hint}");
    source.exec("INSERT INTO other VALUES (-3, 'meanwhile')").await;
    super::world::arrives(&target, "SELECT count(*) FROM other WHERE id = -3").await;
    source.exec(&format!("INSERT INTO late VALUES (2); {statement}; INSERT INTO late VALUES (3)")).await;
    daemon.json(&["resume"]);
    settle(&source, &mut daemon).await;
    assert_equal(&source, &target, &["late"]).await;
    assert_equal(&source, &target, &TABLES).await;
}

/// A table without identity would fail its UPDATEs on the source once published (PITFALLS 6).
#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_identity_is_not_published() {
    let pair = source_and_target().await;
    let (source, target) = sides(&pair).await;
    let mut daemon = Daemon::start(&TestConfig::new("identity", &pair));
    daemon.wait_for_phase("streaming");
    daemon.expect_error("halted");
    source.exec("CREATE TABLE late (a int); INSERT INTO late VALUES (1)").await;
    daemon.terminate();
    daemon.start_again();
    let status = daemon.wait_for("a refusal", |status| status["halted"][0]["part"] == "resync");
    assert!(status["halted"][0]["hint"].as_str().unwrap().contains("\"late\" REPLICA IDENTITY FULL"), "{status}");
    source.exec("UPDATE late SET a = 2; ALTER TABLE late REPLICA IDENTITY FULL").await;
    daemon.json(&["resume"]);
    settle(&source, &mut daemon).await;
    source.exec("UPDATE late SET a = 3").await;
    settle(&source, &mut daemon).await;
    assert_equal(&source, &target, &["late"]).await;
}
