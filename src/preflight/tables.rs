//! What the source's tables need. Asked of the inventory, not of the server.

use super::finding::{Finding, listed, statements};
use super::sides::Side;
use crate::schema::{NotStreamedKind, Table};

pub(super) fn any(side: &Side) -> Finding {
    let check = "source.tables";
    match side.catalog.row_tables().count() {
        0 => Finding::fail(
            check,
            "no table matches [tables] include and exclude",
            "changeover inspect lists what there is",
        ),
        count => Finding::pass(check, format!("{count} tables")),
    }
}

/// Publishing a table whose rows cannot be told apart makes every UPDATE and DELETE on it fail, on the source, for the
/// applications.
pub(super) fn replica_identity(side: &Side) -> Finding {
    let check = "source.replica_identity";
    let without: Vec<&Table> = side.catalog.row_tables().filter(|table| !table.has_identity()).collect();
    if without.is_empty() {
        return Finding::pass(check, "every table tells its rows apart");
    }
    let names: Vec<_> = without.iter().map(|table| &table.name).collect();
    let message = format!(
        "no primary key and no other replica identity, so UPDATE and DELETE would fail on the source: {}",
        listed(&names)
    );
    let statement = |table: &&Table| format!("ALTER TABLE {} REPLICA IDENTITY FULL;", table.name.quoted());
    Finding::fail(check, message, statements(&without, statement))
}

pub(super) fn without_key(side: &Side) -> Finding {
    let check = "source.without_key";
    let keyless = |table: &&Table| table.has_identity() && !table.unique_keys.iter().any(tells_rows);
    let names: Vec<_> = side.catalog.row_tables().filter(keyless).map(|table| &table.name).collect();
    if names.is_empty() {
        return Finding::pass(check, "every table with an identity has a key");
    }
    let message = format!("no unique key; each change looks through the whole table on the target: {}", listed(&names));
    Finding::warn(check, message, "add a primary key where many rows are updated or deleted")
}

fn tells_rows(key: &crate::schema::UniqueKey) -> bool {
    key.valid && !key.partial && !key.expression
}

pub(super) fn not_streamed(side: &Side) -> Finding {
    let check = "source.not_streamed";
    let names: Vec<String> = side
        .catalog
        .not_streamed
        .iter()
        .map(|relation| {
            let what = match relation.why {
                NotStreamedKind::Unlogged => "unlogged",
                NotStreamedKind::Foreign => "foreign",
                NotStreamedKind::MaterializedView => "materialised view",
            };
            format!("{} ({what})", relation.name)
        })
        .collect();
    if names.is_empty() {
        return Finding::pass(check, "every relation named can be streamed");
    }
    let remedy = "ALTER TABLE … SET LOGGED streams an unlogged table; materialised views are refreshed on the target; \
                  foreign tables stay where they are. [tables] exclude takes them out of this list";
    Finding::warn(check, format!("their rows are not streamed: {}", listed(&names)), remedy)
}

pub(super) fn sequences(side: &Side) -> Finding {
    let count = side.catalog.sequences.len();
    Finding::pass("source.sequences", format!("{count} sequences; their values are set at the cutover"))
}

pub(super) fn large_objects(side: &Side) -> Finding {
    let check = "source.large_objects";
    match side.catalog.large_object_count {
        0 => Finding::pass(check, "none"),
        count => Finding::warn(
            check,
            format!("{count} large objects; PostgreSQL does not stream changes of them"),
            "do not write large objects between the copy and the cutover, which compares them",
        ),
    }
}
