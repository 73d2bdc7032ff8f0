//! Which PostgreSQL server programs are installed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::{Error, workspace};

/// One installed set of server programs (`initdb`, `postgres`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresPrograms {
    /// 13 to 18 and whatever comes.
    pub major: u32,
    /// As `postgres --version` says it, for example `15.20`.
    pub version: String,
    pub bin: PathBuf,
}

impl PostgresPrograms {
    /// Every set that is installed, oldest first, one a major version. Looked for once a process, in this order:
    /// `CHANGEOVER_POSTGRES_BIN` (a list separated by colons), the Debian layout, `PATH`, `pg_config --bindir`, what
    /// `docker/setup.sh` put into [`tools_dir`].
    pub fn find() -> Result<&'static [Self], Error> {
        static FOUND: OnceLock<Vec<PostgresPrograms>> = OnceLock::new();
        let found = FOUND.get_or_init(look);
        if found.is_empty() {
            return Err(Error::NotInstalled { program: "initdb (PostgreSQL server)".to_owned(), purpose: "demo" });
        }
        Ok(found)
    }

    pub fn newest() -> Result<Self, Error> {
        Ok(Self::find()?.last().expect("find returns at least one").clone())
    }

    /// The newest set that is whole (`pg_dump` and `pgbench` beside the server), else the newest: what is used when nobody
    /// asks for a version.
    pub fn usual() -> Result<Self, Error> {
        let whole = |programs: &&Self| ["pg_dump", "pgbench"].iter().all(|name| programs.program(name).is_file());
        Self::find()?.iter().rfind(whole).cloned().map_or_else(Self::newest, Ok)
    }

    pub fn of_major(major: u32) -> Result<Self, Error> {
        let all = Self::find()?;
        let found = || all.iter().map(|one| one.major.to_string()).collect::<Vec<_>>().join(", ");
        let wanted = all.iter().find(|one| one.major == major).cloned();
        wanted.ok_or_else(|| Error::NoSuchVersion { major, found: found() })
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    fn at(bin: &Path) -> Option<Self> {
        if !bin.join("initdb").is_file() {
            return None;
        }
        let output = Command::new(bin.join("postgres")).arg("--version").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        // "postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)", "… 18beta1"
        let version = text.split_whitespace().nth(2)?.to_owned();
        let digits = version.find(|character: char| !character.is_ascii_digit()).unwrap_or(version.len());
        Some(Self { major: version[..digits].parse().ok()?, version, bin: bin.to_owned() })
    }
}

/// Where `docker/setup.sh` puts programs that the system's packages do not offer: `CHANGEOVER_TOOLS`, else
/// `/var/cache/changeover` for root (whose home other users cannot enter, and servers do not run as root), else
/// `~/.cache/changeover`.
pub fn tools_dir() -> PathBuf {
    if let Some(dir) = env::var_os("CHANGEOVER_TOOLS") {
        return dir.into();
    }
    match env::var_os("HOME") {
        Some(home) if !workspace::is_root() => Path::new(&home).join(".cache/changeover"),
        Some(_) | None => "/var/cache/changeover".into(),
    }
}

fn look() -> Vec<PostgresPrograms> {
    let mut found: Vec<PostgresPrograms> = Vec::new();
    for bin in places() {
        if let Some(programs) = PostgresPrograms::at(&bin)
            && found.iter().all(|other| other.major != programs.major)
        {
            found.push(programs);
        }
    }
    found.sort_by_key(|programs| programs.major);
    found
}

fn places() -> Vec<PathBuf> {
    let listed = env::var_os("CHANGEOVER_POSTGRES_BIN").unwrap_or_default();
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = env::split_paths(&listed).collect();
    places.extend(bins_below(Path::new("/usr/lib/postgresql")));
    places.extend(env::split_paths(&path));
    places.extend(pg_config_bindir());
    places.extend(bins_below(&tools_dir().join("postgres")));
    places
}

fn bins_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().join("bin")).collect()
}

fn pg_config_bindir() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(text.trim()))
}
