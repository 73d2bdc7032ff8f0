//! What can go wrong with the log. Paths and positions only: never row values.

use std::io;
use std::path::{Path, PathBuf};

use crate::model::{Disposition, Lsn, SinkName};

/// Why the log cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("prepare the spool directory {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("lock the spool directory {}: another daemon is using it", path.display())]
    Locked { path: PathBuf },
    #[error("write the spool file {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("write the spool file {}: the disk is full, so the stream waits and the source keeps its log", path.display())]
    NoRoom { path: PathBuf, source: io::Error },
    #[error("read the spool file {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("remove the spool file {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("read the spool file {} at byte {offset}: {what}", path.display())]
    Corrupt { path: PathBuf, offset: u64, what: &'static str, only_copy: bool },
    #[error("use the spool in {}: {what}", path.display())]
    Foreign { path: PathBuf, what: String },
    #[error(
        "use the spool in {}: start {written_by} of this migration wrote it, and the target knows of {known} only",
        path.display()
    )]
    SetBack { path: PathBuf, written_by: i64, known: i64 },
    #[error(
        "the {sink} holds everything through {held}, the source has forgotten everything through {slot}, and {why}: \
         the changes between the two are lost to the {sink}"
    )]
    Lost { sink: SinkName, held: Lsn, slot: Lsn, why: String },
    #[error(
        "start without the spool in {}: the {sink} holds everything through {held}, the source has forgotten \
         everything through {slot}, and what is between the two is only there", path.display()
    )]
    StillNeeded { path: PathBuf, sink: SinkName, held: Lsn, slot: Lsn },
    #[error("write a transaction that is larger than the whole spool of {capacity_bytes} bytes")]
    TransactionTooLarge { capacity_bytes: u64 },
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
    /// A write that failed. A disk, quota or file size that is used up is waited for.
    pub(super) fn write(path: &Path, source: io::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let path = path.to_owned();
        if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
            Self::NoRoom { path, source }
        } else {
            Self::Write { path, source }
        }
    }

    pub fn disposition(&self) -> Disposition {
        let halt = |hint: &str| Disposition::Halt { hint: hint.to_owned() };
        match self {
            // Room comes back when a sink goes on or somebody makes some.
            Self::NoRoom { .. } => Disposition::Retry,
            Self::Write { source, .. } | Self::Directory { source, .. } if is_lasting(source) => halt(
                "give the directory `limits.spool_dir` room and write permission (or lower `limits.spool`), then resume; \
                 nothing is lost, the source keeps what was not settled",
            ),
            Self::Locked { .. } => {
                halt("stop the other daemon, or give each migration a directory of its own (`limits.spool_dir`)")
            }
            Self::Corrupt { only_copy: true, .. } => halt(
                "the source no longer has what stood there. Put the file back as it was if it can be had; otherwise these \
                 changes exist nowhere any more: `changeover abort`, then start again, so that the rows are copied anew",
            ),
            Self::Foreign { .. } => halt(
                "give each migration a directory of its own (`limits.spool_dir`). If the migration that this one belonged \
                 to has ended, remove the directory: nothing in it was read or changed",
            ),
            Self::SetBack { .. } => halt(
                "the target was restored to an earlier state. Bring it forward again, or `changeover abort` and start again, \
                 so that the rows are copied anew",
            ),
            Self::Lost { sink: SinkName::Target | SinkName::Resync, .. } => halt(
                "when the spool's directory was moved or emptied, put it back (`limits.spool_dir`). Otherwise these changes \
                 exist nowhere any more: `changeover abort`, then start again, so that the rows are copied anew",
            ),
            Self::Lost { sink: SinkName::Kafka, .. } => halt(
                "when the spool's directory was moved or emptied, put it back (`limits.spool_dir`). Otherwise these changes \
                 exist nowhere any more: `changeover abort`, then start again under another [kafka] topic_prefix",
            ),
            Self::StillNeeded { .. } => halt(
                "set [spool] release_source_wal = true again. It may be taken back once every sink has caught up and the \
                 daemon was stopped by SIGTERM",
            ),
            Self::TransactionTooLarge { .. } => halt(
                "raise `limits.spool` above the size of the source's largest transaction and restart the daemon; nothing is \
                 lost, the source keeps it",
            ),
            Self::Corrupt { only_copy: false, .. } | Self::Forgotten { .. } | Self::Encode { .. } => halt(
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
