//! A program of the user's, called with one more argument: `hold`, `flip` or `release`.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::time::timeout;

use super::{Router, RouterError, RouterFuture};
use crate::model::MigrationName;

pub struct Command {
    migration: MigrationName,
    program: PathBuf,
    arguments: Vec<String>,
    timeout: Duration,
}

impl Command {
    /// The program sees the step as its last argument, and the migration's name in `CHANGEOVER_MIGRATION`. It is done
    /// when it exits with 0, and is killed after `timeout`.
    pub fn new(migration: MigrationName, program: PathBuf, arguments: Vec<String>, timeout: Duration) -> Self {
        Self { migration, program, arguments, timeout }
    }

    async fn run(&self, step: &str) -> Result<(), RouterError> {
        let program = || self.program.display().to_string();
        let mut child = tokio::process::Command::new(&self.program);
        child.args(&self.arguments).arg(step).env("CHANGEOVER_MIGRATION", self.migration.as_str());
        child.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let ended = timeout(self.timeout, child.status()).await.map_err(|_| RouterError::NoAnswer(self.timeout))?;
        let status = ended.map_err(|source| RouterError::Program { program: program(), source })?;
        if status.success() { Ok(()) } else { Err(RouterError::ProgramFailed { program: program(), status }) }
    }
}

impl Router for Command {
    fn name(&self) -> String {
        format!("command {}", self.program.display())
    }

    /// There is no step that a user's program must not act upon, so only its presence is looked at.
    fn check(&self) -> RouterFuture<'_> {
        Box::pin(async move {
            let found = tokio::fs::metadata(&self.program).await;
            found
                .map(drop)
                .map_err(|source| RouterError::Program { program: self.program.display().to_string(), source })
        })
    }

    fn hold(&self) -> RouterFuture<'_> {
        Box::pin(self.run("hold"))
    }

    fn flip(&self) -> RouterFuture<'_> {
        Box::pin(self.run("flip"))
    }

    fn release(&self) -> RouterFuture<'_> {
        Box::pin(self.run("release"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Duration) -> Command {
        let arguments = vec!["-c".to_owned(), script.to_owned(), "hook".to_owned()];
        Command::new("shop".parse().unwrap(), "/bin/sh".into(), arguments, timeout)
    }

    #[tokio::test]
    async fn a_program_is_told_the_step_and_answers_by_its_exit() {
        let hook = shell(r#"test "$1" = hold && test "$CHANGEOVER_MIGRATION" = shop"#, Duration::from_secs(10));
        hook.check().await.unwrap();
        hook.hold().await.unwrap();
        assert!(matches!(hook.flip().await, Err(RouterError::ProgramFailed { .. })));
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_ended() {
        let hook = shell("sleep 60", Duration::from_millis(50));
        assert!(matches!(hook.release().await, Err(RouterError::NoAnswer(_))));
    }
}
