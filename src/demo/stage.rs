//! Everything that stands on the demo's stage: two clusters, a pooler, and the daemon as a process of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::shop::{self, DATABASE};
use super::workspace::free_port;
use super::{
    ClusterOptions, DemoOptions, Error, PgBouncer, PgCluster, PoolerOptions, PostgresPrograms, Upstream, Workspace,
};
use crate::control::{Client, ClientError};
use crate::pipeline::{CutoverRequest, Status, VerifyRequest};

/// How often the daemon is asked how it goes.
const STATUS_PERIOD: Duration = Duration::from_millis(200);
const LOG_TAIL_LINES: usize = 15;

pub(super) struct Stage {
    pub(super) blue: PgCluster,
    pub(super) green: PgCluster,
    pub(super) pooler: PgBouncer,
    /// Prefix of the topics, when there is a broker.
    pub(super) topics: String,
}

/// Our own program, running `run` with a configuration made for the demo, and asked over HTTP like any other.
pub(super) struct Daemon {
    workspace: Workspace,
    config: PathBuf,
    listen: SocketAddr,
    client: Arc<Client>,
}

/// What the demo reads of a `verify::Report`.
#[derive(Debug, Deserialize)]
pub(super) struct Verified {
    pub verdict: String,
    pub tables: Vec<Value>,
    pub rows_verified: u64,
    /// What the tables that differ are called.
    #[serde(skip)]
    pub differing: Vec<String>,
}

/// What the demo reads of a `cutover::Report`.
#[derive(Debug, Deserialize)]
pub(super) struct CutOver {
    pub outcome: String,
    pub pause_ms: Option<f64>,
    pub forecast_ms: Option<f64>,
    /// Exact for the position of the fence.
    pub verdict: Option<String>,
    pub reason: Option<String>,
}

impl Stage {
    /// Starts blue, green (with the empty database) and the pooler, which leads to blue.
    pub(super) async fn set(options: &DemoOptions) -> Result<Self, Error> {
        let blue = programs(options.source_version, PostgresPrograms::usual)?;
        let green = programs(options.target_version, PostgresPrograms::newest)?;
        let (blue, green) = tokio::join!(start_cluster(blue), start_cluster(green));
        let (blue, green) = (blue?, green?);
        shop::create_database(&blue.url("postgres")).await?;
        shop::create_database(&green.url("postgres")).await?;
        let upstream = Upstream {
            name: DATABASE.to_owned(),
            host: "127.0.0.1".to_owned(),
            port: blue.port(),
            dbname: DATABASE.to_owned(),
        };
        // One server connection a client: nobody waits for another client's transaction, only for the cutover.
        let pool_size = u32::try_from(options.clients).unwrap_or(u32::MAX).clamp(1, 50);
        let pooler =
            blocking(move || PgBouncer::start(&PoolerOptions { databases: vec![upstream], pool_size })).await?;
        Ok(Self { blue, green, pooler, topics: format!("demo-{:08x}", fastrand::u32(..)) })
    }

    pub(super) fn blue_url(&self) -> String {
        self.blue.url(DATABASE)
    }

    pub(super) fn green_url(&self) -> String {
        self.green.url(DATABASE)
    }

    fn config(&self, kafka: Option<&str>, spool: &Path, listen: SocketAddr) -> String {
        let kafka = kafka.map(|bootstrap| {
            format!("[kafka]\nbootstrap_servers = {bootstrap:?}\ntopic_prefix = {:?}\nformat = \"json\"\n", self.topics)
        });
        format!(
            "# Made by `changeover demo`.\n\
             [migration]\nname = \"demo\"\n\
             [source]\nurl = {:?}\n\
             [target]\nurl = {:?}\n\
             [tables]\ninclude = [\"public.*\"]\n\
             [limits]\nmemory = \"256MiB\"\nspool = \"2GiB\"\nspool_dir = {spool:?}\n\
             {}\
             [cutover]\nmax_pause = \"2s\"\n\
             [[cutover.router]]\nkind = \"pgbouncer\"\nadmin_url = {:?}\ndatabases_file = {:?}\ndatabase = {DATABASE:?}\n\
             [control]\nlisten = \"{listen}\"\n",
            self.blue_url(),
            self.green_url(),
            kafka.unwrap_or_default(),
            self.pooler.admin_url(),
            self.pooler.databases_file(),
        )
    }
}

