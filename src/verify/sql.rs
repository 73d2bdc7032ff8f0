//! The statements that digest rows where they are.
//!
//! The inner query has `OFFSET 0` so that the planner leaves it alone: pulled up, it would compute each row's text
//! once a hash (measured: twice the time). `hashtextextended` is what hash partitioning of `text` rests on, so its
//! results are kept the same from release to release; md5 is missing where FIPS mode is on.

use super::table::Table;
use crate::model::TableName;

/// What [`super::digest::Digest::read`] reads, over rows with text `r`.
pub(super) const AGGREGATES: &str = "count(*)::text, \
     coalesce(sum(hashtextextended(r, 0)), 0)::text, \
     coalesce(sum(hashtextextended(r, 8602441907352418771)), 0)::text";

/// The same over rows whose two hashes were computed already.
const SUMS: &str = "count(*)::text, coalesce(sum(h0), 0)::text, coalesce(sum(h1), 0)::text";

/// Both sides must answer this alike: the hash reads words in the processor's byte order.
pub(super) const HASH_PROBE: &str = "SELECT hashtextextended('changeover', 0)::text || ' ' || hashtextextended('the quick brown fox', 8602441907352418771)::text";

/// Makes a session fit for comparing: no compilation of one-off queries, no helpers beside our own workers, an error
/// instead of silently fewer rows under row-level security.
pub(super) const SESSION_SETUP: &str =
    "SET jit = off; SET max_parallel_workers_per_gather = 0; SET row_security = off; SET statement_timeout = 0";

/// Where rows are read from on one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct From {
    pub(super) table: TableName,
    /// A partitioned table has no rows of its own: all its partitions are meant. For any other `ONLY` leaves out
    /// inheritance children, which are tables of their own.
    pub(super) partitioned: bool,
    /// Only the rows that fulfil this.
    pub(super) rows: Option<String>,
}

/// A half-open range of blocks. Without an end it is open, so rows in blocks added since the table was measured are
/// not missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockRange {
    pub(super) start: u32,
    pub(super) end: Option<u32>,
}

impl From {
    fn clause(&self) -> String {
        let table = format!("{}{}", if self.partitioned { "" } else { "ONLY " }, self.table.quoted());
        match &self.rows {
            None => format!("{table} AS x"),
            // By itself, so that its names mean columns of this table, and on lines of its own, since it may end in a
            // comment. The planner pulls it up: blocks and keys are still found without reading the whole table.
            Some(rows) => format!("(SELECT ctid, * FROM {table} WHERE (\n{rows}\n)) AS x"),
        }
    }
}

/// Digest of all rows, or of those in `range`.
pub(super) fn digest(table: &Table, from: &From, range: Option<BlockRange>) -> String {
    let rows = rows(&format!("{} AS r", table.row_text()), &from.clause(), range);
    format!("SELECT {AGGREGATES} FROM {rows}")
}

/// Digest of the rows whose keys stand in the parameters, one `text[]` a key column. A key column whose type has no
/// `=` within pg_catalog (`by_text`) is compared by its text, which no index serves.
pub(super) fn digest_of_keys(table: &Table, from: &From, by_text: bool) -> String {
    let parameters: Vec<String> = (1..=table.key.len()).map(|number| format!("${number}::text[]")).collect();
    let names: Vec<String> = (1..=table.key.len()).map(|number| format!("k{number}")).collect();
    let matches: Vec<String> = table
        .key
        .iter()
        .zip(&names)
        .map(|(column, name)| {
            let column_sql = crate::model::quote_identifier(&column.name);
            if by_text {
                format!("ROW(x.{column_sql})::text = ROW(k.{name})::text")
            } else {
                format!("x.{column_sql} = k.{name}::{}", column.type_sql)
            }
        })
        .collect();
    format!(
        "SELECT {AGGREGATES} FROM (SELECT {} AS r FROM unnest({}) AS k({}) JOIN {} ON {} OFFSET 0) AS s",
        table.row_text(),
        parameters.join(", "),
        names.join(", "),
        from.clause(),
        matches.join(" AND "),
    )
}

/// Digest per bucket of identities: a row's identity is its key, or all of it when there is no key. `bucket_count` is a
/// power of two.
pub(super) fn digest_by_bucket(table: &Table, from: &From, bucket_count: u32) -> String {
    format!("SELECT b::text, {SUMS} FROM {} GROUP BY b", hashed(table, from, bucket_count))
}

/// Identity, count and hashes of every row in the given buckets.
pub(super) fn rows_of_buckets(table: &Table, from: &From, bucket_count: u32, buckets: &[u32]) -> String {
    let list: Vec<String> = buckets.iter().map(u32::to_string).collect();
    format!(
        "SELECT k, {SUMS} FROM {} WHERE b = ANY ('{{{}}}') GROUP BY k",
        hashed(table, from, bucket_count),
        list.join(",")
    )
}

/// Rows as (k, b, h0, h1): identity, bucket, hashes. Without a key the identity is the two hashes.
fn hashed(table: &Table, from: &From, bucket_count: u32) -> String {
    let mask = bucket_count - 1;
    let key = table.key_text();
    let texts = rows(
        &format!("{} AS r, {} AS k", table.row_text(), key.as_deref().unwrap_or("NULL::text")),
        &from.clause(),
        None,
    );
    let hashes = format!(
        "(SELECT k, hashtextextended(r, 0) AS h0, hashtextextended(r, 8602441907352418771) AS h1 FROM {texts} OFFSET 0) AS h"
    );
    if key.is_some() {
        format!("(SELECT k, hashtextextended(k, 1) & {mask} AS b, h0, h1 FROM {hashes}) AS i")
    } else {
        format!("(SELECT h0::text || ' ' || h1::text AS k, h0 & {mask} AS b, h0, h1 FROM {hashes}) AS i")
    }
}

fn rows(list: &str, from: &str, range: Option<BlockRange>) -> String {
    let condition = match range {
        None => String::new(),
        Some(BlockRange { start, end: None }) => format!(" WHERE x.ctid >= '({start},0)'"),
        Some(BlockRange { start, end: Some(end) }) => {
            format!(" WHERE x.ctid >= '({start},0)' AND x.ctid < '({end},0)'")
        }
    };
    format!("(SELECT {list} FROM {from}{condition} OFFSET 0) AS s")
}
