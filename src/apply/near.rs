//! Rows whose keys are neighbours: one pass over the index finds them all, instead of one descent a row. Pure.

use crate::model::{Datum, Tuple};

use super::table::Table;

/// Below this, changing how the server plans costs more than it saves.
const ROWS_MIN: usize = 128;
/// So many keys there may be for each row: those between are read for nothing, at a fraction of a descent each.
const KEYS_A_ROW_MAX: u64 = 2;

/// While rows are found by one pass over the index; otherwise by one descent a row (see the session's settings).
pub(super) const BY_PASS: &str = "SELECT pg_catalog.set_config('enable_mergejoin', 'on', false), \
     pg_catalog.set_config('enable_nestloop', 'off', false)";
pub(super) const BY_DESCENTS: &str = "SELECT pg_catalog.set_config('enable_mergejoin', 'off', false), \
     pg_catalog.set_config('enable_nestloop', 'on', false)";

/// From the smallest key to the largest. Keys are unique whole numbers, so it says how many rows can lie between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) low: i64,
    pub(super) high: i64,
}

impl Stretch {
    /// Where the rows are, if they are near each other.
    pub(super) fn of(table: &Table, rows: &[&Tuple]) -> Option<Self> {
        // One pass puts the rows in the order of their keys.
        let any_order = table.isolated && table.sortable;
        let at = table.number_key.filter(|_| any_order && rows.len() >= ROWS_MIN)?;
        let mut keys = rows.iter().map(|row| row.iter().nth(at).and_then(number));
        let first = keys.next()??;
        let around = |stretch: Self, key: Option<i64>| {
            key.map(|key| Self { low: stretch.low.min(key), high: stretch.high.max(key) })
        };
        let stretch = keys.try_fold(Self { low: first, high: first }, around)?;
        let is_near = stretch.low.abs_diff(stretch.high) < KEYS_A_ROW_MAX * rows.len() as u64;
        is_near.then_some(stretch)
    }
}

/// A value of a whole number's type.
fn number(datum: Datum<'_>) -> Option<i64> {
    match datum {
        Datum::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        Datum::Binary(bytes) => match bytes.len() {
            2 => Some(i16::from_be_bytes(bytes.try_into().ok()?).into()),
            4 => Some(i32::from_be_bytes(bytes.try_into().ok()?).into()),
            8 => Some(i64::from_be_bytes(bytes.try_into().ok()?)),
            _ => None,
        },
        Datum::Null | Datum::Unchanged => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::table_of;
    use super::super::facts::tests::{facts, relation};
    use super::*;
    use crate::model::{ReplicaIdentity, TupleBuilder};

    fn row(key: Datum<'_>) -> Tuple {
        let mut builder = TupleBuilder::default();
        builder.push(Datum::Text(b"before")).push(key);
        builder.finish()
    }

    fn stretch(number_key: Option<usize>, rows: &[Tuple]) -> Option<Stretch> {
        let relation = relation(ReplicaIdentity::Default, &["a", "b"], &["b"]);
        let table = table_of(1, &relation, relation.name.clone(), &facts(&["a", "b"], &[&["b"]]), None).unwrap();
        Stretch::of(&Table { number_key, ..table }, &rows.iter().collect::<Vec<_>>())
    }

    fn texts(keys: impl Iterator<Item = i64>) -> Vec<Tuple> {
        keys.map(|key| row(Datum::Text(key.to_string().as_bytes()))).collect()
    }

    #[test]
    fn neighbours_are_a_stretch_whatever_their_order_and_form() {
        let rows = texts((-200..200).rev());
        assert_eq!(stretch(Some(1), &rows), Some(Stretch { low: -200, high: 199 }));
        let wide: Vec<Tuple> = (0..300_i64).map(|key| row(Datum::Binary(&(key - 7).to_be_bytes()))).collect();
        assert_eq!(stretch(Some(1), &wide), Some(Stretch { low: -7, high: 292 }));
        let narrow: Vec<Tuple> = (0..300_i16).map(|key| row(Datum::Binary(&(key * 2 - 1).to_be_bytes()))).collect();
        assert_eq!(stretch(Some(1), &narrow), Some(Stretch { low: -1, high: 597 }));
    }

    #[test]
    fn scattered_and_few_rows_are_none_and_so_is_what_has_no_number_for_a_key() {
        assert_eq!(stretch(Some(1), &texts((0..300).map(|key| key * 3))), None);
        assert_eq!(stretch(Some(1), &texts((0..300).chain([i64::MIN, i64::MAX]))), None);
        assert_eq!(stretch(Some(1), &texts(0..127)), None);
        assert_eq!(stretch(None, &texts(0..300)), None);
        let mut with_null = texts(0..300);
        with_null.push(row(Datum::Null));
        assert_eq!(stretch(Some(1), &with_null), None);
    }
}
