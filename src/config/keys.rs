//! Every key of the configuration once: what the file, the environment and `schemas/config.schema.json` may say.

/// What a key's value looks like in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Integer,
    /// `true` or `false`.
    Boolean,
    /// A count of bytes: `"256MiB"`, or a bare number.
    Size,
    /// A time: `"250ms"`.
    Duration,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of texts.
    List,
    /// A table of texts with names of the user's choice.
    Map,
    /// A table that may stand there empty: what goes into it is not offered yet.
    Reserved,
}

/// `path` names the tables from the outside in; a part that ends in `[]` is an array of tables, `*` is any name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub path: &'static str,
    pub kind: Kind,
}

const fn key(path: &'static str, kind: Kind) -> Key {
    Key { path, kind }
}

pub(super) const SNAPSHOT_MODES: &[&str] = &["full", "data", "none"];
pub(super) const KAFKA_FORMATS: &[&str] = &["json"];
pub(super) const ROUTER_KINDS: &[&str] = &["pgbouncer", "command", "http"];
pub(super) const REFUSED_ROWS: &[&str] = &["stop", "dead-letter"];
pub(super) const LOG_FORMATS: &[&str] = &["text", "json"];
pub(super) const LOG_LEVELS: &[&str] = &["error", "warn", "info", "debug", "trace"];

pub(super) const KEYS: &[Key] = &[
    key("migration.name", Kind::Text),
    key("source.url", Kind::Text),
    key("source.password_file", Kind::Text),
    key("source.slot", Kind::Text),
    key("source.publication", Kind::Text),
    key("source.slot_timeout", Kind::Duration),
    key("source.bulk", Kind::Size),
    key("target.url", Kind::Text),
    key("target.password_file", Kind::Text),
    key("tables.include", Kind::List),
    key("tables.exclude", Kind::List),
    key("tables.rows", Kind::Map),
    key("snapshot.mode", Kind::Choice(SNAPSHOT_MODES)),
    key("snapshot.workers", Kind::Integer),
    key("snapshot.split", Kind::Size),
    key("snapshot.max_snapshot_age", Kind::Duration),
    key("snapshot.index_workers", Kind::Integer),
    key("snapshot.index_parallel_workers", Kind::Integer),
    key("snapshot.maintenance_work_mem", Kind::Size),
    key("snapshot.pg_dump", Kind::Text),
    key("snapshot.throttle.max_rate", Kind::Size),
    key("snapshot.throttle.max_standby_lag", Kind::Size),
    key("snapshot.throttle.max_standby_delay", Kind::Duration),
    key("snapshot.throttle.max_active_sessions", Kind::Integer),
    key("snapshot.throttle.hold_query", Kind::Text),
    key("snapshot.throttle.query_timeout", Kind::Duration),
    key("snapshot.throttle.interval", Kind::Duration),
    key("snapshot.throttle.max_hold", Kind::Duration),
    key("kafka.bootstrap_servers", Kind::Text),
    key("kafka.topic_prefix", Kind::Text),
    key("kafka.format", Kind::Choice(KAFKA_FORMATS)),
    key("kafka.partitions", Kind::Integer),
    key("kafka.replication_factor", Kind::Integer),
    key("kafka.transaction", Kind::Duration),
    key("kafka.properties", Kind::Map),
    key("kafka.property_files", Kind::Map),
    key("transform.*", Kind::Reserved),
    key("verify.workers", Kind::Integer),
    key("verify.keys_listed", Kind::Integer),
    key("limits.memory", Kind::Size),
    key("limits.spool", Kind::Size),
    key("limits.spool_dir", Kind::Text),
    key("spool.release_source_wal", Kind::Boolean),
    key("apply.group", Kind::Size),
    key("apply.group_delay", Kind::Duration),
    key("apply.sessions", Kind::Integer),
    key("apply.refused_rows", Kind::Choice(REFUSED_ROWS)),
    key("cutover.max_pause", Kind::Duration),
    key("cutover.max_lag", Kind::Size),
    key("cutover.sequence_margin", Kind::Integer),
    key("cutover.router[].kind", Kind::Choice(ROUTER_KINDS)),
    key("cutover.router[].admin_url", Kind::Text),
    key("cutover.router[].password_file", Kind::Text),
    key("cutover.router[].databases_file", Kind::Text),
    key("cutover.router[].database", Kind::Text),
    key("cutover.router[].green", Kind::Text),
    key("cutover.router[].command", Kind::List),
    key("cutover.router[].url", Kind::Text),
    key("cutover.router[].timeout", Kind::Duration),
    key("control.listen", Kind::Text),
    key("control.token_file", Kind::Text),
    key("log.format", Kind::Choice(LOG_FORMATS)),
    key("log.level", Kind::Choice(LOG_LEVELS)),
];

