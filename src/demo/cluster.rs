//! A throw-away PostgreSQL cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::template::create_data_dir;
use super::workspace::free_port;
use super::{Error, PostgresPrograms, Workspace};

/// A start on a busy machine takes seconds, crash recovery more.
const START_PATIENCE: Duration = Duration::from_secs(60);
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// Another process may take the port between the look and the start.
const PORT_ATTEMPTS: usize = 5;
const LOG_TAIL_BYTES: usize = 2_000;

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    programs: PostgresPrograms,
    settings: Vec<(String, String)>,
    hba: Option<String>,
    files: Vec<(String, Vec<u8>)>,
}

/// How a running server is stopped ("Shutting Down the Server" in the documentation).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions are ended, then a shutdown checkpoint.
    Fast,
    /// No checkpoint: the next start recovers from the log.
    Immediate,
    /// `kill -9` of the postmaster.
    Kill,
}

/// A running (or stopped) server with a data directory, a TCP port on 127.0.0.1 and a Unix socket of its own. Superuser
/// `postgres`, no password unless the options say so. Gone when dropped.
#[derive(Debug)]
pub struct PgCluster {
    options: ClusterOptions,
    workspace: Workspace,
    data: PathBuf,
    port: u16,
}

impl ClusterOptions {
    /// Settings for servers that come by the hundred and hold nothing of value: little memory, no fsync,
    /// `wal_level = logical`.
    pub fn fast(programs: PostgresPrograms) -> Self {
        let settings = [
            ("wal_level", "logical"),
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("shared_buffers", "24MB"),
            ("max_connections", "80"),
            ("max_wal_senders", "12"),
            ("max_replication_slots", "12"),
            ("max_prepared_transactions", "8"),
            ("jit", "off"),
            ("log_checkpoints", "off"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Self { programs, settings, hba: None, files: Vec::new() }
    }

    /// A line of `postgresql.conf`; the last one of a name wins.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The whole of `pg_hba.conf` instead of trust for everybody. Keep a `local all postgres trust` line: the
    /// harness comes in through it.
    #[must_use]
    pub fn hba(mut self, text: &str) -> Self {
        self.hba = Some(text.to_owned());
        self
    }

    /// A file in the data directory readable by the server alone (certificates, keys).
    #[must_use]
    pub fn file(mut self, name: &str, contents: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.to_owned(), contents.into()));
        self
    }
}

impl PgCluster {
    /// Makes and starts a cluster. Blocks for some hundred milliseconds (some seconds the first time on a machine).
    pub fn start(options: ClusterOptions) -> Result<Self, Error> {
        let workspace = Workspace::create(&format!("pg{}", options.programs.major))?;
        let data = create_data_dir(&workspace, &options.programs)?;
        let mut cluster = Self { options, workspace, data, port: 0 };
        cluster.configure()?;
        cluster.start_on_a_free_port()?;
        Ok(cluster)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the Unix socket, as libpq's `host` takes it.
    pub fn socket_dir(&self) -> &Path {
        self.workspace.dir()
    }

    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    pub fn programs(&self) -> &PostgresPrograms {
        &self.options.programs
    }

    /// As the superuser over TCP.
    pub fn url(&self, dbname: &str) -> String {
        self.url_as("postgres", dbname)
    }

    pub fn url_as(&self, user: &str, dbname: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{dbname}", self.port)
    }

    /// As the superuser over the Unix socket, in libpq's `key=value` form.
    pub fn socket_dsn(&self, dbname: &str) -> String {
        format!("host={} port={} user=postgres dbname={dbname}", self.workspace.dir().display(), self.port)
    }

    pub fn stop(&mut self, mode: StopMode) {
        match mode {
            StopMode::Fast => self.workspace.stop("INT", STOP_PATIENCE),
            StopMode::Immediate => self.workspace.stop("QUIT", STOP_PATIENCE),
            StopMode::Kill => self.workspace.kill(),
        }
    }

    /// Starts a stopped server again, on the same port. After a kill this waits for the orphaned backends to go.
    pub fn start_again(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            match self.try_start() {
                Err(Error::NotStarted { log, .. })
                    if log.contains("shared memory block") && Instant::now() < deadline =>
                {
                    thread::sleep(Duration::from_millis(50));
                }
                other => return other,
            }
        }
    }

    pub fn restart(&mut self, mode: StopMode) -> Result<(), Error> {
        self.stop(mode);
        self.start_again()
    }

    /// Adds lines to `postgresql.conf` and makes the server read it again (not every setting takes effect so).
    pub fn reload_with(&mut self, settings: &[(&str, &str)]) -> Result<(), Error> {
        self.options.settings.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self.configure()?;
        self.workspace.signal("HUP");
        Ok(())
    }

    /// What the server has written to its log.
    pub fn log(&self) -> String {
        fs::read(self.workspace.dir().join("server.log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The server and its directory stay after we have gone.
    pub fn keep(self) -> PathBuf {
        self.workspace.keep()
    }

    fn configure(&self) -> Result<(), Error> {
        let mut text = format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nlog_destination = stderr\n\
             logging_collector = off\nlog_timezone = 'UTC'\ntimezone = 'UTC'\n",
            self.workspace.dir().display()
        );
        for (name, value) in &self.options.settings {
            text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        self.workspace.write(self.data.join("postgresql.conf"), text)?;
        if let Some(hba) = &self.options.hba {
            self.workspace.write(self.data.join("pg_hba.conf"), hba)?;
        }
        for (name, contents) in &self.options.files {
            self.workspace.write(self.data.join(name), contents)?;
        }
        Ok(())
    }

    fn start_on_a_free_port(&mut self) -> Result<(), Error> {
        let mut attempt = 1;
        loop {
            self.port = free_port()?;
            match self.try_start() {
                Err(Error::NotStarted { log, .. }) if log.contains("in use") && attempt < PORT_ATTEMPTS => attempt += 1,
                other => return other,
            }
        }
    }

    fn try_start(&mut self) -> Result<(), Error> {
        let log_bytes_before = self.log().len();
        // Opened by us and handed over: the server appends to it under its own user.
        let path = self.workspace.dir().join("server.log");
        let open = fs::OpenOptions::new().create(true).append(true).open(&path);
        let log = open.map_err(Error::file("open", &path))?;
        let mut command = self.workspace.command(self.options.programs.program("postgres"));
        command.arg("-D").arg(&self.data).arg("-p").arg(self.port.to_string()).current_dir(&self.data).stderr(log);
        self.workspace.start(&mut command)?;
        if self.becomes_ready() {
            return Ok(());
        }
        self.workspace.kill();
        let log = self.log().split_off(log_bytes_before);
        let tail = log.char_indices().rev().nth(LOG_TAIL_BYTES).map_or(0, |(at, _)| at);
        Err(Error::NotStarted { server: "PostgreSQL", log: log[tail..].trim().to_owned() })
    }

    /// False when the server ended, or is not ready after [`START_PATIENCE`].
    fn becomes_ready(&mut self) -> bool {
        let deadline = Instant::now() + START_PATIENCE;
        while let Some(pid) = self.workspace.pid() {
            if says_ready(&self.data.join("postmaster.pid"), pid) {
                return true;
            }
            if Instant::now() > deadline {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

/// `postmaster.pid`: the first line is the process id, the eighth the status, as `pg_ctl -w` reads it
/// (src/include/utils/pidfile.h).
fn says_ready(path: &Path, pid: u32) -> bool {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut lines = text.lines();
    lines.next().is_some_and(|first| first.trim() == pid.to_string())
        && lines.nth(6).is_some_and(|status| status.trim() == "ready")
}
