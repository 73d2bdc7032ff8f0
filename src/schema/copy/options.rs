//! What the caller decides about the copy of a schema.

use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::model::MigrationName;
use crate::schema::PgDump;
use crate::wire::Endpoint;

#[derive(Clone, Debug)]
pub struct CopyOptions {
    pub source: Endpoint,
    pub target: Endpoint,
    pub migration: MigrationName,
    pub pg_dump: PgDump,
    /// The post-data section as it was dumped for the first who wanted it, for those who want it with the same options.
    pub post_data: Arc<OnceCell<String>>,
    /// Connections to the target that build indexes and analyse tables.
    pub workers: usize,
    /// As PostgreSQL writes it (`1GB`), for each worker; `None` leaves the target's setting.
    pub maintenance_work_mem: Option<String>,
    /// `max_parallel_maintenance_workers` of each worker; `None` leaves the target's setting.
    pub parallel_maintenance_workers: Option<u32>,
}
