//! Takes single values from what was typed, and collects what is wrong with them.

use std::fs;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::document::Document;
use super::environment::Overrides;
use super::problem::Problem;
use super::units::{UnitError, format_size, parse_duration, parse_size};
use crate::model::Secret;
use crate::wire::Endpoint;

/// Largest secret file that is read: a token or password is far smaller, a mistaken path need not be.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug)]
pub(super) struct Findings<'a> {
    document: &'a Document,
    overrides: &'a Overrides,
    pub problems: Vec<Problem>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(document: &'a Document, overrides: &'a Overrides) -> Self {
        Self { document, overrides, problems: Vec::new() }
    }

    /// A problem with the key at `path`, placed where its value came from.
    pub(super) fn problem(&mut self, path: &str, message: impl Into<String>) {
        let message = message.into();
        let problem = match self.overrides.variable_of(path) {
            Some(variable) => Problem { place: variable.to_owned(), line: None, message },
            None => Problem { place: path.to_owned(), line: self.document.line(path), message },
        };
        self.problems.push(problem);
    }

    pub(super) fn required(&mut self, path: &str, typed: Option<String>) -> Option<String> {
        let given = typed.filter(|text| !text.is_empty());
        // A value of the wrong kind was reported already and left out; to call it missing as well would mislead.
        if given.is_none() && !self.document.problems.iter().any(|problem| problem.place == path) {
            self.problem(path, "is required");
        }
        given
    }

    pub(super) fn parse<T, E: std::error::Error + 'static>(&mut self, path: &str, parsed: Result<T, E>) -> Option<T> {
        parsed.map_err(|error| self.problem(path, crate::telemetry::chain(&error))).ok()
    }

    pub(super) fn choice<T: Copy>(&mut self, path: &str, typed: Option<String>, words: &[(&str, T)], default: T) -> T {
        let Some(typed) = typed else { return default };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == typed) {
            return *value;
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.problem(path, format!("{typed:?} is not one of {}", known.join(", ")));
        default
    }

    pub(super) fn number(&mut self, path: &str, typed: Option<i64>, allowed: RangeInclusive<u64>, default: u64) -> u64 {
        let Some(typed) = typed else { return default };
        if let Some(number) = u64::try_from(typed).ok().filter(|number| allowed.contains(number)) {
            return number;
        }
        self.problem(path, format!("{typed} is not between {} and {}", allowed.start(), allowed.end()));
        default
    }

    pub(super) fn size(
        &mut self,
        path: &str,
        typed: Option<String>,
        allowed: RangeInclusive<u64>,
        default: u64,
    ) -> u64 {
        self.size_if_given(path, typed, allowed).unwrap_or(default)
    }

    pub(super) fn size_if_given(
        &mut self,
        path: &str,
        typed: Option<String>,
        allowed: RangeInclusive<u64>,
    ) -> Option<u64> {
        let typed = typed?;
        let size = self.parse(path, parse_size(&typed))?;
        if !allowed.contains(&size) {
            let (least, most) = (format_size(*allowed.start()), format_size(*allowed.end()));
            self.problem(path, format!("{typed:?} is not between {least} and {most}"));
            return None;
        }
        Some(size)
    }

    pub(super) fn duration(
        &mut self,
        path: &str,
        typed: Option<String>,
        allowed: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        self.duration_if_given(path, typed, allowed).unwrap_or(default)
    }

    pub(super) fn duration_if_given(
        &mut self,
        path: &str,
        typed: Option<String>,
        allowed: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let typed = typed?;
        let duration = self.parse::<_, UnitError>(path, parse_duration(&typed))?;
        if !allowed.contains(&duration) {
            self.problem(path, format!("{typed:?} is not between {:?} and {:?}", allowed.start(), allowed.end()));
        }
        Some(duration)
    }

    /// A connection, with the password from `password_file` when there is one.
    pub(super) fn endpoint(
        &mut self,
        url: (&str, Option<String>),
        password_file: (&str, Option<String>),
    ) -> Option<Endpoint> {
        let (url_path, url) = url;
        let password = password_file.1.and_then(|file| self.secret(password_file.0, &file));
        let url = self.required(url_path, url)?;
        let endpoint = self.parse(url_path, Endpoint::parse(&url))?;
        Some(match password {
            Some(password) => endpoint.with_password(password),
            None => endpoint,
        })
    }

    /// The first line of a file that holds a secret.
    pub(super) fn secret(&mut self, path: &str, file: &str) -> Option<Secret> {
        let read = fs::metadata(file).and_then(|found| match found.len() <= SECRET_BYTES_MAX {
            true => fs::read_to_string(file),
            false => Err(std::io::Error::other("larger than any secret")),
        });
        match read {
            Err(error) => self.problem(path, format!("read {}: {error}", PathBuf::from(file).display())),
            Ok(text) => match text.lines().next().map(str::trim) {
                Some(line) if !line.is_empty() => return Some(Secret::new(line)),
                Some(_) | None => self.problem(path, format!("{file} is empty")),
            },
        }
        None
    }
}
