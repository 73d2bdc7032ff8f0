//! What the pipeline does for a cutover.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;

use crate::model::Lsn;
use crate::wire::Session;

pub type PortError = Box<dyn Error + Send + Sync>;
/// Boxed, so that `dyn Ports` is possible.
pub type PortFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, PortError>> + Send + 'a>>;

/// How far the slowest sink is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lag {
    pub bytes: u64,
    pub seconds: f64,
}

/// Something that green lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    pub what: String,
    /// What brings it there.
    pub remedy: String,
}

pub trait Ports: Send + Sync {
    /// `Err` says why the migration is not streaming (its phase, or what halted it).
    fn streaming(&self) -> Result<(), String>;

    fn lag(&self) -> Lag;

    /// Resolves when every sink is durable past `barrier`. Must be cancel-safe: the deadline drops it.
    fn drained(&self, barrier: Lsn) -> PortFuture<'_, ()>;

    /// What blue has by now and green lacks: tables that came since the daemon started, columns, keys, indexes. Whoever
    /// goes over would lose or miss it.
    fn lacking<'a>(&'a self, source: &'a Session, target: &'a Session) -> PortFuture<'a, Vec<Lacking>>;

    /// Reads every sequence on `source` and sets it on `target`, with the margin. Answers with their number. Called once
    /// before the pause, to measure it and to find what is missing, and once inside.
    fn set_sequences<'a>(&'a self, source: &'a Session, target: &'a Session) -> PortFuture<'a, usize>;
}
