//! A target that is partitioned otherwise than the source: copied, streamed while rows move between partitions, partitions
//! truncated, compared, copied again, cut over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinSet;

use crate::support::{
    Daemon, Db, Pair, Record, TestConfig, bootstrap, read_committed, source_and_target, topic_prefix,
};

/// Two levels, a leaf with its columns in another order, a default partition; large values that an UPDATE does not touch.
/// `days` becomes a plain table, `marks` has no key, `wide` has another key on the target, `hashed` tells its rows by a hash
/// of the source's, `same` is the same on both sides, and `plain` is partitioned only on the target.
const SOURCE: &str = "
    CREATE TABLE orders (id int, region text, amount int, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    ALTER TABLE orders ALTER note SET STORAGE external;
    CREATE TABLE orders_eu PARTITION OF orders FOR VALUES IN ('eu', 'uk') PARTITION BY RANGE (id);
    CREATE TABLE orders_eu_1 PARTITION OF orders_eu FOR VALUES FROM (MINVALUE) TO (1000);
    CREATE TABLE orders_eu_2 PARTITION OF orders_eu FOR VALUES FROM (1000) TO (MAXVALUE);
    CREATE TABLE orders_us (note text, gone int, amount int, region text NOT NULL, id int NOT NULL, PRIMARY KEY (id, region));
    ALTER TABLE orders_us DROP COLUMN gone, ALTER note SET STORAGE external;
    ALTER TABLE orders ATTACH PARTITION orders_us FOR VALUES IN ('us');
    CREATE TABLE orders_rest PARTITION OF orders DEFAULT;
    CREATE TABLE days (id int, day date, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
    CREATE TABLE days_2 PARTITION OF days FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
    CREATE TABLE marks (k int, v text) PARTITION BY LIST (k);
    CREATE TABLE marks_1 PARTITION OF marks FOR VALUES IN (1, 2);
    CREATE TABLE marks_2 PARTITION OF marks FOR VALUES IN (3, NULL);
    ALTER TABLE marks_1 REPLICA IDENTITY FULL; ALTER TABLE marks_2 REPLICA IDENTITY FULL;
    CREATE TABLE wide (id int, k int, at date NOT NULL, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
    CREATE TABLE wide_1 PARTITION OF wide FOR VALUES IN (1); CREATE TABLE wide_2 PARTITION OF wide FOR VALUES IN (2);
    ALTER TABLE wide_1 REPLICA IDENTITY FULL; ALTER TABLE wide_2 REPLICA IDENTITY FULL;
    INSERT INTO wide SELECT n, n % 2 + 1, DATE '2024-01-01' + n % 60 FROM generate_series(1, 400) n;
    CREATE TABLE hashed (id int PRIMARY KEY, v text) PARTITION BY HASH (id);
    CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE hashed_2 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE TABLE same (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE same_1 PARTITION OF same FOR VALUES FROM (0) TO (100);
    CREATE TABLE same_2 PARTITION OF same FOR VALUES FROM (100) TO (10000);
    CREATE TABLE plain (id int PRIMARY KEY, v text);
    INSERT INTO orders SELECT n, (ARRAY['eu', 'uk', 'us', 'jp'])[n % 4 + 1], n, repeat('x', 3000)
        FROM generate_series(1, 2000) n;
    INSERT INTO days SELECT n, DATE '2024-01-01' + n % 60, 'v' FROM generate_series(1, 1000) n;
    INSERT INTO marks SELECT nullif(n % 4, 0), n % 3 FROM generate_series(1, 60) n;
    INSERT INTO hashed SELECT n, 'v' FROM generate_series(1, 500) n;
    INSERT INTO same SELECT n, 'v' FROM generate_series(1, 500) n;
    INSERT INTO plain SELECT n, 'v' FROM generate_series(1, 500) n";

/// `orders_us` is there under the same name with other rows in it.
const TARGET: &str = "
    CREATE TABLE orders (note text, id int, region text, amount int, PRIMARY KEY (id, region)) PARTITION BY RANGE (id);
    CREATE TABLE orders_us PARTITION OF orders FOR VALUES FROM (MINVALUE) TO (700);
    CREATE TABLE orders_high PARTITION OF orders FOR VALUES FROM (700) TO (MAXVALUE) PARTITION BY HASH (region, id);
    CREATE TABLE orders_high_1 PARTITION OF orders_high FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE orders_high_2 PARTITION OF orders_high FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE TABLE days (id int, day date, v text, PRIMARY KEY (id, day));
    CREATE TABLE marks (v text, k int);
    CREATE TABLE wide (id int, k int, at date NOT NULL, PRIMARY KEY (at, id, k)) PARTITION BY RANGE (at);
    CREATE TABLE wide_1 PARTITION OF wide FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
    CREATE TABLE wide_2 PARTITION OF wide DEFAULT;
    CREATE TABLE hashed (id int PRIMARY KEY, v text) PARTITION BY HASH (id);
    CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 3, REMAINDER 0);
    CREATE TABLE hashed_2 PARTITION OF hashed FOR VALUES WITH (MODULUS 3, REMAINDER 1);
    CREATE TABLE hashed_3 PARTITION OF hashed FOR VALUES WITH (MODULUS 3, REMAINDER 2);
    CREATE TABLE same (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE same_1 PARTITION OF same FOR VALUES FROM (0) TO (100);
    CREATE TABLE same_2 PARTITION OF same FOR VALUES FROM (100) TO (10000);
    CREATE TABLE plain (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE plain_1 PARTITION OF plain FOR VALUES FROM (0) TO (250);
    CREATE TABLE plain_2 PARTITION OF plain DEFAULT";

/// What is compared row by row: columns by name, whatever their order.
const TABLES: [(&str, &str); 7] = [
    ("orders", "id, region, amount, note"),
    ("days", "id, day, v"),
    ("marks", "k, v"),
    ("hashed", "id, v"),
    ("same", "id, v"),
    ("plain", "id, v"),
    ("wide", "id, k, at"),
];

fn config(name: &str, pair: &Pair) -> TestConfig {
    let mut config = TestConfig::new(name, pair);
    // Under snapshots so short that the partitions of a table are read under several.
    config.snapshot = "mode = \"data\"\nworkers = 2\nmax_snapshot_age = \"1s\"".to_owned();
    config.with("[snapshot.throttle]\nmax_rate = \"1MiB\"")
}

/// The source may refuse it: a row is there already.
async fn try_out(blue: &Db, sql: &str) {
    if let Err(error) = blue.batch_execute(sql).await {
        assert_eq!(error.code().map(|code| code.code()), Some("23505"), "{error:?}\n{sql}");
        blue.exec("ROLLBACK").await;
    }
}

/// Goes on until it is told to stop; rounds made. `truncating`: partitions too.
async fn load(blue: Db, stop: Arc<AtomicBool>, truncating: Arc<AtomicBool>) -> u64 {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        let (id, other) = (round * 7 % 2000 + 1, round * 13 % 2000 + 1);
        // To another partition, on either level, and back; large values travel along.
        try_out(&blue, &format!(
            "UPDATE orders SET region = CASE region WHEN 'eu' THEN 'us' WHEN 'us' THEN 'jp' WHEN 'jp' THEN 'uk' ELSE 'eu' END
             WHERE id = {id}"
        ))
        .await;
        try_out(
            &blue,
            &format!(
                "BEGIN; UPDATE orders SET region = 'us', amount = {round} WHERE id = {other};
             UPDATE orders SET amount = amount + 1 WHERE id = {other};
             UPDATE orders SET region = 'eu' WHERE id = {other}; COMMIT"
            ),
        )
        .await;
        // The key itself; below and above 1000 it is another partition.
        try_out(
            &blue,
            &format!(
                "UPDATE orders SET id = CASE WHEN id < 2500 THEN id + 2500 ELSE id - 2500 END WHERE id % 2500 = {other}"
            ),
        )
        .await;
        try_out(
            &blue,
            &format!(
                "UPDATE days SET day = DATE '2024-01-01' + {}, v = v || {round} WHERE id = {}",
                round % 60,
                id % 1000 + 1
            ),
        )
        .await;
        try_out(
            &blue,
            &format!(
                "UPDATE wide SET k = 3 - k, at = at + 7 WHERE id = {0}; UPDATE wide SET id = id + 400 WHERE id = {1};
                 UPDATE wide SET at = DATE '2024-01-01' + {2} WHERE id % 40 = {2}",
                round * 3 % 800 + 1,
                round % 400 + 1,
                round % 40
            ),
        )
        .await;
        if round % 8 == 0 {
            // Not in every round: each change looks through the whole table on the target.
            let (to, v, from) = (round / 8 % 4, round / 8 % 3, (round / 8 + 1) % 4);
            let found = format!("v = '{v}' AND k IS NOT DISTINCT FROM nullif({from}, 0)");
            try_out(&blue, &format!("UPDATE marks SET k = nullif({to}, 0) WHERE {found}")).await;
        }
        try_out(&blue, &format!(
            "BEGIN; DELETE FROM hashed WHERE id = {0}; INSERT INTO hashed VALUES ({0}, '{round}'); COMMIT;
             UPDATE hashed SET id = id + 1000 WHERE id = {1}; UPDATE same SET id = (id + 77) % 500 + 1000 WHERE id = {1};
             UPDATE plain SET id = id + 600 WHERE id = {1}; UPDATE plain SET v = '{round}' WHERE id = {0}",
            round * 3 % 500 + 1,
            round * 5 % 500 + 1,
        ))
        .await;
        if truncating.load(Ordering::Relaxed) && round % 10 == 0 {
            try_out(&blue, &truncation(round)).await;
        }
        round += 1;
    }
    round
}

/// One partition, several, one of each level with other tables, and between changes of one transaction.
fn truncation(round: u64) -> String {
    let refill = format!(
        "INSERT INTO wide SELECT n, n % 2 + 1, DATE '2024-01-15' + n % 40 FROM generate_series(1, 300) n ON CONFLICT DO NOTHING;
         INSERT INTO orders SELECT n, (ARRAY['eu', 'us', 'jp'])[n % 3 + 1], {round}, repeat('y', 100)
             FROM generate_series({0}, {0} + 200) n ON CONFLICT DO NOTHING;
         INSERT INTO days SELECT n, DATE '2024-01-01' + n % 60, 'again' FROM generate_series({0}, {0} + 90) n
             ON CONFLICT DO NOTHING; INSERT INTO marks VALUES (1, '0'), (2, '1'), (3, '2'), (NULL, '0')",
        round * 11 % 1800
    );
    match round / 10 % 5 {
        0 => format!("TRUNCATE orders_us, wide_1; {refill}"),
        1 => format!("BEGIN; UPDATE orders SET region = 'jp' WHERE region = 'us' AND id % 9 = 1; TRUNCATE orders_eu_1, days_2, marks_2;
                      UPDATE orders SET region = 'eu' WHERE region = 'us' AND id % 7 = 1; COMMIT; {refill}"),
        2 => format!("TRUNCATE orders_eu; {refill}"),
        3 => format!("TRUNCATE orders_rest, plain, marks_1; INSERT INTO plain SELECT n, 'n' FROM generate_series(1, 400) n; {refill}"),
        _ => format!("TRUNCATE days, same_2, hashed; INSERT INTO hashed SELECT n, 'n' FROM generate_series(1, 300) n; {refill}"),
    }
}

async fn assert_equal(blue: &Db, green: &Db) {
    for (table, columns) in TABLES {
        let rows = format!("(SELECT {columns} FROM {table})");
        let wanted = blue.rows(&rows).await;
        assert!(!wanted.is_empty(), "{table}");
        assert!(wanted == green.rows(&rows).await, "{table} differs");
    }
}

async fn equal_at_rest(daemon: &mut Daemon, blue: &Db, green: &Db) {
    let verified = daemon.json(&["verify"]);
    assert_eq!(verified["verdict"], "equal", "{verified}");
    daemon.wait_for("everything applied", |status| status["lag_bytes"] == 0);
    assert_equal(blue, green).await;
}

async fn migrates(source: u32, target: u32) {
    let pair = Pair::of(source, target);
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec(SOURCE).await;
    green.exec(TARGET).await;
    let (stop, truncating) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut loads = JoinSet::new();
    loads.spawn(load(pair.source.connect().await, Arc::clone(&stop), Arc::clone(&truncating)));

    // Killed when some partitions are there: those are not copied again.
    let mut daemon = Daemon::start(&config(&format!("parts_{source}_{target}"), &pair));
    let parts = "SELECT count(*) FROM changeover.unit WHERE table_name = 'orders'";
    while green.query_text("SELECT to_regclass('changeover.unit')").await == ["∅"] || green.scalar(parts).await == "0"
    {
        assert!(daemon.is_running(), "{}", daemon.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    daemon.kill();
    assert_ne!(green.scalar(parts).await, "4", "the copy was over before it was killed");
    daemon.start_again();
    daemon.wait_for_phase("streaming");
    let log = daemon.log();
    assert!(log.contains("going on inside the table table=public.orders"), "{log}");
    assert!(log.contains("settled table=public.orders"), "{log}");

    for _ in 0..3 {
        truncating.store(true, Ordering::Relaxed);
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        daemon.kill();
        // Not while it is compared: a table that is truncated meanwhile has to be looked at again.
        truncating.store(false, Ordering::Relaxed);
        daemon.start_again();
        daemon.wait_for_phase("streaming");
        let verified = daemon.json(&["verify"]);
        assert_eq!(verified["verdict"], "equal", "{verified}");
        let names: Vec<&str> =
            verified["tables"].as_array().unwrap().iter().map(|table| table["table"].as_str().unwrap()).collect();
        assert_eq!(
            names,
            [
                "public.days",
                "public.hashed",
                "public.marks",
                "public.orders",
                "public.plain",
                "public.same_1",
                "public.same_2",
                "public.wide"
            ]
        );
    }

    // Copied again while rows move, by its name only.
    let refused = daemon.command(&["resync", "public.orders_us"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("changeover resync public.orders"), "{said}");
    let resynced = daemon.command(&["resync", "public.orders"]);
    assert!(resynced.status.success(), "{resynced:?}\n{}", daemon.log());

    stop.store(true, Ordering::Relaxed);
    let rounds = loads.join_next().await.unwrap().unwrap();
    assert!(rounds > 30, "{rounds} rounds");
    equal_at_rest(&mut daemon, &blue, &green).await;

    // A row that only the target has, and one that it lacks, wherever they are there.
    green.exec("INSERT INTO orders (id, region) VALUES (99999, 'zz'); DELETE FROM days WHERE id = (SELECT min(id) FROM days)").await;
    let output = daemon.command(&["verify"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1), "{text}");
    assert!(text.contains("public.orders") && text.contains("public.days"), "{text}");
    green.exec("DELETE FROM orders WHERE id = 99999").await;
    assert!(daemon.command(&["resync", "public.days"]).status.success());
    equal_at_rest(&mut daemon, &blue, &green).await;

    // Written after the last verification: compared inside the pause, one table of them whole.
    let alone = "NOT EXISTS (SELECT FROM orders o WHERE o.id = orders.id AND o.region <> orders.region)";
    blue.exec(&format!("UPDATE orders SET region = 'us' WHERE id % 10 = 1 AND {alone}; TRUNCATE days_1")).await;
    blue.exec("UPDATE marks SET k = 3 WHERE k = 1").await;
    green.exec("ANALYZE").await;
    let report = daemon.json(&["cutover", "--yes"]);
    assert_eq!(report["outcome"], "cut_over", "{report}");
    assert_equal(&blue, &green).await;
    green
        .exec(&format!("UPDATE orders SET region = 'eu' WHERE id % 10 = 1 AND {alone}; INSERT INTO days VALUES (-1, '2020-01-01', 'after')"))
        .await;
    daemon.terminate();
    assert!(daemon.command(&["complete"]).status.success());
    let blue = pair.source.connect().await;
    assert_eq!(blue.scalar("SELECT count(*) FROM pg_publication").await, "0");
    assert_eq!(green.scalar("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'changeover%'").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_partitions_from_15_to_15() {
    migrates(15, 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_partitions_from_13_to_18() {
    migrates(13, 18).await;
}

/// `d` has partitions that the target does not have, `h` some that only a hash of the source's tells.
async fn small(blue: &Db, green: &Db) {
    blue.exec(
        "CREATE TABLE d (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
         CREATE TABLE d_1 PARTITION OF d FOR VALUES IN (1); CREATE TABLE d_2 PARTITION OF d FOR VALUES IN (2);
         CREATE TABLE h (id int PRIMARY KEY) PARTITION BY HASH (id);
         CREATE TABLE h_1 PARTITION OF h FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE TABLE h_2 PARTITION OF h FOR VALUES WITH (MODULUS 2, REMAINDER 1);
         CREATE TABLE other (id int PRIMARY KEY);
         INSERT INTO d SELECT n, n % 2 + 1, 'v' FROM generate_series(1, 100) n; INSERT INTO h SELECT generate_series(1, 100)",
    )
    .await;
    green
        .exec(
            "CREATE TABLE d (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY RANGE (id);
             CREATE TABLE low PARTITION OF d FOR VALUES FROM (MINVALUE) TO (50);
             CREATE TABLE high PARTITION OF d FOR VALUES FROM (50) TO (MAXVALUE);
             CREATE TABLE h (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)",
        )
        .await;
}

fn data_mode(name: &str, pair: &Pair) -> TestConfig {
    let snapshot = "mode = \"data\"\nworkers = 2".to_owned();
    TestConfig { snapshot, ..TestConfig::new(name, pair) }
}

async fn assert_same(blue: &Db, green: &Db, tables: &[&str]) {
    for table in tables {
        assert_eq!(blue.rows(table).await, green.rows(table).await, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_partition_that_cannot_be_told_stops_the_apply_until_its_table_is_copied_again() {
    let pair = source_and_target().await;
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    small(&blue, &green).await;
    let mut daemon = Daemon::start(&data_mode("untold", &pair));
    daemon.expect_error("apply a TRUNCATE of public.h_1");
    daemon.wait_for_phase("streaming");
    let before = green.rows("h").await;
    blue.exec("BEGIN; INSERT INTO other VALUES (1); TRUNCATE h_1; INSERT INTO h VALUES (1000); COMMIT; INSERT INTO other VALUES (2)")
        .await;
    let status = daemon.wait_for("halted", |status| status["halted"].as_array().is_some_and(|parts| !parts.is_empty()));
    let halted = status["halted"][0].to_string();
    assert!(halted.contains("public.h_1: it is a partition of public.h"), "{halted}");
    assert!(halted.contains("`changeover resync public.h`"), "{halted}");
    assert_eq!((green.rows("h").await, green.rows("other").await), (before, vec![]), "nothing of it, nor what follows");
    let resynced = daemon.command(&["resync", "public.h"]);
    assert!(resynced.status.success(), "{resynced:?}\n{}", daemon.log());
    blue.exec("TRUNCATE d_1; INSERT INTO h VALUES (1001); UPDATE d SET k = 1 WHERE id < 20").await;
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    daemon.wait_for("everything applied", |status| status["lag_bytes"] == 0);
    assert_same(&blue, &green, &["d", "h", "other"]).await;
    // All of its partitions at once are its rows.
    blue.exec("TRUNCATE h; INSERT INTO h VALUES (5)").await;
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    assert_eq!(green.rows("h").await, ["(5)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_partition_joins_with_the_table_that_it_is_in() {
    let pair = source_and_target().await;
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    small(&blue, &green).await;
    let mut daemon = Daemon::start(&data_mode("grown", &pair));
    daemon.wait_for_phase("streaming");
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    // Written to after it was found equal: no key of it is known to have changed.
    blue.exec("CREATE TABLE d_3 PARTITION OF d FOR VALUES IN (3); INSERT INTO d VALUES (500, 3, 'new')").await;
    blue.exec("UPDATE d SET k = 3 WHERE id = 7; UPDATE d SET k = 3 WHERE id = 60").await;
    green.exec("ANALYZE").await;
    let refused = daemon.command(&["cutover", "--yes", "--json"]);
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(refused.status.code() == Some(1), "{said}");
    assert!(said.contains("came since the daemon started, and are not streamed: public.d_3"), "{said}");
    let left = daemon.command(&["verify"]);
    assert_eq!(left.status.code(), Some(1), "three rows are missing");

    daemon.terminate();
    // Some change places while nobody looks, and while it is copied.
    blue.exec("UPDATE d SET k = 3 WHERE id = 8; UPDATE d SET k = 1 WHERE id = 60").await;
    daemon.start_again();
    daemon.wait_for("a copy under way", |status| !status["resync"].is_null());
    for id in 10..40 {
        blue.exec(&format!(
            "UPDATE d SET k = k % 3 + 1 WHERE id = {id}; UPDATE d SET id = id + 200 WHERE id = {id} + 30"
        ))
        .await;
    }
    daemon.wait_for("all together", |status| status["resync"].is_null());
    blue.exec("UPDATE d SET k = 3 WHERE k = 2 AND id < 30; TRUNCATE d_2").await;
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    daemon.wait_for("everything applied", |status| status["lag_bytes"] == 0);
    assert_same(&blue, &green, &["d", "h", "other"]).await;
    assert_eq!(daemon.json(&["cutover", "--yes"])["outcome"], "cut_over");
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_writes_to_a_partition_of_the_targets_own_is_named() {
    let pair = source_and_target().await;
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    small(&blue, &green).await;
    let mut daemon = Daemon::start(&data_mode("own", &pair));
    daemon.wait_for_phase("streaming");
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    while green.scalar("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'low'::regclass AND NOT tgisinternal").await
        == "0"
    {
        assert!(daemon.is_running(), "{}", daemon.log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    green.exec("UPDATE low SET v = 'theirs' WHERE id = 3").await;
    let status = daemon.wait_for("named", |status| status["warnings"].as_array().is_some_and(|it| !it.is_empty()));
    assert!(status.to_string().contains("public.low"), "{status}");
    green.exec("ANALYZE").await;
    let refused = daemon.command(&["cutover", "--dry-run"]);
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(said.contains("2 of 3 tables found equal"), "{said}");
    let left = daemon.command(&["verify"]);
    assert!(String::from_utf8_lossy(&left.stdout).contains("public.d"), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_truncated_while_its_table_is_copied_begins_the_table_again() {
    let pair = source_and_target().await;
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    small(&blue, &green).await;
    blue.exec("ALTER TABLE d_1 ALTER v SET STORAGE external; ALTER TABLE d_2 ALTER v SET STORAGE external").await;
    blue.exec("TRUNCATE d; INSERT INTO d SELECT n, n % 2 + 1, repeat('x', 3000) FROM generate_series(1, 1000) n").await;
    let mut config = data_mode("emptied", &pair).with("[snapshot.throttle]\nmax_rate = \"512KiB\"");
    config.snapshot = "mode = \"data\"\nworkers = 1".to_owned();
    let mut daemon = Daemon::start(&config);
    while !daemon.log().contains("snapshot taken") {
        assert!(daemon.is_running(), "{}", daemon.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // It waits for our lock on the partition, our reading of it waits behind it, and gives way.
    blue.exec("TRUNCATE d_2; INSERT INTO d VALUES (3, 2, 'first')").await;
    daemon.wait_for_phase("streaming");
    assert!(daemon.log().contains("copied from its beginning again table=public.d "), "{}", daemon.log());
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    assert_same(&blue, &green, &["d", "h", "other"]).await;
    assert_eq!(green.scalar("SELECT count(*) FROM d").await, "501");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_shot_copy_fills_them_too_and_status_and_verify_go_by_the_root() {
    let pair = source_and_target().await;
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    small(&blue, &green).await;
    let copied = Daemon::prepare(&data_mode("once", &pair)).json(&["copy"]);
    assert_eq!((copied["tables"].as_u64(), copied["rows"].as_u64()), (Some(3), Some(200)), "{copied}");
    assert_same(&blue, &green, &["d", "h", "other"]).await;
    assert_eq!(green.query_text("SELECT to_regnamespace('changeover')").await, ["∅"]);

    green.exec("TRUNCATE d, h, other").await;
    let mut daemon = Daemon::start(&data_mode("once", &pair));
    let status = daemon.wait_for_phase("streaming");
    let names: Vec<&str> = status["tables"].as_array().unwrap().iter().filter_map(|it| it["table"].as_str()).collect();
    assert_eq!(names, ["public.d", "public.h", "public.other"]);
    let refused = daemon.command(&["verify", "--table", "public.d_1"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("changeover verify --table public.d`"), "{said}");
    assert_eq!(daemon.json(&["verify", "--table", "public.d"])["verdict"], "equal");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_keep_the_names_of_the_sources_partitions() {
    let pair = source_and_target().await;
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    small(&blue, &green).await;
    let prefix = topic_prefix("partitions");
    let kafka = format!("[kafka]\nbootstrap_servers = {:?}\ntopic_prefix = {prefix:?}", bootstrap());
    let mut daemon = Daemon::start(&data_mode("topics", &pair).with(&kafka));
    daemon.wait_for_phase("streaming");
    blue.exec("UPDATE d SET k = 3 - k WHERE id <= 10; INSERT INTO h VALUES (1000), (1001), (1002), (1003)").await;
    let sent = || read_committed(&bootstrap(), &prefix);
    let of_tables = |record: &Record| record.topic.contains(".public.");
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while sent().iter().filter(|record| of_tables(record)).count() < 34 {
        assert!(daemon.is_running() && tokio::time::Instant::now() < deadline, "{}", daemon.log());
    }
    // What the target holds then is asked of the target.
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    daemon.terminate();
    let records = sent();
    let of = |table: &str| records.iter().filter(|record| record.topic == format!("{prefix}.public.{table}")).count();
    // A row that moves is a delete with its tombstone in one, and a create in the other.
    assert_eq!([of("d_1"), of("d_2"), of("h_1") + of("h_2"), of("d"), of("h")], [15, 15, 4, 0, 0]);
    assert_same(&blue, &green, &["d", "h"]).await;
}
