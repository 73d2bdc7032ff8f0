//! A target that is partitioned otherwise than the source: copied, streamed while rows move between partitions, partitions
//! truncated, compared, copied again, cut over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinSet;

use crate::support::{Daemon, Db, Pair, TestConfig};

/// Two levels, a leaf with its columns in another order, a default partition; large values that an UPDATE does not touch.
/// `days` becomes a plain table, `marks` has no key, `hashed` tells its rows by a hash of the source's, `same` is the same
/// on both sides, and `plain` is partitioned only on the target.
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
const TABLES: [(&str, &str); 6] = [
    ("orders", "id, region, amount, note"),
    ("days", "id, day, v"),
    ("marks", "k, v"),
    ("hashed", "id, v"),
    ("same", "id, v"),
    ("plain", "id, v"),
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
                "UPDATE marks SET k = nullif({}, 0) WHERE v = '{}' AND k IS NOT DISTINCT FROM nullif({}, 0)",
                round % 4,
                round % 3,
                (round + 1) % 4
            ),
        )
        .await;
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
        "INSERT INTO orders SELECT n, (ARRAY['eu', 'us', 'jp'])[n % 3 + 1], {round}, repeat('y', 100)
             FROM generate_series({0}, {0} + 200) n ON CONFLICT DO NOTHING;
         INSERT INTO days SELECT n, DATE '2024-01-01' + n % 60, 'again' FROM generate_series({0}, {0} + 90) n
             ON CONFLICT DO NOTHING; INSERT INTO marks VALUES (1, '0'), (2, '1'), (3, '2'), (NULL, '0')",
        round * 11 % 1800
    );
    match round / 10 % 5 {
        0 => format!("TRUNCATE orders_us; {refill}"),
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
                "public.same_2"
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
    blue.exec("UPDATE orders SET region = 'us' WHERE id % 10 = 1; TRUNCATE days_1; UPDATE marks SET k = 3 WHERE k = 1")
        .await;
    green.exec("ANALYZE").await;
    let report = daemon.json(&["cutover", "--yes"]);
    assert_eq!(report["outcome"], "cut_over", "{report}");
    assert_equal(&blue, &green).await;
    green
        .exec("UPDATE orders SET region = 'eu' WHERE id % 10 = 1; INSERT INTO days VALUES (-1, '2020-01-01', 'after')")
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
