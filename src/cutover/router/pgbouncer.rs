//! PgBouncer: PAUSE, another line in the file that it includes, RELOAD, RESUME. Clients wait in its queue meanwhile and
//! see nothing but a longer query.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tokio_postgres::SimpleQueryMessage;
use tracing::debug;

use super::{Router, RouterError, RouterFuture, fragment};
use crate::model::quote_identifier;
use crate::wire::{self, Endpoint, Session};

/// A PAUSE waits for every transaction that is open and holds back all new ones meanwhile. When it takes longer than
/// this, one slow transaction would make everybody wait: they are let through, and it is tried again.
const PAUSE_ATTEMPT: Duration = Duration::from_millis(500);
/// Between attempts, so that those who waited get their turn.
const PAUSE_WAIT: Duration = Duration::from_millis(100);
const ANSWER_MAX: Duration = Duration::from_secs(5);

pub struct PgBouncer {
    console: Endpoint,
    databases_file: PathBuf,
    database: String,
    /// What stands after `database =` once the clients belong on green.
    green: String,
    sessions: Mutex<Option<Sessions>>,
}

/// Two, because a console that waits for its PAUSE takes no other command.
struct Sessions {
    pause: Session,
    command: Session,
}

impl PgBouncer {
    /// `console` is the database `pgbouncer`; `databases_file` the fragment that its configuration includes, and
    /// `database` the entry in it; `green` what that entry becomes, such as `host=green port=5432 dbname=shop`.
    pub fn new(console: Endpoint, databases_file: PathBuf, database: String, green: String) -> Self {
        Self { console, databases_file, database, green, sessions: Mutex::new(None) }
    }

    /// Runs `work` on open sessions, opening them if need be. After an error they are opened anew the next time.
    async fn with_sessions<T>(
        &self,
        work: impl AsyncFnOnce(&Sessions) -> Result<T, RouterError>,
    ) -> Result<T, RouterError> {
        let mut guard = self.sessions.lock().await;
        // Taken out, so that a caller who is dropped half-way leaves no console that still waits for its PAUSE.
        let sessions = match guard.take() {
            Some(sessions) if !sessions.pause.is_closed() && !sessions.command.is_closed() => sessions,
            Some(_) | None => Sessions {
                pause: wire::connect_plain(&self.console, "cutover").await?,
                command: wire::connect_plain(&self.console, "cutover").await?,
            },
        };
        let done = work(&sessions).await;
        if done.is_ok() {
            *guard = Some(sessions);
        }
        done
    }

    async fn pause(&self, sessions: &Sessions) -> Result<(), RouterError> {
        let pause = format!("PAUSE {}", quote_identifier(&self.database));
        loop {
            let attempt = sessions.pause.batch_execute(&pause);
            tokio::pin!(attempt);
            if let Ok(paused) = timeout(PAUSE_ATTEMPT, &mut attempt).await {
                return paused.map_err(|source| RouterError::Query { command: "PAUSE", source });
            }
            debug!("the pooler's clients were not idle in time, letting them through");
            self.resume(sessions).await?;
            // RESUME ends the waiting PAUSE with an error, which is read here so that the session is free again.
            if timeout(ANSWER_MAX, attempt).await.is_err() {
                return Err(RouterError::NoAnswer(ANSWER_MAX));
            }
            sleep(PAUSE_WAIT).await;
        }
    }

    async fn resume(&self, sessions: &Sessions) -> Result<(), RouterError> {
        let state = self.state(sessions).await?;
        if !state.paused {
            return Ok(());
        }
        let resume = format!("RESUME {}", quote_identifier(&self.database));
        command(&sessions.command, "RESUME", &resume).await.map(drop)
    }

