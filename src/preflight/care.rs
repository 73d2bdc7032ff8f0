//! What an operator should know of a table before it is moved.

use crate::schema::{Catalog, Table, TableKind, TriggerState};

/// Short notes, the most pressing first; none for a table that needs no care.
pub(super) fn notes(table: &Table, catalog: &Catalog) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |holds: bool, text: &str| {
        if holds {
            notes.push(text.to_owned());
        }
    };
    let rows_here = table.kind == TableKind::Ordinary;
    note(rows_here && !table.has_identity(), "no replica identity: UPDATE and DELETE would fail once published");
    note(rows_here && table.has_identity() && table.primary_key.is_none(), "no primary key");
    note(table.row_security, "row security: the user must be allowed to see every row");
    note(!table.inherits.is_empty(), "inherits from another table");
    note(table.unique_keys.iter().any(|key| key.deferrable), "deferrable unique key");
    note(table.unique_keys.iter().any(|key| !key.valid), "an invalid unique index");
    note(table.foreign_keys.iter().any(|key| !key.validated), "a foreign key that is not validated");
    note(table.columns.iter().any(|column| column.generated.is_some()), "generated columns: computed on the target");
    note(table.columns.iter().any(|column| column.type_text == "money"), "money: its text depends on lc_monetary");
    let always =
        table.triggers.iter().any(|trigger| matches!(trigger.enabled, TriggerState::Always | TriggerState::Replica));
    note(always, "triggers that also fire for replicated rows");
    let outside = table.foreign_keys.iter().any(|key| catalog.table(&key.references).is_none());
    note(outside, "refers to a table that is not taken along");
    notes
}
