//! What the demo is asked for.

use std::time::Duration;

/// How large, how long, between which versions. The command line has a default for each.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// Concurrent clients that write through the pooler.
    pub clients: usize,
    /// Transactions a second, of all clients together.
    pub rate: u32,
    /// Rows generated beside the Chinook database.
    pub rows: u64,
    /// How long the stream is followed before the cutover.
    pub duration: Duration,
    /// Major versions; the usual one for the source and the newest for the target when absent.
    pub source_version: Option<u32>,
    pub target_version: Option<u32>,
    /// Bootstrap servers of a broker that the stream is published to as well, read back from and compared with.
    pub kafka: Option<String>,
    /// Leaves servers and daemon running, and says how to look around and how to stop them.
    pub keep: bool,
}

impl DemoOptions {
    pub const CLIENTS: usize = 8;
    /// What two processors carry beside two servers, a pooler and the daemon.
    pub const RATE: u32 = 400;
    pub const ROWS: u64 = 200_000;
    pub const DURATION: Duration = Duration::from_secs(8);
}
