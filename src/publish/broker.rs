//! The transactional producer: librdkafka behind answers the machine understands.
//!
//! Blocking by design, for a thread of its own. librdkafka's client object is `BaseProducer`: delivery reports are
//! served by this thread between its own steps, so nothing here is shared with another.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::Message;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header as KafkaHeader, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use tokio::time::Instant;
use tracing::debug;

use crate::model::Disposition;

use super::error::is_refusal_code;
use super::machine::Failure;
use super::{Error, Options, Placement, Record};

/// How long one call waits for the broker. Longer waits are made of several, so that a stop is heard.
const CALL: Duration = Duration::from_secs(1);
/// How long one call waits while transactions are initialised: the coordinator may have to end an older one first.
const INIT: Duration = Duration::from_secs(10);
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);
/// `transaction.max.timeout.ms` of a broker, by default.
const TRANSACTION_TIMEOUT_MAX: Duration = Duration::from_secs(900);
/// How long an abort is tried before a new producer, which aborts as well, is the shorter way.
const ABORT: Duration = Duration::from_secs(5);
/// Delivery reports are looked for this often while waiting for them.
const POLL: Duration = Duration::from_millis(1);

/// A producer whose transactions are initialised.
pub(super) struct Broker {
    producer: BaseProducer<Reports>,
}

/// What comes back about records that were handed over.
#[derive(Default)]
struct Reports {
    /// The first delivery that failed since the transaction began.
    failed: Mutex<Option<(String, KafkaError)>>,
}

/// A step that failed: what the machine has to know, and what is logged or returned.
#[derive(Debug)]
pub(super) struct Setback {
    /// `None`: nothing helps; the error is the publisher's end.
    pub(super) failure: Option<Failure>,
    pub(super) error: Error,
}

/// Properties by which every client of this room connects.
pub(super) fn client_config(options: &Options) -> Result<ClientConfig, Error> {
    options.check()?;
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &options.bootstrap_servers);
    config.set("client.id", options.transactional_id());
    // A broker that comes back is noticed within seconds, however long it was away.
    config.set("reconnect.backoff.max.ms", "2000");
    Ok(config)
}

/// Sets the user's properties one by one on `config`. They come after our defaults, and what exactly-once rests on was
/// refused before. Values may be passwords: an error has the name only.
fn set_properties(config: &mut ClientConfig, options: &Options) -> Result<(), Error> {
    for (property, value) in &options.properties {
        config.set(property, value.reveal());
        config.create_native_config().map_err(|_| Error::Property { property: property.clone() })?;
    }
    Ok(())
}

fn producer_config(options: &Options) -> Result<ClientConfig, Error> {
    let mut config = client_config(options)?;
    let buffer_kbytes = (options.buffer_bytes_max / 1024).clamp(1024, 2_097_151);
    config.set("compression.type", "lz4");
    config.set("linger.ms", "5");
    // librdkafka's largest default for a batch; a topic's default max.message.bytes is hardly more.
    config.set("batch.size", "1000000");
    config.set("message.max.bytes", "16777216");
    // The broker ends what stays open longer. A window that is allowed to be old needs more, up to what brokers allow.
    let transaction_timeout = (TRANSACTION_TIMEOUT + options.window.age_max).min(TRANSACTION_TIMEOUT_MAX);
    config.set("transaction.timeout.ms", transaction_timeout.as_millis().to_string());
    set_properties(&mut config, options)?;
    config.set("transactional.id", options.transactional_id());
    config.set("enable.idempotence", "true");
    config.set("acks", "all");
    config.set("partitioner", "murmur2_random");
    config.set("queue.buffering.max.kbytes", buffer_kbytes.to_string());
    // librdkafka does not count the few hundred bytes it keeps beside each record: two records a kilobyte bound them.
    config.set("queue.buffering.max.messages", (buffer_kbytes * 2).to_string());
    Ok(config)
}

/// Properties for reading: the user's as far as they concern connections.
pub(super) fn consumer_config(options: &Options) -> Result<ClientConfig, Error> {
    let mut config = client_config(options)?;
    for (property, value) in &options.properties {
        if ["security.protocol", "client.dns.lookup", "broker.address.family"].contains(&property.as_str())
            || ["ssl.", "sasl.", "socket."].iter().any(|family| property.starts_with(family))
        {
            config.set(property, value.reveal());
        }
    }
    Ok(config)
}

