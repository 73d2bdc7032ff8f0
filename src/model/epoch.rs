//! Where PostgreSQL begins to count time.

/// 2000-01-01, from which the binary form of timestamps counts and the messages of a stream, in microseconds since 1970.
pub const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;
