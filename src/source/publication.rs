//! The publication: which tables the slot's stream carries.

use std::time::Duration;

use super::Error;
use crate::model::TableName;
use crate::wire::Session;

/// Creates a publication of exactly `tables`, published as themselves (leaves of partitioned tables, not their root).
pub async fn create_publication(_session: &Session, _publication: &str, _tables: &[TableName]) -> Result<(), Error> {
    unimplemented!()
}

/// Drops it if it is there.
pub async fn drop_publication(_session: &Session, _publication: &str) -> Result<(), Error> {
    unimplemented!()
}

/// The tables it publishes, sorted; `None` when there is no such publication.
pub async fn publication_tables(_session: &Session, _publication: &str) -> Result<Option<Vec<TableName>>, Error> {
    unimplemented!()
}

/// Waits until every transaction that is running now has ended: earlier rows of a transaction that was open across
/// the publication's creation are in no stream, and a snapshot taken before it ends does not see them either.
pub async fn wait_out_running_transactions(_session: &Session, _timeout: Duration) -> Result<(), Error> {
    unimplemented!()
}
