//! Waits, performs what the machine decides, and feeds the answers back. One thread, nothing shared.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::model::{MigrationName, Position, Settled};
use crate::telemetry::{Point, chain, clock, metrics as names};

use super::admin::Admin;
use super::broker::{Broker, Setback};
use super::encoder::{Counts, Encoder};
use super::machine::{Effect, Failure, Input, Machine, Signature};
use super::mark::{Mark, Rest};
use super::position::Stored;
use super::stored::{self, Until};
use super::window::{Piece, Settlement};
use super::{Error, Options, Placement, Ports, Record, Topics};

/// How long one wait for acknowledgements lasts before the machine is asked again.
const WAIT_SLICE: Duration = Duration::from_secs(1);
/// How long a full queue is waited for once the daemon stops.
const SEND_GRACE: Duration = Duration::from_secs(5);

/// How far Kafka holds the stream; `None` when it holds nothing of this migration. Blocks for at most a few minutes: not
/// for a tokio worker.
///
/// Takes the migration's transactional id over, so that what an older producer left open is ended before the position
/// is read; an older daemon that still runs is fenced by that. Refuses a position of another source or timeline.
pub fn resume_point(options: &Options) -> Result<Option<Position>, Error> {
    let runtime = runtime()?;
    let topics = Topics::new(options)?;
    Admin::new(options, &runtime)?.create_position(topics.position())?;
    let _takes_over = Broker::connect(options, &patient).map_err(|setback| setback.error)?;
    let stored = stored::read(options, topics.position(), Until::End, &patient)?;
    Ok(stored.and_then(|stored| stored.mark).map(|mark| mark.position))
}

/// How often [`forget`] tries.
const FORGET_ATTEMPTS: u32 = 3;

/// Removes the migration's position, for `abort` and `complete`: a later migration of the same name begins anew. The
/// topics stay, they hold the user's data.
pub fn forget(options: &Options) -> Result<(), Error> {
    let runtime = runtime()?;
    let topics = Topics::new(options)?;
    Admin::new(options, &runtime)?.create_position(topics.position())?;
    let remove = || {
        let broker = Broker::connect(options, &patient)?;
        broker.begin()?;
        broker.send(&position_record(topics.position(), &options.migration, None), &patient)?;
        broker.flush(&patient)?;
        broker.commit()
    };
    // Told twice is the same as told once, so an unknown outcome is simply tried again: a commit that the library repeats
    // by itself may be answered as one of an older producer.
    (1..FORGET_ATTEMPTS).find_map(|_| remove().ok()).map_or_else(remove, Ok).map_err(|setback| setback.error)
}

/// Publishes until the input ends or `stop`, then finishes the open Kafka transaction and returns. Blocks: for a thread
/// of its own. A broker that is away is waited for; what returns an error needs somebody to act.
pub fn run(options: Options, ports: Ports) -> Result<(), Error> {
    let runtime = runtime()?;
    let writer = format!("{:016x}", fastrand::u64(..));
    let (machine, effects) = Machine::new(options.window, writer, Instant::now());
    let driver = Driver {
        encoder: Encoder::new(&options)?,
        bookmark: Counts::default(),
        broker: None,
        fenced: false,
        stop_heard: false,
        settled: Settled::default(),
        last_warning: None,
        unavailable_told: 0,
        options: &options,
        runtime: &runtime,
        ports,
    };
    driver.run(machine, effects)
}

struct Driver<'a> {
    options: &'a Options,
    runtime: &'a Runtime,
    ports: Ports,
    encoder: Encoder,
    /// Where the encoder's counting stood when the open Kafka transaction began.
    bookmark: Counts,
    broker: Option<Broker>,
    /// The last producer ended because a newer one has its id, or because the broker ended its transaction.
    fenced: bool,
    stop_heard: bool,
    settled: Settled,
    /// The last setback logged, so that one that repeats is logged once.
    last_warning: Option<String>,
    unavailable_told: u64,
}

/// A position record that was read.
type Found = Option<(Signature, Option<Mark>)>;

/// What a list of effects led to.
enum Outcome {
    /// The machine is to be told.
    Answer(Input),
    /// Nothing to tell; wait.
    Quiet,
    Finished,
}

