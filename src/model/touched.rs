//! Which keys the target's applier wrote: what verification has to look at again.

use super::{Relation, TableName, Tuple};

/// Told of every row change when the group it belongs to is sent, and before the applier obeys another command: what is
/// asked of a held applier is complete. Called on the applier's task: must be quick and must not block.
pub trait Touched: Send + Sync {
    /// `tuple` holds the values of the replica identity's columns (and perhaps more). An update that changes the key is
    /// reported twice, with the old key and with the new one.
    /// `table` is the name that the migration knows the relation by.
    fn row(&self, table: &TableName, relation: &Relation, tuple: &Tuple);
    /// All rows at once: TRUNCATE.
    fn table(&self, table: &TableName);
}
