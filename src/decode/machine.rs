//! The decoder: which transaction a frame belongs to, and when it may go on its way.

use bytes::Bytes;

use crate::model::{
    self, Batch, Change, ChangeKind, Frame, FrameBatch, FramePayload, Lsn, Relation, Stash, StashedFrame,
    TransactionOrigin, Tuple, Xid, binary,
};

use super::ahead::Ahead;
use super::assembly::{Assembly, Open, Unfinished};
use super::error::At;
use super::message::{self, Commit, Message, Row, Unreadable};
use super::shapes::{Listing, Shapes};
use super::streams::{Replay, Streams};
use super::{Error, Interrupted, Tag};

/// How to decode.
#[derive(Clone, Debug)]
pub struct Options {
    /// About how large a batch may become (256 KiB serves well): it is closed at the first commit beyond this.
    pub batch_bytes: usize,
    /// A transaction larger than this goes out in parts. What comes whole is grouped with its neighbours; a part is not.
    pub part_bytes: usize,
    /// Where the sinks stand: transactions that ended up to here are not emitted.
    pub resume_after: Lsn,
    /// `seq` of the first batch.
    pub next_seq: u64,
}

/// What passed through since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub transactions: u64,
    pub changes: u64,
    /// Transactions without a change that concerns us: only their position went on.
    pub empty_transactions: u64,
    /// Transactions that were sent again after a reconnect and had been emitted before.
    pub repeated_transactions: u64,
    /// Logical messages outside of any transaction: they arrive even when their transaction rolls back, so nothing may
    /// rest on them.
    pub loose_messages: u64,
}

/// Frames in, batches of committed transactions out. Outlives the sessions: see [`Decoder::begin_session`].
pub struct Decoder {
    assembly: Assembly,
    shapes: Shapes,
    streams: Streams,
    ahead: Ahead,
    state: State,
    /// The transaction a new session has to go on with before it may bring anything later.
    awaited: Option<Unfinished>,
    proto_version: Option<u32>,
    takes_streams: bool,
    takes_binary: bool,
    /// Values of this session come in binary form.
    binary: bool,
    /// Frames of this session so far.
    arrival: u64,
    counts: Counts,
}

enum State {
    /// Between transactions.
    Idle,
    /// Between Begin and Commit, or in the replay of a streamed transaction.
    Open(Open),
    /// The same, for a transaction that was emitted in an earlier session.
    Repeated,
    /// Between Stream Start and Stream Stop.
    Streaming { top: Xid },
}

/// One message and where it came from.
#[derive(Clone, Copy)]
pub(super) struct Arrived<'a> {
    pub(super) lsn: Option<Lsn>,
    pub(super) arrival: u64,
    message: &'a Bytes,
    /// Out of a stream: it carries the xid of its sub-transaction.
    replayed: bool,
}

impl Decoder {
    pub fn new(options: Options, stash: Box<dyn Stash>) -> Self {
        Self {
            assembly: Assembly::new(options.batch_bytes, options.part_bytes, options.next_seq, options.resume_after),
            shapes: Shapes::default(),
            streams: Streams::new(stash),
            ahead: Ahead::new(options.batch_bytes),
            state: State::Idle,
            awaited: None,
            proto_version: None,
            takes_streams: true,
            takes_binary: true,
            binary: false,
            arrival: 0,
            counts: Counts::default(),
        }
    }

    /// Where transactions go that are applied ahead of their commits. Nothing else may be emitted to but the target: what
    /// comes of them then is a position.
    pub fn lead_ahead(&mut self, lane: Box<dyn model::Ahead>) {
        self.ahead.lead_to(lane);
    }

    /// The session that has begun brings a backlog, which ends at `until`: a transaction of it that is streamed may be
    /// applied ahead of its commit.
    pub fn apply_ahead(&mut self, until: Option<Lsn>) {
        self.ahead.allow(until);
    }

