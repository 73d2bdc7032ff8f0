//! One session on the target that runs steps, each in a transaction of its own that also records it.

use std::collections::HashSet;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{CopyOptions, Steps};
use crate::model::{MigrationName, TableName, quote_literal};
use crate::schema::dump::{Entry, Setting};
use crate::schema::{Error, locks};
use crate::wire::{self, Session};

/// A step that waits for a lock lets nobody else pass meanwhile, the stream's applier included: short, and often.
const LOCK_TIMEOUT_MS: u32 = 2_000;
const LOCK_ATTEMPTS: u32 = 30;
/// SQLSTATE of a `lock_timeout` that ran out.
const LOCK_NOT_AVAILABLE: &str = "55P03";
const INSUFFICIENT_PRIVILEGE: &str = "42501";
const LOCK_PAUSE: Duration = Duration::from_millis(250);

/// Something to be done once.
#[derive(Clone, Debug, Default)]
pub(super) struct Step {
    /// For people: `INDEX public.orders_by_customer`.
    pub(super) title: String,
    pub(super) settings: Vec<Setting>,
    pub(super) statements: Vec<String>,
    /// What it locks, to name who is in the way.
    pub(super) relation: Option<TableName>,
    /// Left out, and said so, when the role may not do it.
    pub(super) optional: bool,
}

impl Step {
    pub(super) fn of(entry: &Entry) -> Self {
        Self {
            title: entry.title(),
            settings: entry.settings.clone(),
            statements: entry.statements.clone(),
            relation: entry.relation(),
            // pg_dump writes it for extensions that the target's administrator made, who alone may comment on them.
            optional: entry.kind == "COMMENT" && entry.name.starts_with("EXTENSION "),
        }
    }

    /// What is recorded: the title, and a hash of the statements since two objects may share a title.
    pub(super) fn key(&self) -> String {
        let bytes = self.statements.iter().flat_map(|statement| statement.bytes());
        let hash = bytes
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        format!("{} {hash:016x}", self.title)
    }

    /// Settings of an entry hold for its transaction only.
    pub(super) fn sql(&self) -> String {
        let settings = self.settings.iter().map(|setting| setting.statement.replacen("SET ", "SET LOCAL ", 1));
        settings.chain(self.statements.iter().cloned()).map(|statement| format!("{statement};\n")).collect()
    }
}

/// Those that are not recorded as done.
pub(super) fn left_of(steps: Vec<Step>, done: &HashSet<String>) -> Vec<Step> {
    steps.into_iter().filter(|step| !done.contains(&step.key())).collect()
}

pub(super) struct Worker {
    pub(super) session: Session,
    migration: MigrationName,
    stop: CancellationToken,
}

impl Worker {
    /// Connects, and sets what the dump wants set, as far as the target knows it.
    pub(super) async fn open(
        options: &CopyOptions,
        preamble: &[Setting],
        stop: &CancellationToken,
    ) -> Result<Self, Error> {
        let session = wire::connect(&options.target, "schema").await.map_err(Error::Connect)?;
        let worker = Self { session, migration: options.migration.clone(), stop: stop.clone() };
        worker.set(preamble).await?;
        Ok(worker)
    }

    /// A newer pg_dump sets parameters that an older server lacks (`transaction_timeout`).
    async fn set(&self, preamble: &[Setting]) -> Result<(), Error> {
        let names: Vec<&str> = preamble.iter().map(|setting| setting.name.as_str()).collect();
        let sql = "SELECT name FROM pg_catalog.pg_settings WHERE name = ANY ($1)";
        let doing = || Error::query("set what the dump asks for");
        let rows = self.session.query(sql, &[&names]).await.map_err(doing())?;
        let known: HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
        let (apply, skip): (Vec<_>, Vec<_>) = preamble.iter().partition(|setting| known.contains(&setting.name));
        for setting in skip {
            debug!(setting = setting.name, "the target does not have this setting");
        }
        let sql: String = apply.iter().map(|setting| format!("{};", setting.statement)).collect();
        self.session.batch_execute(&sql).await.map_err(doing())
    }

    /// Sets `maintenance_work_mem` and the like for this session.
    pub(super) async fn set_limits(&self, options: &CopyOptions) -> Result<(), Error> {
        let memory = options.maintenance_work_mem.as_ref();
        let parallel = options.parallel_maintenance_workers;
        let sql = [
            memory.map(|size| format!("SET maintenance_work_mem = {};", quote_literal(size))),
            parallel.map(|count| format!("SET max_parallel_maintenance_workers = {count};")),
        ];
        let sql: String = sql.into_iter().flatten().collect();
        self.session.batch_execute(&sql).await.map_err(Error::query("set the limits for building indexes"))
    }

