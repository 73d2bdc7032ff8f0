//! One transaction in progress that is decoded as it comes, and applied ahead of its commit.
//!
//! Its chunks are not put away: each change goes on at once, in the shapes that the chunks themselves describe. What was
//! emitted before a chunk goes with it, since a change may rest on any commit before it; nothing that commits after it can
//! concern the same rows, which are locked on the source. That ends where a sub-transaction is rolled back, so such a
//! transaction is given up, and comes again at its commit.

use crate::model::{
    self, AheadCommit, AheadGivenUp, AheadPart, Batch, Change, ChangeKind, Lsn, Part, Transaction, Xid,
};

use super::Error;
use super::machine::Arrived;
use super::message::{Commit, Message};
use super::shapes::{Listing, Shapes};

/// Whether there is such a transaction, and which.
pub(super) struct Ahead {
    lane: Option<Box<dyn model::Ahead>>,
    part_bytes: usize,
    /// One that has not committed by then is none of the backlog: the target would hold it open for as long as the source.
    /// `None`: this session has no backlog.
    until: Option<Lsn>,
    claimed: Option<Claimed>,
}

struct Claimed {
    top: Xid,
    shapes: Shapes,
    listing: Listing,
    changes: Vec<Change>,
    size_bytes: usize,
    /// Changes that were handed on.
    handed_on: u64,
    /// What had been emitted when the present chunk began.
    after: Lsn,
}

impl Ahead {
    pub(super) fn new(part_bytes: usize) -> Self {
        Self { lane: None, part_bytes, until: None, claimed: None }
    }

    pub(super) fn lead_to(&mut self, lane: Box<dyn model::Ahead>) {
        self.lane = Some(lane);
    }

    /// From here on transactions may be claimed that commit up to `until`.
    pub(super) fn allow(&mut self, until: Option<Lsn>) {
        self.until = until;
    }

    /// The session has ended; whatever was in progress comes again.
    pub(super) fn clear(&mut self) {
        self.until = None;
        self.forget();
    }

    /// Takes back what was handed on, if anything was.
    pub(super) fn forget(&mut self) {
        if let (Some(lane), Some(Claimed { handed_on: 1.., .. })) = (&mut self.lane, self.claimed.take()) {
            lane.roll_back();
        }
    }

    pub(super) fn is_claimed(&self) -> bool {
        self.claimed.is_some()
    }

    pub(super) fn has(&self, top: Xid) -> bool {
        self.claimed.as_ref().is_some_and(|claimed| claimed.top == top)
    }

    /// The first chunk of a transaction comes: true when it is not to be put away.
    pub(super) fn claim(&mut self, top: Xid, after: Lsn) -> bool {
        if self.lane.is_none() || self.until.is_none() || self.is_claimed() {
            return false;
        }
        self.claimed = Some(Claimed {
            top,
            shapes: Shapes::default(),
            listing: Listing::default(),
            changes: Vec::new(),
            size_bytes: 0,
            handed_on: 0,
            after,
        });
        true
    }

    /// A chunk begins. `after`: everything up to here has been emitted.
    pub(super) fn begin_chunk(&mut self, after: Lsn) -> Result<(), Error> {
        // What is gathered need not wait for what has committed since.
        self.hand_on()?;
        self.claimed().after = after;
        Ok(())
    }

    /// The source's log has been read to here.
    pub(super) fn pass(&mut self, wal_end: Lsn) -> Result<(), Error> {
        match self.until {
            Some(until) if until < wal_end && self.is_claimed() => Err(self.give_up("it has not committed yet")),
            Some(_) | None => Ok(()),
        }
    }

    /// A message of a chunk; not the end of it.
    pub(super) fn on_message(&mut self, arrived: Arrived<'_>, message: Message<'_>, binary: bool) -> Result<(), Error> {
        let Claimed { shapes, listing, .. } = self.claimed();
        let kind = match message {
            Message::Row(row) => arrived.row_kind(row, shapes, listing)?,
            Message::Truncate { oids, cascade, restart_identity } => {
                arrived.truncate_kind(&oids, cascade, restart_identity, shapes, listing)?
            }
            Message::Relation(relation) => {
                shapes.describe(arrived.in_form(relation, binary)?, arrived.arrival, false);
                return Ok(());
            }
            Message::Type { oid, name } => {
                shapes.describe_type(oid, name);
                return Ok(());
            }
            // The target has no use for them.
            Message::Logical { .. } | Message::Origin { .. } => return Ok(()),
            Message::Begin { .. }
            | Message::Commit(_)
            | Message::StreamStart { .. }
            | Message::StreamStop
            | Message::StreamCommit { .. }
            | Message::StreamAbort { .. }
            | Message::TwoPhase => return Err(arrived.unexpected("inside a stream")),
        };
        let part_bytes = self.part_bytes;
        let claimed = self.claimed();
        let change = Change { lsn: arrived.lsn, kind };
        claimed.size_bytes += change.size_bytes();
        claimed.changes.push(change);
        if claimed.size_bytes >= part_bytes { self.hand_on() } else { Ok(()) }
    }

