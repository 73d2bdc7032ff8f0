//! What an error code of the server means for us ("PostgreSQL Error Codes" in the documentation).

use crate::model::Disposition;

/// The slot, table or other object is in use by somebody else.
pub const OBJECT_IN_USE: &str = "55006";
/// A slot that was invalidated, among others.
pub const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55000";
/// Within `lock_timeout`, or at once under NOWAIT.
pub const LOCK_NOT_AVAILABLE: &str = "55P03";
pub const UNDEFINED_OBJECT: &str = "42704";
pub const DUPLICATE_OBJECT: &str = "42710";
pub const UNIQUE_VIOLATION: &str = "23505";
pub const QUERY_CANCELED: &str = "57014";
/// The server is starting up, shutting down, or recovering.
pub const CANNOT_CONNECT_NOW: &str = "57P03";
pub const INSUFFICIENT_PRIVILEGE: &str = "42501";

pub(super) fn disposition(sqlstate: &str) -> Disposition {
    let hint = match sqlstate {
        // The database was dropped: the one shutdown that does not pass.
        "57P04" => "the database was dropped",
        // A dropped connection, a restart, a failover, a full server, a lost race: all of it passes.
        _ if passes(sqlstate) => return Disposition::Retry,
        "28P01" => "correct the password, then start again",
        _ if sqlstate.starts_with("28") => {
            "let the role in: it needs LOGIN (REPLICATION for the stream) and a line in pg_hba.conf"
        }
        "3D000" => "there is no such database: correct the name in the URL, or create it",
        INSUFFICIENT_PRIVILEGE => "grant the role what it lacks; `changeover check` lists what is needed",
        "0A000" | "42704" | "42883" => "the server lacks something that we rely on; `changeover check` says what",
        _ => "see the server's message, correct its cause, then start again",
    };
    Disposition::Halt { hint: hint.to_owned() }
}

fn passes(sqlstate: &str) -> bool {
    let class = sqlstate.get(..2).unwrap_or_default();
    matches!(class, "08" | "40" | "53" | "57" | "58")
        || matches!(sqlstate, LOCK_NOT_AVAILABLE | OBJECT_IN_USE | "25P03" | "25P04")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_tried_again() {
        for code in ["57P01", "57P02", "57P03", "08006", "53300", "40001", "40P01", "55P03"] {
            assert_eq!(disposition(code), Disposition::Retry, "{code}");
        }
    }

    #[test]
    fn what_needs_a_person_is_not() {
        for code in ["28P01", "28000", "3D000", "42501", "57P04", "42P01", "22P02", "XX000", ""] {
            assert!(matches!(disposition(code), Disposition::Halt { .. }), "{code}");
        }
    }
}
