//! What several subcommands take, and how they get from it to what they call.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::exit::{Exit, Failure};
use crate::config::{self, Config};
use crate::control::Client;

#[derive(Debug, Args)]
pub(super) struct ConfigFile {
    /// The migration's configuration
    #[arg(
        short = 'c',
        long = "config",
        value_name = "FILE",
        default_value = "changeover.toml",
        env = "CHANGEOVER_CONFIG"
    )]
    path: PathBuf,
}

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Output {
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl ConfigFile {
    pub(super) fn load(&self) -> Result<Config, Failure> {
        Ok(config::load(&self.path, &config::process_environment())?)
    }

    /// A client of the daemon that runs with this configuration.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let control = self.load()?.control;
        Ok(Client::new(control.listen, control.token))
    }
}

impl Output {
    /// Prints `value` as JSON, or what `text` makes of it.
    pub(super) fn print<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) {
        let printed = if self.json {
            serde_json::to_string_pretty(value).expect("what we print has only text keys")
        } else {
            text(value)
        };
        print(&printed);
    }
}

/// To standard output. Whoever closed it (`| head`) has seen enough.
pub(super) fn print(text: &str) {
    let mut output = io::stdout().lock();
    let written = writeln!(output, "{}", text.trim_end()).and_then(|()| output.flush());
    if let Err(error) = written {
        tracing::debug!(%error, "standard output is closed");
    }
}

/// Runs `work` to its end on a runtime of its own.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => Err(Failure::new(Exit::Failed, format!("start the runtime: {error}"), None)),
    }
}
