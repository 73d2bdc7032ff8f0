//! What is told after a commit: the position, rows per table, how late each transaction was.

use std::time::Duration;

use tokio::sync::watch;
use tracing::warn;

use crate::model::{ChangeKind, Lsn, OldTuple, RowCounts, Settled, SinkName, Touched, Tuple};
use crate::telemetry::{Latency, Tally, clock, metrics as names};

use super::careful::SetAside;
use super::group::{self, Group};
use super::key;
use super::sql;
use super::table::Table;

/// `changeover_rows_total`, by what was done.
fn count(table: &Table, counts: RowCounts) {
    let name = table.member.to_string();
    for (op, rows) in [
        ("insert", counts.inserts),
        ("update", counts.updates),
        ("delete", counts.deletes),
        ("truncate", counts.truncates),
    ] {
        if rows > 0 {
            metrics::counter!(names::ROWS_TOTAL, names::LABEL_TABLE => name.clone(), names::LABEL_OP => op)
                .increment(rows);
        }
    }
}

/// Tells of changes that the target refused, by table.
pub(super) fn set_aside(letters: &SetAside) {
    for (table, count) in letters {
        warn!(%table, count, "the target refused changes: set aside in changeover.dead_letter, this table differs from the source now");
        metrics::counter!(names::DEAD_LETTERS_TOTAL, names::LABEL_TABLE => table.to_string()).increment(*count);
    }
}

/// Counts a group by whether some of it has gone ahead of its turn.
pub(super) fn sent(group: &Group, ahead: bool) {
    if !group.layers.is_empty() {
        let way = if ahead { "ahead" } else { "in_turn" };
        metrics::counter!(names::GROUPS_TOTAL, names::LABEL_WAY => way).increment(1);
    }
}

/// Counts what a group did to each table.
pub(super) fn tally(group: &Group, tally: &Tally) {
    for (table, counts) in group.counts.values() {
        tally.add(&table.member, *counts);
        count(table, *counts);
    }
}

/// Tells how far the target has come. `group` is durable, and everything before it.
pub(super) fn durable(group: &Group, settled: &watch::Sender<Settled>) {
    settled.send_modify(|settled| settled.through = settled.through.max(group.through));
}

/// Tells what readers of the target see now.
pub(super) fn visible(group: &Group, sink: SinkName, settled: &watch::Sender<Settled>, latency: &Latency) {
    let rows = rows_of(group);
    let now = clock::unix_us();
    for committed_at_us in &group.committed_at_us {
        // Clocks of two machines differ: what seems to come from the future took no time.
        let late = u64::try_from(now - committed_at_us).unwrap_or(0);
        latency.record(Duration::from_micros(late), 1);
    }
    let transactions = group.committed_at_us.len() as u64;
    metrics::counter!(names::TRANSACTIONS_TOTAL, names::LABEL_SINK => sink.as_str()).increment(transactions);
    settled.send_modify(|settled| {
        settled.committed_at_us = group.committed_at_us.last().copied().or(settled.committed_at_us);
        settled.transactions_total += transactions;
        settled.rows_total += rows;
    });
}

/// Where the target stood when we came.
pub(super) fn start(through: Option<Lsn>, settled: &watch::Sender<Settled>) {
    settled.send_modify(|settled| settled.through = settled.through.max(through));
}

fn rows_of(group: &Group) -> u64 {
    group.counts.values().map(|(_, counts)| counts.inserts + counts.updates + counts.deletes).sum()
}

/// Tells which rows the group is about to write.
pub(super) fn touch(group: &Group, touched: &dyn Touched) {
    for member in &group.members {
        for (_, change) in group::changes(member) {
            for table in group::tables_of(&member.arrived, change) {
                touch_row(table, &change.kind, touched);
            }
        }
    }
}

fn touch_row(table: &Table, kind: &ChangeKind, touched: &dyn Touched) {
    let (name, relation) = (&table.member, &table.relation);
    match kind {
        ChangeKind::Insert { new, .. } => touched.row(name, relation, new),
        ChangeKind::Update { old, new, .. } => {
            if let Some(OldTuple { tuple, .. }) = old.as_ref().filter(|old| moves(table, &old.tuple, new)) {
                touched.row(name, relation, tuple);
            }
            touched.row(name, relation, new);
        }
        ChangeKind::Delete { old, .. } => touched.row(name, relation, &old.tuple),
        ChangeKind::Truncate { .. } => touched.table(name),
        ChangeKind::Message { .. } => {}
    }
}

/// Without a key every column tells rows apart.
fn moves(table: &Table, old: &Tuple, new: &Tuple) -> bool {
    match sql::key_columns(table) {
        [] => old != new,
        key => !key::is_same(old, new, key),
    }
}
