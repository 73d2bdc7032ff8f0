//! What can go wrong on the way to Kafka, and what is to be done about it.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::model::{Disposition, SourceIdentity, TableName};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("take the Kafka property {property} from the configuration: it is not for the user to set ({instead})")]
    PropertyIsOurs { property: String, instead: &'static str },
    #[error(
        "use the Kafka property {property}: this build speaks plaintext only, the cargo feature `kafka-tls` is missing"
    )]
    NotBuiltWithTls { property: String },
    #[error("set the Kafka property {property}: the client library does not accept it or its value")]
    Property { property: String },
    #[error("name topics {topic:?}: Kafka allows 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'")]
    TopicName { topic: String },
    #[error("name a topic for {one} and for {other}: both would be {topic} (Kafka takes '.' and '_' for the same)")]
    TopicCollision { one: String, other: String, topic: String },

    #[error("start the Kafka client")]
    Client(#[source] KafkaError),
    #[error("reach the Kafka brokers")]
    Connect(#[source] KafkaError),
    #[error("create the topic {topic}")]
    CreateTopic {
        topic: String,
        #[source]
        source: KafkaError,
    },
    #[error("look up the topic {topic}")]
    Topic {
        topic: String,
        #[source]
        source: KafkaError,
    },
    #[error("rely on the topic {topic}: its cleanup.policy is {policy:?} and would delete the position")]
    PositionNotCompacted { topic: String, policy: String },
    #[error("read the position from {topic}")]
    ReadPosition {
        topic: String,
        #[source]
        source: KafkaError,
    },
    #[error("read the position from {topic}: its end was not reached in time, another producer's transaction is open")]
    PositionBehindOpenTransaction { topic: String },
    #[error("understand the position in {topic}")]
    MalformedPosition {
        topic: String,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "resume from the position in Kafka: it belongs to system {} on timeline {}, the source is system {} on timeline {}",
        stored.system_identifier, stored.timeline, actual.system_identifier, actual.timeline
    )]
    OtherSource { stored: SourceIdentity, actual: SourceIdentity },
    #[error("go on publishing: another daemon has taken this migration over")]
    Superseded,

    #[error("publish {table}: its key column {column} is not in the stream")]
    KeyColumnMissing { table: TableName, column: String },
    #[error("publish {table}: a value of column {column} is not what its type prints")]
    UnreadableValue { table: TableName, column: String },
    #[error("publish {table}: column {column} came in binary form, records are made from text")]
    BinaryValue { table: TableName, column: String },
    #[error("publish {table}: a value of column {column} is not UTF-8")]
    NotUtf8 { table: TableName, column: String },
    #[error("publish to {topic}: a record is larger than the topic or the client allows")]
    RecordTooLarge { topic: String },
    #[error("publish to {topic}: the broker refuses the record")]
    RecordRefused {
        topic: String,
        #[source]
        source: KafkaError,
    },

    #[error("open a Kafka transaction")]
    Begin(#[source] KafkaError),
    #[error("hand a record for {topic} to the client")]
    Send {
        topic: String,
        #[source]
        source: KafkaError,
    },
    #[error("deliver a record to {topic}")]
    Deliver {
        topic: String,
        #[source]
        source: KafkaError,
    },
    #[error("wait for the broker's acknowledgements")]
    Unacknowledged,
    #[error("commit the Kafka transaction")]
    Commit(#[source] KafkaError),
    #[error("abort the Kafka transaction")]
    Abort(#[source] KafkaError),
    #[error("start the publisher's timers")]
    Runtime(#[source] std::io::Error),
}

impl Error {
    pub fn disposition(&self) -> Disposition {
        let halt = |hint: &str| Disposition::Halt { hint: hint.to_owned() };
        match self {
            Self::PropertyIsOurs { .. } => halt("remove the property from kafka.properties"),
            Self::NotBuiltWithTls { .. } => {
                halt("build with `cargo build --features kafka-tls`, or use a plaintext listener")
            }
            Self::Property { .. } => halt("correct the property in kafka.properties"),
            Self::TopicName { .. } => halt("choose a shorter kafka.topic_prefix of legal characters"),
            Self::TopicCollision { .. } => halt("exclude one of the two from [tables], or rename it"),
            Self::PositionNotCompacted { .. } => halt("set cleanup.policy=compact on the topic, then `resume`"),
            Self::MalformedPosition { .. } => {
                halt("choose another kafka.topic_prefix, or remove the record that is not ours")
            }
            Self::OtherSource { .. } => halt("start a new migration: positions of one history mean nothing in another"),
            Self::Superseded => halt("stop this daemon, or stop the other one and `resume`"),
            Self::KeyColumnMissing { .. } => halt("restart after the table's key has changed"),
            Self::UnreadableValue { .. } => {
                halt("exclude the table and report this: a session setting may be changing text output")
            }
            Self::BinaryValue { .. } => halt("ask the source for text while Kafka is a sink"),
            Self::NotUtf8 { .. } => halt("convert the source database from SQL_ASCII, or exclude the table"),
            Self::RecordTooLarge { .. } => {
                halt("raise max.message.bytes of the topic and message.max.bytes in kafka.properties, then `resume`")
            }
            Self::RecordRefused { .. } => halt("allow the producer to write to the topic, then `resume`"),
            Self::CreateTopic { source, .. } if is_refusal(source) => {
                halt("create the topic by hand, or allow the client to create it, then `resume`")
            }
            Self::Connect(source) | Self::Client(source) if is_refusal(source) => {
                halt("allow the client to use the transactional id changeover_<migration>, then `resume`")
            }
            Self::Client(_)
            | Self::Connect(_)
            | Self::CreateTopic { .. }
            | Self::Topic { .. }
            | Self::ReadPosition { .. }
            | Self::PositionBehindOpenTransaction { .. }
            | Self::Begin(_)
            | Self::Send { .. }
            | Self::Deliver { .. }
            | Self::Unacknowledged
            | Self::Commit(_)
            | Self::Abort(_)
            | Self::Runtime(_) => Disposition::Retry,
        }
    }
}

/// Refusals that no waiting changes.
pub(super) fn is_refusal(error: &KafkaError) -> bool {
    error.rdkafka_error_code().is_some_and(is_refusal_code)
}

pub(super) fn is_refusal_code(code: RDKafkaErrorCode) -> bool {
    [
        RDKafkaErrorCode::TopicAuthorizationFailed,
        RDKafkaErrorCode::ClusterAuthorizationFailed,
        RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
        RDKafkaErrorCode::InvalidReplicationFactor,
        RDKafkaErrorCode::InvalidPartitions,
        RDKafkaErrorCode::InvalidTopic,
        RDKafkaErrorCode::PolicyViolation,
        RDKafkaErrorCode::InvalidRecord,
        RDKafkaErrorCode::UnsupportedVersion,
    ]
    .contains(&code)
}
