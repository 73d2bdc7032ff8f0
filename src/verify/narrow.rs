//! Which rows of two different tables differ.
//!
//! Rows are dealt into buckets by a hash of their key (of the whole row where there is no key), so neither collations
//! nor the order of keys matter, which may differ between servers. Buckets that differ are then read row by row.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::digest::Digest;
use super::error::{Error, Side};
use super::report::{Differences, DifferingKey, DifferingKind};
use super::snapshots::{Control, wire_rows};
use super::sql::{self, From};
use super::table::Table;

/// Rows that are read at a time, from each side. A key and its hashes take some 150 bytes here.
const ROWS_PER_PASS: u64 = 100_000;
/// Each pass reads the table once more on both sides; a table that differs in more places than this is lost anyway.
const PASSES_MAX: u32 = 4;
/// Aimed at: small enough that a pass takes many buckets, large enough that the list of buckets stays small.
const ROWS_PER_BUCKET: u64 = 500;
const BUCKETS_MAX: u64 = 1 << 16;

type Rows = HashMap<String, Digest>;

/// Two snapshots of one table, on the exporting sessions, which are still inside their transactions.
pub(super) struct Pair<'a> {
    pub(super) control: &'a Control,
    pub(super) table: &'a Table,
    pub(super) from: [&'a From; 2],
}

/// Lists how the table differs; at most `keys_max` keys by name.
pub(super) async fn narrow(pair: &Pair<'_>, rows: u64, keys_max: usize) -> Result<Differences, Error> {
    let bucket_count = bucket_count(rows);
    let (source, target) =
        tokio::try_join!(buckets(pair, Side::Source, bucket_count), buckets(pair, Side::Target, bucket_count))?;
    let mut differing = differing_buckets(&source, &target);
    let mut found = Differences { exact: true, ..Differences::default() };
    for _ in 0..PASSES_MAX {
        let pass = take_pass(&mut differing);
        if pass.is_empty() {
            break;
        }
        let (source, target) = tokio::try_join!(
            rows_of(pair, Side::Source, bucket_count, &pass),
            rows_of(pair, Side::Target, bucket_count, &pass)
        )?;
        compare(source, target, pair.table.key.is_empty(), keys_max, &mut found);
    }
    if !differing.is_empty() {
        found.exact = false;
        // Each of them holds at least one difference of some kind.
        found.different += differing.len() as u64;
    }
    Ok(found)
}

fn bucket_count(rows: u64) -> u32 {
    let count = (rows / ROWS_PER_BUCKET).clamp(16, BUCKETS_MAX).next_power_of_two().min(BUCKETS_MAX);
    u32::try_from(count).expect("it is at most BUCKETS_MAX")
}

async fn buckets(pair: &Pair<'_>, side: Side, bucket_count: u32) -> Result<HashMap<u32, Digest>, Error> {
    let query = sql::digest_by_bucket(pair.table, pair.from[side.index()], bucket_count);
    let digests = pair.read(side, &query).await?;
    let number = |(text, digest): (String, Digest)| Some((text.parse().ok()?, digest));
    digests.into_iter().map(number).collect::<Option<_>>().ok_or(Error::Answer { side, what: "digests of buckets" })
}

async fn rows_of(pair: &Pair<'_>, side: Side, bucket_count: u32, buckets: &[u32]) -> Result<Rows, Error> {
    let query = sql::rows_of_buckets(pair.table, pair.from[side.index()], bucket_count, buckets);
    Ok(pair.read(side, &query).await?.into_iter().collect())
}

impl Pair<'_> {
    async fn read(&self, side: Side, query: &str) -> Result<Vec<(String, Digest)>, Error> {
        let failed = |source| Error::Digest { side, table: self.table.source.clone(), source };
        let messages = self.control.exporters[side.index()].simple_query(query).await.map_err(failed)?;
        let read = |row: &tokio_postgres::SimpleQueryRow| {
            Some((row.try_get(0).ok().flatten()?.to_owned(), Digest::read(row, 1)?))
        };
        let rows = wire_rows(&messages).map(read).collect::<Option<_>>();
        rows.ok_or(Error::Answer { side, what: "digests of rows" })
    }
}

/// Differing buckets with the larger side's row count.
fn differing_buckets(source: &HashMap<u32, Digest>, target: &HashMap<u32, Digest>) -> Vec<(u32, u64)> {
    let mut numbers: Vec<u32> = source.keys().chain(target.keys()).copied().collect();
    numbers.sort_unstable();
    numbers.dedup();
    let digest = |side: &HashMap<u32, Digest>, bucket: u32| side.get(&bucket).copied().unwrap_or_default();
    let pairs = numbers.into_iter().map(|bucket| (bucket, digest(source, bucket), digest(target, bucket)));
    pairs
        .filter(|(_, source, target)| source != target)
        .map(|(bucket, source, target)| (bucket, source.row_count.max(target.row_count)))
        .collect()
}

