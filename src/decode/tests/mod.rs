//! What the decoder does with bytes from real servers, with sessions that break off, and with nonsense.

mod support;

mod recorded;
mod pitfalls;
mod sessions;
mod batches;
mod hostile;
mod ahead;
