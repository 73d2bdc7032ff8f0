//! What can go wrong with the log. Paths and positions only: never row values.

use std::io;
use std::path::PathBuf;

use crate::model::{Disposition, SinkName};

/// Why the log cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("prepare the spool directory {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("lock the spool directory {}: another daemon is using it", path.display())]
    Locked { path: PathBuf },
    #[error("write the spool file {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("read the spool file {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("remove the spool file {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("read the spool file {} at byte {offset}: {what}", path.display())]
    Corrupt { path: PathBuf, offset: u64, what: &'static str },
    #[error("encode batch {seq} for the spool: {what}")]
    Encode { seq: u64, what: String },
    #[error(
        "spill {size_bytes} bytes of a transaction in progress: {used_bytes} of {capacity_bytes} are in use by such transactions"
    )]
    StashFull { size_bytes: u64, used_bytes: u64, capacity_bytes: u64 },
    #[error("rewind the cursor of the {sink}: a transaction larger than the spool has passed")]
    Forgotten { sink: SinkName },
    #[error("use the spool: it was closed")]
    Ended,
}

impl Error {
    pub fn disposition(&self) -> Disposition {
        let halt = |hint: &str| Disposition::Halt { hint: hint.to_owned() };
        match self {
            Self::Write { source, .. } | Self::Directory { source, .. } if is_lasting(source) => halt(
                "give the directory `limits.spool_dir` room and write permission (or lower `limits.spool`), then resume; \
                 nothing is lost, the source keeps what was not settled",
            ),
            Self::Locked { .. } => {
                halt("stop the other daemon, or give each migration a directory of its own (`limits.spool_dir`)")
            }
            Self::Corrupt { .. } | Self::Forgotten { .. } | Self::Encode { .. } => halt(
                "restart the daemon: its log is only a cache, and the source sends again what was not settled. When files \
                 are damaged again and again, look at the disk under `limits.spool_dir`",
            ),
            // Without room for transactions in progress the next session leaves them with the source: see
            // `decode::Decoder::takes_streams`.
            Self::StashFull { .. }
            | Self::Directory { .. }
            | Self::Write { .. }
            | Self::Read { .. }
            | Self::Remove { .. }
            | Self::Ended => Disposition::Retry,
        }
    }
}

/// What stays as it is until somebody does something about it.
fn is_lasting(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::NotFound
    )
}
