//! The file with PgBouncer's `[databases]`, of which one line is ours to change.

/// `text` with the entry of `database` replaced by `connection`, or added. Every other line stays as it is.
///
/// The file is either a fragment that begins inside the section, or has sections of its own.
pub(super) fn rewrite(text: &str, database: &str, connection: &str) -> String {
    let entry = format!("{} = {connection}", quoted(database));
    let mut lines: Vec<String> = Vec::new();
    let (mut inside, mut end, mut found) = (true, 0, false);
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(section) = trimmed.strip_prefix('[') {
            inside = section.trim_end_matches(']').trim().eq_ignore_ascii_case("databases");
        }
        let ours = inside && !found && name_of(trimmed).is_some_and(|name| name == database);
        found |= ours;
        lines.push(if ours { entry.clone() } else { line.to_owned() });
        if inside && !trimmed.is_empty() {
            end = lines.len();
        }
    }
    if !found {
        lines.insert(end, entry);
    }
    lines.join("\n") + "\n"
}

/// The connection string of `database`, if the file has it.
pub(super) fn connection<'a>(text: &'a str, database: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| name_of(line.trim()).is_some_and(|name| name == database))?;
    Some(line.split_once('=')?.1.trim())
}

/// The value of `key` in a connection string. Values with blanks stand in single quotes, doubled inside.
pub(super) fn parameter(connection: &str, key: &str) -> Option<String> {
    let mut rest = connection.trim_start();
    while let Some((name, tail)) = rest.split_once('=') {
        let (value, tail) = value(tail.trim_start());
        if name.trim() == key {
            return Some(value);
        }
        rest = tail.trim_start();
    }
    None
}

fn value(text: &str) -> (String, &str) {
    let Some(mut rest) = text.strip_prefix('\'') else {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    while let Some((part, tail)) = rest.split_once('\'') {
        value.push_str(part);
        match tail.strip_prefix('\'') {
            Some(tail) => {
                value.push('\'');
                rest = tail;
            }
            None => return (value, tail),
        }
    }
    (value + rest, "")
}

/// The name at the start of an entry; comments, sections and directives have none.
fn name_of(line: &str) -> Option<String> {
    if line.is_empty() || line.starts_with([';', '#', '[', '%']) {
        return None;
    }
    if let Some(rest) = line.strip_prefix('"') {
        let (name, tail) = rest.split_once('"')?;
        return tail.trim_start().starts_with('=').then(|| name.to_owned());
    }
    line.split_once('=').map(|(name, _)| name.trim().to_owned())
}

fn quoted(name: &str) -> String {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if plain && !name.is_empty() { name.to_owned() } else { format!("\"{name}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_databases_own_line_changes() {
        let text = "; ours\nshop = host=blue port=5432\nshop2=host=blue\n\n\"a b\" = host=x\n";
        let changed = rewrite(text, "shop", "host=green port=5433");
        assert_eq!(changed, "; ours\nshop = host=green port=5433\nshop2=host=blue\n\n\"a b\" = host=x\n");
        assert_eq!(rewrite(&changed, "shop", "host=green port=5433"), changed, "twice is the same as once");
        assert_eq!(rewrite(text, "a b", "host=y").lines().last(), Some("\"a b\" = host=y"));
    }

    #[test]
    fn sections_are_respected_and_a_missing_entry_is_added_to_its_own() {
        let text = "[databases]\nother = host=x\n\n[pgbouncer]\nshop = not an entry\nlisten_port = 1\n";
        let expected =
            "[databases]\nother = host=x\nshop = host=green\n\n[pgbouncer]\nshop = not an entry\nlisten_port = 1\n";
        assert_eq!(rewrite(text, "shop", "host=green"), expected);
        assert_eq!(rewrite("", "shop", "host=green"), "shop = host=green\n");
    }

    #[test]
    fn parameters_are_read_as_pgbouncer_reads_them() {
        let connection = "host=/run/pg port = 6432 dbname='it''s here' user=a";
        assert_eq!(parameter(connection, "host").as_deref(), Some("/run/pg"));
        assert_eq!(parameter(connection, "port").as_deref(), Some("6432"));
        assert_eq!(parameter(connection, "dbname").as_deref(), Some("it's here"));
        assert_eq!(parameter(connection, "user").as_deref(), Some("a"));
        assert_eq!(parameter(connection, "pool_size"), None);
    }
}
