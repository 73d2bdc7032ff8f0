//! A throw-away PgBouncer.

use std::env;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::workspace::free_port;
use super::{Error, Workspace};

const START_PATIENCE: Duration = Duration::from_secs(20);
const PORT_ATTEMPTS: usize = 5;

/// Where one database name of the pooler leads.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// The name that clients ask for.
    pub name: String,
    pub host: String,
    pub port: u16,
    pub dbname: String,
}

#[derive(Clone, Debug)]
pub struct PoolerOptions {
    pub databases: Vec<Upstream>,
    /// Server connections a database.
    pub pool_size: u32,
}

/// A running PgBouncer in transaction pooling. Its `[databases]` stand in a fragment of their own, included by the
/// main file, which is what a cutover rewrites. Everybody may log in as `postgres`, who is also its administrator.
#[derive(Debug)]
pub struct PgBouncer {
    workspace: Workspace,
    port: u16,
}

impl PgBouncer {
    pub fn start(options: &PoolerOptions) -> Result<Self, Error> {
        let program = find_program()?;
        let workspace = Workspace::create("pgbouncer")?;
        workspace.write("databases.ini", fragment(&options.databases))?;
        workspace.write("users.txt", "\"postgres\" \"\"\n")?;
        let mut pooler = Self { workspace, port: 0 };
        pooler.start_on_a_free_port(&program, options)?;
        Ok(pooler)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// For clients of the database `name`.
    pub fn url(&self, name: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.port)
    }

    /// The administration console (simple protocol only).
    pub fn admin_url(&self) -> String {
        self.url("pgbouncer")
    }

    /// The included fragment that holds `[databases]`.
    pub fn databases_file(&self) -> PathBuf {
        self.workspace.dir().join("databases.ini")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.workspace.dir().join("pgbouncer.log")).unwrap_or_default()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.workspace.kill();
    }

    pub fn keep(self) -> PathBuf {
        self.workspace.keep()
    }

    fn start_on_a_free_port(&mut self, program: &Path, options: &PoolerOptions) -> Result<(), Error> {
        for _ in 0..PORT_ATTEMPTS {
            self.port = free_port()?;
            let main = main_file(self.workspace.dir(), self.port, options.pool_size);
            let path = self.workspace.write("pgbouncer.ini", main)?;
            let mut command = self.workspace.command(program);
            self.workspace.start(command.arg(path))?;
            if self.answers() {
                return Ok(());
            }
            self.workspace.kill();
        }
        Err(Error::NotStarted { server: "PgBouncer", log: self.log() })
    }

    /// False when it ended, or does not listen in time.
    fn answers(&mut self) -> bool {
        let deadline = Instant::now() + START_PATIENCE;
        while self.workspace.pid().is_some() && Instant::now() < deadline {
            // The line comes after the sockets are bound, so a listener on our port is ours.
            if self.log().contains("process up") && TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

fn fragment(databases: &[Upstream]) -> String {
    let line = |one: &Upstream| {
        format!("{} = host={} port={} dbname={} user=postgres\n", one.name, one.host, one.port, one.dbname)
    };
    format!("[databases]\n{}", databases.iter().map(line).collect::<String>())
}

fn main_file(dir: &Path, port: u16, pool_size: u32) -> String {
    let dir = dir.display();
    format!(
        "%include {dir}/databases.ini\n\
         [pgbouncer]\n\
         listen_addr = 127.0.0.1\n\
         listen_port = {port}\n\
         unix_socket_dir =\n\
         auth_type = trust\n\
         auth_file = {dir}/users.txt\n\
         admin_users = postgres\n\
         pool_mode = transaction\n\
         default_pool_size = {pool_size}\n\
         max_client_conn = 400\n\
         ignore_startup_parameters = extra_float_digits,options\n\
         server_fast_close = 1\n\
         logfile = {dir}/pgbouncer.log\n\
         log_connections = 0\n\
         log_disconnections = 0\n"
    )
}

fn find_program() -> Result<PathBuf, Error> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian puts it where users other than root do not look.
    let places = env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let found = places.map(|dir| dir.join("pgbouncer")).find(|program| program.is_file());
    found.ok_or(Error::NotInstalled { program: "pgbouncer".to_owned(), purpose: "demo" })
}