    /// The keys of the steps that are recorded as done.
    pub(super) async fn done(&self) -> Result<HashSet<String>, Error> {
        let sql = "SELECT step FROM changeover.step WHERE migration = $1";
        let rows = self.session.query(sql, &[&self.migration.as_str()]).await;
        let rows = rows.map_err(Error::query("read what is done of the schema"))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Runs one step and reports it.
    pub(super) async fn run(&self, step: &Step, steps: &Steps) -> Result<(), Error> {
        steps.begin(&step.title);
        let outcome = self.run_with_patience(step).await;
        match &outcome {
            Ok(()) => steps.end(&step.title),
            Err(_) => steps.give_up(&step.title),
        }
        outcome
    }

    async fn run_with_patience(&self, step: &Step) -> Result<(), Error> {
        let record = format!(
            "INSERT INTO changeover.step (migration, step) VALUES ('{}', {})",
            self.migration,
            quote_literal(&step.key())
        );
        let sql = format!("BEGIN; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}; {}{record}; COMMIT", step.sql());
        for _ in 0..LOCK_ATTEMPTS {
            match self.transaction(&sql).await {
                Err(error) if is_state(&error, LOCK_NOT_AVAILABLE) => {
                    let holders = self.lock_holders(step).await;
                    warn!(step = step.title, holders, "waiting for a lock");
                    self.pause().await?;
                }
                Err(error) if step.optional && is_state(&error, INSUFFICIENT_PRIVILEGE) => {
                    warn!(step = step.title, "left out: the target's role may not do it");
                    return Ok(());
                }
                Err(source) if self.stop.is_cancelled() => {
                    debug!(step = step.title, error = %source, "step given up");
                    return Err(Error::Stopped);
                }
                // The server may still be at work for a daemon that was killed, and have finished it meanwhile.
                Err(_) if self.done().await.is_ok_and(|done| done.contains(&step.key())) => return Ok(()),
                other => return other.map_err(Error::query(format!("make {}", step.title))),
            }
        }
        Err(Error::Locked { table: step.title.clone(), blocker: self.lock_holders(step).await })
    }

    /// All of it or nothing. When the daemon stops the statement is cancelled, and its end awaited: dropped, it would
    /// go on inside the server and might commit behind the back of the next attempt.
    async fn transaction(&self, sql: &str) -> Result<(), tokio_postgres::Error> {
        let running = self.session.batch_execute(sql);
        tokio::pin!(running);
        let outcome = tokio::select! {
            biased;
            outcome = &mut running => outcome,
            () = self.stop.cancelled() => {
                if let Err(error) = self.session.cancel_token().cancel().await {
                    debug!(%error, "the statement under way could not be cancelled");
                }
                running.await
            }
        };
        if outcome.is_err() {
            // The first error is the one to tell; a connection that is gone has rolled back by itself.
            drop(self.session.batch_execute("ROLLBACK").await);
        }
        outcome
    }

    async fn pause(&self) -> Result<(), Error> {
        tokio::select! {
            () = self.stop.cancelled() => Err(Error::Stopped),
            () = tokio::time::sleep(LOCK_PAUSE) => Ok(()),
        }
    }

    async fn lock_holders(&self, step: &Step) -> String {
        locks::holders(&self.session, step.relation.as_slice()).await
    }
}

fn is_state(error: &tokio_postgres::Error, sqlstate: &str) -> bool {
    error.code().is_some_and(|code| code.code() == sqlstate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entrys_settings_end_with_its_transaction() {
        let setting = Setting { name: "a".to_owned(), statement: "SET a = 'SET '".to_owned() };
        let step = Step { settings: vec![setting], statements: vec!["CREATE x".to_owned()], ..Step::default() };
        assert_eq!(step.sql(), "SET LOCAL a = 'SET ';\nCREATE x;\n");
    }

    #[test]
    fn two_steps_of_one_title_are_recorded_apart() {
        let step = |sql: &str| Step { title: "T".to_owned(), statements: vec![sql.to_owned()], ..Step::default() };
        assert_ne!(step("a").key(), step("b").key());
        assert_eq!(step("a").key(), step("a").key());
    }
}