impl Key {
    /// The environment variable that overrides this key: `CHANGEOVER_` and the path in capitals. Only keys with one
    /// value have one.
    pub(super) fn variable(&self) -> Option<String> {
        let scalar = !matches!(self.kind, Kind::List | Kind::Map | Kind::Reserved) && !self.path.contains("[]");
        scalar.then(|| format!("CHANGEOVER_{}", self.path.replace('.', "_").to_ascii_uppercase()))
    }
}

/// The key at `path` (array places without their number), if there is one.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path || key.path.strip_suffix('*').is_some_and(|free| path.starts_with(free)))
}

/// Whether `path` is a table that holds keys.
pub(super) fn is_table(path: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// What may stand directly in the table `path` (`""` is the whole file): names of keys and of tables.
pub(super) fn names_in(path: &str) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = KEYS
        .iter()
        .filter_map(|key| match path {
            "" => Some(key.path),
            table => key.path.strip_prefix(table)?.strip_prefix('.'),
        })
        .filter_map(|rest| rest.split('.').next())
        .map(|name| name.trim_end_matches("[]"))
        .collect();
    names.dedup();
    names
}

/// A sentence that helps somebody who typed `name` in `table`, where it does not exist.
pub(super) fn suggestion(table: &str, name: &str) -> String {
    let siblings = names_in(table);
    let close = |candidate: &&&str| distance(name, candidate) <= (name.len() / 3).max(2);
    let nearest = siblings.iter().filter(close).min_by_key(|candidate| distance(name, candidate));
    if let Some(nearest) = nearest {
        return format!("unknown key; did you mean `{nearest}`?");
    }
    let elsewhere = KEYS.iter().find(|key| key.path.rsplit('.').next() == Some(name));
    match elsewhere {
        Some(key) => format!("unknown key; did you mean `{}`?", key.path),
        None => format!("unknown key; known here: {}", siblings.join(", ")),
    }
}

/// Edits (insert, delete, replace, and two neighbours exchanged) between two words.
pub(super) fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut rows = vec![(0..=right.len()).collect::<Vec<usize>>()];
    for (i, a) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let replaced = rows[i][j] + usize::from(a != b);
            let mut best = replaced.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                best = best.min(rows[i - 1][j - 1] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_scalar_key_has_a_variable_of_its_own() {
        let variables: Vec<String> = KEYS.iter().filter_map(Key::variable).collect();
        assert!(variables.contains(&"CHANGEOVER_SOURCE_URL".to_owned()));
        assert!(variables.contains(&"CHANGEOVER_CUTOVER_MAX_PAUSE".to_owned()));
        assert!(variables.contains(&"CHANGEOVER_SNAPSHOT_THROTTLE_MAX_RATE".to_owned()));
        assert_eq!(variables.iter().collect::<BTreeSet<_>>().len(), variables.len(), "two keys share a variable");
    }

    #[test]
    fn an_unknown_key_is_met_with_the_nearest_known_one() {
        for (table, name, expected) in [
            ("source", "slto", "unknown key; did you mean `slot`?"),
            ("", "sources", "unknown key; did you mean `source`?"),
            ("cutover", "routers", "unknown key; did you mean `router`?"),
            ("source", "workers", "unknown key; did you mean `snapshot.workers`?"),
            ("migration", "colour", "unknown key; known here: name"),
        ] {
            assert_eq!(suggestion(table, name), expected, "{table}.{name}");
        }
    }
}
