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
    if config.spool.release_source_wal
        && let Some(kind) = filesystem(directory).await
        && VOLATILE.contains(&kind.as_str())
    {
        return Finding::warn(
            check,
            format!(
                "{shown} is on {kind}, which goes with the power or the container, and \
                 spool.release_source_wal lets blue forget what is in it"
            ),
            "name a directory on a disk in limits.spool_dir, or leave spool.release_source_wal out".to_owned(),
        );
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

/// File systems that keep nothing over a power loss; an overlay is a container's own layer, gone with the container.
const VOLATILE: &[&str] = &["tmpfs", "ramfs", "overlay"];

/// By `df`: the standard library does not tell. `None` where it cannot be asked.
async fn free_bytes(directory: &Path) -> Option<u64> {
    let kilobytes: u64 = df("-Pk", directory).await?.split_whitespace().nth(3)?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// The kind of file system that `directory` is on.
async fn filesystem(directory: &Path) -> Option<String> {
    df("-PT", directory).await?.split_whitespace().nth(1).map(str::to_owned)
}

/// What `df` says of `directory`: the line below its heading.
async fn df(flags: &str, directory: &Path) -> Option<String> {
    let output = Command::new("df").arg(flags).arg(directory).output().await.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kind_of_a_file_system_is_told() {
        assert_eq!(filesystem(Path::new("/proc")).await.as_deref(), Some("proc"));
        // Present on every Linux, and shared memory by definition.
        let shared = filesystem(Path::new("/dev/shm")).await;
        assert!(shared.as_deref().is_none_or(|kind| kind == "tmpfs" || kind == "overlay"), "{shared:?}");
    }
}
