//! The file's text as a tree of known keys with values of the right kind. What is not, is reported and left out, so that
//! one mistake does not hide the next.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::keys::{self, Kind};
use super::problem::Problem;

/// What was typed, and where.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub tree: Table,
    /// Line of each key and table by its path, array places with their number.
    pub lines: BTreeMap<String, usize>,
    pub problems: Vec<Problem>,
}

impl Document {
    pub(super) fn read(text: &str) -> Self {
        let mut document = Self::default();
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let line = error.span().map(|span| line_of(text, span.start));
            let message = format!("not TOML: {}", error.message());
            document.problems.push(Problem { place: String::new(), line, message });
        }
        // What was recovered from broken syntax would only be reported as odd keys.
        if document.problems.is_empty() {
            document.tree = document.table(text, "", table.get_ref());
        }
        document
    }

    /// The line that says most about `path`: its own, or that of the innermost table around it that is in the file.
    pub(super) fn line(&self, path: &str) -> Option<usize> {
        let mut path = path;
        loop {
            if let Some(line) = self.lines.get(path) {
                return Some(*line);
            }
            path = path.rsplit_once('.')?.0;
        }
    }

    fn table(&mut self, text: &str, path: &str, table: &DeTable<'_>) -> Table {
        let mut known = Table::new();
        // The parser hands keys out in alphabetical order; problems read better in the file's.
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in entries {
            let inner = if path.is_empty() { name.get_ref().to_string() } else { format!("{path}.{}", name.get_ref()) };
            self.lines.insert(inner.clone(), line_of(text, name.span().start));
            if let Some(value) = self.entry(text, path, name.get_ref(), &inner, value) {
                known.insert(name.get_ref().to_string(), value);
            }
        }
        known
    }

    fn entry(
        &mut self,
        text: &str,
        table: &str,
        name: &str,
        path: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> Option<Value> {
        let shape = without_numbers(path);
        if let Some(key) = keys::find(&shape) {
            return match convert(key.kind, value.get_ref()) {
                Ok(value) => Some(value),
                Err(message) => {
                    self.problem(path, message);
                    None
                }
            };
        }
        if keys::is_table(&format!("{shape}[]")) {
            return self.array_of_tables(text, path, value);
        }
        if keys::is_table(&shape) {
            let Some(inner) = value.get_ref().as_table() else {
                self.problem(path, format!("is a table: write [{path}]"));
                return None;
            };
            return Some(Value::Table(self.table(text, path, inner)));
        }
        self.problem(path, keys::suggestion(&without_numbers(table), name));
        None
    }

    fn array_of_tables(&mut self, text: &str, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Value> {
        let places = value.get_ref().as_array().map(|array| array.iter().collect::<Vec<_>>());
        let Some(places) = places.filter(|places| places.iter().all(|place| place.get_ref().is_table())) else {
            self.problem(path, format!("is a list of tables: write [[{path}]]"));
            return None;
        };
        let mut tables = Vec::new();
        for (number, place) in places.into_iter().enumerate() {
            let inner = format!("{path}[{number}]");
            self.lines.insert(inner.clone(), line_of(text, place.span().start));
            let table = place.get_ref().as_table().expect("the filter above lets only tables through");
            tables.push(Value::Table(self.table(text, &inner, table)));
        }
        Some(Value::Array(tables))
    }

    fn problem(&mut self, path: &str, message: String) {
        let line = self.line(path);
        self.problems.push(Problem { place: path.to_owned(), line, message });
    }
}

/// `cutover.router[3].kind` as the list of keys names it: `cutover.router[].kind`.
fn without_numbers(path: &str) -> String {
    let mut shape = String::with_capacity(path.len());
    let mut inside = false;
    for character in path.chars() {
        inside &= character != ']';
        if !inside {
            shape.push(character);
        }
        inside |= character == '[';
    }
    shape
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
}

/// The value as `raw` wants it, or what should have been written.
fn convert(kind: Kind, value: &DeValue<'_>) -> Result<Value, String> {
    let found = value.type_str();
    match kind {
        Kind::Text | Kind::Duration | Kind::Choice(_) => match value.as_str() {
            Some(text) => Ok(Value::String(text.to_owned())),
            None => Err(format!("expected a text in quotes, found {found}")),
        },
        Kind::Integer => integer(value).map(Value::Integer).ok_or(format!("expected a whole number, found {found}")),
        Kind::Boolean => match value.as_bool() {
            Some(choice) => Ok(Value::Boolean(choice)),
            None => Err(format!("expected true or false, found {found}")),
        },
        Kind::Size => match (value.as_str(), integer(value)) {
            (Some(text), _) => Ok(Value::String(text.to_owned())),
            (None, Some(bytes)) => Ok(Value::String(bytes.to_string())),
            (None, None) => Err(format!("expected a size such as \"256MiB\", found {found}")),
        },
        Kind::List => texts(value).ok_or(format!("expected a list of texts, found {found}")),
        Kind::Map => map(value).ok_or(format!("expected a table of texts, found {found}")),
        Kind::Reserved => match value.as_table() {
            Some(table) if table.is_empty() => Ok(Value::Table(Table::new())),
            Some(_) => Err("transforms are not offered by this version: leave the table empty".to_owned()),
            None => Err(format!("expected a table, found {found}")),
        },
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn texts(value: &DeValue<'_>) -> Option<Value> {
    let text = |place: &Spanned<DeValue<'_>>| place.get_ref().as_str().map(|text| Value::String(text.to_owned()));
    value.as_array()?.iter().map(text).collect::<Option<Vec<_>>>().map(Value::Array)
}

fn map(value: &DeValue<'_>) -> Option<Value> {
    let table = value.as_table()?;
    let text = |(name, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
        Some((name.get_ref().to_string(), Value::String(value.get_ref().as_str()?.to_owned())))
    };
    table.iter().map(text).collect::<Option<Table>>().map(Value::Table)
}
