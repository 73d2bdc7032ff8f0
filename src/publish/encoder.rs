//! Transactions to records, in order: BEGIN, the changes as Debezium's connector for PostgreSQL writes them, END.
//!
//! Pure: batches in, records out through a callback, the clock as a parameter. What it remembers is the shape of each
//! table and, for a transaction that comes in parts, how far it has counted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::model::{
    Batch, Change, ChangeKind, Lsn, OldKind, OldTuple, Relation, TableName, Transaction, Tuple, marker_prefix,
};

use super::envelope::{Envelope, Place};
use super::events;
use super::plan::{TablePlan, Writer};
use super::{Error, Header, Options, Placement, Record, Topics};

/// Debezium's headers on the two events of a key change.
const HEADER_NEW_KEY: &str = "__debezium.newkey";
const HEADER_OLD_KEY: &str = "__debezium.oldkey";

/// Takes the records, in order.
pub type Emit<'a> = dyn FnMut(Record<'_>) -> Result<(), Error> + 'a;

pub struct Encoder {
    topics: Topics,
    keys: BTreeMap<TableName, Vec<String>>,
    owner_after_fence: String,
    envelope: Envelope,
    /// By the table's OID. A shape that changes replaces the older one; the number of tables bounds it.
    plans: HashMap<u32, Arc<TablePlan>>,
    counts: Counts,
    buffers: Buffers,
    unavailable_total: u64,
}

/// Events of the current transaction so far. Kept across its parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) total: u64,
    pub(super) by_collection: BTreeMap<Arc<str>, u64>,
}

/// Reused for every record.
#[derive(Default)]
struct Buffers {
    key: Vec<u8>,
    other_key: Vec<u8>,
    value: Vec<u8>,
    scratch: Vec<u8>,
}

/// One row event, before it is written.
struct Row<'a> {
    op: u8,
    lsn: Option<Lsn>,
    before: Option<&'a Tuple>,
    after: Option<&'a Tuple>,
    /// The row that has the values `after` does not carry, if it is known whole.
    whole_old: Option<&'a Tuple>,
    key: RowKey<'a>,
    /// The row's key before or after it moved.
    moved: Option<(&'static str, RowKey<'a>)>,
}

/// The row a key is taken from, and where it does not carry a value, the row that does.
#[derive(Clone, Copy)]
struct RowKey<'a> {
    row: &'a Tuple,
    fallback: Option<&'a Tuple>,
}

impl Encoder {
    /// Refuses topic names that are illegal or that two tables would share.
    pub fn new(options: &Options) -> Result<Self, Error> {
        Ok(Self {
            topics: Topics::new(options)?,
            keys: options.keys.clone(),
            owner_after_fence: options.owner_after_fence.clone(),
            envelope: Envelope::new(options),
            plans: HashMap::new(),
            counts: Counts::default(),
            buffers: Buffers::default(),
            unavailable_total: 0,
        })
    }

    pub fn topics(&self) -> &Topics {
        &self.topics
    }

    /// Values the stream did not carry and that went out as Debezium's placeholder, since the start.
    pub const fn unavailable_total(&self) -> u64 {
        self.unavailable_total
    }

    /// Names the topics of the batch's tables, so that they can be made before a record is sent to them.
    pub(super) fn meet(&mut self, batch: &Batch) -> Result<Vec<Arc<str>>, Error> {
        let mut met = Vec::new();
        for relation in &batch.relations {
            if !self.topics.knows(&relation.name) {
                met.push(self.topics.of_table(&relation.name)?);
            }
        }
        Ok(met)
    }

    /// Emits the records of `transaction`, or of the part of it that this is. Changes whose ordinal is below `skip` are
    /// counted and not emitted. `now_us`: microseconds since the Unix epoch.
    pub fn transaction(
        &mut self,
        batch: &Batch,
        transaction: &Transaction,
        skip: u64,
        now_us: i64,
        emit: &mut Emit<'_>,
    ) -> Result<(), Error> {
        if transaction.part.begins() {
            self.counts = Counts::default();
        }
        self.envelope.enter(transaction, now_us);
        for (ordinal, change) in (transaction.first_ordinal..).zip(&transaction.changes) {
            if ordinal < skip {
                self.change(batch, transaction, change, &mut |_| Ok(()))?;
            } else {
                self.change(batch, transaction, change, emit)?;
            }
        }
        if transaction.part.ends() && self.counts.total > 0 {
            self.end(emit)?;
        }
        Ok(())
    }

    /// Where counting stands, to come back to when a Kafka transaction has to be sent again.
    pub(super) fn bookmark(&self) -> Counts {
        self.counts.clone()
    }

    pub(super) fn rewind(&mut self, bookmark: Counts) {
        self.counts = bookmark;
    }

