//! (door of the room; see the crate's map)
//!
//! What the pipeline needs of a cursor beyond `next`, because a sink that fails is made anew and must be fed again from
//! the first batch it has not settled:
//! - `cursor.release(through: Lsn)`: the sink holds everything through here durably. Only released batches may be
//!   evicted from memory without a copy on disk, or deleted from disk. (A batch is released when its own `through`
//!   is, and no part of a transaction is released before its `Last` part.)
//! - `cursor.rewind()`: the next batch is the oldest one that is not released. Cheap when nothing is outstanding.
//!
//! So memory holds batches that some cursor has not released, and past its budget they go to disk, read or unread.
//! `next()` is cancel-safe: a `select!` that drops it loses no batch.
