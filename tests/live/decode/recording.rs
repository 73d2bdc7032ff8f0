//! The fixtures under `tests/fixtures/pgoutput/<major>/`: one message a line, position and bytes in hexadecimal, from
//! `pg_logical_slot_peek_binary_changes`. `CHANGEOVER_RECORD=1 cargo test --test live decode::recording` records them
//! again with the servers that are installed; without it the test only compares which messages come in which order.

use std::path::PathBuf;
use std::{env, fs};

use changeover::demo::PostgresPrograms;

use super::{Slot, cluster_that_streams, proto_version_of};
use crate::support::Db;

const SCHEMA: &str = r#"
    CREATE TYPE mood AS ENUM ('ok', 'sad');
    CREATE SCHEMA "s p";
    CREATE TABLE items (id int PRIMARY KEY, v text, big text, m mood);
    ALTER TABLE items ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE whole (id int, v varchar(9), big text);
    ALTER TABLE whole ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
    CREATE TABLE "s p"."by index" (a int NOT NULL, b text);
    CREATE UNIQUE INDEX by_index_a ON "s p"."by index" (a);
    ALTER TABLE "s p"."by index" REPLICA IDENTITY USING INDEX by_index_a;
    CREATE TABLE parent (id int PRIMARY KEY);
    CREATE TABLE child (id int PRIMARY KEY REFERENCES parent);
    CREATE TABLE unpublished (id int REFERENCES parent);
    CREATE TABLE log (n int);
    ALTER TABLE log REPLICA IDENTITY NOTHING;
    CREATE TABLE filler (n int);
    CREATE PUBLICATION p FOR TABLE items, whole, "s p"."by index", parent, child;
    CREATE PUBLICATION inserts FOR TABLE log WITH (publish = 'insert');
"#;

/// One transaction a line.
const CHANGES: &[&str] = &[
    "INSERT INTO items VALUES (1, 'a', repeat('x', 2100), 'ok'), (2, NULL, '', NULL)",
    "UPDATE items SET v = 'b' WHERE id = 1",
    "UPDATE items SET id = 10 WHERE id = 1",
    "DELETE FROM items WHERE id = 2",
    "INSERT INTO whole VALUES (1, 'a', repeat('y', 2100)), (1, NULL, NULL), (1, NULL, NULL)",
    "UPDATE whole SET v = 'b' WHERE big IS NOT NULL",
    "DELETE FROM whole WHERE ctid = (SELECT min(ctid) FROM whole WHERE v IS NULL)",
    r#"INSERT INTO "s p"."by index" VALUES (1, 'ä')"#,
    r#"UPDATE "s p"."by index" SET b = 'ö'"#,
    r#"UPDATE "s p"."by index" SET a = 2"#,
    r#"DELETE FROM "s p"."by index""#,
    "COPY log FROM PROGRAM 'printf \"1\\n2\\n3\\n\"'",
    "INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1); INSERT INTO unpublished VALUES (1)",
    "TRUNCATE parent RESTART IDENTITY CASCADE",
    "TRUNCATE whole, child",
    "SELECT pg_logical_emit_message(true, 'kept', 'in'), pg_logical_emit_message(false, 'loose', 'early'); \
     INSERT INTO parent VALUES (2)",
    "SELECT pg_logical_emit_message(false, 'loose', 'rolled back'); INSERT INTO parent VALUES (3); ROLLBACK; BEGIN",
    "UPDATE items SET v = 'c'; ALTER TABLE items ADD extra int DEFAULT 7; UPDATE items SET v = 'd'; \
     ALTER TABLE items ALTER extra TYPE bigint; UPDATE items SET v = 'e'",
    "INSERT INTO filler VALUES (1)",
    "UPDATE child SET id = id",
];

/// (session, statement): every statement of a session inside its transaction. `%` fills the source's memory for
/// transactions in progress with rows nobody publishes, so that the largest of them is streamed.
const STREAMED: &[(usize, &str)] = &[
    (0, "BEGIN; INSERT INTO items VALUES (101, 'a1', NULL, 'ok'); %"),
    (
        1,
        "BEGIN; INSERT INTO whole VALUES (1, 'b1'); SAVEPOINT s; INSERT INTO whole VALUES (2, 'b2 dropped'::varchar(9)); %",
    ),
    (0, "SAVEPOINT s; INSERT INTO items VALUES (102, 'a2 dropped'); %"),
    (0, "ROLLBACK TO s; INSERT INTO items VALUES (103, 'a3'); %"),
    (2, "BEGIN; INSERT INTO items VALUES (201, 'c1'); COMMIT"),
    (1, "ROLLBACK TO s; INSERT INTO whole VALUES (3, 'b3'); %"),
    (0, "SAVEPOINT t; INSERT INTO items VALUES (104, 'a5 dropped')"),
    (0, "SAVEPOINT u; DELETE FROM items WHERE id = 101; %"),
    (
        0,
        "ROLLBACK TO t; UPDATE items SET v = 'a7' WHERE id = 103; SELECT pg_logical_emit_message(true, 'kept', 'a6'); TRUNCATE child; %",
    ),
    (1, "RELEASE SAVEPOINT s; DELETE FROM whole WHERE id = 1; %"),
    (1, "COMMIT"),
    (0, "ALTER TABLE items ADD grown int; INSERT INTO items VALUES (105, 'a8', NULL, NULL, 1); %"),
    (0, "COMMIT"),
    (2, "BEGIN; INSERT INTO items VALUES (202, 'c2', NULL, 'sad', 2); COMMIT"),
    (1, "BEGIN; INSERT INTO items VALUES (301, 'dropped'); %"),
    (1, "ROLLBACK"),
    (2, "SELECT pg_replication_origin_create('elsewhere'); SELECT pg_replication_origin_session_setup('elsewhere')"),
    (
        2,
        "BEGIN; SELECT pg_replication_origin_xact_setup('0/ABCDEF', '2024-05-06 07:08:09Z'); \
         INSERT INTO items VALUES (203, 'c3'); %",
    ),
    (2, "COMMIT"),
    (
        2,
        "BEGIN; SELECT pg_replication_origin_xact_setup('0/ABCDF0', '2024-05-06 07:08:09Z'); \
         INSERT INTO items VALUES (204, 'c4'); COMMIT",
    ),
];

