//! How far each sink has come, what the source may therefore forget, and how late we are.
//!
//! decode ─Decoded▶ [tracker] ◀Settled─ apply, publish        [tracker] ─confirmed▶ source

mod backlog;
mod machine;

pub use machine::{Decoded, SinkLag, Tracker};
