//! This machine: the spool's directory and the programs.

use std::path::Path;

use tokio::fs;
use tokio::process::Command;

use super::Error;
use super::finding::Finding;
use super::sides::Sides;
use crate::config::{Config, format_size};
use crate::model::Disposition;
use crate::schema;
use crate::telemetry;

/// It must not be older than the server it reads.
pub(super) async fn pg_dump(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "here.pg_dump";
    let configured = sides.config.snapshot.pg_dump.as_deref();
    match schema::find_pg_dump(sides.source.catalog.major(), configured).await {
        Ok(found) => Ok(Finding::pass(check, format!("{} (version {})", found.path.display(), found.major))),
        Err(error) => {
            let remedy = match error.disposition() {
                Disposition::Halt { hint } => hint,
                Disposition::Retry => "name one in snapshot.pg_dump".to_owned(),
            };
            Ok(Finding::fail(check, telemetry::chain(&error), remedy))
        }
    }
}

pub(super) async fn spool_dir(config: &Config) -> Finding {
    let check = "here.spool_dir";
    let directory = &config.limits.spool_dir;
    let shown = directory.display();
    if let Err(error) = writable(directory).await {
        let remedy =
            format!("mkdir -p {shown} && chown $(id -u) {shown}, or name another directory in limits.spool_dir");
        return Finding::fail(check, format!("{shown} cannot be written: {error}"), remedy);
    }
    let wanted = config.limits.spool_bytes;
    match free_bytes(directory).await {
        Some(free) if free < wanted => Finding::warn(
            check,
            format!("{shown} has {} free, and limits.spool is {}", format_size(free), format_size(wanted)),
            format!("make room, or set limits.spool = \"{}MiB\"", (free / 2) >> 20),
        ),
        Some(free) => Finding::pass(check, format!("{shown}, {} free", format_size(free))),
        None => Finding::pass(check, format!("{shown} can be written")),
    }
}

async fn writable(directory: &Path) -> std::io::Result<()> {
    fs::create_dir_all(directory).await?;
    let probe = directory.join(".check");
    fs::write(&probe, b"can this be written?").await?;
    fs::remove_file(&probe).await
}

/// By `df`: the standard library does not tell. `None` where it cannot be asked.
async fn free_bytes(directory: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(directory).output().await.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let kilobytes: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    kilobytes.checked_mul(1024)
}