    /// Nothing of the sub-transaction `xid` counts, or nothing at all.
    pub(super) fn abort(&mut self, xid: Xid) -> Result<(), Error> {
        if self.claimed().top == xid {
            self.forget();
            return Ok(());
        }
        Err(self.give_up("a part of it was rolled back"))
    }

    /// It has committed. Returns the shapes it described, and how many changes the target holds now. `after`: everything
    /// before it has been emitted.
    pub(super) fn commit(&mut self, commit: Commit, after: Lsn) -> Result<(Shapes, u64), Error> {
        self.hand_on()?;
        let Claimed { top, handed_on, .. } = *self.claimed();
        if handed_on > 0 {
            let end = AheadCommit { xid: top, end: commit.end, committed_at_us: commit.at_us, after };
            let committed = self.lane().commit(end);
            committed.map_err(|source| self.given_up(source))?;
        }
        let claimed = self.claimed.take().expect("it was there");
        Ok((claimed.shapes, handed_on))
    }

    /// An earlier session emitted it. Its shapes count all the same.
    pub(super) fn repeated(&mut self) -> Shapes {
        let shapes = std::mem::take(&mut self.claimed().shapes);
        self.forget();
        shapes
    }

    fn hand_on(&mut self) -> Result<(), Error> {
        let claimed = self.claimed();
        if claimed.changes.is_empty() {
            return Ok(());
        }
        let part = claimed.part();
        let taken = self.lane().take(part);
        taken.map_err(|source| self.given_up(source))
    }

    fn give_up(&mut self, why: &str) -> Error {
        let top = self.claimed().top;
        self.forget();
        Error::AheadGivenUp { top, source: AheadGivenUp::because(why) }
    }

    /// By the other end, which has taken back what it had.
    fn given_up(&mut self, source: AheadGivenUp) -> Error {
        let Claimed { top, .. } = self.claimed.take().expect("only what was claimed is given up");
        Error::AheadGivenUp { top, source }
    }

    fn claimed(&mut self) -> &mut Claimed {
        self.claimed.as_mut().expect("asked only about the transaction that is claimed")
    }

    fn lane(&mut self) -> &mut dyn model::Ahead {
        self.lane.as_deref_mut().expect("without a lane nothing is claimed")
    }
}

impl Claimed {
    fn part(&mut self) -> AheadPart {
        let changes = std::mem::take(&mut self.changes);
        let part = if self.handed_on == 0 { Part::First } else { Part::Middle };
        let first_ordinal = self.handed_on;
        self.handed_on += changes.len() as u64;
        self.size_bytes = 0;
        // Its commit stands behind all of them.
        let known = changes.iter().filter_map(|change| change.lsn).max().max(Some(self.after)).unwrap_or(self.after);
        let transaction = Transaction {
            xid: self.top,
            commit: known,
            end: known.next(),
            committed_at_us: 0,
            origin: None,
            part,
            first_ordinal,
            changes,
        };
        let relations = self.listing.turn(std::iter::empty());
        let batch =
            Batch { seq: 0, relations, transactions: vec![transaction], through: self.after, wal_end: self.after };
        AheadPart { batch, after: self.after }
    }
}

/// A change is one of these, wherever it is decoded.
impl Arrived<'_> {
    pub(super) fn truncate_kind(
        self,
        oids: &[u32],
        cascade: bool,
        restart_identity: bool,
        shapes: &mut Shapes,
        listing: &mut Listing,
    ) -> Result<ChangeKind, Error> {
        let listed = oids.iter().map(|oid| match shapes.get_mut(*oid) {
            Some(shape) => Ok(shape.index_in(listing)),
            None => Err(self.unknown_relation(*oid)),
        });
        Ok(ChangeKind::Truncate { relations: listed.collect::<Result<_, Error>>()?, cascade, restart_identity })
    }
}
