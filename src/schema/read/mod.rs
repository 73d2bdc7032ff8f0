//! Reads a database's inventory from its catalogs ("System Catalogs" in the documentation), PostgreSQL 13 to 18.
//!
//! A query a kind of thing, for all tables at once, sent without waiting for each other.

mod inventory;
mod relations;
mod columns;
mod types;
mod keys;
mod sequences;
mod database;
mod design;

pub use design::read_design;
pub use inventory::read_catalog;

/// Rows of one catalog query, gathered by the table they belong to.
type ByTable<T> = std::collections::HashMap<u32, Vec<T>>;