/// Takes as many buckets as one pass may read, at least one.
fn take_pass(differing: &mut Vec<(u32, u64)>) -> Vec<u32> {
    let (mut pass, mut rows) = (Vec::new(), 0);
    while let Some((bucket, count)) = differing.last().copied() {
        rows += count;
        if rows > ROWS_PER_PASS && !pass.is_empty() {
            break;
        }
        pass.push(bucket);
        differing.pop();
    }
    pass
}

/// Without a key rows of the same content are counted against each other.
fn compare(source: Rows, mut target: Rows, keyless: bool, keys_max: usize, found: &mut Differences) {
    let mut note = |key: String, kind: DifferingKind, count: u64| {
        let counter = match kind {
            DifferingKind::MissingOnTarget => &mut found.missing_on_target,
            DifferingKind::ExtraOnTarget => &mut found.extra_on_target,
            DifferingKind::Different => &mut found.different,
        };
        *counter += count;
        if !keyless && found.keys.len() < keys_max {
            found.keys.push(DifferingKey { key, kind });
        }
    };
    for (key, ours) in source {
        match target.entry(key) {
            Entry::Vacant(vacant) => note(vacant.into_key(), DifferingKind::MissingOnTarget, ours.row_count),
            Entry::Occupied(occupied) => {
                let (key, theirs) = occupied.remove_entry();
                match ours.row_count.cmp(&theirs.row_count) {
                    std::cmp::Ordering::Equal if ours == theirs => {}
                    std::cmp::Ordering::Equal => note(key, DifferingKind::Different, ours.row_count),
                    std::cmp::Ordering::Greater => {
                        note(key, DifferingKind::MissingOnTarget, ours.row_count - theirs.row_count);
                    }
                    std::cmp::Ordering::Less => {
                        note(key, DifferingKind::ExtraOnTarget, theirs.row_count - ours.row_count);
                    }
                }
            }
        }
    }
    for (key, theirs) in target {
        note(key, DifferingKind::ExtraOnTarget, theirs.row_count);
    }
    found.keys.sort_by(|a, b| (a.kind, &a.key).cmp(&(b.kind, &b.key)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(list: &[(&str, u64, i128)]) -> Rows {
        let digest = |count, hash| Digest { row_count: count, sums: [hash, -hash] };
        list.iter().map(|&(key, count, hash)| (key.to_owned(), digest(count, hash))).collect()
    }

    #[test]
    fn rows_are_missing_extra_or_different() {
        let mut found = Differences::default();
        let source = rows(&[("(1)", 1, 10), ("(2)", 1, 20), ("(3)", 1, 30)]);
        let target = rows(&[("(2)", 1, 20), ("(3)", 1, 31), ("(4)", 1, 40)]);
        compare(source, target, false, 2, &mut found);
        assert_eq!((found.missing_on_target, found.extra_on_target, found.different), (1, 1, 1));
        assert_eq!(found.keys.len(), 2, "no more keys than asked for");
    }

    #[test]
    fn equal_rows_without_a_key_are_counted() {
        let mut found = Differences::default();
        compare(rows(&[("a", 3, 30), ("b", 1, 1)]), rows(&[("a", 1, 10), ("b", 2, 2)]), true, 9, &mut found);
        assert_eq!((found.missing_on_target, found.extra_on_target, found.different), (2, 1, 0));
        assert!(found.keys.is_empty(), "a row without a key has no name");
    }

    #[test]
    fn passes_take_what_fits_and_at_least_one_bucket() {
        let mut differing = vec![(1, 10), (2, ROWS_PER_PASS * 3), (3, ROWS_PER_PASS - 1), (4, 1)];
        assert_eq!(take_pass(&mut differing), [4, 3]);
        assert_eq!(take_pass(&mut differing), [2]);
        assert_eq!(take_pass(&mut differing), [1]);
        assert!(take_pass(&mut differing).is_empty());
    }

    #[test]
    fn a_bucket_that_only_one_side_has_differs() {
        let digest = Digest { row_count: 2, sums: [1, 2] };
        let source = HashMap::from([(1, digest), (2, digest)]);
        let target = HashMap::from([(2, digest), (3, digest)]);
        assert_eq!(differing_buckets(&source, &target), [(1, 2), (3, 2)]);
        assert_eq!([bucket_count(0), bucket_count(1 << 40)], [16, 1 << 16]);
    }
}