impl Driver<'_> {
    fn run(mut self, mut machine: Machine, mut effects: Vec<Effect>) -> Result<(), Error> {
        loop {
            let input = match self.perform_all(effects)? {
                Outcome::Answer(input) => input,
                Outcome::Quiet => self.next_input(&machine),
                Outcome::Finished => return Ok(()),
            };
            if matches!(input, Input::Stop) {
                self.stop_heard = true;
            }
            effects = machine.on(input, Instant::now());
        }
    }

    /// Waits and changes nothing but the link.
    fn next_input(&mut self, machine: &Machine) -> Input {
        let due = machine.due();
        let wants_input = machine.wants_input();
        let Ports { input, stop, .. } = &mut self.ports;
        let stop_heard = self.stop_heard;
        self.runtime.block_on(async {
            tokio::select! { biased;
                // A stop before more work.
                () = stop.cancelled(), if !stop_heard => Input::Stop,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => Input::Due,
                parcel = input.recv(), if wants_input => match parcel {
                    Some(parcel) => Input::Arrived(parcel.item),
                    None => Input::Stop,
                },
                else => Input::Stop,
            }
        })
    }

    fn perform_all(&mut self, effects: Vec<Effect>) -> Result<Outcome, Error> {
        for effect in effects {
            match self.perform(effect) {
                Ok(Outcome::Quiet) => {}
                Ok(outcome) => return Ok(outcome),
                Err(setback) => return self.set_back(setback).map(Outcome::Answer),
            }
        }
        Ok(Outcome::Quiet)
    }

    fn perform(&mut self, effect: Effect) -> Result<Outcome, Setback> {
        match effect {
            Effect::Revive { expected } => {
                return self.revive(expected.as_deref()).map(|found| Outcome::Answer(Input::Ready(found)));
            }
            Effect::Open { again: false } => self.open()?,
            Effect::Open { again: true } => {
                self.encoder.rewind(self.bookmark.clone());
                self.open()?;
            }
            Effect::Produce(piece) => self.produce(&piece)?,
            Effect::Seal { signature, mark, seq } => {
                self.seal(signature, mark, seq)?;
                Point::RecordsSealed.reach();
            }
            Effect::Flush => {
                self.broker().flush(&self.slice())?;
                Point::RecordsFlushed.reach();
                return Ok(Outcome::Answer(Input::Flushed));
            }
            Effect::Commit => {
                self.broker().commit()?;
                Point::RecordsCommitted.reach();
                return Ok(Outcome::Answer(Input::Committed));
            }
            Effect::Abort => {
                self.broker().abort()?;
                return Ok(Outcome::Answer(Input::Aborted));
            }
            Effect::Settle(settlement) => {
                self.settle(settlement);
                Point::RecordsTold.reach();
            }
            Effect::Finish => return Ok(Outcome::Finished),
            Effect::Yield => return Err(Setback::for_good(Error::Superseded)),
        }
        Ok(Outcome::Quiet)
    }

    /// A new producer and the position. The older producer goes first: two with one id would fence each other. `expected`:
    /// the positions under which the migration is still ours; absent at the start, when it is taken over.
    fn revive(&mut self, expected: Option<&[Option<Signature>]>) -> Result<Found, Setback> {
        self.broker = None;
        let position = Arc::clone(self.encoder.topics().position());
        let stopping = self.stopping();
        match expected {
            None => self.make_topics(&position).map_err(Setback::of)?,
            // Before another daemon is fenced by the new producer. If we are fenced, what is still open is not ours, but
            // may be the claim of the daemon that took over.
            Some(expected) => {
                let until = if self.fenced { Until::End } else { Until::Stable };
                let found = stored::read(self.options, &position, until, &stopping).map_err(Setback::of)?;
                if !expected.contains(&found.map(|stored| stored.signature)) {
                    return Err(Setback::for_good(Error::Superseded));
                }
            }
        }
        let broker = Broker::connect(self.options, &stopping)?;
        let found = stored::read(self.options, &position, Until::End, &stopping).map_err(Setback::of)?;
        self.broker = Some(broker);
        self.fenced = false;
        let mark = found.as_ref().and_then(|stored| stored.mark);
        info!(position = ?mark.map(|mark| mark.position), again = expected.is_some(), "kafka sink connected");
        Ok(found.map(|stored| (stored.signature, stored.mark)))
    }

    fn make_topics(&self, position: &str) -> Result<(), Error> {
        let admin = Admin::new(self.options, self.runtime)?;
        admin.create_position(position)?;
        let topics: Vec<_> = self.encoder.topics().of_stream().cloned().collect();
        admin.create(&topics)
    }
}

