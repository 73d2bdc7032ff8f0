//! Keeps the lock of the one daemon that leads.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::error::Error;
use crate::config::Config;
use crate::model::Disposition;
use crate::schema;
use crate::telemetry::chain;
use crate::wire::{self, Session};

/// How often the lock's session is looked at. Until a loss is noticed the epoch keeps a second daemon and us apart.
const INTERVAL: Duration = Duration::from_secs(2);

/// Holds the lock until `stop`. When its session breaks, the lock is taken again; when another daemon has it by then, or
/// has raised the epoch, this daemon stops: nothing it could still commit would be accepted.
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
            Err(error) if matches!(error.disposition(), Disposition::Retry) => {
                warn!(error = chain(&error), "the target that holds our lock is not there");
            }
            Err(error) => {
                error!(error = chain(&error), "no longer leading: stopping");
                stop.cancel();
                return;
            }
        }
    }
}

async fn lead_again(config: &Config, epoch: i64) -> Result<Session, Error> {
    let session = wire::connect(&config.target.endpoint, "control").await.map_err(Error::Target)?;
    schema::lead(&session, &config.migration).await?;
    let migration = schema::read_migration(&session, &config.migration).await?;
    match migration {
        Some(migration) if migration.epoch == epoch => Ok(session),
        Some(_) | None => Err(Error::Superseded { migration: config.migration.to_string() }),
    }
}
