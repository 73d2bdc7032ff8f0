//! pg_dump: finding one that is new enough, and running it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::super::Error;
use crate::model::{TableName, quote_identifier};
use crate::wire::Endpoint;

/// Held in memory once. A dump of two hundred thousand tables has about this size.
const DUMP_BYTES_MAX: u64 = 512 << 20;
/// Enough for pg_dump's last words.
const COMPLAINT_BYTES_MAX: u64 = 16 << 10;
/// How long pg_dump waits for its ACCESS SHARE locks before it gives up.
const LOCK_WAIT_MS: u32 = 30_000;

/// What libpq says of a server that went or that is not there (`fe-connect.c`, `fe-misc.c`; before 14 the second), and
/// the server of a lock that somebody keeps. A password that is wrong says so of our own connections first.
const PASSING: [&str; 5] = [
    "connection to server",
    "could not connect to server",
    "server closed the connection",
    "SSL connection has been closed",
    "due to lock timeout",
];

/// A pg_dump that is there and answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgDump {
    pub path: PathBuf,
    pub major: u32,
}

/// Part of a dump (`pg_dump --section`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    PreData,
    PostData,
}

impl Section {
    const fn as_str(self) -> &'static str {
        match self {
            Self::PreData => "pre-data",
            Self::PostData => "post-data",
        }
    }
}

/// The oldest pg_dump that is at least `at_least_major`, which must not be older than the server it reads. `configured`
/// (the user's choice) and `CHANGEOVER_PG_DUMP` are taken as they are or refused; then `PATH`, Debian's directories and
/// what our set-up script installed are looked through.
pub async fn find_pg_dump(at_least_major: u32, configured: Option<&Path>) -> Result<PgDump, Error> {
    let named = configured.map(Path::to_owned).or_else(|| std::env::var_os("CHANGEOVER_PG_DUMP").map(PathBuf::from));
    if let Some(path) = named {
        let major = major_of(&path).await.ok_or_else(|| Error::PgDumpUnusable { path: path.clone() })?;
        if major < at_least_major {
            return Err(Error::PgDumpTooOld { path, major, at_least_major });
        }
        return Ok(PgDump { path, major });
    }
    let mut asked = JoinSet::new();
    for (place, path) in candidates().into_iter().enumerate() {
        asked.spawn(async move { major_of(&path).await.map(|major| (major, place, path)) });
    }
    let found: Vec<_> = asked.join_all().await.into_iter().flatten().collect();
    let newest = found.iter().map(|(major, ..)| *major).max();
    // The nearest version writes what both servers are most likely to understand; of several, what comes first on PATH.
    let fitting = found.into_iter().filter(|(major, ..)| *major >= at_least_major).min();
    let fitting = fitting.map(|(major, _, path)| PgDump { path, major });
    fitting.ok_or(Error::PgDumpMissing { at_least_major, newest })
}

fn candidates() -> Vec<PathBuf> {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&on_path).collect();
    directories.extend(versions_below(Path::new("/usr/lib/postgresql")));
    directories.extend(tools_directories().iter().flat_map(|tools| versions_below(&tools.join("pg_dump"))));
    let found = directories.into_iter().map(|directory| directory.join("pg_dump")).filter(|path| path.is_file());
    let (wrappers, programs): (Vec<_>, Vec<_>) = found.partition(|path| is_wrapper(path));
    if programs.is_empty() { wrappers } else { programs }
}

/// Debian's `/usr/bin/pg_dump`: a Perl script (`postgresql-common`) that runs one of those below `/usr/lib/postgresql`, and
/// takes longer to find it than that takes to dump a small schema.
fn is_wrapper(path: &Path) -> bool {
    std::fs::canonicalize(path).is_ok_and(|path| path.ends_with("pg_wrapper"))
}

/// `<root>/<version>/bin` for every version there is.
fn versions_below(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().join("bin")).collect()
}

/// Where the set-up script puts what the distribution lacks: what it is told, else by who ran it.
fn tools_directories() -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os("CHANGEOVER_TOOLS") {
        return vec![named.into()];
    }
    let own = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/changeover"));
    own.into_iter().chain([PathBuf::from("/var/cache/changeover")]).collect()
}

