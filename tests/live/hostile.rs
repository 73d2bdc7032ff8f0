//! Settings of roles and databases that would end or falsify what we do, all at once, on both sides.

use super::support::{Daemon, Db, Pair, TestConfig};

/// Tables with a value of every type whose text depends on settings, rows that take longer to copy than any timeout
/// below, and what `ALTER` and foreign keys need afterwards.
const SCHEMA: &str = r"
    CREATE TYPE mood AS ENUM ('sad', 'glad');
    CREATE TABLE parent (id int PRIMARY KEY, name text NOT NULL UNIQUE);
    CREATE TABLE shown (
        id int PRIMARY KEY REFERENCES parent, at timestamptz NOT NULL DEFAULT '2020-02-03 04:05:06.789+02', day date,
        span interval, price money, ratio float8, small float4, raw bytea, document xml, flags bool[], feeling mood,
        kept bytea DEFAULT '\x00ff'
    );
    CREATE INDEX ON shown (at);
    CREATE TABLE wide (id int PRIMARY KEY, v text);
    ALTER TABLE wide ALTER v SET STORAGE external;
    CREATE VIEW nulls AS SELECT * FROM shown WHERE day IS NULL;
    CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.span = NEW.span; RETURN NEW; END $$;
    CREATE TRIGGER noted BEFORE UPDATE ON shown FOR EACH ROW EXECUTE FUNCTION noted();
";

const ROWS: &str = r"
    SET lc_monetary = 'C';
    INSERT INTO parent SELECT n, 'p' || n FROM generate_series(1, 2000) n;
    INSERT INTO shown SELECT n, timestamptz '2021-01-01 00:00:00+00' + n * interval '7 hours 11 minutes', date '2001-02-03' + n,
        n * interval '1 month 2 days 03:04:05.06', (n * 1.5)::numeric::money, n / 3.0, n / 7.0, decode(md5(n::text), 'hex'),
        XMLPARSE(CONTENT '<a/>b'), ARRAY[true, NULL], 'glad'
        FROM generate_series(1, 1000) n;
    INSERT INTO wide SELECT n, repeat(md5(n::text), 3000) FROM generate_series(1, 1500) n;
    ANALYZE;
";

/// What a role or a database may be given. The timeouts are far below what one statement of ours takes.
fn hostile(major: u32) -> Vec<(&'static str, &'static str)> {
    let mut settings = vec![
        ("statement_timeout", "100ms"),
        ("lock_timeout", "100ms"),
        ("idle_in_transaction_session_timeout", "100ms"),
        ("log_statement", "all"),
        ("log_min_duration_statement", "0"),
        ("log_duration", "on"),
        ("default_transaction_read_only", "on"),
        ("default_transaction_isolation", "serializable"),
        ("default_transaction_deferrable", "on"),
        ("search_path", "nowhere"),
        ("row_security", "on"),
        ("\"TimeZone\"", "Asia/Kathmandu"),
        ("\"DateStyle\"", "SQL, DMY"),
        ("\"IntervalStyle\"", "sql_standard"),
        ("bytea_output", "escape"),
        ("extra_float_digits", "-5"),
        ("lc_monetary", "de_DE.UTF-8"),
        ("client_encoding", "LATIN1"),
        ("xmloption", "document"),
        ("array_nulls", "off"),
        ("standard_conforming_strings", "off"),
        ("quote_all_identifiers", "on"),
        ("transform_null_equals", "on"),
        ("synchronous_commit", "remote_apply"),
        ("exit_on_error", "on"),
        ("client_min_messages", "debug1"),
        ("check_function_bodies", "on"),
        ("wal_sender_timeout", "100ms"),
        ("tcp_keepalives_idle", "1"),
        ("tcp_keepalives_interval", "1"),
        ("tcp_keepalives_count", "1"),
        ("tcp_user_timeout", "100"),
        ("work_mem", "64kB"),
        ("enable_indexscan", "off"),
        ("enable_seqscan", "off"),
    ];
    if major >= 14 {
        settings.push(("idle_session_timeout", "300ms"));
    }
    if major >= 17 {
        settings.push(("transaction_timeout", "100ms"));
    }
    settings
}

