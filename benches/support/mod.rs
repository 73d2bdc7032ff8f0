//! What the comparisons share: servers with their default durability, whole-process timing, medians of ratios.

#![allow(dead_code, unreachable_pub, reason = "each comparison uses its own part")]
#![allow(clippy::unwrap_used, reason = "a comparison that cannot go on has nothing better to do than stop")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use changeover::demo::{ClusterOptions, PgCluster, PostgresPrograms, Workspace, free_port};
use tokio::time::Instant;

/// Servers as they come, except for what logical replication needs and room for a bulk load. Durability is on.
pub fn cluster() -> PgCluster {
    let programs = PostgresPrograms::find().unwrap().iter().find(|programs| programs.program("pgbench").exists());
    let programs = programs.expect("pgbench is not installed: run docker/setup.sh --for bench").clone();
    let settings = [
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("shared_buffers", "128MB"),
        ("max_wal_size", "4GB"),
        ("max_replication_slots", "40"),
        ("max_wal_senders", "40"),
    ];
    let options = ClusterOptions::fast(programs);
    PgCluster::start(settings.iter().fold(options, |options, (name, value)| options.setting(name, value))).unwrap()
}

pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

pub fn run(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{} {arguments:?}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub fn psql(cluster: &PgCluster, dbname: &str, sql: &str) -> String {
    run(&cluster.programs().program("psql"), &psql_arguments(&cluster.url(dbname), sql))
}

/// `None` where `psql` has failed.
pub fn psql_if_it_can(cluster: &PgCluster, dbname: &str, sql: &str) -> Option<String> {
    let url = cluster.url(dbname);
    let output = Command::new(cluster.programs().program("psql")).args(psql_arguments(&url, sql)).output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn psql_arguments<'a>(url: &'a str, sql: &'a str) -> [&'a str; 9] {
    [url, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]
}

/// One connection to ask again and again: a process a look would take a tenth of the machine.
pub struct Asker {
    runtime: tokio::runtime::Runtime,
    client: tokio_postgres::Client,
}

impl Asker {
    pub fn new(cluster: &PgCluster, dbname: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let url = cluster.url(dbname);
        let (client, connection) = runtime.block_on(tokio_postgres::connect(&url, tokio_postgres::NoTls)).unwrap();
        let mut connected = tokio::task::JoinSet::new();
        connected.spawn_on(async move { connection.await.unwrap_or_default() }, runtime.handle());
        connected.detach_all();
        Self { runtime, client }
    }

    /// The first value, `None` where the statement fails or finds nothing.
    pub fn ask(&self, sql: &str) -> Option<String> {
        let rows = self.runtime.block_on(self.client.simple_query(sql)).ok()?;
        rows.iter().find_map(|message| {
            let tokio_postgres::SimpleQueryMessage::Row(row) = message else { return None };
            row.get(0).map(str::to_owned)
        })
    }
}

/// Starts `psql -c "COPY … TO STDOUT" | psql -c "COPY … FROM STDIN"`.
pub fn pipe(source: (&PgCluster, &str), target: (&PgCluster, &str), out: &str, into: &str) -> [Child; 2] {
    let psql = source.0.programs().program("psql");
    let mut reader = Command::new(&psql)
        .args([&*source.0.url(source.1), "-X", "-q", "-c", &format!("COPY {out} TO STDOUT (FORMAT binary)")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let writer = Command::new(&psql)
        .args([&*target.0.url(target.1), "-X", "-q", "-c", &format!("COPY {into} FROM STDIN (FORMAT binary)")])
        .stdin(reader.stdout.take().unwrap())
        .spawn()
        .unwrap();
    [reader, writer]
}

pub fn joined(pipes: impl IntoIterator<Item = [Child; 2]>) {
    for mut child in pipes.into_iter().flatten() {
        assert!(child.wait().unwrap().success(), "a pipe failed");
    }
}

/// A configuration and a directory for our program.
pub struct Ours {
    workspace: Workspace,
    config: PathBuf,
}

impl Ours {
    pub fn new(name: &str, source: &str, target: &str, more: &str) -> Self {
        Self::with_source(name, source, target, more, "")
    }

    /// `source_more` is appended to `[source]`.
    pub fn with_source(name: &str, source: &str, target: &str, more: &str, source_more: &str) -> Self {
        let workspace = Workspace::create_as_self("bench").unwrap();
        let spool = workspace.dir().join("spool");
        let port = free_port().unwrap();
        let text = format!(
            "[migration]\nname = {name:?}\n[target]\nurl = {target:?}\n[tables]\ninclude = [\"public.*\"]\n\
             [limits]\nmemory = \"256MiB\"\nspool = \"8GiB\"\nspool_dir = {spool:?}\n\
             [control]\nlisten = \"127.0.0.1:{port}\"\n{more}\n[source]\nurl = {source:?}\n{source_more}\n"
        );
        let config = workspace.write("changeover.toml", text).unwrap();
        Self { workspace, config }
    }

    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_changeover"));
        command.arg(subcommand).arg("--config").arg(&self.config);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(self.workspace.dir().join("log")).unwrap());
        command
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.workspace.dir().join("log")).unwrap_or_default()
    }
}

/// What the bench of copies and the one of drains both fill.
pub const WIDE_TABLE: &str =
    "CREATE TABLE wide (id bigint NOT NULL, u uuid, t text, n numeric(14, 2), at timestamptz, doc jsonb,
     b bytea, a int[], flag boolean, none_text text, none_int int)";

/// Processor seconds and peak memory (KiB) of a process that still runs, from `/proc`.
pub fn usage(child: &Child) -> (f64, u64) {
    let pid = child.id().to_string();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    (processor_seconds(&pid), peak.trim().trim_end_matches(" kB").parse().unwrap_or_default())
}

/// Processor seconds that a process has taken so far; 0 when it is gone.
pub fn processor_seconds(pid: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
    // utime and stime are fields 14 and 15 of proc(5); the two before the closing bracket are gone. A tick is 10 ms.
    (ticks(11) + ticks(12)) / 100.0
}

pub fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "no {what} within {limit:?}");
        sleep(Duration::from_millis(20));
    }
}

pub fn timed(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

/// `name: median (min … max)`.
pub fn report(name: &str, unit: &str, values: &[f64]) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted[0], sorted[sorted.len() - 1]);
    println!("{name}: {:.3} {unit} ({low:.3} … {high:.3}, {} rounds)", sorted[sorted.len() / 2], sorted.len());
}

pub fn machine() {
    let model = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown").to_owned();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    println!("machine{model}, {cores} cores; both servers beside");
}
