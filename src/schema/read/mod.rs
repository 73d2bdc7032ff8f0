//! Reads a database's inventory from its catalogs, PostgreSQL 13 to 18.

use super::Error;
use super::catalog::Catalog;
use crate::model::TableFilter;
use crate::wire::Session;

/// What `filter` names on that server.
pub async fn read_catalog(_session: &Session, _filter: &TableFilter) -> Result<Catalog, Error> {
    unimplemented!()
}
