//! libpq's password file ("The Password File" in the documentation).

use std::path::PathBuf;

use super::Error;
use super::endpoint::{Environment, Host};
use crate::model::Secret;

/// What a line has to match.
pub(super) struct Wanted<'a> {
    pub(super) host: &'a Host,
    pub(super) port: u16,
    pub(super) dbname: &'a str,
    pub(super) user: &'a str,
}

/// The password of the first line that matches: from `named`, else `PGPASSFILE`, else `~/.pgpass`. A file that is
/// not there is no error, as in libpq; one that others can read is refused rather than ignored.
pub(super) fn look_up(
    named: Option<&str>,
    wanted: &Wanted<'_>,
    environment: Environment<'_>,
) -> Result<Option<Secret>, Error> {
    let path = named.map(PathBuf::from).or_else(|| environment("PGPASSFILE").map(PathBuf::from));
    let path = path.or_else(|| environment("HOME").map(|home| PathBuf::from(home).join(".pgpass")));
    let Some(path) = path.filter(|path| path.is_file()) else { return Ok(None) };
    let wrong = |what: String| Error::File { path: path.clone(), what };
    refuse_if_readable_by_others(&path).map_err(wrong)?;
    let text = std::fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
    Ok(text.lines().find_map(|line| password_of(line, wanted)).map(Secret::new))
}

fn refuse_if_readable_by_others(path: &std::path::Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = path.metadata().map_err(|error| error.to_string())?.permissions().mode();
    if mode & 0o077 == 0 { Ok(()) } else { Err("others may read it; chmod 600 it".to_owned()) }
}

/// `host:port:database:user:password`; `*` matches all, `\` takes the next letter as it is.
fn password_of(line: &str, wanted: &Wanted<'_>) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut rest = line;
    // libpq looks for a socket in its default directory under the name "localhost".
    let host = match wanted.host.to_string() {
        host if host == "/var/run/postgresql" || host == "/tmp" => vec![host, "localhost".to_owned()],
        host => vec![host],
    };
    let expected = [host, vec![wanted.port.to_string()], vec![wanted.dbname.to_owned()], vec![wanted.user.to_owned()]];
    for values in expected {
        let (field, starred) = take_field(&mut rest)?;
        if !starred && !values.contains(&field) {
            return None;
        }
    }
    Some(unescape(rest))
}

/// The field before the next `:` that is not escaped, and whether it is a lone `*`.
fn take_field(rest: &mut &str) -> Option<(String, bool)> {
    let mut escaped = false;
    let end = rest.char_indices().find(|(_, letter)| {
        let ends = *letter == ':' && !escaped;
        escaped = *letter == '\\' && !escaped;
        ends
    })?;
    let (field, after) = rest.split_at(end.0);
    *rest = after.strip_prefix(':').unwrap_or(after);
    Some((unescape(field), field == "*"))
}

fn unescape(field: &str) -> String {
    let mut letters = field.chars();
    let mut plain = String::new();
    while let Some(letter) = letters.next() {
        plain.push(if letter == '\\' { letters.next().unwrap_or('\\') } else { letter });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Option<&str>) {
        let host = Host::Name("blue".to_owned());
        let wanted = Wanted { host: &host, port: 5432, dbname: "shop", user: "mover" };
        assert_eq!(password_of(line, &wanted).as_deref(), expected, "{line}");
    }

    #[test]
    fn the_line_that_matches_gives_the_password() {
        check("blue:5432:shop:mover:secret", Some("secret"));
        check("*:*:*:mover:se:cr\\:et\\\\", Some("se:cr:et\\"));
        check("green:5432:shop:mover:secret", None);
        check("blue:5433:*:*:secret", None);
        check("# blue:5432:shop:mover:secret", None);
        check("blue:5432", None);
        check("\\*:5432:shop:mover:secret", None);
    }
}