/// What `pgbench` does (its built-in `tpcb-like`), for `benches/decode.rs`.
const PGBENCH_SCHEMA: &str = "
    CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84));
    CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int, filler char(88));
    CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84));
    CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
    INSERT INTO pgbench_accounts SELECT i, 1, 0, '' FROM generate_series(1, 9) i;
    INSERT INTO pgbench_branches VALUES (1, 0);
    INSERT INTO pgbench_tellers VALUES (1, 1, 0);
    CREATE PUBLICATION pgbench FOR TABLE pgbench_accounts, pgbench_branches, pgbench_tellers, pgbench_history";
const PGBENCH: &str = "BEGIN; UPDATE pgbench_accounts SET abalance = abalance + 77 WHERE aid = 5; \
    UPDATE pgbench_tellers SET tbalance = tbalance + 77 WHERE tid = 1; \
    UPDATE pgbench_branches SET bbalance = bbalance + 77 WHERE bid = 1; \
    INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 1, 5, 77, CURRENT_TIMESTAMP); COMMIT";

const FILL: &str = "INSERT INTO filler SELECT generate_series(1, 700)";

#[tokio::test]
async fn every_version_sends_the_messages_that_were_recorded() {
    for programs in PostgresPrograms::find().unwrap() {
        let cluster = cluster_that_streams(programs.major);
        let url = cluster.url("postgres");
        changes(&url, programs.major).await;
        streamed(&url, programs.major).await;
        pgbench(&url, programs.major).await;
    }
}

async fn changes(url: &str, major: u32) {
    let db = Db::connect(url).await;
    db.exec(SCHEMA).await;
    let slot = Slot { name: "plain", proto_version: proto_version_of(major), streaming: false };
    slot.create(&db).await;
    for statements in CHANGES {
        db.exec(&format!("BEGIN; {statements}; COMMIT")).await;
    }
    // Begins first, commits last: its changes stand before those of the other.
    let (early, late) = (Db::connect(url).await, Db::connect(url).await);
    early.exec("BEGIN; INSERT INTO parent VALUES (10)").await;
    late.exec("INSERT INTO parent VALUES (20)").await;
    early.exec("INSERT INTO parent VALUES (11); COMMIT").await;
    check("changes", major, slot.peek(&db, major, "p, inserts").await);
}

async fn streamed(url: &str, major: u32) {
    if major < 14 {
        return;
    }
    let sessions = [Db::connect(url).await, Db::connect(url).await, Db::connect(url).await];
    sessions[0].exec("TRUNCATE items, whole, child; ALTER TABLE items DROP extra").await;
    let slot = Slot { name: "streamed", proto_version: proto_version_of(major), streaming: true };
    slot.create(&sessions[0]).await;
    for (session, statements) in STREAMED {
        sessions[*session].exec(&statements.replace('%', FILL)).await;
    }
    check("streamed", major, slot.peek(&sessions[0], major, "p").await);
}

async fn pgbench(url: &str, major: u32) {
    let db = Db::connect(url).await;
    db.exec(PGBENCH_SCHEMA).await;
    let slot = Slot { name: "pgbench", proto_version: proto_version_of(major), streaming: false };
    slot.create(&db).await;
    for _ in 0..3 {
        db.exec(PGBENCH).await;
    }
    check("pgbench", major, slot.peek(&db, major, "pgbench").await);
}

fn check(scenario: &str, major: u32, lines: Vec<String>) {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/pgoutput/{major}/{scenario}.txt"));
    if env::var_os("CHANGEOVER_RECORD").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, lines.join("\n") + "\n").unwrap();
    }
    let recorded = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let recorded: Vec<_> = recorded.lines().map(str::to_owned).collect();
    assert_eq!(tags(&lines), tags(&recorded), "{scenario} of PostgreSQL {major}");
}

/// The first byte of each message. Where chunks of streams are cut depends on a few bytes, so cuts are left out.
fn tags(lines: &[String]) -> String {
    let tag = |line: &String| {
        let (_, hex) = line.split_once(' ').unwrap();
        char::from(u8::from_str_radix(&hex[..2], 16).unwrap())
    };
    lines.iter().map(tag).collect::<String>().replace("ES", "")
}