    fn change(
        &mut self,
        batch: &Batch,
        transaction: &Transaction,
        change: &Change,
        emit: &mut Emit<'_>,
    ) -> Result<(), Error> {
        let lsn = change.lsn;
        match &change.kind {
            ChangeKind::Insert { relation, new } => {
                let plan = self.plan(batch.relation(*relation))?;
                self.row(&plan, Row::created(lsn, new), emit)
            }
            ChangeKind::Update { relation, old, new } => {
                let plan = self.plan(batch.relation(*relation))?;
                match old {
                    Some(old) if plan.key_differs(&old.tuple, new) => self.moved(&plan, lsn, old, new, emit),
                    _ => self.row(&plan, Row::updated(lsn, old.as_ref(), new), emit),
                }
            }
            ChangeKind::Delete { relation, old } => {
                let plan = self.plan(batch.relation(*relation))?;
                self.deleted(&plan, Row::deleted(lsn, &old.tuple), emit)
            }
            ChangeKind::Truncate { relations, .. } => relations.iter().try_for_each(|relation| {
                let plan = self.plan(batch.relation(*relation))?;
                self.truncated(&plan, lsn, emit)
            }),
            ChangeKind::Message { prefix, content } if prefix == marker_prefix() => {
                match content.strip_prefix(events::FENCE_CONTENT) {
                    Some(fence) => self.fence(&String::from_utf8_lossy(fence), transaction, emit),
                    // A mark for another room.
                    None => Ok(()),
                }
            }
            ChangeKind::Message { prefix, content } => self.message(prefix, content, lsn, emit),
        }
    }

    /// A changed key is another row to Kafka: the old one is deleted, the new one created.
    fn moved(
        &mut self,
        plan: &TablePlan,
        lsn: Option<Lsn>,
        old: &OldTuple,
        new: &Tuple,
        emit: &mut Emit<'_>,
    ) -> Result<(), Error> {
        let old_key = RowKey { row: &old.tuple, fallback: None };
        let new_key = RowKey { row: new, fallback: Some(&old.tuple) };
        let deleted = Row { moved: Some((HEADER_NEW_KEY, new_key)), ..Row::deleted(lsn, &old.tuple) };
        self.deleted(plan, deleted, emit)?;
        let created = Row {
            key: new_key,
            whole_old: whole(Some(old)),
            moved: Some((HEADER_OLD_KEY, old_key)),
            ..Row::created(lsn, new)
        };
        self.row(plan, created, emit)
    }

    fn deleted(&mut self, plan: &TablePlan, row: Row<'_>, emit: &mut Emit<'_>) -> Result<(), Error> {
        self.row(plan, row, emit)?;
        if !plan.has_key() {
            return Ok(());
        }
        // The event has just written the key.
        let key = Some(&*self.buffers.key);
        emit(Record { topic: &plan.topic, placement: Placement::ByKey, key, value: None, header: None })
    }

    fn row(&mut self, plan: &TablePlan, row: Row<'_>, emit: &mut Emit<'_>) -> Result<(), Error> {
        let place = self.place(&plan.collection, emit)?;
        let Buffers { key, other_key, value, scratch } = &mut self.buffers;
        if plan.has_key() {
            write_key(plan, row.key, key, scratch)?;
        }
        if let Some((_, moved)) = row.moved {
            write_key(plan, moved, other_key, scratch)?;
        }
        value.clear();
        self.unavailable_total += write_rows(plan, &row, value, scratch)?;
        events::write_tail(&self.envelope, plan, row.op, row.lsn, place, value);
        emit(Record {
            topic: &plan.topic,
            placement: plan.placement(),
            key: plan.has_key().then_some(&**key),
            value: Some(value),
            header: row.moved.map(|(name, _)| Header { name, value: other_key }),
        })
    }

    fn truncated(&mut self, plan: &TablePlan, lsn: Option<Lsn>, emit: &mut Emit<'_>) -> Result<(), Error> {
        let place = self.place(&plan.collection, emit)?;
        let value = &mut self.buffers.value;
        value.clear();
        value.extend_from_slice(b"{\"before\":null,\"after\":null,");
        events::write_tail(&self.envelope, plan, b't', lsn, place, value);
        emit(Record { topic: &plan.topic, placement: Placement::First, key: None, value: Some(value), header: None })
    }

    fn message(&mut self, prefix: &str, content: &[u8], lsn: Option<Lsn>, emit: &mut Emit<'_>) -> Result<(), Error> {
        let Some(topic) = self.topics.message().cloned() else { return Ok(()) };
        let place = self.place(&events::message_collection(), emit)?;
        let Buffers { key, value, .. } = &mut self.buffers;
        events::write_message(&self.envelope, prefix, content, lsn, place, key, value);
        emit(Record { topic: &topic, placement: Placement::ByKey, key: Some(key), value: Some(value), header: None })
    }

