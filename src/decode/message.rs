//! One pgoutput message as a value ("Logical Replication Message Formats" in the documentation; `proto.c` in the source).

use std::fmt;

use bytes::Bytes;

use crate::model::{Column, Lsn, OldKind, OldTuple, Relation, ReplicaIdentity, TableName, Tuple, TypeName, Xid};

use super::wire::{Malformed, Wire};

/// The first byte of a message: which one it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tag(pub u8);

/// A message of the protocol, read to its last byte.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    Row(Row),
    Begin {
        xid: Xid,
        commit: Lsn,
        at_us: i64,
    },
    Commit(Commit),
    Relation(Relation),
    Type {
        oid: u32,
        name: TypeName,
    },
    Origin {
        lsn: Option<Lsn>,
        name: &'a str,
    },
    Truncate {
        oids: Vec<u32>,
        cascade: bool,
        restart_identity: bool,
    },
    Logical {
        transactional: bool,
        prefix: &'a str,
        content: Bytes,
    },
    StreamStart {
        top: Xid,
        first: bool,
    },
    StreamStop,
    StreamCommit {
        top: Xid,
        commit: Commit,
    },
    StreamAbort {
        top: Xid,
        xid: Xid,
    },
    /// Any of the messages that only a slot made with `two_phase` sends.
    TwoPhase,
}

/// A change of one row of the table `oid`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Row {
    Insert { oid: u32, new: Tuple },
    Update { oid: u32, old: Option<OldTuple>, new: Tuple },
    Delete { oid: u32, old: OldTuple },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    pub(super) commit: Lsn,
    pub(super) end: Lsn,
    pub(super) at_us: i64,
}

/// Why a message could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    Empty,
    UnknownTag,
    Malformed(&'static str),
}

impl From<Malformed> for Unreadable {
    fn from(Malformed(what): Malformed) -> Self {
        Self::Malformed(what)
    }
}

/// Option bits of Truncate (`TRUNCATE_CASCADE`, `TRUNCATE_RESTART_SEQS` in `proto.c`).
const TRUNCATE_CASCADE: u8 = 1;
const TRUNCATE_RESTART_IDENTITY: u8 = 2;
/// Flag of a logical message (`MESSAGE_TRANSACTIONAL`).
const MESSAGE_TRANSACTIONAL: u8 = 1;
/// Flag of a column in a Relation message (`LOGICALREP_IS_REPLICA_IDENTITY`).
const COLUMN_IN_IDENTITY: u8 = 1;

/// `None` for an empty message.
pub(super) fn tag_of(message: &Bytes) -> Option<Tag> {
    message.first().copied().map(Tag)
}

/// The (sub-)transaction a message inside a stream belongs to: the four bytes after its tag.
pub(super) fn streamed_xid(message: &Bytes) -> Result<Xid, Malformed> {
    let mut wire = Wire::new(message);
    wire.u8()?;
    wire.xid()
}

impl<'a> Message<'a> {
    /// Reads a message. `streamed`: it stands inside a stream, where changes and descriptions carry an xid after the tag.
    pub(super) fn parse(message: &'a Bytes, streamed: bool) -> Result<Self, Unreadable> {
        let mut wire = Wire::new(message);
        let tag = wire.u8().map_err(|_| Unreadable::Empty)?;
        if streamed && Tag(tag).carries_xid_in_stream() {
            wire.xid()?;
        }
        let parsed = match tag {
            b'I' => Self::Row(insert(&mut wire)?),
            b'U' => Self::Row(update(&mut wire)?),
            b'D' => Self::Row(delete(&mut wire)?),
            b'B' => begin(&mut wire)?,
            b'C' => Self::Commit(commit(&mut wire)?),
            b'R' => Self::Relation(relation(&mut wire)?),
            b'Y' => type_(&mut wire)?,
            b'O' => Self::Origin { lsn: wire.lsn()?, name: wire.name()? },
            b'T' => truncate(&mut wire)?,
            b'M' => logical(&mut wire)?,
            b'S' => Self::StreamStart { top: wire.xid()?, first: wire.u8()? == 1 },
            b'E' => Self::StreamStop,
            b'c' => Self::StreamCommit { top: wire.xid()?, commit: commit(&mut wire)? },
            b'A' => stream_abort(&mut wire)?,
            // Begin Prepare, Prepare, Commit Prepared, Rollback Prepared, Stream Prepare (protocol version 3).
            b'b' | b'P' | b'K' | b'r' | b'p' => return Ok(Self::TwoPhase),
            _ => return Err(Unreadable::UnknownTag),
        };
        wire.finish()?;
        Ok(parsed)
    }
}

