//! What the checks ask: one session and the inventory of each side.

use crate::config::Config;
use crate::schema::{self, Catalog, Migration};
use crate::wire::{self, Session};

use super::Error;

pub(super) struct Side {
    pub session: Session,
    pub catalog: Catalog,
}

/// Both sides, and how far the migration is already.
pub(super) struct Sides<'a> {
    pub config: &'a Config,
    pub source: Side,
    pub target: Side,
    /// `None` before the first `run`: nothing of ours is on either side yet.
    pub started: Option<Migration>,
}

impl Side {
    pub(super) async fn source(config: &Config) -> Result<Self, Error> {
        let session = wire::connect(&config.source.endpoint, "check").await?;
        let catalog = schema::read_catalog(&session, &config.tables).await?;
        Ok(Self { session, catalog })
    }

    pub(super) async fn target(config: &Config) -> Result<Self, Error> {
        let session = wire::connect(&config.target.endpoint, "check").await?;
        let catalog = schema::read_catalog(&session, &config.tables).await?;
        Ok(Self { session, catalog })
    }

    /// The first column of the first row, which must be there.
    pub(super) async fn ask<T>(&self, sql: &str) -> Result<T, Error>
    where
        T: for<'row> tokio_postgres::types::FromSql<'row>,
    {
        let row = self.session.query_one(sql, &[]).await?;
        Ok(row.try_get(0)?)
    }

    /// The first column of every row.
    pub(super) async fn list(&self, sql: &str) -> Result<Vec<String>, Error> {
        let rows = self.session.query(sql, &[]).await?;
        rows.iter().map(|row| row.try_get(0).map_err(Error::Query)).collect()
    }

    /// A setting as `SHOW` prints it; `None` where the version does not know it.
    pub(super) async fn setting(&self, name: &str) -> Result<Option<String>, Error> {
        let row = self.session.query_one("SELECT current_setting($1, true)", &[&name]).await?;
        Ok(row.try_get(0)?)
    }
}

impl<'a> Sides<'a> {
    pub(super) async fn new(config: &'a Config, source: Side, target: Side) -> Result<Self, Error> {
        let started = schema::read_migration(&target.session, &config.migration).await?;
        Ok(Self { config, source, target, started })
    }
}
