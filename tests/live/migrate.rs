//! Whole migrations: real databases, under load, between server versions.

use std::process::{Child, Command, Stdio};

use changeover::demo::PostgresPrograms;

use super::support::{Daemon, Db, Pair, TestConfig};

/// A smaller scale where only the path matters, the where the rows do.
const PGBENCH_SCALE: &str = "10";

/// `pgbench` of the newest installed version that has it, against any server version.
struct Pgbench {
    child: Child,
}

impl Pgbench {
    fn program() -> std::path::PathBuf {
        let all = PostgresPrograms::find().unwrap_or_else(|error| panic!("{error}"));
        let found = all.iter().map(|programs| programs.program("pgbench")).find(|path| path.exists());
        found.expect("pgbench is not installed: run docker/setup.sh --for test")
    }

    fn initialise(url: &str, scale: &str) {
        let output = Command::new(Self::program()).args(["-i", "-q", "-s", scale, url]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs until it is dropped, at a rate that a debug build on a shared machine can follow.
    fn start(url: &str) -> Self {
        let arguments = ["-n", "-c", "4", "-j", "1", "-T", "300", "-R", "400", url];
        let child = Command::new(Self::program()).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self { child: child.unwrap() }
    }
}

impl Drop for Pgbench {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The script makes a database of its own and goes there by psql's `\c`, and writes strings as `N'…'`, which PostgreSQL
/// takes as they are.
fn chinook() -> String {
    let script = include_str!("../fixtures/chinook.sql");
    let wanted = script.lines().filter(|line| {
        !line.starts_with("DROP DATABASE") && !line.starts_with("CREATE DATABASE") && !line.starts_with("\\c")
    });
    wanted.collect::<Vec<_>>().join("\n")
}

async fn tables(db: &Db) -> Vec<String> {
    let sql = "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables \
               WHERE schemaname NOT IN ('pg_catalog', 'information_schema', 'changeover') ORDER BY 1";
    db.query_text(sql).await
}

/// Every row of every table, byte for byte in text.
async fn assert_equal(source: &Db, target: &Db) {
    let names = tables(source).await;
    assert_eq!(names, tables(target).await, "the tables differ");
    for name in names {
        let (left, right) = (source.rows(&name).await, target.rows(&name).await);
        assert_eq!(left.len(), right.len(), "{name}: row counts differ");
        let different = left.iter().zip(&right).filter(|(left, right)| left != right).count();
        assert_eq!(different, 0, "{name}: {different} of {} rows differ", left.len());
    }
}

async fn migrates(source: u32, target: u32) {
    let pair = Pair::of(source, target);
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec(&chinook()).await;
    Pgbench::initialise(pair.source.url(), PGBENCH_SCALE);
    // pgbench's history has no key; `check` demands this.
    blue.exec("ALTER TABLE pgbench_history REPLICA IDENTITY FULL").await;
    let load = Pgbench::start(pair.source.url());
    let mut daemon = Daemon::start(&TestConfig::new(&format!("from_{source}_to_{target}"), &pair));
    daemon.wait_for_phase("streaming");
    let verified = daemon.json(&["verify"]);
    assert_eq!(verified["verdict"], "equal", "under load: {verified}");
    assert!(verified["rows_verified"].as_u64().unwrap() > 1_000_000, "{verified}");
    drop(load);
    let committed = blue.scalar("SELECT pg_current_wal_insert_lsn()").await;
    let through = |status: &serde_json::Value| status["sinks"][0]["through"].as_str().map(str::to_owned);
    daemon.wait_for("everything applied", |status| status["lag_bytes"] == 0);
    let reached = through(&daemon.status().unwrap());
    assert!(reached.is_some(), "nothing was applied though {committed} was written");
    assert_equal(&blue, &green).await;
    let history = green.scalar("SELECT count(*) FROM pgbench_history").await;
    assert!(history.parse::<u64>().unwrap() > 0, "the load wrote nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn chinook_and_a_busy_pgbench_database_go_from_13_to_18() {
    migrates(13, 18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chinook_and_a_busy_pgbench_database_go_from_14_to_17() {
    migrates(14, 17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chinook_and_a_busy_pgbench_database_go_from_15_to_15() {
    migrates(15, 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chinook_and_a_busy_pgbench_database_go_from_16_to_18() {
    migrates(16, 18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chinook_and_a_busy_pgbench_database_go_from_17_to_15() {
    migrates(17, 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chinook_and_a_busy_pgbench_database_go_from_18_to_18() {
    migrates(18, 18).await;
}
