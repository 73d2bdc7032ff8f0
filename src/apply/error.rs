//! What can go wrong at the target, and what is to be done about it.

use crate::model::{Disposition, Lsn, TableName, Xid};
use crate::wire;

/// `Display` names tables, columns, positions and SQLSTATEs, never row values.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open a session on the target")]
    Connect(#[source] wire::Error),
    #[error("read the target's catalog")]
    Catalog(#[source] wire::Error),
    #[error("{what}")]
    Query {
        /// Verb and object: "read the position".
        what: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },
    /// The connection broke, or what came over it was not the protocol. Whether the group committed is told by the
    /// position.
    #[error("talk to the target")]
    Talk(#[source] std::io::Error),
    #[error("{what}")]
    Refused {
        what: &'static str,
        #[source]
        source: ServerError,
    },
    #[error("apply change {ordinal} of transaction {xid} at {position} to table {table}")]
    Row {
        table: TableName,
        xid: Xid,
        /// End of the source transaction's commit record.
        position: Lsn,
        ordinal: u64,
        #[source]
        source: ServerError,
    },
    #[error(
        "apply change {ordinal} of transaction {xid} at {position}: table {table} does not hold exactly one row with its {key}"
    )]
    RowMissing {
        table: TableName,
        /// The key's column names; its values are data.
        key: String,
        xid: Xid,
        position: Lsn,
        ordinal: u64,
    },
    #[error("apply changes of {table}: the target has no table {target}")]
    MissingTable { table: TableName, target: TableName },
    #[error("apply changes of {table}: the target's table {target} has no column {column}")]
    MissingColumn { table: TableName, target: TableName, column: String },
    #[error("apply changes of {table}: column {column} is generated on the target, but the source sends its values")]
    GeneratedColumn { table: TableName, column: String },
    #[error(
        "apply changes of {table}: its foreign key {constraint} acts by itself on the target (ON DELETE or ON UPDATE)"
    )]
    ActingConstraint { table: TableName, constraint: String },
    #[error("apply a change of {table}: the stream carries no replica identity for it")]
    NoIdentity { table: TableName },
    #[error("apply a change of {table}: its values came in binary form")]
    BinaryValue { table: TableName },
    #[error("write the position of migration {migration}: another daemon has taken it over (our epoch is {epoch})")]
    Superseded { migration: String, epoch: i64 },
}

/// An error the target sent, without what may hold row values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {sqlstate})")]
pub struct ServerError {
    pub sqlstate: String,
    /// The primary message where its class never quotes values, else the names it came with.
    pub message: String,
}

impl ServerError {
    /// Connection exceptions, rolled back by the server (serialization, deadlock), out of resources, operator
    /// intervention (restart), system errors: "Appendix A. PostgreSQL Error Codes". 25006 is a standby that is about
    /// to be promoted, 55006 an object (our replication origin) that a dying session still holds.
    pub(super) fn is_passing(&self) -> bool {
        ["08", "40", "53", "57", "58"].iter().any(|class| self.sqlstate.starts_with(class))
            || ["25006", "55006", "55P03"].contains(&self.sqlstate.as_str())
    }
}

impl Error {
    /// Retry: run again from [`super::read_position`]. Halt: an operator has to change something first.
    pub fn disposition(&self) -> Disposition {
        let halt = |hint: &str| Disposition::Halt { hint: hint.to_owned() };
        match self {
            Self::Connect(source) | Self::Catalog(source) => source.disposition(),
            Self::Talk(_) => Disposition::Retry,
            Self::Query { source, .. } => match source.code() {
                Some(code) if !is_passing_code(code.code()) => halt("look at the cause, then `changeover resume`"),
                Some(_) | None => Disposition::Retry,
            },
            Self::Refused { source, .. } | Self::Row { source, .. } if source.is_passing() => Disposition::Retry,
            Self::Refused { .. } => halt("look at the cause, then `changeover resume`"),
            Self::Row { table, .. } => Disposition::Halt {
                hint: format!(
                    "make the target's table {table} accept the row (a constraint or a type differs from the source), then `changeover resume`"
                ),
            },
            Self::RowMissing { table, .. } => Disposition::Halt {
                hint: format!(
                    "somebody else wrote to the target's table {table}: `changeover verify --table {table}` shows the keys, `changeover resync {table}` copies it again"
                ),
            },
            Self::MissingTable { .. } => halt("create the table on the target or exclude it, then `changeover resume`"),
            Self::MissingColumn { .. } => halt("add the column to the target, then `changeover resume`"),
            Self::GeneratedColumn { .. } => {
                halt("make it a plain column on the target (ALTER COLUMN … DROP EXPRESSION), then `changeover resume`")
            }
            Self::ActingConstraint { .. } => halt(
                "let the target's role set session_replication_role (GRANT SET ON PARAMETER), or drop the foreign key until the cutover",
            ),
            Self::NoIdentity { table } => Disposition::Halt {
                hint: format!("ALTER TABLE {} REPLICA IDENTITY FULL on the source", table.quoted()),
            },
            Self::BinaryValue { .. } => halt("start the stream without the option binary"),
            Self::Superseded { .. } => halt("stop this daemon: the other one goes on"),
        }
    }
}

fn is_passing_code(code: &str) -> bool {
    ServerError { sqlstate: code.to_owned(), message: String::new() }.is_passing()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(sqlstate: &str) -> Error {
        let source = ServerError { sqlstate: sqlstate.to_owned(), message: String::new() };
        let position = Lsn::new(1).unwrap();
        Error::Row { table: TableName::new("public", "t"), xid: Xid(1), position, ordinal: 0, source }
    }

    #[test]
    fn what_passes_by_itself_is_retried_and_the_rest_halts() {
        for passing in ["40P01", "40001", "57P01", "08006", "53100", "55006"] {
            assert_eq!(row(passing).disposition(), Disposition::Retry, "{passing}");
        }
        for lasting in ["23505", "23514", "42501", "22001"] {
            assert!(matches!(row(lasting).disposition(), Disposition::Halt { .. }), "{lasting}");
        }
    }
}
