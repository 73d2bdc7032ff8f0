//! The end of a migration: everything we made is removed, on both sides (I9).

use serde::Serialize;
use tracing::info;

use super::cutover::recover;
use super::error::Error;
use super::lead::take_lead;
use super::options::kafka_options;
use super::prepare::both;
use super::status::Phase;
use crate::config::Config;
use crate::cutover::{self, Owner, Retired};
use crate::model::quote_identifier;
use crate::schema::{self, Migration};
use crate::source::{self, WhenActive};
use crate::telemetry::chain;
use crate::wire::Session;
use crate::{apply, publish, spool};

/// What was removed, in the words of the report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    pub migration: String,
    pub removed: Vec<String>,
    /// What is left, and why.
    pub left: Vec<String>,
}

/// Ends a migration that has not been cut over: blue is as it was before. Copied tables stay on green.
pub async fn abort(config: &Config) -> Result<Removed, Error> {
    let (source, target) = both(config, "cleanup").await?;
    let migration = lead_stored(config, &target).await?;
    if migration.as_ref().is_some_and(|it| it.phase == Phase::CutOver.as_str()) {
        return Err(Error::AlreadyCutOver { migration: config.migration.to_string() });
    }
    // A cutover that a crash interrupted is taken back, or found committed, before anything that it rests on goes.
    if migration.is_some() && recover(config).await? == Owner::Green {
        return Err(Error::AlreadyCutOver { migration: config.migration.to_string() });
    }
    let mut removed = remove(config, &source, &target, migration.as_ref()).await?;
    removed.left.push("the tables copied to the target: drop them there before you start again".to_owned());
    Ok(removed)
}

/// Ends a migration that has been cut over. The fence on blue goes with it, so blue is made read-only before.
pub async fn complete(config: &Config) -> Result<Removed, Error> {
    let (source, target) = both(config, "cleanup").await?;
    let migration = lead_stored(config, &target).await?;
    let migration = migration.ok_or(Error::NoMigration { migration: config.migration.to_string() })?;
    if migration.phase != Phase::CutOver.as_str() {
        return Err(Error::NotCutOver { migration: config.migration.to_string() });
    }
    let retired = cutover::retire(&source, &config.source.endpoint).await?;
    let mut removed = remove(config, &source, &target, Some(&migration)).await?;
    removed.left.push(retirement(config, retired));
    Ok(removed)
}

fn retirement(config: &Config, retired: Retired) -> String {
    let database = quote_identifier(config.source.endpoint.dbname());
    match retired {
        Retired::ReadOnly { ended } => format!(
            "blue read-only for new sessions, {ended} open ones ended (ALTER DATABASE {database} RESET \
             default_transaction_read_only undoes it)"
        ),
        Retired::NotAllowed => format!(
            "blue open to writes, since only its owner may close it: ALTER DATABASE {database} SET \
             default_transaction_read_only = on"
        ),
    }
}

/// A later migration of this name must not find the position of this one. The topics stay: they hold the user's data. A
/// broker that does not answer keeps nobody from cleaning up the databases.
async fn forget_position(config: &Config, migration: &Migration, done: &mut Removed) {
    let Some(options) = kafka_options(config, &migration.source, &[]) else { return };
    let topic = format!("{}.changeover.position", options.topic_prefix);
    match tokio::task::spawn_blocking(move || publish::forget(&options)).await {
        Ok(Ok(())) => done.removed.push(format!("position in Kafka's topic {topic}")),
        Ok(Err(error)) => done.left.push(format!("position in Kafka's topic {topic}: {}", chain(&error))),
        Err(failure) => std::panic::resume_unwind(failure.into_panic()),
    }
}

/// Refused while a daemon runs: it would make again what we remove.
async fn lead_stored(config: &Config, target: &Session) -> Result<Option<Migration>, Error> {
    take_lead(target, &config.migration).await?;
    let migration = schema::read_migration(target, &config.migration).await?;
    if migration.is_some() {
        // An older version may have made it, with less than we remove.
        schema::install_state(target).await?;
    }
    Ok(migration)
}