impl Broker {
    /// Connects, takes the transactional id over (which ends an older producer's open transaction one way or the
    /// other, and fences it), and is then ready for [`Broker::begin`].
    /// Waits for about [`INIT`], or until `give_up`.
    pub(super) fn connect(options: &Options, give_up: &dyn Fn() -> bool) -> Result<Self, Setback> {
        let config = producer_config(options).map_err(Setback::for_good)?;
        let producer: BaseProducer<Reports> =
            config.create_with_context(Reports::default()).map_err(|cause| Setback::lost(Error::Client(cause)))?;
        let until = Instant::now() + INIT;
        // After a time-out the same call goes on with what it had begun.
        while let Err(cause) = producer.init_transactions(CALL) {
            let unfinished = matches!(&cause, KafkaError::Transaction(error) if error.is_retriable());
            if !unfinished || give_up() || Instant::now() >= until {
                return Err(Setback::of(Error::Connect(cause)));
            }
        }
        Ok(Self { producer })
    }

    pub(super) fn begin(&self) -> Result<(), Setback> {
        self.reports().failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.producer.begin_transaction().map_err(|cause| self.setback(cause, Error::Begin))
    }

    /// Hands a record over; waits while the client's queue is full, until `give_up`.
    pub(super) fn send(&self, record: &Record<'_>, give_up: &dyn Fn() -> bool) -> Result<(), Setback> {
        match record.placement {
            Placement::ByKey => self.send_to(record, None, give_up),
            Placement::First => self.send_to(record, Some(0), give_up),
            Placement::Every => {
                let count = self.partition_count(record.topic)?;
                (0..count).try_for_each(|partition| self.send_to(record, Some(partition), give_up))
            }
        }
    }