    /// To every partition of every topic, because each reader has to see it at its own offset.
    fn fence(&mut self, fence: &str, transaction: &Transaction, emit: &mut Emit<'_>) -> Result<(), Error> {
        let Buffers { key, value, .. } = &mut self.buffers;
        events::write_fence(&self.envelope, fence, &self.owner_after_fence, transaction, key, value);
        let header = Some(events::FENCE_HEADER);
        self.topics.of_stream().try_for_each(|topic| {
            emit(Record { topic, placement: Placement::Every, key: Some(key), value: Some(value), header })
        })
    }

    /// Counts an event of `collection`; before the first one BEGIN goes out.
    fn place(&mut self, collection: &Arc<str>, emit: &mut Emit<'_>) -> Result<Place, Error> {
        if self.counts.total == 0 {
            self.border(emit, events::write_begin)?;
        }
        self.counts.total += 1;
        let of_collection = self.counts.by_collection.entry(Arc::clone(collection)).or_default();
        *of_collection += 1;
        Ok(Place { total_order: self.counts.total, collection_order: *of_collection })
    }

    fn end(&mut self, emit: &mut Emit<'_>) -> Result<(), Error> {
        self.border(emit, events::write_end)
    }

    fn border(&mut self, emit: &mut Emit<'_>, write: fn(&Envelope, &Counts, &mut Vec<u8>)) -> Result<(), Error> {
        let Buffers { key, value, .. } = &mut self.buffers;
        events::write_transaction_key(&self.envelope, key);
        value.clear();
        write(&self.envelope, &self.counts, value);
        let topic = self.topics.transaction();
        emit(Record { topic, placement: Placement::ByKey, key: Some(key), value: Some(value), header: None })
    }

    /// The plan for this shape; made anew when the table's shape is not the one last seen.
    fn plan(&mut self, relation: &Arc<Relation>) -> Result<Arc<TablePlan>, Error> {
        if let Some(plan) = self.plans.get(&relation.oid)
            && (Arc::ptr_eq(&plan.relation, relation) || plan.relation == *relation)
        {
            return Ok(Arc::clone(plan));
        }
        let topic = self.topics.of_table(&relation.name)?;
        let primary_key = self.keys.get(&relation.name).map(Vec::as_slice);
        let plan = Arc::new(TablePlan::new(relation, primary_key, topic)?);
        self.plans.insert(relation.oid, Arc::clone(&plan));
        Ok(plan)
    }
}

impl<'a> Row<'a> {
    const fn created(lsn: Option<Lsn>, new: &'a Tuple) -> Self {
        let key = RowKey { row: new, fallback: None };
        Self { op: b'c', lsn, before: None, after: Some(new), whole_old: None, key, moved: None }
    }

    fn updated(lsn: Option<Lsn>, old: Option<&'a OldTuple>, new: &'a Tuple) -> Self {
        let before = old.map(|old| &old.tuple);
        let key = RowKey { row: new, fallback: before };
        Self { op: b'u', lsn, before, after: Some(new), whole_old: whole(old), key, moved: None }
    }

    const fn deleted(lsn: Option<Lsn>, old: &'a Tuple) -> Self {
        let key = RowKey { row: old, fallback: None };
        Self { op: b'd', lsn, before: Some(old), after: None, whole_old: None, key, moved: None }
    }
}

/// Only a whole old row says what an unchanged TOAST value was: beside a key's columns, NULL means nothing.
fn whole(old: Option<&OldTuple>) -> Option<&Tuple> {
    old.filter(|old| old.kind == OldKind::Full).map(|old| &old.tuple)
}

fn write_key(plan: &TablePlan, key: RowKey<'_>, out: &mut Vec<u8>, scratch: &mut Vec<u8>) -> Result<(), Error> {
    out.clear();
    plan.write_key(key.row, key.fallback, &mut Writer { out, scratch, unavailable: 0 })
}

/// `{"before":…,"after":…,`. Returns how many values the stream did not carry.
fn write_rows(plan: &TablePlan, row: &Row<'_>, out: &mut Vec<u8>, scratch: &mut Vec<u8>) -> Result<u64, Error> {
    let mut writer = Writer { out, scratch, unavailable: 0 };
    writer.out.extend_from_slice(b"{\"before\":");
    match row.before {
        Some(before) => plan.write_row(before, None, &mut writer)?,
        None => writer.out.extend_from_slice(b"null"),
    }
    writer.out.extend_from_slice(b",\"after\":");
    match row.after {
        Some(after) => plan.write_row(after, row.whole_old, &mut writer)?,
        None => writer.out.extend_from_slice(b"null"),
    }
    writer.out.push(b',');
    Ok(writer.unavailable)
}
