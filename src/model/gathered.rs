//! Partitions of the source whose rows the target keeps together in one table.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::TableName;

/// By the name of the partition, under which its changes come. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct GatheredLeaves(Arc<BTreeMap<TableName, Place>>);

/// Where the rows of a partition are on the target.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    root: TableName,
    leaf: Option<Leaf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Leaf {
    condition: Option<String>,
}

impl GatheredLeaves {
    /// The partitions of another table: its leaves, each with what its rows fulfil and those of no other, as SQL over
    /// the root's columns (`None` where the target cannot evaluate it), and the partitioned ones between.
    pub fn add(
        &mut self,
        root: &TableName,
        leaves: impl Iterator<Item = (TableName, Option<String>)>,
        inner: impl Iterator<Item = TableName>,
    ) {
        let places = Arc::make_mut(&mut self.0);
        let place = |leaf| Place { root: root.clone(), leaf };
        places.extend(leaves.map(|(name, condition)| (name, place(Some(Leaf { condition })))));
        places.extend(inner.map(|name| (name, place(None))));
    }

    /// The name that the migration knows `table` by: its root's, or its own.
    pub fn member<'a>(&'a self, table: &'a TableName) -> &'a TableName {
        self.0.get(table).map_or(table, |place| &place.root)
    }

    pub fn is_leaf(&self, table: &TableName) -> bool {
        self.0.get(table).is_some_and(|place| place.leaf.is_some())
    }

    /// A partition that holds no rows itself.
    pub fn is_inner(&self, table: &TableName) -> bool {
        self.0.get(table).is_some_and(|place| place.leaf.is_none())
    }

    /// What the rows of a leaf fulfil, where the target can evaluate it.
    pub fn condition(&self, leaf: &TableName) -> Option<&str> {
        self.0.get(leaf)?.leaf.as_ref()?.condition.as_deref()
    }

    /// How many leaves the rows of `root` are in.
    pub fn count_of(&self, root: &TableName) -> usize {
        self.0.values().filter(|place| place.root == *root && place.leaf.is_some()).count()
    }
}