    fn send_to(&self, record: &Record<'_>, partition: Option<i32>, give_up: &dyn Fn() -> bool) -> Result<(), Setback> {
        let mut message = base_record(record, partition);
        loop {
            let (cause, unsent) = match self.producer.send(message) {
                Ok(()) => return Ok(()),
                Err(failed) => failed,
            };
            message = unsent;
            match cause.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) if !give_up() => self.producer.poll(POLL),
                Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                    return Err(Setback::for_good(Error::RecordTooLarge { topic: record.topic.to_owned() }));
                }
                _ => return Err(self.undelivered().unwrap_or_else(|| self.send_setback(record.topic, cause))),
            }
            if let Some(setback) = self.undelivered() {
                return Err(setback);
            }
        }
    }

    /// Serves delivery reports without waiting.
    pub(super) fn poll(&self) -> Result<(), Setback> {
        self.producer.poll(Duration::ZERO);
        self.undelivered().map_or(Ok(()), Err)
    }

    /// Waits until every record is acknowledged, or `give_up`.
    ///
    /// Not `Producer::flush`: in rdkafka 0.39 it polls for 100 ms at a time without looking whether it is done, which
    /// would be the shortest commit there is.
    pub(super) fn flush(&self, give_up: &dyn Fn() -> bool) -> Result<(), Setback> {
        loop {
            self.poll()?;
            if self.producer.in_flight_count() == 0 {
                return Ok(());
            }
            if give_up() {
                return Err(Setback { failure: Some(Failure::Unfinished), error: Error::Unacknowledged });
            }
            self.producer.poll(POLL);
        }
    }

    /// Asks for the commit and waits a moment for it. After `Unfinished` it is to be asked again; after any other failure
    /// only the position topic knows.
    pub(super) fn commit(&self) -> Result<(), Setback> {
        self.producer.commit_transaction(CALL).map_err(|cause| self.setback(cause, Error::Commit))
    }

    /// Takes the open transaction back. librdkafka waits for the reports of what it purges, and in rdkafka nobody but us
    /// serves them, so the call is made of short ones with a poll between.
    pub(super) fn abort(&self) -> Result<(), Setback> {
        let until = Instant::now() + ABORT;
        loop {
            self.producer.poll(Duration::ZERO);
            let Err(cause) = self.producer.abort_transaction(ABORT / 50) else { return Ok(()) };
            let setback = self.setback(cause, Error::Abort);
            if setback.failure != Some(Failure::Unfinished) || Instant::now() >= until {
                return Err(setback);
            }
        }
    }

    fn partition_count(&self, topic: &str) -> Result<i32, Setback> {
        let looked_up = self.producer.client().fetch_metadata(Some(topic), CALL * 5).map_err(|source| Setback {
            failure: Some(Failure::Spoilt),
            error: Error::Topic { topic: topic.to_owned(), source },
        })?;
        let count = looked_up.topics().first().map_or(0, |topic| topic.partitions().len());
        Ok(i32::try_from(count).unwrap_or(i32::MAX).max(1))
    }

    fn reports(&self) -> &Reports {
        self.producer.context()
    }

    /// The first delivery that failed, as the reason why this transaction cannot be committed.
    fn undelivered(&self) -> Option<Setback> {
        let failed = self.reports().failed.lock().unwrap_or_else(PoisonError::into_inner);
        let (topic, cause) = failed.clone()?;
        drop(failed);
        match cause.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => Some(Setback::for_good(Error::RecordTooLarge { topic })),
            Some(code) if is_refusal_code(code) => {
                Some(Setback::for_good(Error::RecordRefused { topic, source: cause }))
            }
            _ => {
                let failure = self.failure_now();
                Some(Setback { failure: Some(failure), error: Error::Deliver { topic, source: cause } })
            }
        }
    }

    /// A record that could not be handed over or delivered spoils the transaction; a fatal error the producer.
    fn send_setback(&self, topic: &str, cause: KafkaError) -> Setback {
        let failure = Some(self.failure_now());
        Setback { failure, error: Error::Send { topic: topic.to_owned(), source: cause } }
    }

    /// The broker knows a newer epoch of this producer: another one has taken the id over, or it ended our transaction
    /// itself. Either way none of ours is open any more.
    pub(super) fn is_fenced(&self) -> bool {
        use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
        let fatal = self.producer.client().fatal_error();
        fatal.is_some_and(|(code, _)| [Fenced, InvalidProducerEpoch, ProducerFenced].contains(&code))
    }

    fn failure_now(&self) -> Failure {
        if self.producer.client().fatal_error().is_some() { Failure::Lost } else { Failure::Spoilt }
    }

    /// librdkafka's own three classes of transaction errors ("Transactional producer API" in its introduction); without
    /// any of the three marks nothing is known, which is what `Lost` is for.
    fn setback(&self, cause: KafkaError, step: fn(KafkaError) -> Error) -> Setback {
        let KafkaError::Transaction(error) = &cause else { return Setback::lost(step(cause)) };
        let failure = if error.is_fatal() {
            Failure::Lost
        } else if error.txn_requires_abort() {
            Failure::Spoilt
        } else if error.is_retriable() {
            Failure::Unfinished
        } else {
            Failure::Lost
        };
        Setback { failure: Some(failure), error: step(cause) }
    }
}

impl Setback {
    pub(super) const fn lost(error: Error) -> Self {
        Self { failure: Some(Failure::Lost), error }
    }

    /// By what the error says is to be done: trying again means with a new producer.
    pub(super) fn of(error: Error) -> Self {
        match error.disposition() {
            Disposition::Retry => Self::lost(error),
            Disposition::Halt { .. } => Self::for_good(error),
        }
    }

    pub(super) const fn for_good(error: Error) -> Self {
        Self { failure: None, error }
    }
}

fn base_record<'a>(record: &Record<'a>, partition: Option<i32>) -> BaseRecord<'a, [u8], [u8]> {
    let mut message = BaseRecord::to(record.topic);
    message.partition = partition;
    message.key = record.key;
    message.payload = record.value;
    message.headers = record.header.map(|header| {
        OwnedHeaders::new_with_capacity(1).insert(KafkaHeader { key: header.name, value: Some(header.value) })
    });
    message
}

impl ClientContext for Reports {
    /// librdkafka repeats itself while a broker is away; what matters comes back as an error of the step that failed.
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "librdkafka");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        if let Err((cause, message)) = result {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert_with(|| (message.topic().to_owned(), cause.clone()));
        }
    }
}
