//! What only PostgreSQL and Kafka can tell us: real servers, started by `support`, one module a situation.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

#[path = "support/mod.rs"]
mod support;

#[path = "live/servers.rs"]
mod servers;
#[path = "live/brokers.rs"]
mod brokers;
#[path = "live/demo.rs"]
mod demo;

#[path = "live/wire.rs"]
mod wire;
#[path = "live/source.rs"]
mod source;

#[path = "live/schema.rs"]
mod schema;
#[path = "live/indexes.rs"]
mod indexes;
#[path = "live/snapshot.rs"]
mod snapshot;
#[path = "live/decode.rs"]
mod decode;

#[path = "live/preflight.rs"]
mod preflight;
#[path = "live/cli.rs"]
mod cli;
#[path = "live/apply.rs"]
mod apply;
#[path = "live/publish.rs"]
mod publish;

#[path = "live/migrate.rs"]
mod migrate;
#[path = "live/crash.rs"]
mod crash;
#[path = "live/verify.rs"]
mod verify;
#[path = "live/cutover.rs"]
mod cutover;
