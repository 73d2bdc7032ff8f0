//! `changeover init`

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::exit::{Exit, Failure};
use super::inspect::endpoint;
use super::options::{block_on, print};
use crate::config::draft;
use crate::model::TableFilter;
use crate::preflight;

/// Writes a commented configuration from a live source: its tables, their sizes, and which of them need care
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  changeover init --source postgres://mover@blue/shop --target postgres://mover@green/shop -o changeover.toml"
)]
pub(super) struct Arguments {
    /// The database that owns the writes now
    #[arg(long, value_name = "URL")]
    source: String,
    /// The database that will
    #[arg(long, value_name = "URL")]
    target: Option<String>,
    /// Where to write it; to standard output when left out
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long, requires = "output")]
    force: bool,
}

pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let source = endpoint(&arguments.source)?;
    if let Some(target) = &arguments.target {
        endpoint(target)?;
    }
    let inventory = block_on(async { Ok(preflight::inspect(&source, &TableFilter::everything()).await?) })?;
    let text = draft(&arguments.source, arguments.target.as_deref(), source.dbname(), &inventory.notes());
    match &arguments.output {
        Some(path) => write(path, &text, arguments.force)?,
        None => print(&text),
    }
    Ok(Exit::Done)
}

/// Readable by its owner only: the URLs may hold passwords.
fn write(path: &Path, text: &str, force: bool) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(!force).create(true).truncate(force).mode(0o600);
    let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| {
        let exists = error.kind() == std::io::ErrorKind::AlreadyExists;
        let hint = exists.then(|| "--force replaces it".to_owned());
        let exit = if exists { Exit::Refused } else { Exit::Failed };
        Failure::new(exit, format!("write {}: {error}", path.display()), hint)
    })?;
    eprintln!("wrote {}; next: changeover check --config {}", path.display(), path.display());
    Ok(())
}
