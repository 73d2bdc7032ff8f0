//! Everything that can go wrong in a part, and what is to be done about it.

use crate::model::{Disposition, Lsn, SourceIdentity, TableName};
use crate::{apply, cutover, decode, publish, schema, snapshot, source, spool, verify, wire};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reach the source")]
    Source(#[source] wire::Error),
    #[error("reach the target")]
    Target(#[source] wire::Error),
    #[error("read the source's stream")]
    Stream(#[from] source::Error),
    #[error("decode the source's stream")]
    Decode(#[from] decode::Error),
    #[error("keep the stream in the spool")]
    Spool(#[from] spool::Error),
    #[error("read or copy the schema")]
    Schema(#[from] schema::Error),
    #[error("copy the rows")]
    Snapshot(#[from] snapshot::Error),
    #[error("apply to the target")]
    Apply(#[from] apply::Error),
    #[error("publish to Kafka")]
    Publish(#[from] publish::Error),
    #[error("cut over")]
    Cutover(#[from] cutover::Error),
    #[error("verify")]
    Verify(#[from] verify::Error),
    #[error("{what}")]
    State {
        what: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error(
        "migration {migration} belongs to the source with system identifier {}, timeline {}; the configured source is {} on timeline {}",
        expected.system_identifier, expected.timeline, found.system_identifier, found.timeline
    )]
    OtherSource { migration: String, expected: SourceIdentity, found: SourceIdentity },
    #[error("{failed} of the checks failed:\n{report}")]
    NotReady { failed: usize, report: String },
    #[error("no table of the source matches [tables] include and exclude")]
    NoTables,
    #[error("{unfit}")]
    Unfit { unfit: schema::Unfit },
    #[error("publication {publication} carries other rows than [tables] rows says of {table}")]
    OtherRows { publication: String, table: TableName },
    #[error("the adopted slot {slot} does not exist on the source")]
    NoAdoptedSlot { slot: String },
    #[error("the adopted slot {slot} has no position: nobody has finished creating it")]
    AdoptedSlotUnfinished { slot: String },
    #[error("the stored phase {phase:?} is none this version knows")]
    UnknownPhase { phase: String },
    #[error("migration {migration} has not been cut over")]
    NotCutOver { migration: String },
    #[error("migration {migration} is cut over: green owns the writes")]
    AlreadyCutOver { migration: String },
    #[error("{doing}: {whose}")]
    OfAnother { doing: &'static str, whose: String },
    #[error("remove the spool in {}", dir.display())]
    RemoveSpool {
        dir: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("migration {migration} is led by {holder}")]
    Led { migration: String, holder: String },
    #[error("another daemon has taken migration {migration} over")]
    Superseded { migration: String },
    #[error("publish {tables}, which publication {publication} does not have")]
    NotPublished { publication: String, tables: String, statement: String },
    #[error("publish {tables}, whose UPDATE and DELETE would then fail on the source: no replica identity")]
    NoReplicaIdentity { tables: String, statement: String },
    #[error("wait for transactions that were open when the tables were set apart: {blockers}")]
    TransactionsOpen { blockers: String },
    #[error("set the tables apart while the spool has let go of the transaction under way")]
    SpoolForgot,
    #[error(
        "Kafka holds {}, but what can be sent begins at {start}: what is between them is not there",
        held.map_or("nothing of the stream".to_owned(), |held| format!("the stream through {held}"))
    )]
    KafkaBehind { held: Option<Lsn>, start: Lsn },
    #[error("there is no migration {migration} on the target")]
    NoMigration { migration: String },
}

impl Error {
    /// What is to be done about it.
    pub fn disposition(&self) -> Disposition {
        let halt = |hint: &str| Disposition::Halt { hint: hint.to_owned() };
        match self {
            Self::Source(error) | Self::Target(error) => error.disposition(),
            Self::Stream(error) => error.disposition(),
            Self::Decode(error) => error.disposition(),
            Self::Spool(error) => error.disposition(),
            Self::Schema(error) => error.disposition(),
            Self::Snapshot(error) => error.disposition(),
            Self::Apply(error) => error.disposition(),
            Self::Publish(error) => error.disposition(),
            Self::Verify(error) => error.disposition(),
            Self::Cutover(error) => error.disposition(),
            Self::State { source, .. } if source.as_db_error().is_none() => Disposition::Retry,
            Self::State { .. } => halt("look at the server's message; `changeover resume` tries again"),
            Self::OtherSource { .. } => halt(
                "after a restore or a failover positions mean other transactions: point [source] at the server the \
                 migration was started from, or `changeover abort` and start again",
            ),
            Self::NotReady { .. } => halt("do what the failed checks say, then start again"),
            Self::NoTables => halt("correct [tables] include and exclude; `changeover inspect` lists what there is"),
            Self::Unfit { unfit } => Disposition::Halt { hint: format!("{}; then start again", unfit.remedy()) },
            Self::OtherRows { .. } => halt(
                "what was copied and streamed so far are the publication's rows: say the same in [tables] rows, or \
                 `changeover abort` and start again",
            ),
            Self::NoAdoptedSlot { .. } => {
                halt("create it, or leave [source] slot out so that changeover makes its own")
            }
            Self::AdoptedSlotUnfinished { .. } => halt("finish or drop it, then adopt another"),
            Self::UnknownPhase { .. } => halt("use the version of changeover that started this migration"),
            Self::NotCutOver { .. } => halt("`changeover abort` ends a migration that has not been cut over"),
            Self::AlreadyCutOver { .. } => halt("`changeover complete` ends a migration that has been cut over"),
            Self::OfAnother { .. } => halt(
                "give this migration a name of its own ([migration] name): it names slots and replication origins, which all \
                 databases of a server share. Where nobody needs what is there any more, drop the slot and the publication \
                 on the source by hand",
            ),
            Self::RemoveSpool { .. } => halt("remove the directory by hand: nothing rests on it any more"),
            Self::Led { .. } => halt("stop that daemon first, or let it go on: one leads at a time"),
            Self::Superseded { .. } => halt("stop this daemon: the other one goes on"),
            Self::KafkaBehind { held: Some(_), .. } => {
                halt("start the topics anew under another [kafka] topic_prefix, or `changeover abort` and start again")
            }
            Self::NotPublished { statement, .. } => {
                Disposition::Halt { hint: format!("on the source: {statement}; then `changeover resume`") }
            }
            Self::NoReplicaIdentity { statement, .. } => {
                Disposition::Halt { hint: format!("on the source: {statement}; then start the daemon again") }
            }
            Self::TransactionsOpen { .. } | Self::SpoolForgot => Disposition::Retry,
            Self::KafkaBehind { held: None, .. } => halt(
                "when [kafka] is new to this migration, start once without [spool] release_source_wal. Otherwise its \
                 position was lost: put the topic back, or `changeover abort` and start again",
            ),
            Self::NoMigration { .. } => halt("check [migration] name and [target] url; `changeover run` starts one"),
        }
    }

    /// Whether it was refused (exit 1) rather than failed on the way (exit 3).
    pub fn is_refusal(&self) -> bool {
        matches!(self.disposition(), Disposition::Halt { .. })
    }
}