/// `None` when it does not run or does not say its version.
async fn major_of(path: &Path) -> Option<u32> {
    let output = Command::new(path).arg("--version").stdin(Stdio::null()).output().await.ok()?;
    parse_major(&String::from_utf8_lossy(&output.stdout))
}

/// `pg_dump (PostgreSQL) 15.20 (Debian 15.20-1)`, `... 18beta1`.
fn parse_major(version: &str) -> Option<u32> {
    let number = version.split(')').nth(1)?.trim_start();
    let digits = number.find(|character: char| !character.is_ascii_digit()).unwrap_or(number.len());
    number[..digits].parse().ok()
}

impl PgDump {
    /// The text of one section of the whole database. `excluded` tables and sequences and our own schema are left out.
    ///
    /// The whole database, because `--schema` and `--table` leave out extensions, casts and languages, and types and
    /// functions that the chosen tables need.
    pub(crate) async fn section(
        &self,
        source: &Endpoint,
        section: Section,
        excluded: &[TableName],
    ) -> Result<String, Error> {
        let failed = |source| Error::PgDumpStart { path: self.path.clone(), source };
        let mut child = Command::new(&self.path)
            .args(arguments(section, excluded))
            .envs(source.libpq_env())
            .env("PGAPPNAME", "changeover schema")
            // Its complaint is read by us too.
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (text, complaint) = collect(&mut child).await.map_err(failed)?;
        if text.len() as u64 > DUMP_BYTES_MAX {
            return Err(Error::DumpTooLarge { bytes_max: DUMP_BYTES_MAX });
        }
        if !child.wait().await.map_err(failed)?.success() {
            let passing = PASSING.iter().any(|phrase| complaint.contains(phrase));
            return Err(if passing { Error::PgDumpCutOff { complaint } } else { Error::PgDumpFailed { complaint } });
        }
        String::from_utf8(text).map_err(|_| Error::DumpEncoding)
    }
}

/// Everything but the connection, which stands in the environment where other users cannot read it.
fn arguments(section: Section, excluded: &[TableName]) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec![
        format!("--section={}", section.as_str()).into(),
        "--format=plain".into(),
        "--encoding=UTF8".into(),
        "--no-sync".into(),
        "--no-password".into(),
        "--no-subscriptions".into(),
        format!("--lock-wait-timeout={LOCK_WAIT_MS}").into(),
        "--exclude-schema=changeover".into(),
    ];
    // Between double quotes nothing in a pattern is special ("Patterns" in psql's documentation).
    arguments.extend(excluded.iter().map(|table| {
        format!("--exclude-table={}.{}", quote_identifier(&table.schema), quote_identifier(&table.name)).into()
    }));
    arguments
}

/// Both pipes at once, or a full one would stop the other.
async fn collect(child: &mut Child) -> std::io::Result<(Vec<u8>, String)> {
    let out = child.stdout.take().expect("it was started with a pipe");
    let err = child.stderr.take().expect("it was started with a pipe");
    let (text, complaint) =
        tokio::try_join!(read_up_to(out, DUMP_BYTES_MAX + 1), read_up_to(err, COMPLAINT_BYTES_MAX))?;
    Ok((text, String::from_utf8_lossy(&complaint).trim().replace('\n', "; ")))
}

/// Keeps at most `bytes_max`, then closes the pipe, which ends the writer.
async fn read_up_to(pipe: impl AsyncRead + Unpin, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    pipe.take(bytes_max).read_to_end(&mut text).await?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_pg_dump_prints_them() {
        for (text, major) in [
            ("pg_dump (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)\n", Some(15)),
            ("pg_dump (PostgreSQL) 18.1\n", Some(18)),
            ("pg_dump (PostgreSQL) 19devel\n", Some(19)),
            ("pg_dump: command not found", None),
        ] {
            assert_eq!(parse_major(text), major, "{text}");
        }
    }

    #[test]
    fn excluded_names_are_patterns_that_match_only_themselves() {
        let arguments = arguments(Section::PostData, &[TableName::new("a.b", "c*\"d")]);
        assert_eq!(arguments.last().unwrap(), r#"--exclude-table="a.b"."c*""d""#);
    }

    #[tokio::test]
    async fn a_configured_program_is_taken_or_refused() {
        let missing = find_pg_dump(15, Some(Path::new("/nowhere/pg_dump"))).await;
        assert!(matches!(missing, Err(Error::PgDumpUnusable { .. })));
    }
}
