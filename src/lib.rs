//! Moves a live PostgreSQL database to another cluster without downtime, and publishes the same ordered change stream
//! to Kafka.
//!
//! # Map
//!
//! Rooms in the order of the flow. Verbs act on the stream; nouns are shared or hold. `tests/tidy.rs` holds who may use
//! whom.
//!
//! ```text
//!  blue                                                                                     green / Kafka
//!  tables ──COPY──────────────────────► [snapshot] ──COPY────────────────────────────────►  tables
//!  WAL ──► [source] ─► [decode] ─► [spool] ─┬─► [transform] ─► [apply] ──────────────────►  tables + position
//!              ▲                            └─► [publish] ───────────────────────────────►  topics + position
//!              └──── [progress]: what every sink holds durably, and so what the source may forget
//! ```
//!
//! `find src -name machine.rs` lists every decision taken over time; each is pure, and the `driver.rs` beside it waits
//! and performs.

pub mod model;

pub mod link;
pub mod telemetry;
pub mod wire;

pub mod source;
pub mod decode;
pub mod schema;
pub mod snapshot;
pub mod transform;
pub mod spool;
pub mod apply;
pub mod publish;
pub mod progress;
pub mod verify;
pub mod cutover;
pub mod pipeline;
pub mod preflight;
pub mod config;
pub mod control;
pub mod cli;
pub mod demo;
