//! Whole migrations of a database that holds one of everything: what arrives is what was there, and it works.

use std::collections::BTreeMap;

use changeover::demo::{ClusterOptions, PgCluster, PostgresPrograms};
use tokio_postgres::{Config, NoTls};

use crate::schema_fingerprint::{assert_same, assert_same_rows};
use crate::support::{Daemon, Db, Pair, TestConfig};

const EVERYTHING: &str = include_str!("../fixtures/everything.sql");
/// What newer servers add.
const SINCE: [(u32, &str); 5] = [
    (14, include_str!("../fixtures/everything_14.sql")),
    (15, include_str!("../fixtures/everything_15.sql")),
    (16, include_str!("../fixtures/everything_16.sql")),
    (17, include_str!("../fixtures/everything_17.sql")),
    (18, include_str!("../fixtures/everything_18.sql")),
];

/// Passwords are asked of two roles, so that logging in shows that they arrived.
const HBA: &str = "local all all trust\nhost all app_login,app_other all scram-sha-256\nhost all all all trust\n";

const PASSWORD: &str = "pass 'word\" \\ ü";

/// A pair of these versions, the source with everything that its version knows.
pub(crate) async fn pair_with_everything(source: u32, target: u32) -> Pair {
    let cluster = |major| {
        let programs = PostgresPrograms::of_major(major).unwrap();
        PgCluster::start(ClusterOptions::fast(programs).hba(HBA)).unwrap()
    };
    let pair = Pair { source: cluster(source).into(), target: cluster(target).into() };
    let blue = pair.source.connect().await;
    blue.exec(EVERYTHING).await;
    for (_, sql) in SINCE.iter().filter(|(since, _)| *since <= source) {
        blue.exec(sql).await;
    }
    pair
}

fn config(name: &str, pair: &Pair) -> TestConfig {
    TestConfig { include: vec!["*.*".to_owned()], ..TestConfig::new(name, pair) }
}

/// Copied once, by `changeover copy`.
async fn is_copied(source: u32, target: u32) {
    let pair = pair_with_everything(source, target).await;
    let daemon = Daemon::prepare(&config("everything", &pair));
    let copied = daemon.json(&["copy"]);
    assert_eq!(copied["large_objects"], 3, "{copied}");
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    assert_same(&blue, &green).await;
    assert_same_rows(&blue, &green).await;
    works(&pair).await;
}

/// Followed by the daemon while it is written to, and cut over.
async fn is_moved(source: u32, target: u32) {
    let pair = pair_with_everything(source, target).await;
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    let mut daemon = Daemon::start(&config("everything", &pair));
    daemon.wait_for_phase("streaming");
    blue.exec(WRITES).await;
    // At a position behind these writes, which is applied by then.
    let verified = daemon.json(&["verify"]);
    assert_eq!(verified["verdict"], "equal", "{verified}");
    assert_same_rows(&blue, &green).await;
    let cut = daemon.json(&["cutover", "--yes"]);
    assert_eq!(cut["owner"], "green", "{cut}");
    assert_same(&blue, &green).await;
    works(&pair).await;
}

/// Of each kind of name and table one change that is streamed.
const WRITES: &str = r###"
    INSERT INTO app.customer (name, nr) VALUES ('streamed', 100001);
    UPDATE app.customer SET note = 'changed' WHERE nr = 5;
    DELETE FROM app.customer WHERE nr = 6;
    UPDATE "s!""#$%&'()*+,-./:;<=>?@[\]^_`{|}~"."n!""#$%&'()*+,-./:;<=>?@[\]^_`{|}~" SET "c!""#$%&'()*+,-./:;<=>?@[\]^_`{|}~" = '' WHERE "k!""#$%&'()*+,-./:;<=>?@[\]^_`{|}~" = 3;
    INSERT INTO "s!""#$%&'()*+,-./:;<=>?@[\]^_`{|}~"."n!""#$%&'()*+,-./:;<=>?@[\]^_`{|}~" VALUES (100);
    DELETE FROM "s!""#$%&'()*+,-./:;<=>?@[\]^_`{|}~"."n!""#$%&'()*+,-./:;<=>?@[\]^_`{|}~" WHERE "k!""#$%&'()*+,-./:;<=>?@[\]^_`{|}~" = 4;
    UPDATE "Ünï 表"."Tàble 表 🐘" SET "select" = 'ẞ', "Kéy" = 7 WHERE "Kéy" = 1;
    UPDATE "Ünï 表"." blank, tab	and
