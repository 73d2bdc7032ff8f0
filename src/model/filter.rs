//! Which tables belong to a migration.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::TableName;

/// `include` minus `exclude`. A pattern is `schema.table`; `*` stands for any run of characters, and a backslash before
/// a character takes it as it is (for names that hold a dot or a star).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFilter {
    pub include: Vec<TablePattern>,
    pub exclude: Vec<TablePattern>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablePattern {
    schema: Vec<Piece>,
    table: Vec<Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Piece {
    Any,
    One(char),
}

/// Which rows of a table belong to the migration, for tables that do not belong to it whole: SQL conditions over the
/// source's row. Clones are cheap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowFilters(Arc<BTreeMap<TableName, String>>);

impl RowFilters {
    pub fn of(&self, table: &TableName) -> Option<&str> {
        self.0.get(table).map(String::as_str)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&TableName, &str)> {
        self.0.iter().map(|(table, filter)| (table, filter.as_str()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(TableName, String)> for RowFilters {
    fn from_iter<I: IntoIterator<Item = (TableName, String)>>(filters: I) -> Self {
        Self(Arc::new(filters.into_iter().collect()))
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no table pattern: write schema.table, with * for any run of characters")]
pub struct InvalidPattern(pub String);

impl TableFilter {
    /// Every table that is not the server's own.
    pub fn everything() -> Self {
        let any = || vec![Piece::Any];
        Self { include: vec![TablePattern { schema: any(), table: any() }], exclude: Vec::new() }
    }

    pub fn matches(&self, table: &TableName) -> bool {
        let any = |patterns: &[TablePattern]| patterns.iter().any(|pattern| pattern.matches(table));
        any(&self.include) && !any(&self.exclude)
    }
}

impl TablePattern {
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let wrong = || InvalidPattern(text.to_owned());
        let mut parts = vec![Vec::new()];
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            let piece = match character {
                '.' => {
                    parts.push(Vec::new());
                    continue;
                }
                '*' => Piece::Any,
                '\\' => Piece::One(characters.next().ok_or_else(wrong)?),
                other => Piece::One(other),
            };
            parts.last_mut().expect("the list starts with one part").push(piece);
        }
        match <[Vec<Piece>; 2]>::try_from(parts) {
            Ok([schema, table]) if !schema.is_empty() && !table.is_empty() => Ok(Self { schema, table }),
            Ok(_) | Err(_) => Err(wrong()),
        }
    }

    /// The one table it means; `None` when it holds a star.
    pub fn exact(&self) -> Option<TableName> {
        let text = |pieces: &[Piece]| {
            let one = |piece: &Piece| match piece {
                Piece::One(character) => Some(*character),
                Piece::Any => None,
            };
            pieces.iter().map(one).collect::<Option<String>>()
        };
        Some(TableName::new(text(&self.schema)?, text(&self.table)?))
    }

    pub fn matches(&self, table: &TableName) -> bool {
        glob(&self.schema, &table.schema) && glob(&self.table, &table.name)
    }
}

/// Linear-time matching with one point to fall back to: the last star.
fn glob(pattern: &[Piece], text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut piece) = (0, 0);
    let mut fallback = None;
    while at < text.len() {
        match pattern.get(piece) {
            Some(Piece::Any) => {
                fallback = Some((piece, at));
                piece += 1;
            }
            Some(Piece::One(one)) if *one == text[at] => {
                piece += 1;
                at += 1;
            }
            Some(Piece::One(_)) | None => {
                let Some((star, taken)) = fallback else { return false };
                fallback = Some((star, taken + 1));
                piece = star + 1;
                at = taken + 1;
            }
        }
    }
    pattern[piece..].iter().all(|piece| *piece == Piece::Any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn includes_minus_excludes() {
        let patterns = |list: &[&str]| list.iter().map(|text| TablePattern::parse(text).unwrap()).collect();
        let filter = TableFilter { include: patterns(&["public.*", r"a\.b.c\*"]), exclude: patterns(&["*.tmp_*_old"]) };
        for (schema, name, expected) in [
            ("public", "orders", true),
            ("public", "tmp_a_b_old", false),
            ("public", "tmp_old", true),
            ("other", "orders", false),
            ("a.b", "c*", true),
            ("a.b", "cc", false),
        ] {
            assert_eq!(filter.matches(&TableName::new(schema, name)), expected, "{schema}.{name}");
        }
        let exact = |text: &str| TablePattern::parse(text).unwrap().exact();
        assert_eq!(exact(r"a\.b.c\*"), Some(TableName::new("a.b", "c*")));
        assert_eq!((exact("a.*"), exact("*.b")), (None, None));
        for wrong in ["", "orders", "a.b.c", ".x", "x.", r"a.b\"] {
            assert!(TablePattern::parse(wrong).is_err(), "{wrong}");
        }
    }
}
