//! Environment variables override the file, key by key: `CHANGEOVER_SOURCE_URL` is `source.url`.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::keys::{self, KEYS, Key, Kind};
use super::problem::Problem;

const PREFIX: &str = "CHANGEOVER_";

/// Variables of the process, or of a test.
pub type Environment = BTreeMap<String, String>;

/// The process's variables that may concern us. What is not UTF-8 cannot be one of ours.
pub fn process_environment() -> Environment {
    let readable = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(readable).filter(|(name, _)| name.starts_with(PREFIX)).collect()
}

/// Where tests ask the daemon to stand still: see `telemetry::Point`.
#[cfg(debug_assertions)]
pub fn points_directory() -> Option<std::path::PathBuf> {
    std::env::var_os("CHANGEOVER_POINTS").map(Into::into)
}

/// Which keys were overridden, and what was wrong with the variables.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    variables: BTreeMap<&'static str, String>,
    pub problems: Vec<Problem>,
}

impl Overrides {
    /// The variable that the value at `path` came from.
    pub(super) fn variable_of(&self, path: &str) -> Option<&str> {
        self.variables.get(path).map(String::as_str)
    }

    /// Puts what `environment` says over `tree`.
    pub(super) fn apply(environment: &Environment, tree: &mut Table) -> Self {
        let mut overrides = Self::default();
        for (variable, value) in environment {
            match KEYS.iter().find(|key| key.variable().as_deref() == Some(variable)) {
                Some(key) => overrides.set(key, variable, value, tree),
                None => overrides.unknown(variable),
            }
        }
        overrides
    }

    fn set(&mut self, key: &'static Key, variable: &str, value: &str, tree: &mut Table) {
        let value = match (key.kind, value.parse::<i64>()) {
            (Kind::Integer, Ok(number)) => Value::Integer(number),
            (Kind::Integer, Err(_)) => {
                return self.problem(variable, format!("expected a whole number, found {value:?}"));
            }
            (Kind::Boolean, _) => match value.parse() {
                Ok(choice) => Value::Boolean(choice),
                Err(_) => return self.problem(variable, format!("expected true or false, found {value:?}")),
            },
            (Kind::Text | Kind::Size | Kind::Duration | Kind::Choice(_), _) => Value::String(value.to_owned()),
            (Kind::List | Kind::Map | Kind::Reserved, _) => unreachable!("such keys have no variable"),
        };
        let (tables, name) = key.path.rsplit_once('.').expect("every key stands in a table");
        let mut inner = tree;
        for table in tables.split('.') {
            let entry = inner.entry(table).or_insert_with(|| Value::Table(Table::new()));
            inner = entry.as_table_mut().expect("the document lets only a table through");
        }
        inner.insert(name.to_owned(), value);
        self.variables.insert(key.path, variable.to_owned());
    }

    /// A near miss is a mistake. Anything else may be somebody else's: a Kubernetes service named `changeover` puts
    /// `CHANGEOVER_PORT` into every pod.
    fn unknown(&mut self, variable: &str) {
        let near = |known: &String| keys::distance(variable, known) <= 2;
        if let Some(known) = KEYS.iter().filter_map(Key::variable).find(near) {
            self.problem(variable, format!("unknown variable; did you mean {known}?"));
        }
    }

    fn problem(&mut self, variable: &str, message: String) {
        self.problems.push(Problem { place: variable.to_owned(), line: None, message });
    }
}
