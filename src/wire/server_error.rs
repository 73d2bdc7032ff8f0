//! An ErrorResponse or NoticeResponse ("Error and Notice Message Fields" in the documentation).

use std::fmt;

use super::sqlstate;
use crate::model::Disposition;

/// What the server said. `Display` is severity, message and code; DETAIL and HINT have to be asked for, since DETAIL may
/// hold row values.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub struct ServerError(Box<Fields>);

/// Boxed, because every `Result` of this room has room for it.
#[derive(Clone, Default, PartialEq, Eq)]
struct Fields {
    severity: String,
    sqlstate: String,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

impl ServerError {
    /// Reads the fields; what cannot be read is left empty, since an error about an error helps nobody.
    pub(super) fn read(body: &[u8]) -> Self {
        let mut error = Fields::default();
        let mut rest = body;
        while let Some((field, after)) = rest.split_first().filter(|(field, _)| **field != 0) {
            let end = memchr::memchr(0, after).unwrap_or(after.len());
            let text = String::from_utf8_lossy(after.get(..end).unwrap_or_default()).into_owned();
            rest = after.get(end + 1..).unwrap_or_default();
            match field {
                // Not translated; older servers send only `S`, which comes first.
                b'V' => error.severity = text,
                b'S' if error.severity.is_empty() => error.severity = text,
                b'C' => error.sqlstate = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                _ => {}
            }
        }
        Self(Box::new(error))
    }

    /// What the server would say to a count of rows that it checks itself.
    pub(crate) fn wrong_count(sqlstate: &str, expected: u64, found: u64) -> Self {
        let message = format!("{found} rows were found where {expected} must be");
        Self(Box::new(Fields {
            severity: "ERROR".to_owned(),
            sqlstate: sqlstate.to_owned(),
            message,
            ..Fields::default()
        }))
    }

    /// Five characters, such as `57P01`.
    pub fn sqlstate(&self) -> &str {
        &self.0.sqlstate
    }

    /// `ERROR`, `FATAL`, `PANIC`, `WARNING`, `NOTICE` …
    pub fn severity(&self) -> &str {
        &self.0.severity
    }

    /// The server's sentence. Data exceptions (class 22) quote the value they could not take; it is left out.
    pub fn message(&self) -> String {
        let quotes = self.0.message.find('"').zip(self.0.message.rfind('"'));
        match quotes {
            Some((first, last)) if first < last && self.0.sqlstate.starts_with("22") => {
                format!("{}\"…\"{}", &self.0.message[..first], &self.0.message[last + 1..])
            }
            _ => self.0.message.clone(),
        }
    }

    /// Whether trying again may help, or what the operator has to do.
    pub fn disposition(&self) -> Disposition {
        sqlstate::disposition(self.sqlstate())
    }

    /// May hold row values: not for logs, errors or metrics.
    pub fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.0.severity, self.message(), self.0.sqlstate)
    }
}

/// The same as `Display`: a `{:?}` in a log must not show more.
impl fmt::Debug for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_the_server_said_and_no_value() {
        let error = ServerError::read(
            b"SFEHLER\0VERROR\0C23505\0Mduplicate key value violates unique constraint \"t_pkey\"\0DKey (id)=(hunter2).\0\0",
        );
        assert_eq!(error.to_string(), "ERROR: duplicate key value violates unique constraint \"t_pkey\" (23505)");
        assert_eq!(error.detail(), Some("Key (id)=(hunter2)."));
        assert!(!format!("{error:?}").contains("hunter2"));

        let error = ServerError::read(b"SERROR\0C22P02\0Minvalid input syntax for type integer: \"hunter\"2\"\0\0");
        assert_eq!(error.to_string(), "ERROR: invalid input syntax for type integer: \"…\" (22P02)");
    }

    #[test]
    fn takes_any_bytes() {
        for body in [&b""[..], b"\0", b"M", b"Mx", b"Mx\0", b"M\xff\0\0", b"VX"] {
            assert!(ServerError::read(body).message().len() < 8);
        }
    }
}
