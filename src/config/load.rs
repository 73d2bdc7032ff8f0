//! Reads a configuration: file, then environment, then every check.

use std::fs;
use std::path::Path;

use super::check::check;
use super::checked::Config;
use super::document::Document;
use super::environment::{Environment, Overrides};
use super::findings::Findings;
use super::problem::{Problem, Problems};
use super::raw::Raw;

/// The configuration in `path` with `environment` over it, or everything that is wrong with it.
pub fn load(path: &Path, environment: &Environment) -> Result<Config, Problems> {
    let file = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|error| {
        let message = format!("read the file: {error}; `changeover init --source URL -o {file}` writes one");
        Problems { file: file.clone(), list: vec![Problem { place: String::new(), line: None, message }] }
    })?;
    parse(&text, environment).map_err(|list| Problems { file, list })
}

/// The same from text.
pub fn parse(text: &str, environment: &Environment) -> Result<Config, Vec<Problem>> {
    let mut document = Document::read(text);
    let mut tree = std::mem::take(&mut document.tree);
    let overrides = Overrides::apply(environment, &mut tree);
    // With broken syntax nothing is known about the rest.
    if document.problems.iter().any(|problem| problem.place.is_empty()) {
        return Err(document.problems);
    }
    let raw: Raw = tree.try_into().expect("`document` lets only keys and kinds of `raw` through");
    let mut findings = Findings::new(&document, &overrides);
    let checked = check(raw, &mut findings);
    let mut problems = findings.problems;
    problems.extend(document.problems);
    problems.extend(overrides.problems);
    // Without a line (missing, or from the environment) first, then in the order of the file.
    problems.sort_by_key(|problem| problem.line);
    match checked {
        Some(config) if problems.is_empty() => Ok(config),
        Some(_) | None => Err(problems),
    }
}
