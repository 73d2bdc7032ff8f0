//! What only PostgreSQL and Kafka can tell us: real servers, started by `support`, one module a situation.

#[path = "support/mod.rs"]
mod support;

#[path = "live/servers.rs"]
mod servers;
#[path = "live/brokers.rs"]
mod brokers;

#[path = "live/wire.rs"]
mod wire;
