//! What is asked of either server.

use super::Error;
use super::finding::Finding;
use super::sides::Side;
use crate::config::Config;

/// What this program is tested with.
const MAJOR_MIN: u32 = 13;
const MAJOR_MAX: u32 = 18;

/// The minors of May 2025: the fix for changes lost on a concurrent ALTER PUBLICATION grows without bound and ends
/// decoding for good with "invalid memory alloc request size" (pgsql-bugs on 17.5; fixed in the minors after them).
const MINORS_OF_THE_MEMORY_BUG: [u32; 5] = [130_021, 140_018, 150_013, 160_009, 170_005];

/// Connections beside the workers': stream, apply, verification, control, cutover.
const CONNECTIONS_BESIDE_WORKERS: i64 = 8;

pub(super) async fn version(check: &'static str, side: &Side) -> Result<Finding, Error> {
    let printed: String = side.ask("SELECT current_setting('server_version')").await?;
    let major = side.catalog.major();
    let name = format!("PostgreSQL {printed}");
    Ok(match major {
        MAJOR_MIN..=MAJOR_MAX => Finding::pass(check, name),
        0..MAJOR_MIN => {
            Finding::fail(check, format!("{name} is older than {MAJOR_MIN}"), "upgrade it to 13 or later first")
        }
        _ => Finding::warn(check, format!("{name} is newer than this program knows"), "rehearse on a copy first"),
    })
}

pub(super) async fn known_bugs(side: &Side) -> Result<Finding, Error> {
    let check = "source.known_bugs";
    if !MINORS_OF_THE_MEMORY_BUG.contains(&side.catalog.server_version_num) {
        return Ok(Finding::pass(check, "none known in this minor version"));
    }
    let message = "this minor version can end logical decoding for good with \"invalid memory alloc request size\" when \
                   publications change under load";
    Ok(Finding::warn(check, message, "update the source to the latest minor version of its major"))
}

/// A standby can neither hold our publication nor take our writes.
pub(super) async fn primary(check: &'static str, side: &Side) -> Result<Finding, Error> {
    if side.ask("SELECT pg_is_in_recovery()").await? {
        return Ok(Finding::fail(check, "the server is a standby", "put the primary's address into the URL"));
    }
    let read_only: String = side.ask("SELECT current_setting('default_transaction_read_only')").await?;
    if read_only == "on" {
        let remedy = format!("ALTER ROLE {} SET default_transaction_read_only = off", user(side).await?);
        return Ok(Finding::fail(check, "transactions of this user are read-only by default", remedy));
    }
    Ok(Finding::pass(check, "writable"))
}

pub(super) async fn free_connections(check: &'static str, side: &Side, config: &Config) -> Result<Finding, Error> {
    let sql = "SELECT current_setting('max_connections')::bigint
                      - current_setting('superuser_reserved_connections')::bigint
                      - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')";
    let free: i64 = side.ask(sql).await?;
    // Indexes are built while rows are copied.
    let workers = (config.snapshot.workers + config.snapshot.index_workers).max(config.verify.workers);
    let needed = i64::try_from(workers).unwrap_or(i64::MAX).saturating_add(CONNECTIONS_BESIDE_WORKERS);
    if free >= needed {
        return Ok(Finding::pass(check, format!("{free} connections free, up to {needed} needed")));
    }
    let message = format!("{free} connections are free and up to {needed} are needed");
    let remedy =
        format!("lower snapshot.workers, or: ALTER SYSTEM SET max_connections = {} (then restart)", needed + 100);
    Ok(Finding::warn(check, message, remedy))
}

/// The connected user, quoted.
pub(super) async fn user(side: &Side) -> Result<String, Error> {
    side.ask("SELECT quote_ident(current_user)").await
}