    /// The database as the pooler knows it now.
    async fn state(&self, sessions: &Sessions) -> Result<Known, RouterError> {
        let messages = command(&sessions.command, "SHOW DATABASES", "SHOW DATABASES").await?;
        let missing = || RouterError::NoDatabase { database: self.database.clone() };
        let rows = messages
            .iter()
            .filter_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None });
        let text =
            |row: &tokio_postgres::SimpleQueryRow, column: &str| row.try_get(column).ok().flatten().map(str::to_owned);
        let mut named = rows.filter(|row| text(row, "name").as_deref() == Some(&self.database));
        let row = named.next().ok_or_else(missing)?;
        Ok(Known {
            host: text(row, "host"),
            port: text(row, "port"),
            dbname: text(row, "database"),
            paused: text(row, "paused").as_deref() == Some("1"),
        })
    }

    /// The new text beside the old one, on the disk: inside the pause it only takes its place.
    async fn write_beside(&self) -> Result<(), RouterError> {
        let old = read(&self.databases_file).await?;
        let new = fragment::rewrite(&old, &self.database, &self.green);
        let (path, beside) = (self.databases_file.clone(), self.beside());
        let written = tokio::task::spawn_blocking(move || write_durably(&path, &beside, &new)).await;
        let written = written.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        written.map_err(|source| file("write beside", &self.databases_file, source))
    }

    fn beside(&self) -> PathBuf {
        let mut name = self.databases_file.file_name().unwrap_or_default().to_owned();
        name.push(".changeover");
        self.databases_file.with_file_name(name)
    }

    async fn repoint(&self, sessions: &Sessions) -> Result<(), RouterError> {
        if fragment::connection(&read(&self.databases_file).await?, &self.database) != Some(&self.green) {
            if !tokio::fs::try_exists(self.beside()).await.unwrap_or(false) {
                self.write_beside().await?;
            }
            let renamed = tokio::fs::rename(self.beside(), &self.databases_file).await;
            renamed.map_err(|source| file("replace", &self.databases_file, source))?;
        }
        command(&sessions.command, "RELOAD", "RELOAD").await?;
        // Before a single client is let go: RELOAD says nothing of a file that the configuration does not include.
        let known = self.state(sessions).await?;
        if known.leads_to(&self.green) {
            Ok(())
        } else {
            Err(RouterError::NotRepointed { database: self.database.clone() })
        }
    }
}

struct Known {
    host: Option<String>,
    port: Option<String>,
    dbname: Option<String>,
    paused: bool,
}

impl Known {
    fn leads_to(&self, connection: &str) -> bool {
        let same = |key: &str, known: &Option<String>| {
            fragment::parameter(connection, key).is_none_or(|wanted| known.as_deref() == Some(&wanted))
        };
        same("host", &self.host) && same("port", &self.port) && same("dbname", &self.dbname)
    }
}

impl Router for PgBouncer {
    fn name(&self) -> String {
        format!("pgbouncer at {}", self.console)
    }

    fn check(&self) -> RouterFuture<'_> {
        Box::pin(async move {
            self.with_sessions(async |sessions| self.state(sessions).await.map(drop)).await?;
            self.write_beside().await
        })
    }

    fn hold(&self) -> RouterFuture<'_> {
        Box::pin(self.with_sessions(async |sessions| self.pause(sessions).await))
    }

    fn flip(&self) -> RouterFuture<'_> {
        Box::pin(self.with_sessions(async |sessions| {
            self.repoint(sessions).await?;
            self.resume(sessions).await
        }))
    }

    fn release(&self) -> RouterFuture<'_> {
        Box::pin(async move {
            let released = self.with_sessions(async |sessions| self.resume(sessions).await).await;
            // Prepared for a flip that does not come; the next attempt writes it anew.
            match tokio::fs::remove_file(self.beside()).await {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => debug!(%error, "the prepared file stays"),
            }
            released
        })
    }
}

async fn command(session: &Session, command: &'static str, text: &str) -> Result<Vec<SimpleQueryMessage>, RouterError> {
    let answer =
        timeout(ANSWER_MAX, session.simple_query(text)).await.map_err(|_| RouterError::NoAnswer(ANSWER_MAX))?;
    answer.map_err(|source| RouterError::Query { command, source })
}

async fn read(path: &Path) -> Result<String, RouterError> {
    tokio::fs::read_to_string(path).await.map_err(|source| file("read", path, source))
}

fn file(what: &'static str, path: &Path, source: std::io::Error) -> RouterError {
    RouterError::File { what, path: path.display().to_string(), source }
}

/// With the rights of the file it will replace, and on the disk before it does.
fn write_durably(path: &Path, beside: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, chown};
    let old = std::fs::metadata(path)?;
    let mut file = std::fs::File::create(beside)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(old.permissions())?;
    // Only the superuser may give a file away; anyone else writes as himself, which PgBouncer can read as before.
    if let Err(error) = chown(beside, Some(old.uid()), Some(old.gid())) {
        debug!(%error, "the new file keeps our own user");
    }
    file.sync_all()
}