line break " SET "in	it" = 'x';
    INSERT INTO app.event (at, place, id) VALUES ('2024-05-05', 1, 9001), ('2030-01-01', 1, 9002), ('2024-05-05', 4, 9003);
    UPDATE app.event SET at = '2030-01-02' WHERE id = 9001;
    UPDATE app.bird SET beak = 'red';
    INSERT INTO app.keyless VALUES (1, 'twice');
    DELETE FROM app.keyless WHERE a IS NULL;
    INSERT INTO app.no_columns DEFAULT VALUES;
    DELETE FROM app.no_columns WHERE ctid = '(0,1)';
    UPDATE app.booking SET cancelled = true WHERE id = 2;
    INSERT INTO app.files (id, content, j) VALUES (2, 4243, '[]');
"###;

#[tokio::test(flavor = "multi_thread")]
async fn everything_moves_from_13_to_18() {
    is_moved(13, 18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_moves_from_15_to_15() {
    is_moved(15, 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_moves_from_18_to_18() {
    is_moved(18, 18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_copied_from_13_to_18() {
    is_copied(13, 18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_copied_from_14_to_17() {
    is_copied(14, 17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_copied_from_16_to_18() {
    is_copied(16, 18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_copied_from_15_to_15() {
    is_copied(15, 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_copied_from_18_to_18() {
    is_copied(18, 18).await;
}

/// What an application would notice, asked of the target.
async fn works(pair: &Pair) {
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    people_come_in_and_see_what_is_theirs(pair).await;
    numbers_go_on(&blue, &green).await;
    constraints_refuse(&green).await;
    triggers_and_rules_act(&green).await;
    code_returns(&green).await;
    if green.major_version().await >= 18 && blue.major_version().await >= 18 {
        what_18_brought_works(&green).await;
    }
}

/// As that role with that password.
async fn log_in(pair: &Pair, role: &str, password: &str) -> Result<Db, tokio_postgres::Error> {
    let mut config: Config = pair.target.url().parse().unwrap();
    config.user(role).password(password);
    let (client, connection) = config.connect(NoTls).await?;
    Ok(Db::from_parts(client, connection))
}

async fn people_come_in_and_see_what_is_theirs(pair: &Pair) {
    assert!(log_in(pair, "app_login", "wrong").await.is_err(), "any password is taken");
    let login = log_in(pair, "app_login", PASSWORD).await.expect("the old password");
    assert_eq!(login.query_text("SELECT id, v FROM app.secret").await, ["1|mine"]);
    assert_refused(&login, "INSERT INTO app.secret VALUES (9, 'app_other', 'x')", "42501").await;
    login.exec("INSERT INTO app.secret VALUES (10, 'app_login', 'x')").await;
    assert_refused(&login, "DELETE FROM app.customer", "42501").await;
    assert_eq!(login.scalar("SELECT app.who()").await, "app_owner");
    assert_eq!(
        login.scalar("SELECT current_setting('work_mem') || current_setting('app.of_database')").await,
        "5MBit's \"quoted\" \\"
    );
    assert_eq!(login.scalar("SELECT current_setting('app.custom')").await, "x=1, \"y\"");
    let other = log_in(pair, "app_other", "other").await.expect("the other's password");
    assert_eq!(other.query_text("SELECT id FROM app.secret").await, ["2"]);
    assert_eq!(other.scalar("SELECT count(*) > 100 FROM app.customer").await, "t");
    assert_refused(&other, "SELECT app.who()", "42501").await;
    assert_refused(&other, "CREATE TEMP TABLE x ()", "42501").await;
    let green = pair.target.connect().await;
    green.exec("SET ROLE app_owner; CREATE TABLE app.made_later (id integer); RESET ROLE").await;
    assert_eq!(login.scalar("SELECT count(*) FROM app.made_later").await, "0");
}

/// Nothing that the source gave out comes again.
async fn numbers_go_on(blue: &Db, green: &Db) {
    let last = "SELECT max(id) FROM app.customer";
    let before: i64 = blue.scalar(last).await.parse().unwrap();
    green.exec("INSERT INTO app.customer (name) VALUES ('later')").await;
    let after: i64 = green.scalar(last).await.parse().unwrap();
    assert!(after > before && after % 10 == 0, "{before} then {after}");
    assert_eq!(green.scalar("SELECT nextval('app.never_called')").await, "42");
    let last = "SELECT last_value FROM app.backwards";
    let before: i64 = blue.scalar(last).await.parse().unwrap();
    let next: i64 = green.scalar("SELECT nextval('app.backwards')").await.parse().unwrap();
    assert!(next < before && (before - next) % 3 == 0, "{before} then {next}");
    assert_refused(green, "INSERT INTO app.customer (id, name) VALUES (5, 'x')", "428C9").await;
    green.exec("INSERT INTO app.serials (d) VALUES (99)").await;
}

async fn constraints_refuse(green: &Db) {
    for (statement, sqlstate) in [
        ("INSERT INTO app.booking VALUES (50, 1, '[2024-01-01, 2024-02-01)')", "23P01"),
        ("INSERT INTO app.hen VALUES (50, 1, NULL, 12345)", "23503"),
        ("INSERT INTO app.egg VALUES (50, 12345)", "23503"),
        ("INSERT INTO app.of_pair VALUES (50, 1, NULL)", "23503"),
        ("INSERT INTO app.event_note VALUES (50, '2024-01-01', 1, 12345)", "23503"),
        ("INSERT INTO app.event VALUES ('2024-01-01', 1, 1, '', 12345)", "23503"),
        ("INSERT INTO app.customer (name, nr) VALUES ('x', 13)", "23514"),
        ("INSERT INTO app.customer (name, n) VALUES ('x', 0)", "23514"),
        ("INSERT INTO app.customer (name, n) VALUES ('x', 7)", "23514"),
        ("INSERT INTO app.customer (name, email) VALUES ('x', 'none')", "23514"),
        ("INSERT INTO app.customer (name, nr) VALUES ('x', 5)", "23505"),
        ("INSERT INTO app.customer (name, email) VALUES ('NAME 5', 'x@y'), ('Name 5', 'x@y')", "23505"),
        ("INSERT INTO app.bird VALUES (50, 'x', 1, '')", "23514"),
        ("INSERT INTO app.checked (id) VALUES (-1)", "44000"),
        ("INSERT INTO app.event_rest (note, id, place, at) VALUES ('', 1, 1000000, '2099-01-01')", "23514"),
    ] {
        assert_refused(green, statement, sqlstate).await;
    }
    green.exec("BEGIN; INSERT INTO app.egg VALUES (60, 60); INSERT INTO app.hen VALUES (60, 60); COMMIT").await;
    green.exec("INSERT INTO app.booking VALUES (51, 1, '[2024-01-01, 2024-02-01)', true)").await;
}

async fn triggers_and_rules_act(green: &Db) {
    let note = "SELECT note FROM app.customer WHERE name = 'later'";
    assert_eq!(green.scalar(note).await, " it's \\ \"seen\"");
    green.exec("INSERT INTO app.event (at, place, id) VALUES ('2024-07-07', 1, 777), ('2031-07-07', 1, 778)").await;
    let notes: BTreeMap<String, String> = green
        .query_text("SELECT id || '=' || note FROM app.event WHERE id IN (777, 778)")
        .await
        .iter()
        .map(|line| line.split_once('=').map(|(id, note)| (id.to_owned(), note.to_owned())).unwrap())
        .collect();
    assert!(notes["777"].starts_with("root!") && !notes["778"].contains('!'), "{notes:?}");
    green.exec("INSERT INTO app.moods VALUES ('sad', 4711)").await;
    assert_eq!(green.scalar("SELECT note FROM app.keyless WHERE a = 4711").await, "instead");
    green.exec("INSERT INTO app.checked (id) VALUES (70); INSERT INTO app.empty_one VALUES (-3, 'x')").await;
    assert_eq!(green.scalar("SELECT v FROM app.empty_one WHERE id = 70").await, "from the view");
    green.exec("UPDATE app.empty_one SET v = 'y' WHERE id = -3").await;
    assert_eq!(green.scalar("SELECT count(*) FROM app.keyless WHERE note = 'a;b'").await, "1");
    green.exec("CREATE TABLE public.seen (id integer)").await;
    assert_eq!(green.scalar("SELECT current_setting('app.seen')").await, "CREATE TABLE");
    green.exec("REFRESH MATERIALIZED VIEW app.mv_z; REFRESH MATERIALIZED VIEW app.mv_m").await;
}

async fn code_returns(green: &Db) {
    let odd_name = r###"SELECT "s!""#$%&'()*+,-./:;<=>?@[\]^_`{|}~"."f!""#$%&'()*+,-./:;<=>?@[\]^_`{|}~"(41)"###;
    for (query, expected) in [
        ("SELECT app.plus(1, 2, 3, 4)", "10"),
        ("SELECT app.plus(1)", "2"),
        ("SELECT string_agg(\"Text\", '') FROM app.rows_of(2)", "x;'1x;'2"),
        ("CALL app.add_one(4)", "5"),
        ("SELECT app.product(g) FROM generate_series(1, 5) g", "120"),
        ("SELECT app.first_of() WITHIN GROUP (ORDER BY g) FROM unnest('{3,3,1}'::int[]) g", "3"),
        ("SELECT 'abc' OPERATOR(app.<#>) 'a'", "2"),
        ("SELECT OPERATOR(app.!!) 5", "-5"),
        ("SELECT app.polymorphic(NULL::int, '{7}')", "7"),
        ("SELECT 'happy'::app.mood::integer", "5"),
        ("SELECT 12::app.odd::integer", "12"),
        ("SELECT 'meh'::app.mood < 'it''s ok'::app.mood", "t"),
        ("SELECT sum(n) FROM app.counting", "15"),
        ("SELECT ext.hstore('a', 'b') OPERATOR(ext.->) 'a'", "b"),
        ("SELECT count(*) FROM app.animal", "2"),
        ("SELECT to_tsvector('app.search', 'the words')", "'words':2"),
        ("SELECT 'ä' = 'Ä' COLLATE app.caseless", "t"),
        (odd_name, "42"),
        ("SELECT count(*) > 0 FROM pg_stats WHERE schemaname = 'app' AND tablename = 'customer'", "t"),
        (
            "SELECT count(*) FROM pg_statistic_ext_data JOIN pg_statistic_ext s ON s.oid = stxoid
             WHERE stxname = 'customer_stats' AND stxdndistinct IS NOT NULL",
            "1",
        ),
        ("SELECT lo_get(4242, 2100000 - 3, 10)", "\\x00ff10"),
    ] {
        assert_eq!(green.scalar(query).await, expected, "{query}");
    }
    green.exec("SET enable_seqscan = off").await;
    let plan = green.query_text("EXPLAIN SELECT 1 FROM app.customer WHERE tags OPERATOR(ext.?) 'k'").await.join("\n");
    assert!(plan.contains("customer_tags"), "{plan}");
    let plan =
        green.query_text("EXPLAIN SELECT 1 FROM app.customer WHERE odd OPERATOR(app.=) 7::app.odd").await.join("\n");
    assert!(plan.contains("customer_odd"), "{plan}");
    green.exec("RESET enable_seqscan").await;
}

async fn what_18_brought_works(green: &Db) {
    assert_eq!(green.scalar("SELECT twice + thrice FROM app.eighteen WHERE id = 2").await, "10");
    assert_refused(green, "INSERT INTO app.temporal VALUES (1, '[2024-02-01, 2024-03-01)')", "23P01").await;
    assert_refused(green, "INSERT INTO app.of_temporal VALUES (5, 1, '[2026-02-01, 2026-03-01)')", "23503").await;
    assert_refused(green, "INSERT INTO app.eighteen (id, a) VALUES (9, NULL)", "23502").await;
    assert_refused(green, "INSERT INTO app.eighteen (id, a, b) VALUES (9, 1, NULL)", "23502").await;
    green.exec("INSERT INTO app.not_enforced VALUES (2, 12345)").await;
}

#[track_caller]
fn refusal(outcome: Result<(), tokio_postgres::Error>, statement: &str) -> String {
    let Err(error) = outcome else { panic!("it was taken: {statement}") };
    error.code().map_or_else(|| format!("{error:?}"), |code| code.code().to_owned())
}

async fn assert_refused(db: &Db, statement: &str, sqlstate: &str) {
    assert_eq!(refusal(db.batch_execute(statement).await, statement), sqlstate, "{statement}");
}