/// For one role and for one database: half of them each way, so that both are tried.
async fn make_hostile(db: &Db, major: u32) {
    db.exec("CREATE ROLE mover LOGIN SUPERUSER REPLICATION").await;
    let version = db.scalar("SELECT current_setting('server_version_num')").await;
    assert!(version.starts_with(&major.to_string()), "{version}");
    for (index, (name, value)) in hostile(major).into_iter().enumerate() {
        // The locale is there only where it is installed.
        let value = match name {
            "lc_monetary" => locale(db).await,
            _ => value.to_owned(),
        };
        let whose = if index % 2 == 0 { "ROLE mover" } else { "ROLE mover IN DATABASE postgres" };
        db.exec(&format!("ALTER {whose} SET {name} = '{value}'")).await;
    }
}

async fn locale(db: &Db) -> String {
    let sql = "SELECT coalesce(min(collname::text), 'C') FROM pg_collation WHERE collprovider = 'c' AND collname LIKE 'de_DE%'";
    db.scalar(sql).await
}

async fn migrates(source: u32, target: u32) {
    let pair = Pair::of(source, target);
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec(SCHEMA).await;
    blue.exec(ROWS).await;
    make_hostile(&blue, source).await;
    make_hostile(&green, target).await;
    let mut config = TestConfig::new(&format!("hostile_{source}_{target}"), &pair);
    let as_mover = |url: &str| url.replace("postgres://postgres@", "postgres://mover@");
    (config.source, config.target) = (as_mover(&config.source), as_mover(&config.target));
    // Slow enough that copying, and standing still in it, outlasts every timeout.
    config.snapshot = "mode = \"full\"\nworkers = 2".to_owned();
    let config = config.with("[snapshot.throttle]\nmax_rate = \"64MiB\"\n[cutover]\nmax_pause = \"30s\"");
    for url in [&config.source, &config.target] {
        let given = Db::connect(url)
            .await
            .scalar("SELECT current_setting('statement_timeout') || current_setting('TimeZone')")
            .await;
        assert_eq!(given, "100msAsia/Kathmandu", "the settings are not in force");
    }
    let mut daemon = Daemon::start(&config);
    daemon.wait_for_phase("streaming");
    // A large transaction, a long one, and many small ones: decoded and applied under the same settings.
    let load = "UPDATE shown SET span = span * 2, price = price * 2, at = at + interval '1 day';
                UPDATE wide SET v = v || 'x' WHERE id % 3 = 0; DELETE FROM wide WHERE id % 7 = 0;
                INSERT INTO wide SELECT n, repeat(md5(n::text), 1000) FROM generate_series(5001, 9000) n";
    blue.exec(load).await;
    for number in 0..50 {
        blue.exec(&format!("UPDATE shown SET ratio = ratio + 0.1 WHERE id = {number}")).await;
    }
    let verified = daemon.json(&["verify"]);
    assert_eq!(verified["verdict"], "equal", "{verified}");
    daemon.wait_for("everything applied", |status| status["lag_bytes"] == 0);
    for table in ["parent", "shown", "wide", "nulls"] {
        assert_eq!(blue.rows(table).await, green.rows(table).await, "{table}");
    }
    let defaults = "SELECT string_agg(pg_get_expr(adbin, adrelid), ', ' ORDER BY adnum) FROM pg_attrdef WHERE adrelid = 'shown'::regclass";
    assert_eq!(blue.scalar(defaults).await, green.scalar(defaults).await);
    let status = daemon.status().unwrap();
    assert_eq!(status["retrying"], serde_json::json!([]), "{status}");
    let report = daemon.json(&["cutover", "--yes"]);
    assert_eq!(report["outcome"], "cut_over", "{report}");
    let broken = daemon.log().lines().filter(|line| line.contains("retrying")).count();
    assert_eq!(broken, 0, "something was cut off and tried again:\n{}", daemon.log());
    daemon.terminate();
    let output = daemon.command(&["complete"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_settings_end_and_alter_nothing_from_13_to_18() {
    migrates(13, 18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_settings_end_and_alter_nothing_from_15_to_15() {
    migrates(15, 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_settings_end_and_alter_nothing_from_18_to_18() {
    migrates(18, 18).await;
}