fn begin(wire: &mut Wire<'_>) -> Result<Message<'static>, Malformed> {
    let (commit, at_us) = (wire.lsn_given()?, wire.time_us()?);
    Ok(Message::Begin { xid: wire.xid()?, commit, at_us })
}

fn commit(wire: &mut Wire<'_>) -> Result<Commit, Malformed> {
    match wire.u8()? {
        0 => Ok(Commit { commit: wire.lsn_given()?, end: wire.lsn_given()?, at_us: wire.time_us()? }),
        _ => Err(Malformed("flags that are not in use")),
    }
}

fn insert(wire: &mut Wire<'_>) -> Result<Row, Malformed> {
    let oid = wire.u32()?;
    match wire.u8()? {
        b'N' => Ok(Row::Insert { oid, new: wire.tuple()? }),
        _ => Err(Malformed("no new row")),
    }
}

fn update(wire: &mut Wire<'_>) -> Result<Row, Malformed> {
    let oid = wire.u32()?;
    let kind = wire.u8()?;
    if kind == b'N' {
        return Ok(Row::Update { oid, old: None, new: wire.tuple()? });
    }
    let old = Some(old(kind, wire)?);
    match wire.u8()? {
        b'N' => Ok(Row::Update { oid, old, new: wire.tuple()? }),
        _ => Err(Malformed("no new row behind the old one")),
    }
}

fn delete(wire: &mut Wire<'_>) -> Result<Row, Malformed> {
    let oid = wire.u32()?;
    let kind = wire.u8()?;
    Ok(Row::Delete { oid, old: old(kind, wire)? })
}

fn old(kind: u8, wire: &mut Wire<'_>) -> Result<OldTuple, Malformed> {
    let kind = match kind {
        b'K' => OldKind::Key,
        b'O' => OldKind::Full,
        _ => return Err(Malformed("an unknown kind of row")),
    };
    Ok(OldTuple { kind, tuple: wire.tuple()? })
}

fn relation(wire: &mut Wire<'_>) -> Result<Relation, Malformed> {
    let oid = wire.u32()?;
    let (schema, name) = qualified(wire)?;
    let identity = match wire.u8()? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        _ => return Err(Malformed("an unknown replica identity")),
    };
    let columns = (0..wire.u16()?).map(|_| column(wire)).collect::<Result<_, _>>()?;
    Ok(Relation { oid, name: TableName { schema, name }, identity, binary: false, columns })
}

fn column(wire: &mut Wire<'_>) -> Result<Column, Malformed> {
    Ok(Column {
        in_identity: wire.u8()? & COLUMN_IN_IDENTITY != 0,
        name: wire.name()?.to_owned(),
        type_oid: wire.u32()?,
        type_modifier: wire.i32()?,
        type_name: None,
    })
}

fn type_(wire: &mut Wire<'_>) -> Result<Message<'static>, Malformed> {
    let oid = wire.u32()?;
    let (schema, name) = qualified(wire)?;
    Ok(Message::Type { oid, name: TypeName { schema, name } })
}

/// Schema and name; an empty schema stands for `pg_catalog` (`logicalrep_write_namespace`).
fn qualified(wire: &mut Wire<'_>) -> Result<(String, String), Malformed> {
    let schema = match wire.name()? {
        "" => "pg_catalog",
        schema => schema,
    };
    Ok((schema.to_owned(), wire.name()?.to_owned()))
}

fn truncate(wire: &mut Wire<'_>) -> Result<Message<'static>, Malformed> {
    let count = wire.u32()?;
    let options = wire.u8()?;
    // Checked before anything is reserved: the count comes from outside.
    if usize::try_from(count).ok().and_then(|count| count.checked_mul(size_of::<u32>())) != Some(wire.left()) {
        return Err(Malformed("another number of tables than counted"));
    }
    Ok(Message::Truncate {
        oids: (0..count).map(|_| wire.u32()).collect::<Result<_, _>>()?,
        cascade: options & TRUNCATE_CASCADE != 0,
        restart_identity: options & TRUNCATE_RESTART_IDENTITY != 0,
    })
}

fn logical<'a>(wire: &mut Wire<'a>) -> Result<Message<'a>, Malformed> {
    let transactional = wire.u8()? & MESSAGE_TRANSACTIONAL != 0;
    wire.lsn()?;
    let prefix = wire.name()?;
    let length = usize::try_from(wire.u32()?).map_err(|_| Malformed("a length out of range"))?;
    Ok(Message::Logical { transactional, prefix, content: wire.bytes(length)? })
}

fn stream_abort(wire: &mut Wire<'_>) -> Result<Message<'static>, Malformed> {
    let aborted = Message::StreamAbort { top: wire.xid()?, xid: wire.xid()? };
    // Version 4 with `streaming 'parallel'` adds when and where; we ask for `on`, which leaves both out.
    if wire.left() > 0 {
        wire.lsn()?;
        wire.time_us()?;
    }
    Ok(aborted)
}

impl Tag {
    /// Whether this message carries an xid after its tag when it stands inside a stream.
    pub(super) fn carries_xid_in_stream(self) -> bool {
        matches!(self.0, b'I' | b'U' | b'D' | b'T' | b'R' | b'Y' | b'M')
    }

    fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            b'B' => "Begin",
            b'C' => "Commit",
            b'O' => "Origin",
            b'R' => "Relation",
            b'Y' => "Type",
            b'I' => "Insert",
            b'U' => "Update",
            b'D' => "Delete",
            b'T' => "Truncate",
            b'M' => "Message",
            b'S' => "Stream Start",
            b'E' => "Stream Stop",
            b'c' => "Stream Commit",
            b'A' => "Stream Abort",
            b'b' => "Begin Prepare",
            b'P' => "Prepare",
            b'K' => "Commit Prepared",
            b'r' => "Rollback Prepared",
            b'p' => "Stream Prepare",
            _ => return None,
        })
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "0x{:02x}", self.0),
        }
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
