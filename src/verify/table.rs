//! What is compared: one table under its names on both sides.

use crate::model::{TableName, quote_identifier};

/// A table to compare. Both sides list the same columns in the same order, so it does not matter where a column stands
/// in either side's catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub source: TableName,
    pub target: TableName,
    /// Every column, generated ones included, in any order.
    pub columns: Vec<String>,
    /// What tells rows apart: the columns of the primary key or of the replica identity's index. Empty when there is
    /// none, and then rows are compared as a multiset.
    pub key: Vec<KeyColumn>,
    /// The source's partitions whose rows these are, where they are compared as one table; else empty.
    pub leaves: Vec<TableName>,
    /// Which of the source's rows are meant; all of the target's are.
    pub rows: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyColumn {
    pub name: String,
    /// The type as SQL, schema-qualified where it is not built in (`format_type` under an empty `search_path`).
    pub type_sql: String,
}

impl Table {
    /// `ROW(x."a", x."b")::text`: the output functions of all columns, NULL apart from the empty string, and every
    /// special character quoted (`record_out`), so two rows have one text only if they are equal byte for byte. A plain
    /// cast would lose the trailing blanks of `char(n)`.
    pub(super) fn row_text(&self) -> String {
        record_text(self.columns.iter())
    }

    /// The key's text, `None` without a key.
    pub(super) fn key_text(&self) -> Option<String> {
        (!self.key.is_empty()).then(|| record_text(self.key.iter().map(|column| &column.name)))
    }
}

/// Hashing under a nondeterministic collation would call different texts equal, hence `COLLATE "C"`.
fn record_text<'a>(columns: impl Iterator<Item = &'a String>) -> String {
    let columns: Vec<String> = columns.map(|name| format!("x.{}", quote_identifier(name))).collect();
    format!("ROW({})::pg_catalog.text COLLATE \"C\"", columns.join(", "))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::verify) fn table(name: &str, columns: &[&str], key: &[(&str, &str)]) -> Table {
        Table {
            source: TableName::new("public", name),
            target: TableName::new("public", name),
            columns: columns.iter().map(|&column| column.to_owned()).collect(),
            key: key
                .iter()
                .map(|&(name, type_sql)| KeyColumn { name: name.to_owned(), type_sql: type_sql.to_owned() })
                .collect(),
            leaves: Vec::new(),
            rows: None,
        }
    }

    #[test]
    fn names_are_quoted_wherever_they_come_from() {
        let table = table("t", &["id", "a\"b"], &[("id", "bigint")]);
        assert_eq!(table.row_text(), r#"ROW(x."id", x."a""b")::pg_catalog.text COLLATE "C""#);
        assert_eq!(table.key_text().as_deref(), Some(r#"ROW(x."id")::pg_catalog.text COLLATE "C""#));
    }
}
