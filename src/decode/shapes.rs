//! Which shape a table has at this point of the stream.
//!
//! The walsender describes a table once and again after it changed. For a transaction in progress it does so inside that
//! transaction's stream, remembers that (`streamed_txns` of its `RelationSyncEntry`), and from STREAM COMMIT on takes
//! the description as known to us in general (`cleanup_rel_sync_cache`). So does this: a replayed transaction sees its
//! own descriptions first, and they become the general ones when it is done, except where a later one has arrived since.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::model::{Relation, RelationIndex, TypeName};

/// Everything the stream has described in this session. The number of published tables and types bounds it.
#[derive(Default)]
pub(super) struct Shapes {
    types: ByOid<TypeName>,
    general: ByOid<Shape>,
    /// What the transaction now being replayed described.
    replayed: ByOid<Shape>,
}

pub(super) struct Shape {
    relation: Arc<Relation>,
    column_count: usize,
    /// When it was described, counted in frames of the session.
    arrival: u64,
    /// Where it was last listed.
    listed: Option<Listed>,
}

/// The relations of the batch under construction.
#[derive(Default)]
pub(super) struct Listing {
    number: u64,
    relations: Vec<Arc<Relation>>,
    /// How many of them an open transaction brought along from the batch before.
    carried: usize,
}

#[derive(Clone, Copy)]
struct Listed {
    listing: u64,
    index: RelationIndex,
}

impl Shapes {
    pub(super) fn describe_type(&mut self, oid: u32, name: TypeName) {
        self.types.insert(oid, name);
    }

    /// Takes a description that holds from here on: for the transaction being replayed, or for all.
    pub(super) fn describe(&mut self, mut relation: Relation, arrival: u64, replayed: bool) {
        for column in &mut relation.columns {
            column.type_name = self.types.get(&column.type_oid).cloned();
        }
        let oid = relation.oid;
        let known = self.replayed.get(&oid).or_else(|| self.general.get(&oid));
        let shape = match known {
            // The same again (a stream repeats what was known): keep the one that downstream has already met.
            Some(known) if *known.relation == relation => {
                Shape { relation: Arc::clone(&known.relation), arrival, ..*known }
            }
            Some(_) | None => {
                Shape { column_count: relation.columns.len(), relation: Arc::new(relation), arrival, listed: None }
            }
        };
        if replayed { &mut self.replayed } else { &mut self.general }.insert(oid, shape);
    }

    pub(super) fn get_mut(&mut self, oid: u32) -> Option<&mut Shape> {
        if !self.replayed.is_empty() && self.replayed.contains_key(&oid) {
            return self.replayed.get_mut(&oid);
        }
        self.general.get_mut(&oid)
    }

    /// The replayed transaction is done: what it described holds in general, unless something later arrived while it
    /// was in progress.
    pub(super) fn merge_replayed(&mut self) {
        for (oid, shape) in self.replayed.drain() {
            if self.general.get(&oid).is_none_or(|general| general.arrival < shape.arrival) {
                self.general.insert(oid, shape);
            }
        }
    }
}

impl Shapes {
    /// Takes over what a transaction described that was decoded beside the rest, by the same rule.
    pub(super) fn merge_ahead(&mut self, ahead: Self) {
        self.types.extend(ahead.types);
        for (oid, shape) in ahead.general {
            if self.general.get(&oid).is_none_or(|general| general.arrival < shape.arrival) {
                // It was listed elsewhere.
                self.general.insert(oid, Shape { listed: None, ..shape });
            }
        }
    }
}

impl Shape {
    pub(super) fn relation(&self) -> &Arc<Relation> {
        &self.relation
    }

    pub(super) fn column_count(&self) -> usize {
        self.column_count
    }

    /// Its index in the batch under construction; lists it there when it is not yet.
    pub(super) fn index_in(&mut self, listing: &mut Listing) -> RelationIndex {
        match self.listed {
            Some(listed) if listed.listing == listing.number => listed.index,
            Some(_) | None => {
                let index = listing.list(&self.relation);
                self.listed = Some(Listed { listing: listing.number, index });
                index
            }
        }
    }
}

impl Listing {
    pub(super) fn len(&self) -> usize {
        self.relations.len()
    }

    /// Ends this listing and begins the next, which starts with those of its relations that `carried` names: a list
    /// of indices into the old listing, rewritten into indices of the new one.
    pub(super) fn turn<'a>(&mut self, carried: impl Iterator<Item = &'a mut RelationIndex>) -> Vec<Arc<Relation>> {
        let old = std::mem::take(&mut self.relations);
        let mut moved: Vec<Option<RelationIndex>> = vec![None; old.len()];
        for index in carried {
            let relations = &mut self.relations;
            let slot = &mut moved[*index as usize];
            *index = *slot.get_or_insert_with(|| push(relations, &old[*index as usize]));
        }
        self.carried = self.relations.len();
        self.number += 1;
        old
    }

    fn list(&mut self, relation: &Arc<Relation>) -> RelationIndex {
        let carried = self.relations[..self.carried].iter().position(|carried| Arc::ptr_eq(carried, relation));
        match carried {
            Some(index) => RelationIndex::try_from(index).expect("an index that was given out before fits"),
            None => push(&mut self.relations, relation),
        }
    }
}

fn push(relations: &mut Vec<Arc<Relation>>, relation: &Arc<Relation>) -> RelationIndex {
    relations.push(Arc::clone(relation));
    RelationIndex::try_from(relations.len() - 1).expect("a batch holds fewer changes than 32 bits count")
}

type ByOid<T> = HashMap<u32, T, BuildHasherDefault<OidHasher>>;

/// One multiplication instead of SipHash, once a change. OIDs are given out by the source's own counter, so nobody
/// chooses them to collide; Fibonacci hashing spreads neighbours over the table.
#[derive(Default)]
struct OidHasher(u64);

impl Hasher for OidHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(26);
    }
}
