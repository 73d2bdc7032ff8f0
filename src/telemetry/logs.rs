//! Logs to standard error, one line an event.

use tracing_subscriber::filter::LevelFilter;

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Starts logging. A second call (several daemons in one test process) is without effect.
pub fn init_logs(format: LogFormat, level: LevelFilter) {
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false);
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let started = match format {
        LogFormat::Text => tracing::subscriber::set_global_default(builder.with_ansi(ansi).finish()),
        LogFormat::Json => tracing::subscriber::set_global_default(builder.json().finish()),
    };
    if started.is_err() {
        tracing::debug!("logging was already started");
    }
}