    /// The session has broken off. [`Self::begin_session`] does the same, but may be long in coming.
    pub fn end_session(&mut self) {
        self.ahead.clear();
    }

    /// A replication session begins. The source starts again at a position we confirmed, so everything that was not
    /// emitted is dropped; what was emitted is recognised and not emitted twice; a transaction that was emitted in part
    /// goes on where it stopped.
    pub fn begin_session(&mut self, proto_version: u32) {
        assert!((1..=4).contains(&proto_version), "pgoutput has no protocol version {proto_version}");
        self.proto_version = Some(proto_version);
        self.binary = false;
        self.state = State::Idle;
        self.shapes = Shapes::default();
        self.streams.clear();
        self.ahead.clear();
        self.awaited = self.assembly.restart();
        self.arrival = 0;
    }

    /// The same, with values in binary form.
    pub fn begin_binary_session(&mut self, proto_version: u32) {
        self.begin_session(proto_version);
        self.binary = true;
    }

    /// Decodes what one read of the socket held. `emit` takes each batch and may block; when this returns, everything
    /// that was committed in `frames` has been emitted. After an error only `begin_session` may follow; a batch that
    /// `emit` refused counts as not emitted.
    pub fn on_frames<E>(
        &mut self,
        frames: &FrameBatch,
        emit: &mut impl FnMut(Batch) -> Result<(), E>,
    ) -> Result<(), Interrupted<E>> {
        assert!(self.proto_version.is_some(), "frames came before the first session");
        for frame in &frames.frames {
            self.on_frame(frame, emit).inspect_err(|interrupted| {
                if let Interrupted::Decode(error) = interrupted {
                    self.takes_streams &= !error.is_about_streams();
                    self.takes_binary &= !matches!(error, Error::NoBinaryForm { .. });
                }
            })?;
        }
        self.flush(emit).map_err(Interrupted::Emit)
    }

    /// Emits what is complete. `on_frames` ends with this.
    pub fn flush<E>(&mut self, emit: &mut impl FnMut(Batch) -> Result<(), E>) -> Result<(), E> {
        let open = match &mut self.state {
            State::Open(open) => Some(open),
            State::Idle | State::Repeated | State::Streaming { .. } => None,
        };
        match self.assembly.close(open) {
            Some(batch) => self.emit(batch, emit),
            None => Ok(()),
        }
    }

    /// Whether the next session may ask for transactions in progress. False from the first one on that could not be
    /// taken this way: without streams the source keeps it until its commit and sends what became of it.
    pub fn takes_streams(&self) -> bool {
        self.takes_streams
    }

