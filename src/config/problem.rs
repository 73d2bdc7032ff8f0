//! What is wrong with a configuration: all of it at once, each with its place.

use std::fmt;

/// One thing to correct. `place` is a key path, an environment variable, or empty for the file as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: String,
    /// Line in the file, counted from 1, where it is known.
    pub line: Option<usize>,
    pub message: String,
}

/// At least one problem, in the order of the file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems {
    /// The file as it was named.
    pub file: String,
    pub list: Vec<Problem>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.list.len() == 1 { "problem" } else { "problems" };
        write!(f, "{}: {} {noun}", self.file, self.list.len())?;
        for problem in &self.list {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}
