//! The first configuration of a migration, written from what was found on the source.

use std::fmt::Write;

/// Tables that are listed in the comments; further ones are only counted.
const TABLES_MAX: usize = 50;

/// A table as the comments list it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftTable {
    pub name: String,
    pub size: String,
    /// What needs care.
    pub notes: Vec<String>,
}

/// A commented configuration. The URLs are written as given, with their passwords: the file is the user's own.
pub fn draft(source: &str, target: Option<&str>, dbname: &str, tables: &[DraftTable]) -> String {
    // A JSON string is a TOML string: the same quotes and escapes.
    let text = |value: &str| serde_json::Value::from(value).to_string();
    let target = target.map_or_else(
        || "# Required: where the database is to go.\n# url = \"postgres://user@host:5432/database\"".to_owned(),
        |target| format!("url = {}", text(target)),
    );
    format!(
        r#"# Written by `changeover init`. Next: `changeover check`, then `changeover run`.
# Every other key, with its default and why it is there: config/full.toml of changeover's repository.

[migration]
# Names the slot, the publication and our rows on the target. Several migrations from or to one server need names of their own.
name = {name}

# Blue: owns the writes now. Without a password in the URL, PGPASSWORD, ~/.pgpass and password_file are asked.
[source]
url = {source}

# Green: will own them.
[target]
{target}

{tables}
[snapshot]
# full: schema and data, into an empty database. data: into a schema that you prepared. none: stream only.
mode = "full"
# Tables, or parts of tables, copied at once.
workers = 4

# Publish the same changes to Kafka.
# [kafka]
# bootstrap_servers = "broker:9092"

[limits]
# Memory and disk for changes on their way; the directory must be writable for the daemon.
memory = "256MiB"
spool = "20GiB"
spool_dir = "/var/lib/changeover"

[cutover]
# Clients are held no longer than this; when it has passed, everything is undone.
max_pause = "2s"

# Who holds the clients and sends them to green.
# [[cutover.router]]
# kind = "pgbouncer"
# admin_url = "postgres://pgbouncer@pooler:6432/pgbouncer"
# databases_file = "/etc/pgbouncer/{dbname}.databases.ini"

[control]
# Status, metrics, the dashboard, and what the other commands talk to.
listen = "127.0.0.1:9187"
"#,
        name = text(&migration_name(dbname)),
        source = text(source),
        tables = tables_section(tables),
    )
}

fn tables_section(tables: &[DraftTable]) -> String {
    let mut section = String::from("# Found on the source, the largest first:\n");
    let mut line = |text: String| writeln!(section, "{text}").expect("writing to a String cannot fail");
    for table in tables.iter().take(TABLES_MAX) {
        line(format!("#   {:<40} {:>10}", comment(&table.name), table.size));
        for note in &table.notes {
            line(format!("#       ! {}", comment(note)));
        }
    }
    match tables.len().checked_sub(TABLES_MAX) {
        Some(more) if more > 0 => line(format!("#   and {more} more")),
        Some(_) | None => {}
    }
    line("[tables]\ninclude = [\"*.*\"]\nexclude = []".to_owned());
    section
}

/// A name may hold anything, a comment no line break.
fn comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The database's name as a migration may be called.
fn migration_name(dbname: &str) -> String {
    let legal = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_lowercase() || c.is_ascii_digit() => c,
        _ => '_',
    };
    let name: String = dbname.chars().map(legal).take(40).collect();
    if name.is_empty() { "migration".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, parse};

    #[test]
    fn a_draft_loads_as_it_is() {
        let table = |name: &str| DraftTable { name: name.into(), size: "1 MiB".into(), notes: vec!["a\nnote".into()] };
        let tables: Vec<DraftTable> = (0..60).map(|number| table(&format!("public.t\n{number}"))).collect();
        let (source, target) = ("postgres://a:p\\\"w@blue/My-Shop", "host=green user=a dbname=shop");
        let text = draft(source, Some(target), "My-Shop", &tables);
        let config = parse(&text, &Environment::new()).unwrap();
        assert_eq!(config.migration.as_str(), "my_shop");
        assert_eq!(config.source.endpoint.dbname(), "My-Shop");
        assert!(text.contains("and 10 more"));
    }

    #[test]
    fn a_draft_without_a_target_says_what_is_missing() {
        let text = draft("postgres://a@blue/shop", None, "shop", &[]);
        let problems = parse(&text, &Environment::new()).unwrap_err();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].place, "target.url");
    }
}