    /// Whether the next session may ask for values in binary form. False from the first table on that has a column of
    /// which we know only the text.
    pub fn takes_binary(&self) -> bool {
        self.takes_binary
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn on_frame<E>(
        &mut self,
        frame: &Frame,
        emit: &mut impl FnMut(Batch) -> Result<(), E>,
    ) -> Result<(), Interrupted<E>> {
        self.arrival += 1;
        if let Some(wal_end) = frame.wal_end {
            self.assembly.note_wal_end(wal_end);
        }
        if let Some(reached) = frame.reached() {
            self.ahead.pass(reached)?;
        }
        match &frame.payload {
            FramePayload::Keepalive { .. } => self.on_keepalive(frame.wal_end),
            FramePayload::XLogData { wal_start, message } => {
                let arrived = Arrived { lsn: *wal_start, arrival: self.arrival, message, replayed: false };
                if let State::Streaming { top } = self.state {
                    self.on_streamed(top, arrived)?;
                } else {
                    let message = arrived.parse()?;
                    self.on_message(arrived, message, emit)?;
                }
            }
        }
        Ok(())
    }

    /// Whatever was committed up to a keepalive's position has been sent before it. Not believed while anything is
    /// pending: what confirms this position would also let the source forget the start of a transaction in progress.
    fn on_keepalive(&mut self, wal_end: Option<Lsn>) {
        let pending = !self.streams.is_empty() || self.ahead.is_claimed() || self.awaited.is_some();
        if let (State::Idle, false, Some(wal_end)) = (&self.state, pending, wal_end) {
            self.assembly.advance(wal_end);
        }
    }

    /// A message of a chunk: kept as it is, because the sub-transaction it belongs to may yet be rolled back.
    fn on_streamed(&mut self, top: Xid, arrived: Arrived<'_>) -> Result<(), Error> {
        let tag = arrived.tag()?;
        match tag.0 {
            _ if tag.0 != b'E' && self.ahead.has(top) => {
                let arrived = Arrived { replayed: true, ..arrived };
                self.ahead.on_message(arrived, arrived.parse()?, self.binary)?;
            }
            b'E' => {
                arrived.parse()?;
                self.state = State::Idle;
            }
            b'O' => {
                if let Message::Origin { lsn, name } = arrived.parse()? {
                    self.streams.set_origin(top, TransactionOrigin { name: name.to_owned(), lsn });
                }
            }
            _ if tag.carries_xid_in_stream() => {
                let xid = message::streamed_xid(arrived.message).map_err(|wrong| arrived.unreadable(wrong.into()))?;
                let frame =
                    StashedFrame { arrival: arrived.arrival, xid, lsn: arrived.lsn, message: arrived.message.clone() };
                self.streams.keep(top, &frame, tag == Tag(b'M'))?;
            }
            _ => {
                arrived.parse()?;
                return Err(arrived.unexpected("inside a stream"));
            }
        }
        Ok(())
    }

    fn on_message<E>(
        &mut self,
        arrived: Arrived<'_>,
        message: Message<'_>,
        emit: &mut impl FnMut(Batch) -> Result<(), E>,
    ) -> Result<(), Interrupted<E>> {
        match message {
            Message::Row(row) => self.on_row(arrived, row)?,
            Message::Truncate { oids, cascade, restart_identity } => {
                self.on_truncate(arrived, &oids, cascade, restart_identity)?;
            }
            Message::Logical { transactional: false, .. } => self.counts.loose_messages += 1,
            Message::Logical { transactional: true, prefix, content } => {
                self.on_change(arrived, |_, _| Ok(ChangeKind::Message { prefix: prefix.to_owned(), content }))?;
            }
            Message::Begin { xid, commit, at_us } => {
                self.expect_idle(arrived)?;
                self.state = self.opened(xid, commit, at_us)?;
            }
            Message::Commit(commit) => {
                self.on_commit(arrived, commit)?;
                return self.flush_when_full(emit);
            }
            Message::Origin { lsn, name } => {
                self.on_origin(arrived, TransactionOrigin { name: name.to_owned(), lsn })?
            }
            Message::Relation(relation) => self.on_relation(arrived, relation)?,
            Message::Type { oid, name } => self.shapes.describe_type(oid, name),
            Message::StreamStart { top, first } => return self.on_stream_start(arrived, top, first, emit),
            Message::StreamStop => return Err(arrived.unexpected("outside a stream").into()),
            Message::StreamCommit { top, commit } => return self.on_stream_commit(arrived, top, commit, emit),
            Message::StreamAbort { top, xid } => {
                self.expect_idle(arrived)?;
                if self.ahead.has(top) { self.ahead.abort(xid) } else { self.streams.abort(top, xid) }?;
            }
            Message::TwoPhase => return Err(Error::TwoPhase { tag: arrived.tag()?, at: At(arrived.lsn) }.into()),
        }
        self.emit_part_when_large(emit)
    }

    fn on_relation(&mut self, arrived: Arrived<'_>, relation: Relation) -> Result<(), Error> {
        let relation = arrived.in_form(relation, self.binary)?;
        self.shapes.describe(relation, arrived.arrival, arrived.replayed);
        Ok(())
    }

    /// The state in which the transaction committed at `commit` is received.
    fn opened(&mut self, xid: Xid, commit: Lsn, at_us: i64) -> Result<State, Error> {
        // Both are ends or starts of records, so a commit record that starts before `through` also ended by then.
        if commit < self.assembly.through() {
            self.counts.repeated_transactions += 1;
            return Ok(State::Repeated);
        }
        let emitted = match self.awaited.take() {
            Some(awaited) if awaited.commit == commit => awaited.emitted,
            Some(awaited) => return Err(Error::NotResent { expected: awaited.commit, found: commit }),
            None => 0,
        };
        Ok(State::Open(Open::new(xid, commit, at_us, emitted, &self.assembly.listing)))
    }

    fn on_commit(&mut self, arrived: Arrived<'_>, commit: Commit) -> Result<(), Error> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Open(open) if open.commit != commit.commit => {
                Err(arrived.malformed("another position than its Begin message announced"))
            }
            State::Open(open) if open.seen() < open.emitted() => {
                Err(Error::Diverged { commit: open.commit, emitted: open.emitted(), found: open.seen() })
            }
            State::Open(open) => {
                let told = self.assembly.complete(open, commit.end);
                *if told { &mut self.counts.transactions } else { &mut self.counts.empty_transactions } += 1;
                Ok(())
            }
            State::Repeated => Ok(()),
            State::Idle | State::Streaming { .. } => Err(arrived.unexpected("outside a transaction")),
        }
    }

    fn on_origin(&mut self, arrived: Arrived<'_>, origin: TransactionOrigin) -> Result<(), Error> {
        match &mut self.state {
            State::Open(open) => open.origin = Some(origin),
            State::Repeated => {}
            State::Idle | State::Streaming { .. } => return Err(arrived.unexpected("outside a transaction")),
        }
        Ok(())
    }

    fn on_row(&mut self, arrived: Arrived<'_>, row: Row) -> Result<(), Error> {
        self.on_change(arrived, |shapes, listing| arrived.row_kind(row, shapes, listing))
    }

    fn on_truncate(
        &mut self,
        arrived: Arrived<'_>,
        oids: &[u32],
        cascade: bool,
        restart_identity: bool,
    ) -> Result<(), Error> {
        self.on_change(arrived, |shapes, listing| {
            arrived.truncate_kind(oids, cascade, restart_identity, shapes, listing)
        })
    }

    /// Adds a change to the open transaction, unless an earlier session emitted it.
    fn on_change(
        &mut self,
        arrived: Arrived<'_>,
        kind: impl FnOnce(&mut Shapes, &mut Listing) -> Result<ChangeKind, Error>,
    ) -> Result<(), Error> {
        match &mut self.state {
            State::Open(open) => {
                if open.wants_next() {
                    let kind = kind(&mut self.shapes, &mut self.assembly.listing)?;
                    open.push(Change { lsn: arrived.lsn, kind });
                    self.counts.changes += 1;
                }
            }
            State::Repeated => {}
            State::Idle | State::Streaming { .. } => return Err(arrived.unexpected("outside a transaction")),
        }
        Ok(())
    }

    fn on_stream_start<E>(
        &mut self,
        arrived: Arrived<'_>,
        top: Xid,
        first: bool,
        emit: &mut impl FnMut(Batch) -> Result<(), E>,
    ) -> Result<(), Interrupted<E>> {
        self.expect_idle(arrived)?;
        match (self.streams.contains(top) || self.ahead.has(top), first) {
            _ if self.proto_version == Some(1) => return Err(arrived.unexpected("in protocol version 1").into()),
            (false, true) if self.awaited.is_none() && self.ahead.claim(top, self.assembly.through()) => {}
            (false, true) => self.streams.begin(top),
            (true, false) => {}
            (false, false) => return Err(arrived.unknown_stream(top).into()),
            (true, true) => return Err(Error::StreamBegunTwice { at: At(arrived.lsn), top }.into()),
        }
        self.state = State::Streaming { top };
        if self.ahead.has(top) {
            self.flush(emit).map_err(Interrupted::Emit)?;
            self.ahead.begin_chunk(self.assembly.through())?;
        }
        Ok(())
    }

    /// The transaction has committed: its frames take the road they would have taken had it not been streamed.
    fn on_stream_commit<E>(
        &mut self,
        arrived: Arrived<'_>,
        top: Xid,
        commit: Commit,
        emit: &mut impl FnMut(Batch) -> Result<(), E>,
    ) -> Result<(), Interrupted<E>> {
        self.expect_idle(arrived)?;
        if self.ahead.has(top) {
            return self.on_ahead_commit(commit, emit);
        }
        let mut replay = self.streams.commit(top)?.ok_or_else(|| arrived.unknown_stream(top))?;
        self.state = self.opened(top, commit.commit, commit.at_us)?;
        if let State::Open(open) = &mut self.state {
            if replay.ambiguous {
                return Err(Error::AmbiguousMessages { top, commit: commit.commit }.into());
            }
            open.origin = replay.origin.take();
        }
        self.replay(&mut replay, emit)?;
        self.shapes.merge_replayed();
        self.on_commit(arrived, commit)?;
        self.flush_when_full(emit)
    }

    /// The target has its rows already, or never gets them from here. Emitted is only how far the stream has come: at
    /// once, so that little time is left in which the target knows more than that.
    fn on_ahead_commit<E>(
        &mut self,
        commit: Commit,
        emit: &mut impl FnMut(Batch) -> Result<(), E>,
    ) -> Result<(), Interrupted<E>> {
        if commit.commit < self.assembly.through() {
            self.counts.repeated_transactions += 1;
            self.shapes.merge_ahead(self.ahead.repeated());
            return Ok(());
        }
        self.flush(emit).map_err(Interrupted::Emit)?;
        let (shapes, changes) = self.ahead.commit(commit, self.assembly.through())?;
        self.shapes.merge_ahead(shapes);
        self.counts.changes += changes;
        *if changes > 0 { &mut self.counts.transactions } else { &mut self.counts.empty_transactions } += 1;
        self.assembly.advance(commit.end);
        self.flush(emit).map_err(Interrupted::Emit)
    }

    /// A repeated transaction is replayed as well: the source counts on us to have read its table descriptions.
    fn replay<E>(
        &mut self,
        replay: &mut Replay,
        emit: &mut impl FnMut(Batch) -> Result<(), E>,
    ) -> Result<(), Interrupted<E>> {
        while let Some(frame) = replay.next()? {
            let arrived = Arrived { lsn: frame.lsn, arrival: frame.arrival, message: &frame.message, replayed: true };
            let message = arrived.parse()?;
            self.on_message(arrived, message, emit)?;
        }
        Ok(())
    }

    fn expect_idle(&self, arrived: Arrived<'_>) -> Result<(), Error> {
        match self.state {
            State::Idle => Ok(()),
            State::Open(_) | State::Repeated => Err(arrived.unexpected("inside a transaction")),
            State::Streaming { .. } => Err(arrived.unexpected("inside a stream")),
        }
    }

    fn flush_when_full<E>(&mut self, emit: &mut impl FnMut(Batch) -> Result<(), E>) -> Result<(), Interrupted<E>> {
        if self.assembly.is_full() { self.flush(emit).map_err(Interrupted::Emit) } else { Ok(()) }
    }

    fn emit_part_when_large<E>(&mut self, emit: &mut impl FnMut(Batch) -> Result<(), E>) -> Result<(), Interrupted<E>> {
        let batch = match &mut self.state {
            State::Open(open) if self.assembly.exceeds(open) => self.assembly.close_with_part(open),
            State::Open(_) | State::Idle | State::Repeated | State::Streaming { .. } => return Ok(()),
        };
        self.emit(batch, emit).map_err(Interrupted::Emit)
    }

    fn emit<E>(&mut self, batch: Batch, emit: &mut impl FnMut(Batch) -> Result<(), E>) -> Result<(), E> {
        emit(batch)?;
        self.assembly.taken();
        Ok(())
    }
}

