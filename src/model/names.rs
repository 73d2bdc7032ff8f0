//! Names of things, and how they are written into SQL.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A table by schema and name, as stored in the catalog (not quoted, not folded).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableName {
    pub schema: String,
    pub name: String,
}

impl TableName {
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }

    /// `"schema"."name"`, safe to put into SQL.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// An identifier in double quotes, always quoted so that no list of keywords is needed.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string literal. The `E''` form is used when there is a backslash, so that the result does not depend on
/// `standard_conforming_strings`.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// The name of a migration. It becomes part of the slot's name, and slot names are limited to `[a-z0-9_]` and 63
/// bytes ("Replication Slots" in the documentation).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MigrationName(String);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no name for a migration: use 1 to 40 of a-z, 0-9 and _ (it becomes part of the slot's name)")]
pub struct InvalidName(pub String);

impl MigrationName {
    /// Longest name that leaves room for `changeover_` and suffixes within 63 bytes.
    const LENGTH_MAX: usize = 40;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `changeover_<migration>`: slot, publication and replication origin.
    pub fn object_name(&self) -> String {
        format!("changeover_{}", self.0)
    }
}

impl FromStr for MigrationName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if text.is_empty() || text.len() > Self::LENGTH_MAX || !text.bytes().all(allowed) {
            return Err(InvalidName(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for MigrationName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<MigrationName> for String {
    fn from(name: MigrationName) -> Self {
        name.0
    }
}

impl fmt::Display for MigrationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A consumer of the ordered stream with a durable position of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SinkName {
    Target,
    Kafka,
    /// The target again, for the tables that are set apart while they are copied again.
    Resync,
}

impl SinkName {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Target => "target",
            Self::Kafka => "kafka",
            Self::Resync => "resync",
        }
    }
}

impl fmt::Display for SinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_what_needs_quoting() {
        assert_eq!(TableName::new("a\"b", "c d").quoted(), r#""a""b"."c d""#);
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal(r"a\b"), r"E'a\\b'");
    }

    #[test]
    fn a_migration_name_fits_a_slot_name() {
        assert!("shop_2".parse::<MigrationName>().is_ok());
        for wrong in ["", "Shop", "a-b", "ä", &"x".repeat(41)] {
            assert!(wrong.parse::<MigrationName>().is_err(), "{wrong}");
        }
    }
}
