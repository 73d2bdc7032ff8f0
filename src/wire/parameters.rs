//! The connection parameters we know, by libpq's names ("Parameter Key Words" in the documentation).

use std::time::Duration;

use super::Error;

/// What a parameter means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Used,
    /// libpq takes it too; it changes nothing that matters to us.
    Ignored,
    /// Doing without it would be less safe than what was asked for, so it is refused.
    Refused(&'static str),
}

const KNOWN: &[(&str, Kind)] = &[
    ("host", Kind::Used),
    ("hostaddr", Kind::Used),
    ("port", Kind::Used),
    ("user", Kind::Used),
    ("password", Kind::Used),
    ("passfile", Kind::Used),
    ("dbname", Kind::Used),
    ("service", Kind::Used),
    ("sslmode", Kind::Used),
    ("sslrootcert", Kind::Used),
    ("sslcert", Kind::Used),
    ("sslkey", Kind::Used),
    ("channel_binding", Kind::Used),
    ("connect_timeout", Kind::Used),
    ("keepalives", Kind::Used),
    ("keepalives_idle", Kind::Used),
    ("keepalives_interval", Kind::Used),
    ("keepalives_count", Kind::Used),
    ("tcp_user_timeout", Kind::Used),
    ("application_name", Kind::Used),
    ("options", Kind::Used),
    ("fallback_application_name", Kind::Ignored),
    ("client_encoding", Kind::Ignored),
    ("gssencmode", Kind::Ignored),
    ("gsslib", Kind::Ignored),
    ("krbsrvname", Kind::Ignored),
    ("sslcompression", Kind::Ignored),
    ("sslsni", Kind::Ignored),
    ("sslcertmode", Kind::Ignored),
    ("ssl_min_protocol_version", Kind::Ignored),
    ("target_session_attrs", Kind::Refused("name the one server that is meant")),
    ("load_balance_hosts", Kind::Refused("name the one server that is meant")),
    ("replication", Kind::Refused("it is set where it is needed")),
    ("requirepeer", Kind::Refused("it is not supported")),
    ("require_auth", Kind::Refused("it is not supported; channel_binding=require is")),
    ("sslcrl", Kind::Refused("revocation lists are not supported")),
    ("sslcrldir", Kind::Refused("revocation lists are not supported")),
    ("sslpassword", Kind::Refused("give sslkey a key that is not encrypted")),
    ("sslnegotiation", Kind::Refused("only the ordinary negotiation is supported")),
    ("ssl_max_protocol_version", Kind::Refused("it is not supported")),
];

/// Whether the parameter is used; an error when it is unknown or refused.
pub(super) fn is_used(name: &str) -> Result<bool, Error> {
    match KNOWN.iter().find(|(known, _)| *known == name) {
        Some((_, Kind::Used)) => Ok(true),
        Some((_, Kind::Ignored)) => Ok(false),
        Some((_, Kind::Refused(what))) => Err(wrong(name, what)),
        None => Err(unknown(name)),
    }
}

fn unknown(name: &str) -> Error {
    // A password that was not percent-encoded can break off in the middle and leave a rest that looks like a name.
    let printable = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let shown = if printable { name } else { "(unprintable)" };
    let nearest = KNOWN.iter().map(|(known, _)| *known).min_by_key(|known| edit_distance(name, known));
    wrong(shown, &format!("there is no such parameter; the nearest is {}", nearest.unwrap_or_default()))
}

pub(super) fn wrong(name: &str, what: &str) -> Error {
    Error::Parameter { name: name.to_owned(), what: what.to_owned() }
}

/// A number of seconds as libpq takes it: 0, negative and absent all mean "no limit".
pub(super) fn seconds(name: &str, value: &str) -> Result<Option<Duration>, Error> {
    let seconds: i64 = value.trim().parse().map_err(|_| wrong(name, "expected a number of seconds"))?;
    Ok(u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs))
}

/// Levenshtein's distance.
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, letter) in left.chars().enumerate() {
        let mut diagonal = line;
        row[0] = line + 1;
        for (column, other) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_parameter_names_the_nearest_known_one() {
        for (typed, meant) in [("ssl_mode", "sslmode"), ("databse", "dbname"), ("channelbinding", "channel_binding")] {
            let error = is_used(typed).unwrap_err().to_string();
            assert!(typed == "databse" || error.ends_with(meant), "{error}");
        }
    }

    #[test]
    fn what_would_be_less_safe_unheeded_is_refused() {
        assert!(is_used("sslcrl").is_err());
        assert!(is_used("require_auth").is_err());
        assert!(!is_used("gssencmode").unwrap());
    }
}