impl<'a> Arrived<'a> {
    pub(super) fn row_kind(self, row: Row, shapes: &mut Shapes, listing: &mut Listing) -> Result<ChangeKind, Error> {
        let mut listed = |oid, first: &Tuple, second: Option<&Tuple>| {
            let shape = shapes.get_mut(oid).ok_or_else(|| self.unknown_relation(oid))?;
            for tuple in std::iter::once(first).chain(second) {
                if tuple.column_count() != shape.column_count() {
                    return Err(self.column_count(shape.relation(), tuple));
                }
            }
            Ok(shape.index_in(listing))
        };
        Ok(match row {
            Row::Insert { oid, new } => ChangeKind::Insert { relation: listed(oid, &new, None)?, new },
            Row::Update { oid, old, new } => {
                let relation = listed(oid, &new, old.as_ref().map(|old| &old.tuple))?;
                ChangeKind::Update { relation, old, new }
            }
            Row::Delete { oid, old } => ChangeKind::Delete { relation: listed(oid, &old.tuple, None)?, old },
        })
    }

    /// The relation as its rows come: in their types' binary form, if all of them are known.
    pub(super) fn in_form(self, mut relation: Relation, binary: bool) -> Result<Relation, Error> {
        relation.binary = binary;
        let unknown = relation.columns.iter().find(|column| binary && !binary::is_known(column.type_oid));
        match unknown {
            None => Ok(relation),
            Some(column) => {
                let (table, column, type_oid) = (relation.name.to_string(), column.name.clone(), column.type_oid);
                Err(Error::NoBinaryForm { table, column, type_oid })
            }
        }
    }

