//! How a command ends.

use std::error::Error;
use std::process::ExitCode;

use crate::control::{self, ClientError};
use crate::model::Disposition;
use crate::{config, demo, pipeline, preflight, telemetry};

/// The exit codes are a contract with scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Done = 0,
    /// Not possible now, or both sides differ.
    Refused = 1,
    /// The arguments or the configuration are wrong.
    Usage = 2,
    /// Tried, and failed on the way.
    Failed = 3,
}

/// What is said on standard error before a command ends.
#[derive(Debug)]
pub(super) struct Failure {
    exit: Exit,
    text: String,
    hint: Option<String>,
}

impl Failure {
    pub(super) fn new(exit: Exit, text: impl Into<String>, hint: Option<String>) -> Self {
        Self { exit, text: text.into(), hint }
    }

    fn of(exit: Exit, error: &(dyn Error + 'static), disposition: Disposition) -> Self {
        let hint = match disposition {
            Disposition::Halt { hint } => Some(hint),
            Disposition::Retry => None,
        };
        Self::new(exit, telemetry::chain(error), hint)
    }

    pub(super) fn print(self) -> Exit {
        eprintln!("changeover: {}", self.text);
        if let Some(hint) = self.hint {
            eprintln!("hint: {hint}");
        }
        self.exit
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<config::Problems> for Failure {
    fn from(problems: config::Problems) -> Self {
        Self::new(Exit::Usage, problems.to_string(), None)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Refused(refused) if !refused.failed => Exit::Refused,
            ClientError::Refused(_)
            | ClientError::Unreachable { .. }
            | ClientError::Answer { .. }
            | ClientError::Stranger { .. } => Exit::Failed,
        };
        Self::new(exit, telemetry::chain(&error), error.hint())
    }
}

impl From<control::Error> for Failure {
    fn from(error: control::Error) -> Self {
        let disposition = error.disposition();
        let exit = if disposition == Disposition::Retry { Exit::Failed } else { Exit::Refused };
        Self::of(exit, &error, disposition)
    }
}

impl From<demo::Error> for Failure {
    fn from(error: demo::Error) -> Self {
        Self::of(Exit::Failed, &error, error.disposition())
    }
}

impl From<preflight::Error> for Failure {
    fn from(error: preflight::Error) -> Self {
        Self::of(Exit::Failed, &error, error.disposition())
    }
}

impl From<pipeline::Error> for Failure {
    fn from(error: pipeline::Error) -> Self {
        let exit = if error.is_refusal() { Exit::Refused } else { Exit::Failed };
        Self::of(exit, &error, error.disposition())
    }
}
