//! Keys of rows as bytes that can be compared and hashed.

use crate::model::{Datum, Tuple};

/// Writes the values of `columns` (ascending) into `into`, so that equal bytes mean equal texts of every value.
pub(super) fn write(tuple: &Tuple, columns: &[usize], into: &mut Vec<u8>) {
    into.clear();
    let mut wanted = columns.iter();
    let mut next = wanted.next();
    for (at, datum) in tuple.iter().enumerate() {
        match next {
            Some(column) if *column == at => {
                write_datum(datum, into);
                next = wanted.next();
            }
            Some(_) => {}
            None => break,
        }
    }
}

fn write_datum(datum: Datum<'_>, into: &mut Vec<u8>) {
    let (kind, value): (u8, &[u8]) = match datum {
        Datum::Null => (b'n', &[]),
        Datum::Unchanged => (b'u', &[]),
        Datum::Text(value) => (b't', value),
        Datum::Binary(value) => (b'b', value),
    };
    into.push(kind);
    into.extend_from_slice(&u32::try_from(value.len()).expect("PostgreSQL limits a value to 1 GB").to_be_bytes());
    into.extend_from_slice(value);
}

/// Whether the values of `columns` are the same in both. An unchanged value is the same as whatever the other holds.
pub(super) fn is_same(one: &Tuple, other: &Tuple, columns: &[usize]) -> bool {
    let mut wanted = columns.iter().peekable();
    for (at, (left, right)) in one.iter().zip(other.iter()).enumerate() {
        match wanted.peek() {
            None => break,
            Some(column) if **column == at => {
                let unchanged = left == Datum::Unchanged || right == Datum::Unchanged;
                if left != right && !unchanged {
                    return false;
                }
                wanted.next();
            }
            Some(_) => {}
        }
    }
    true
}

/// Which columns an UPDATE carries values for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Present {
    All,
    /// At least one value was left out as unchanged; by column.
    Some(Box<[bool]>),
}

impl Present {
    pub(super) fn of(tuple: &Tuple) -> Self {
        if tuple.iter().all(|datum| datum != Datum::Unchanged) {
            return Self::All;
        }
        Self::Some(tuple.iter().map(|datum| datum != Datum::Unchanged).collect())
    }

    pub(super) fn has(&self, column: usize) -> bool {
        match self {
            Self::All => true,
            Self::Some(present) => present[column],
        }
    }
}

/// `new` with the values it leaves out as unchanged taken from `before`, where that has them.
pub(super) fn merge(before: &Tuple, new: Tuple) -> Tuple {
    if Present::of(&new) == Present::All {
        return new;
    }
    let mut merged = crate::model::TupleBuilder::default();
    for (earlier, later) in before.iter().zip(new.iter()) {
        merged.push(if later == Datum::Unchanged { earlier } else { later });
    }
    merged.finish()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::TupleBuilder;

    /// `-` is NULL and `?` an unchanged value.
    pub(crate) fn tuple(values: &[&str]) -> Tuple {
        let mut builder = TupleBuilder::default();
        for value in values {
            builder.push(match *value {
                "-" => Datum::Null,
                "?" => Datum::Unchanged,
                text => Datum::Text(text.as_bytes()),
            });
        }
        builder.finish()
    }

    #[test]
    fn keys_differ_when_any_value_does() {
        let of = |values: &[&str]| {
            let mut bytes = Vec::new();
            write(&tuple(values), &[0, 2], &mut bytes);
            bytes
        };
        assert_eq!(of(&["1", "x", "2"]), of(&["1", "y", "2"]));
        assert_ne!(of(&["1", "x", "2"]), of(&["1", "x", "-"]));
        assert_ne!(of(&["12", "x", "3"]), of(&["1", "x", "23"]));
    }

    #[test]
    fn a_later_tuple_fills_its_unchanged_values_from_the_earlier_one() {
        let merged = merge(&tuple(&["1", "big", "?", "a"]), tuple(&["1", "?", "?", "b"]));
        assert_eq!(merged, tuple(&["1", "big", "?", "b"]));
        assert_eq!(Present::of(&merged), Present::Some([true, true, false, true].into()));
    }

    #[test]
    fn an_unchanged_value_does_not_make_a_key_differ() {
        assert!(is_same(&tuple(&["1", "2"]), &tuple(&["1", "?"]), &[0, 1]));
        assert!(!is_same(&tuple(&["1", "2"]), &tuple(&["1", "3"]), &[0, 1]));
        assert!(is_same(&tuple(&["1", "2"]), &tuple(&["1", "3"]), &[0]));
    }
}
