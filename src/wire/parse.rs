//! The two ways libpq lets a connection be written: a URL and `key=value` pairs. Both become one list of settings.
//!
//! What was typed may hold a password in a place where it does not belong (an `@` or `/` that is not percent-encoded
//! moves it into the host or the port), so no message here repeats what was typed.

use percent_encoding::percent_decode_str;

use super::Error;

/// A setting by libpq's name ("Parameter Key Words" in the documentation).
pub(super) type Setting = (String, String);

/// Reads either form.
pub(super) fn settings(text: &str) -> Result<Vec<Setting>, Error> {
    let text = text.trim();
    match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
        Some(rest) => from_url(rest),
        None if text.contains("://") => Err(wrong("it begins with neither postgres:// nor postgresql://")),
        None if text.contains('=') => from_pairs(text),
        None => Err(wrong("expected postgres://user@host:5432/database or host=… user=… dbname=…")),
    }
}

fn wrong(what: &str) -> Error {
    Error::Url { what: what.to_owned() }
}

const ENCODE: &str =
    "if user or password hold any of : / ? # [ ] @ % or a blank, write them percent-encoded (@ is %40)";

fn from_url(rest: &str) -> Result<Vec<Setting>, Error> {
    let (before_query, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = before_query.split_once('/').unwrap_or((before_query, ""));
    let (userinfo, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let mut settings = Vec::new();
    push_userinfo(userinfo, &mut settings)?;
    push_host(host, &mut settings)?;
    if !path.is_empty() {
        settings.push(("dbname".to_owned(), decode(path)?));
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| wrong("a parameter after ? has no value"))?;
        settings.push((decode(key)?, decode(value)?));
    }
    Ok(settings)
}

fn push_userinfo(userinfo: &str, settings: &mut Vec<Setting>) -> Result<(), Error> {
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    for (key, value) in [("user", user), ("password", password)] {
        if !value.is_empty() {
            settings.push((key.to_owned(), decode(value)?));
        }
    }
    Ok(())
}

fn push_host(host: &str, settings: &mut Vec<Setting>) -> Result<(), Error> {
    let (host, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or_else(|| wrong("a [ of an IPv6 address is not closed"))?;
            (address, rest.strip_prefix(':'))
        }
        None => host.split_once(':').map_or((host, None), |(host, port)| (host, Some(port))),
    };
    if host.contains(['@', ':', ' ']) && host.parse::<std::net::Ipv6Addr>().is_err() {
        return Err(wrong(&format!("the host is none; {ENCODE}")));
    }
    if !host.is_empty() {
        settings.push(("host".to_owned(), decode(host)?));
    }
    match port.filter(|port| !port.is_empty()) {
        Some(port) if port.parse::<u16>().is_ok_and(|port| port > 0) => {
            settings.push(("port".to_owned(), port.to_owned()));
        }
        Some(_) => return Err(wrong(&format!("the port is no number from 1 to 65535; {ENCODE}"))),
        None => {}
    }
    Ok(())
}

fn decode(part: &str) -> Result<String, Error> {
    let escapes_complete = part.match_indices('%').all(|(at, _)| {
        part.as_bytes().get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    if !escapes_complete {
        return Err(wrong("a % is not followed by two hexadecimal digits (a literal % is written %25)"));
    }
    let decoded = percent_decode_str(part).decode_utf8().map_err(|_| wrong("a percent-encoded part is not UTF-8"))?;
    if decoded.contains('\0') {
        return Err(wrong("it holds %00, which PostgreSQL cannot take"));
    }
    Ok(decoded.into_owned())
}

/// `key = value`, values in single quotes where they hold blanks, `\` before a quote or backslash.
fn from_pairs(text: &str) -> Result<Vec<Setting>, Error> {
    let mut settings = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or_else(|| wrong("a key is not followed by = and its value"))?;
        let key = key.trim();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(wrong("expected key=value pairs with a blank between them; quote values that hold blanks"));
        }
        let (value, after) = take_value(after.trim_start())?;
        settings.push((key.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(settings)
}

fn take_value(text: &str) -> Result<(String, &str), Error> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, letter)) = chars.next() {
        match letter {
            '\\' => value.push(chars.next().ok_or_else(|| wrong("it ends with a single \\"))?.1),
            '\'' if quoted => return Ok((value, text.get(at + 1..).unwrap_or_default())),
            _ if !quoted && letter.is_whitespace() => return Ok((value, text.get(at..).unwrap_or_default())),
            _ => value.push(letter),
        }
    }
    if quoted { Err(wrong("a ' is not closed")) } else { Ok((value, "")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, &str)]) {
        let expected: Vec<Setting> = expected.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        assert_eq!(settings(text).unwrap(), expected, "{text}");
    }

    #[test]
    fn reads_urls() {
        check(
            "postgres://mover:s%40crt@blue:5433/shop?sslmode=verify-full&application_name=a%20b",
            &[
                ("user", "mover"),
                ("password", "s@crt"),
                ("host", "blue"),
                ("port", "5433"),
                ("dbname", "shop"),
                ("sslmode", "verify-full"),
                ("application_name", "a b"),
            ],
        );
        check("postgresql://[::1]:5/x", &[("host", "::1"), ("port", "5"), ("dbname", "x")]);
        check("postgres://%2Frun%2Fpg/x", &[("host", "/run/pg"), ("dbname", "x")]);
        check("postgres:///x?host=/run/pg", &[("dbname", "x"), ("host", "/run/pg")]);
        check("postgres://", &[]);
    }

    #[test]
    fn reads_pairs() {
        check(
            r"host=blue user = 'a b' password='it\'s' dbname=x\ y",
            &[("host", "blue"), ("user", "a b"), ("password", "it's"), ("dbname", "x y")],
        );
        check("host=''  port=1", &[("host", ""), ("port", "1")]);
    }

    #[test]
    fn a_wrong_url_is_explained_without_the_password() {
        for text in [
            "postgres://mover:hunter2/x@blue/shop",
            "postgres://mover:hun%ter2@blue/shop",
            "postgres://mover:hunter2@blue:port/shop",
            "http://mover:hunter2@blue/shop",
            "hunter2",
            "host=blue password='hunter2",
            "host=blue hunter2",
        ] {
            let error = settings(text).unwrap_err().to_string();
            assert!(!error.contains("hunter2") && !error.contains("ter2"), "{error}");
        }
    }
}
