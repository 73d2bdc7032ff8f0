//! Batches in memory, and how many of them are written at once.

use std::sync::Arc;

use crate::model::Batch;

#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) batch: Arc<Batch>,
    pub(super) size_bytes: u64,
}

/// The first of `held` that together are at least `goal` bytes.
pub(super) fn run<'a>(held: impl Iterator<Item = &'a Held>, goal: u64) -> Vec<Arc<Batch>> {
    let mut taken = 0;
    let chosen = held.take_while(|held| {
        let more = taken < goal;
        taken += held.size_bytes;
        more
    });
    chosen.map(|held| Arc::clone(&held.batch)).collect()
}