    fn parse(&self) -> Result<Message<'a>, Error> {
        let streamed = self.replayed;
        Message::parse(self.message, streamed).map_err(|wrong| self.unreadable(wrong))
    }

    fn tag(&self) -> Result<Tag, Error> {
        message::tag_of(self.message).ok_or(Error::Empty { at: At(self.lsn) })
    }

    fn unreadable(&self, wrong: Unreadable) -> Error {
        let at = At(self.lsn);
        match (message::tag_of(self.message), wrong) {
            (None, _) | (_, Unreadable::Empty) => Error::Empty { at },
            (Some(tag), Unreadable::UnknownTag) => Error::UnknownTag { tag, at },
            (Some(tag), Unreadable::Malformed(what)) => Error::Malformed { tag, at, what },
        }
    }

    fn malformed(&self, what: &'static str) -> Error {
        self.unreadable(Unreadable::Malformed(what))
    }

    /// The tag of a message that was parsed, and so has one.
    fn tag_read(&self) -> Tag {
        message::tag_of(self.message).expect("a message without tag is not parsed")
    }

    pub(super) fn unexpected(&self, state: &'static str) -> Error {
        Error::Unexpected { tag: self.tag_read(), at: At(self.lsn), state }
    }

    pub(super) fn unknown_relation(&self, oid: u32) -> Error {
        Error::UnknownRelation { tag: self.tag_read(), at: At(self.lsn), oid }
    }

    fn unknown_stream(&self, top: Xid) -> Error {
        Error::UnknownStream { tag: self.tag_read(), at: At(self.lsn), top }
    }

    fn column_count(&self, relation: &Relation, tuple: &Tuple) -> Error {
        Error::ColumnCount {
            tag: self.tag_read(),
            at: At(self.lsn),
            table: relation.name.to_string(),
            found: tuple.column_count(),
            expected: relation.columns.len(),
        }
    }
}
