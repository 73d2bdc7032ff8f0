//! After a crash: one owner, decided by the record on green.

use tracing::{info, warn};

use super::error::{BLUE, Error, GREEN};
use super::report::Owner;
use super::router::Router;
use super::stage::open;
use super::{fence, journal};
use crate::model::MigrationName;
use crate::telemetry::chain;
use crate::wire::Endpoint;

/// What was found, and done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    pub owner: Owner,
    /// An attempt had been left half-way: it was taken back (blue) or finished (green).
    pub finished: bool,
}

/// Called at the daemon's start, before anything is applied. Reads who owns the writes; an attempt that was left
/// half-way is finished if it had passed the commit point, else taken back, after it was recorded that it never will.
///
/// # Errors
/// Where a side or a router does not answer. Until it does, nothing is certain, so it is to be tried again.
pub async fn recover(
    source: &Endpoint,
    target: &Endpoint,
    migration: &MigrationName,
    routers: &[Box<dyn Router>],
) -> Result<Recovered, Error> {
    let green = Box::pin(open(target, GREEN)).await?;
    let newest = journal::newest(&green, migration).await?;
    if newest == 0 {
        return Ok(Recovered { owner: Owner::Blue, finished: false });
    }
    let closed = journal::has(&green, migration, newest, "aborted").await?;
    if let Some(attempt) = journal::resolve(&green, migration, newest).await? {
        let finished = !journal::has(&green, migration, attempt, "flipped").await?;
        if finished {
            info!(attempt, "green owns the writes: handing the clients over");
            each(routers, "flip", |router| router.flip()).await?;
            journal::note(&green, migration, attempt, "flipped").await?;
        }
        return Ok(Recovered { owner: Owner::Green, finished });
    }
    let blue = Box::pin(open(source, BLUE)).await?;
    let fenced = fence::lower_all(&blue, migration).await?;
    if !closed {
        info!(attempt = newest, fenced, "a cutover was left before its commit point: blue goes on");
        each(routers, "release", |router| router.release()).await?;
    }
    if let Err(error) = fence::remove_fence(&blue, migration).await {
        warn!(error = chain(&error), "what is left of the lifted fence stays until the next start");
    }
    Ok(Recovered { owner: Owner::Blue, finished: !closed })
}

async fn each<'r>(
    routers: &'r [Box<dyn Router>],
    step: &'static str,
    ask: impl Fn(&'r dyn Router) -> super::RouterFuture<'r>,
) -> Result<(), Error> {
    for router in routers {
        let failed = |source| Error::Router { router: router.name(), step, source: Box::new(source) };
        ask(&**router).await.map_err(failed)?;
    }
    Ok(())
}
