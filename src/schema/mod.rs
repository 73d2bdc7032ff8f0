//! The schema: what a database holds, whether two sides fit, and its way from source to target.
//!
//! ```text
//! pre-data (types, tables, functions)  →  rows [snapshot]           →  the stream catches up  →  post-data
//!                                          └ of each table → indexes ┘
//! ```
//!
//! A tree of partitions that the target keeps otherwise is one table of the migration ([`gather`](fn@gather)).
//!
//! pg_dump writes the statements, one of its sections at a time; they run on the target in transactions that also hold
//! a row of `changeover.step`, so that a restart goes on where the last commit was.

mod error;
mod catalog;
mod read;
mod gather;
mod compare;
mod dump;
mod locks;
mod copy;
mod sequences;
mod state;
mod store;

pub use catalog::{
    BinaryCopy, Catalog, Column, Constraint, ConstraintKind, Database, Design, Extension, ForeignKey, GeneratedKind,
    IdentityKind, Index, Leaf, NotStreamed, NotStreamedKind, Partition, Sequence, SequenceOwner, Table, TableDesign,
    TableKind, Trigger, TriggerState, UniqueKey,
};
pub use compare::{Described, Difference, DifferenceKind, compare};
pub use copy::{
    CopyOptions, ExtensionTable, MissingRoles, Rows, RunningStep, ServerWork, Steps, StepsRead, TargetLacks, WorkUnit,
    copy_added_pre_data, copy_indexes, copy_large_objects, copy_post_data, copy_post_data_of, copy_pre_data,
    extension_tables, missing_roles, target_lacks,
};
pub use dump::{Malformed, PgDump, find_pg_dump};
pub use error::Error;
pub use gather::{Gathered, Settled, Unfit, UnfitKind, gather, read_settled, record_gathered};
pub(crate) use locks::holders as lock_holders;
pub use read::{read_catalog, read_design};
pub use sequences::copy_sequences;
pub use state::{drop_state, install_state};
pub use store::{
    Migration, bump_epoch, insert_migration, lead, read_migration, set_consistent_point, set_phase, target_identity,
};
