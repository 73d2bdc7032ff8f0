//! What live tests stand on: throw-away servers, plain SQL, the real daemon.
//!
//! Servers come from `changeover::demo` (the demo uses the same). `CHANGEOVER_TEST_SOURCE_URL` and
//! `CHANGEOVER_TEST_TARGET_URL` point [`source_and_target`] at servers of your own instead: superuser URLs; each
//! test makes databases of its own there. `CHANGEOVER_TEST_KAFKA` does the same for the broker. `CHANGEOVER_TEST_POSTGRES`
//! chooses the major version that tests start when they do not name one.

#![allow(dead_code, unused_imports, unreachable_pub, reason = "every test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

mod sql;
mod servers;
mod config;
mod daemon;
mod broker;

/// A number that whoever runs the tests chose.
pub fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

pub use broker::{Broker, Record, bootstrap, each_committed, read_committed, topic_prefix};
pub use config::TestConfig;
pub use daemon::Daemon;
pub use servers::{Pair, Server, cluster, cluster_of, server, source_and_target};
pub use sql::Db;