/// The source first: a slot that is forgotten there fills a production disk. The record on the target goes last, so that
/// a crash in between leaves what is needed to call this again.
async fn remove(
    config: &Config,
    source: &Session,
    target: &Session,
    migration: Option<&Migration>,
) -> Result<Removed, Error> {
    let mut done = Removed { migration: config.migration.to_string(), ..Removed::default() };
    let identity = match migration {
        Some(migration) => migration.source.clone(),
        None => source::identify(&config.source.endpoint).await?.identity,
    };
    let dir = &config.limits.spool_dir;
    spool::may_be_removed(dir, &identity)?;
    remove_from_source(config, source, target, migration, &mut done).await?;
    let origins = apply::drop_origins(target, &config.migration).await?;
    let state = if origins.is_empty() { "replication origin and state on the target" } else { "state on the target" };
    for origin in origins {
        done.left.push(format!(
            "replication origin {origin} on the target, which this user may not remove: a superuser may, by SELECT \
             pg_replication_origin_drop('{origin}')"
        ));
    }
    match apply::unwatch(target, &config.migration).await? {
        0 => done.removed.push("watch for other writers on the target".to_owned()),
        busy => done.left.push(format!(
            "triggers changeover_watch_{} on {busy} tables of the target that were never free: drop them",
            config.migration
        )),
    }
    if let Some(migration) = migration {
        forget_position(config, migration, &mut done).await;
    }
    // Before the record: a spool without its migration would be refused as somebody else's by the next one of this name.
    match std::fs::remove_dir_all(dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::RemoveSpool { dir: dir.clone(), source });
        }
        Ok(()) | Err(_) => {}
    }
    done.removed.push(format!("spool in {}", dir.display()));
    schema::drop_state(target, &config.migration).await?;
    done.removed.push(state.to_owned());
    info!(migration = %config.migration, "removed");
    Ok(done)
}

/// What another migration of this name needs stays. Without a record on the target only the source can tell.
async fn remove_from_source(
    config: &Config,
    source: &Session,
    target: &Session,
    migration: Option<&Migration>,
    done: &mut Removed,
) -> Result<(), Error> {
    let slot = migration.map_or(&config.source.slot.name, |it| &it.slot);
    let publication = migration.map_or(&config.source.publication.name, |it| &it.publication);
    // What a record says we made is ours, also where the target has become another server since (pg_upgrade).
    if migration.is_none_or(|it| it.consistent_point.is_none())
        && let Some(whose) = whose(source, target, slot, publication, migration.is_some()).await?
    {
        if migration.is_none() {
            return Err(Error::OfAnother { doing: "remove what a migration of this name has left", whose });
        }
        done.left.push(format!("slot and publication on the source: {whose}"));
        return Ok(());
    }
    if migration.map_or(!config.source.slot.adopted, |it| it.slot_is_ours) {
        if source::drop_slot(source, slot, WhenActive::Terminate).await? {
            done.removed.push(format!("slot {slot} on the source"));
        }
    } else {
        done.left.push(format!("slot {slot} on the source, which was there before: drop it when nobody needs it"));
    }
    if migration.map_or(!config.source.publication.adopted, |it| it.publication_is_ours) {
        if source::publication_tables(source, publication).await?.is_some() {
            source::drop_publication(source, publication).await?;
            done.removed.push(format!("publication {publication} on the source"));
        }
    } else {
        done.left.push(format!("publication {publication} on the source, which was there before"));
    }
    cutover::remove_fence(source, &config.migration).await?;
    cutover::remove_journal(source, &config.migration).await?;
    done.removed.push("fence and journal on the source".to_owned());
    Ok(())
}

/// Why slot and publication are another migration's, as a sentence.
async fn whose(
    source: &Session,
    target: &Session,
    slot: &str,
    publication: &str,
    has_begun: bool,
) -> Result<Option<String>, Error> {
    let identity = schema::target_identity(target).await?;
    if let Some(whose) = source::claimed_by_another(source, slot, publication, &identity).await? {
        return Ok(Some(whose));
    }
    if has_begun {
        return Ok(None);
    }
    Ok(source::read_by_another(source, slot).await?)
}
