//! `ALTER DATABASE ... SET` and `ALTER ROLE ... SET`: what applications see as defaults, and no dump of one database
//! holds.

use tokio_postgres::Row;
use tracing::warn;

use crate::model::{quote_identifier, quote_literal};
use crate::schema::Error;
use crate::telemetry::chain;
use crate::wire::Session;

/// A line of `pg_db_role_setting`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Default {
    role: Option<String>,
    in_database: bool,
    name: String,
    value: String,
}

/// Parameters whose value is a list of identifiers (GUC_LIST_QUOTE in guc_tables.c): stored quoted, and given element
/// by element.
const LISTS: [&str; 6] = [
    "search_path",
    "temp_tablespaces",
    "local_preload_libraries",
    "session_preload_libraries",
    "shared_preload_libraries",
    "unix_socket_directories",
];

/// Sets on the target what the source's database and roles set and the target's do not. What the target refuses is left
/// out and said.
pub(super) async fn copy_missing(source: &Session, target: &Session) -> Result<(), Error> {
    let (wanted, present) = (read(source).await?, read(target).await?);
    let row = target.query_one("SELECT current_database()::text", &[]).await;
    let database: String = row.map_err(Error::query("read the target database's name"))?.get(0);
    let set_there = |wanted: &Default| {
        let same = |other: &&Default| {
            other.role == wanted.role && other.in_database == wanted.in_database && other.name == wanted.name
        };
        present.iter().find(same).is_some()
    };
    for default in wanted.iter().filter(|default| !set_there(default)) {
        if let Err(error) = target.batch_execute(&default.sql(&database)).await {
            if error.is_closed() {
                return Err(Error::query("set the defaults of database and roles")(error));
            }
            warn!(
                setting = default.name,
                role = default.role,
                error = chain(&error),
                "default of database or role left out"
            );
        }
    }
    Ok(())
}

/// Those of this database, and those of the roles of any database.
async fn read(session: &Session) -> Result<Vec<Default>, Error> {
    let sql = "SELECT r.rolname::text, s.setdatabase <> 0, pg_catalog.unnest(s.setconfig)
               FROM pg_catalog.pg_db_role_setting s LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
               WHERE (s.setdatabase = 0 OR s.setdatabase =
                        (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
                 AND (s.setrole = 0 OR r.rolname IS NOT NULL)";
    let rows = session.query(sql, &[]).await.map_err(Error::query("read the defaults of database and roles"))?;
    let default = |row: &Row| {
        let line: String = row.get(2);
        let (name, value) = line.split_once('=')?;
        Some(Default { role: row.get(0), in_database: row.get(1), name: name.to_owned(), value: value.to_owned() })
    };
    Ok(rows.iter().filter_map(default).collect())
}

impl Default {
    fn sql(&self, database: &str) -> String {
        let database = quote_identifier(database);
        let whom = match (&self.role, self.in_database) {
            (Some(role), true) => format!("ROLE {} IN DATABASE {database}", quote_identifier(role)),
            (Some(role), false) => format!("ROLE {}", quote_identifier(role)),
            (None, _) => format!("DATABASE {database}"),
        };
        let value = if LISTS.contains(&self.name.as_str()) { list(&self.value) } else { quote_literal(&self.value) };
        format!("ALTER {whom} SET {} TO {value}", parameter(&self.name))
    }
}

/// A parameter of an extension has a dot in its name, which must stand outside the quotes.
fn parameter(name: &str) -> String {
    name.split('.').map(quote_identifier).collect::<Vec<_>>().join(".")
}

/// `"$user", public` → `'$user', 'public'`.
fn list(value: &str) -> String {
    let (mut elements, mut current, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                current.push('"');
                characters.next();
            }
            '"' => quoted = !quoted,
            ',' if !quoted => elements.push(std::mem::take(&mut current)),
            ' ' if !quoted => {}
            other => current.push(other),
        }
    }
    elements.push(current);
    elements.iter().map(|element| quote_literal(element)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_written_as_they_were_given() {
        let sql = |role: Option<&str>, in_database, name: &str, value: &str| {
            let role = role.map(str::to_owned);
            Default { role, in_database, name: name.to_owned(), value: value.to_owned() }.sql("d")
        };
        assert_eq!(
            sql(None, true, "search_path", r#""$user", public, "a "",b""#),
            r#"ALTER DATABASE "d" SET "search_path" TO '$user', 'public', 'a ",b'"#
        );
        assert_eq!(
            sql(Some("r"), true, "work_mem", "4MB"),
            r#"ALTER ROLE "r" IN DATABASE "d" SET "work_mem" TO '4MB'"#
        );
        assert_eq!(sql(Some("r"), false, "my.x", "it's"), r#"ALTER ROLE "r" SET "my"."x" TO 'it''s'"#);
    }
}
