//! Takes and keeps the lock of the one daemon that leads.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::error::Error;
use crate::config::Config;
use crate::model::{Disposition, MigrationName};
use crate::schema;
use crate::telemetry::chain;
use crate::wire::{self, Session};

/// How often the lock's session is looked at. Until a loss is noticed the epoch keeps a second daemon and us apart.
const INTERVAL: Duration = Duration::from_secs(2);
/// A daemon that was killed leaves its session behind until the server notices: at once when it is idle, after the
/// statement when it is not.
const PATIENCE: Duration = Duration::from_secs(5);
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Takes the lock for as long as `session` lives. Refused when another daemon still has it after a few seconds.
pub(super) async fn take_lead(session: &Session, migration: &MigrationName) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        match schema::lead(session, migration).await {
            Err(schema::Error::Led { holder, .. }) if Instant::now() < deadline => {
                if !std::mem::replace(&mut told, true) {
                    info!(holder, "waiting for the daemon that leads to go");
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            }
            Err(schema::Error::Led { migration, holder }) => {
                return Err(Error::Led { migration: migration.to_string(), holder });
            }
            taken => {
                taken?;
                info!(%migration, "leading");
                return Ok(());
            }
        }
    }
}

/// Holds the lock until `stop`. When its session breaks, the lock is taken again; when another daemon has raised the
/// epoch by then, this one stops: nothing it could still commit would be accepted.
pub(super) async fn keep_leading(config: Arc<Config>, epoch: i64, session: Session, stop: CancellationToken) {
    let mut session = Some(session);
    loop {
        tokio::select! { biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let open = match session.take() {
            Some(open) if !open.is_closed() => Ok(open),
            Some(_) | None => lead_again(&config, epoch).await,
        };
        match open {
            Ok(open) => session = Some(open),
            Err(error @ Error::Superseded { .. }) => {
                error!(error = chain(&error), "no longer leading: stopping");
                stop.cancel();
                return;
            }
            // Our own session of before a broken connection may hold the lock until the server gives it up.
            Err(Error::Schema(schema::Error::Led { holder, .. })) => {
                warn!(holder, "the lock is held by another session")
            }
            Err(error) if matches!(error.disposition(), Disposition::Retry) => {
                warn!(error = chain(&error), "the target that holds our lock is not there");
            }
            Err(error) => warn!(error = chain(&error), "the lock could not be taken again"),
        }
    }
}

async fn lead_again(config: &Config, epoch: i64) -> Result<Session, Error> {
    let session = wire::connect(&config.target.endpoint, "control").await.map_err(Error::Target)?;
    let migration = schema::read_migration(&session, &config.migration).await?;
    if migration.is_none_or(|migration| migration.epoch != epoch) {
        return Err(Error::Superseded { migration: config.migration.to_string() });
    }
    schema::lead(&session, &config.migration).await?;
    Ok(session)
}
