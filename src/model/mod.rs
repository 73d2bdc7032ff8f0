//! The nouns: everything that crosses a door between rooms. Values only; no I/O, no clock.
//!
//! `frame → change → transaction → batch` is the way of the data; `lsn`, `position` and `snapshot` say where on that
//! way something stands; `names` and `relation` say what it belongs to; `align` is what verification asks of a sink.

mod ahead;
mod align;
mod batch;
pub mod binary;
mod change;
mod disposition;
mod epoch;
mod filter;
mod frame;
mod gathered;
mod lsn;
mod names;
mod position;
mod relation;
mod secret;
mod settled;
mod snapshot;
mod stash;
mod touched;
mod tuple;

pub use ahead::{Ahead, AheadCommit, AheadEvent, AheadGivenUp, AheadPart, AheadTicket};
pub use align::{Aligned, ApplyCommand, Misaligned, marker_prefix};
pub use batch::{Batch, Part, Transaction, TransactionOrigin};
pub use change::{Change, ChangeKind, OldKind, OldTuple, RelationIndex};
pub use disposition::Disposition;
pub use epoch::POSTGRES_EPOCH_US;
pub use filter::{InvalidPattern, RowFilters, TableFilter, TablePattern};
pub use frame::{Frame, FrameBatch, FramePayload};
pub use gathered::GatheredLeaves;
pub use lsn::{Lsn, ParseLsnError};
pub use names::{InvalidName, MigrationName, SinkName, TableName, quote_identifier, quote_literal};
pub use position::{Position, SourceIdentity, TargetIdentity};
pub use relation::{Column, Relation, ReplicaIdentity, TypeName};
pub use secret::Secret;
pub use settled::{RowCounts, RowCountsByTable, Settled, TableHandover};
pub use snapshot::{ParseSnapshotError, SnapshotSet, Xid};
pub use stash::{Stash, StashError, StashedFrame, StashedFrames};
pub use touched::Touched;
pub use tuple::{Datum, MalformedTuple, Tuple, TupleBuilder};