impl Daemon {
    /// Writes the configuration and starts the program.
    pub(super) fn start(stage: &Stage, kafka: Option<&str>) -> Result<Self, Error> {
        let mut workspace = Workspace::create_as_self("demo")?;
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let text = stage.config(kafka, &workspace.dir().join("spool"), listen);
        let config = workspace.write("changeover.toml", text)?;
        let program = std::env::current_exe().map_err(Error::file("find", "our own program"))?;
        let path = workspace.dir().join("daemon.log");
        let log = fs::File::create(&path).map_err(Error::file("create", &path))?;
        let mut command = workspace.command(program);
        command.arg("run").arg("--config").arg(&config).stderr(log);
        forget_settings(&mut command);
        workspace.start(&mut command)?;
        Ok(Self { workspace, config, listen, client: Arc::new(Client::new(listen, None)) })
    }

    pub(super) fn config(&self) -> &Path {
        &self.config
    }

    pub(super) fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// The next status, [`STATUS_PERIOD`] from now. `None` while the daemon does not answer yet.
    pub(super) async fn next_status(&mut self) -> Result<Option<Status>, Error> {
        sleep(STATUS_PERIOD).await;
        if self.workspace.pid().is_none() {
            return Err(Error::DaemonEnded { log: self.log_tail() });
        }
        match self.ask(|client| client.status()).await {
            Ok(status) => Ok(Some(status)),
            Err(ClientError::Unreachable { .. }) => Ok(None),
            Err(source) => Err(Error::Asked { what: "ask for the status", source }),
        }
    }

    /// Calls `look` on every status until it says that what it waits for is there. An error when a part of the daemon
    /// halts or `patience` passes.
    pub(super) async fn watch(
        &mut self,
        what: &'static str,
        patience: Duration,
        mut look: impl FnMut(&Status) -> bool,
    ) -> Result<Status, Error> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let Some(status) = self.next_status().await? else { continue };
            if let Some(trouble) = status.halted.first() {
                return Err(Error::Halted { part: trouble.part.clone(), error: trouble.error.clone() });
            }
            if look(&status) {
                return Ok(status);
            }
        }
        Err(Error::TooLate { what, seconds: patience.as_secs() })
    }

    pub(super) async fn verify(&self) -> Result<Verified, Error> {
        let answer = self.ask(|client| client.verify(&VerifyRequest::default())).await;
        let answer = answer.map_err(|source| Error::Asked { what: "verify", source })?;
        let mut verified: Verified = serde_json::from_value(answer).map_err(Error::Answer)?;
        let differing = verified.tables.iter().filter(|table| table["equal"] != true);
        verified.differing = differing.filter_map(|table| table["table"].as_str().map(str::to_owned)).collect();
        Ok(verified)
    }

    pub(super) async fn cutover(&self) -> Result<CutOver, Error> {
        let answer = self.ask(|client| client.cutover(&CutoverRequest::default())).await;
        let answer = answer.map_err(|source| Error::Asked { what: "cut over", source })?;
        let report: CutOver = serde_json::from_value(answer).map_err(Error::Answer)?;
        if report.outcome == "cut_over" {
            return Ok(report);
        }
        Err(Error::NotCutOver { reason: report.reason.unwrap_or(report.outcome) })
    }

    pub(super) fn keep(self) -> PathBuf {
        self.workspace.keep()
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.workspace.dir().join("daemon.log")).unwrap_or_default();
        // Not the lines of a backtrace, which would push out the panic they belong to.
        let lines: Vec<&str> = log.lines().filter(|line| !line.starts_with(' ')).collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Client) -> Result<T, ClientError> + Send + 'static,
    ) -> Result<T, ClientError> {
        let client = Arc::clone(&self.client);
        blocking(move || question(&client)).await
    }
}

/// A user's own `CHANGEOVER_SOURCE_URL` must not turn the demo on their database.
fn forget_settings(command: &mut Command) {
    const KEPT: [&str; 3] = ["CHANGEOVER_TOOLS", "CHANGEOVER_PG_DUMP", "CHANGEOVER_POSTGRES_BIN"];
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CHANGEOVER_") && !KEPT.contains(&text.as_ref()) {
            command.env_remove(&name);
        }
    }
}

fn programs(
    version: Option<u32>,
    otherwise: impl FnOnce() -> Result<PostgresPrograms, Error>,
) -> Result<PostgresPrograms, Error> {
    version.map_or_else(otherwise, PostgresPrograms::of_major)
}

/// With fsync: a pause measured on servers that risk their data would flatter.
async fn start_cluster(programs: PostgresPrograms) -> Result<PgCluster, Error> {
    let options = ClusterOptions::fast(programs);
    let options = options.setting("fsync", "on").setting("full_page_writes", "on").setting("shared_buffers", "128MB");
    blocking(move || PgCluster::start(options)).await
}

/// On a thread where blocking is allowed.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(failure) => std::panic::resume_unwind(failure.into_panic()),
    }
}
