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
#[path = "live/schema_fingerprint.rs"]
mod schema_fingerprint;
#[path = "live/schema_everything.rs"]
mod schema_everything;
#[path = "live/schema_prepared.rs"]
mod schema_prepared;
#[path = "live/schema_details.rs"]
mod schema_details;
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
#[path = "live/drift.rs"]
mod drift;
#[path = "live/names.rs"]
mod names;
#[path = "live/managed.rs"]
mod managed;
#[path = "live/apply.rs"]
mod apply;
#[path = "live/publish.rs"]
mod publish;

#[path = "live/migrate.rs"]
mod migrate;
#[path = "live/spool.rs"]
mod spool;
#[path = "live/backlog.rs"]
mod backlog;
#[path = "live/side_by_side.rs"]
mod side_by_side;
#[path = "live/ahead.rs"]
mod ahead;
#[path = "live/bulk.rs"]
mod bulk;
#[path = "live/huge.rs"]
mod huge;
#[path = "live/outage.rs"]
mod outage;
#[path = "live/throttle.rs"]
mod throttle;
#[path = "live/hostile.rs"]
mod hostile;
#[path = "live/row_filter.rs"]
mod row_filter;
#[path = "live/partitions.rs"]
mod partitions;
#[path = "live/strangers.rs"]
mod strangers;
#[path = "live/crash.rs"]
mod crash;
#[path = "live/blows.rs"]
mod blows;
#[path = "live/resync.rs"]
mod resync;
#[path = "live/verify.rs"]
mod verify;
#[path = "live/cutover.rs"]
mod cutover;