impl Driver<'_> {
    fn open(&mut self) -> Result<(), Setback> {
        self.bookmark = self.encoder.bookmark();
        self.broker().begin()
    }

    fn produce(&mut self, piece: &Piece) -> Result<(), Setback> {
        let met = self.encoder.meet(&piece.batch).map_err(Setback::of)?;
        if !met.is_empty() {
            Admin::new(self.options, self.runtime).and_then(|admin| admin.create(&met)).map_err(Setback::of)?;
        }
        let give_up = self.give_up_sending();
        let broker = self.broker.as_ref().expect("the machine produces only with a producer");
        encode(&mut self.encoder, piece, &mut |record| broker.send(&record, &give_up))?;
        self.tell_unavailable();
        self.broker().poll()
    }

    fn seal(&self, signature: Signature, mark: Option<Mark>, seq: Option<u64>) -> Result<(), Setback> {
        let stored = Stored { signature, mark, identity: self.options.identity.clone() };
        let value = stored.to_json(self.options.migration.as_str(), seq, clock::unix_us());
        let topic = self.encoder.topics().position();
        let record = position_record(topic, &self.options.migration, Some(&value));
        self.broker().send(&record, &self.give_up_sending())
    }

    fn settle(&mut self, settlement: Settlement) {
        self.settled.through = settlement.through.or(self.settled.through);
        self.settled.committed_at_us = settlement.committed_at_us.or(self.settled.committed_at_us);
        self.settled.transactions_total += settlement.transaction_count;
        self.settled.rows_total += settlement.row_count;
        self.ports.settled.send_replace(self.settled.clone());
        if self.last_warning.take().is_some() {
            info!(through = ?settlement.through, "kafka sink goes on");
        }
    }

    /// Logs a setback when it is a new one. An error that needs somebody to act is the publisher's end.
    fn set_back(&mut self, setback: Setback) -> Result<Input, Error> {
        let Some(mut failure) = setback.failure else { return Err(setback.error) };
        if failure == Failure::Lost && self.broker.as_ref().is_some_and(Broker::is_fenced) {
            failure = Failure::Fenced;
            self.fenced = true;
        }
        let text = chain(&setback.error);
        if self.last_warning.as_ref() != Some(&text) {
            warn!(error = text, ?failure, "kafka sink set back, it will try again");
            self.last_warning = Some(text);
        }
        // Waiting is not an error yet.
        let migration = self.options.migration.as_str().to_owned();
        metrics::counter!(names::ERRORS_TOTAL, names::LABEL_MIGRATION => migration, names::LABEL_SINK => "kafka")
            .increment(u64::from(failure != Failure::Unfinished));
        Ok(Input::Failed(failure))
    }

    fn tell_unavailable(&mut self) {
        let total = self.encoder.unavailable_total();
        if total > self.unavailable_told {
            let migration = self.options.migration.as_str().to_owned();
            metrics::counter!(names::UNAVAILABLE_VALUES_TOTAL, names::LABEL_MIGRATION => migration)
                .increment(total - self.unavailable_told);
            self.unavailable_told = total;
        }
    }

    fn broker(&self) -> &Broker {
        self.broker.as_ref().expect("the machine asks for this only with a producer")
    }

    /// Waits are cut into slices of this, so that a stop is heard in between.
    fn slice(&self) -> impl Fn() -> bool + use<> {
        let until = Instant::now() + WAIT_SLICE;
        move || Instant::now() >= until
    }

    /// A queue that stays full while the daemon stops.
    fn give_up_sending(&self) -> impl Fn() -> bool + use<> {
        let until = Instant::now() + SEND_GRACE;
        let stop = self.ports.stop.clone();
        move || stop.is_cancelled() && Instant::now() >= until
    }

    fn stopping(&self) -> impl Fn() -> bool + use<> {
        let stop = self.ports.stop.clone();
        move || stop.is_cancelled()
    }
}

/// The records of what is left of a batch.
fn encode(
    encoder: &mut Encoder,
    piece: &Piece,
    send: &mut dyn FnMut(Record<'_>) -> Result<(), Setback>,
) -> Result<(), Setback> {
    let now_us = clock::unix_us();
    let mut setback = None;
    for transaction in &piece.batch.transactions {
        let skip = match Mark::rest(piece.done, transaction) {
            Rest::Complete => continue,
            Rest::Counted => u64::MAX,
            Rest::From(ordinal) => ordinal,
        };
        let encoded = encoder.transaction(&piece.batch, transaction, skip, now_us, &mut |record| {
            send(record).map_err(|failed| {
                setback = Some(failed);
                Error::Unacknowledged
            })
        });
        encoded.map_err(|error| setback.take().unwrap_or_else(|| Setback::of(error)))?;
    }
    Ok(())
}

fn position_record<'a>(topic: &'a str, migration: &'a MigrationName, value: Option<&'a [u8]>) -> Record<'a> {
    let key = Some(migration.as_str().as_bytes());
    Record { topic, placement: Placement::First, key, value, header: None }
}

/// For callers that cannot be stopped: they wait as long as each step does.
fn patient() -> bool {
    false
}

/// For timers and for waiting on the admin client's answers; everything runs on the calling thread.
fn runtime() -> Result<Runtime, Error> {
    tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(Error::Runtime)
}
