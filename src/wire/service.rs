//! libpq's service file ("The Connection Service File" in the documentation).

use std::path::PathBuf;

use super::Error;
use super::endpoint::Environment;
use super::parameters::wrong;
use super::parse::Setting;

/// The settings of `[name]`: from `PGSERVICEFILE`, else `~/.pg_service.conf`, then from `PGSYSCONFDIR`.
pub(super) fn settings(name: &str, environment: Environment<'_>) -> Result<Vec<Setting>, Error> {
    let own = environment("PGSERVICEFILE").map(PathBuf::from);
    let own = own.or_else(|| environment("HOME").map(|home| PathBuf::from(home).join(".pg_service.conf")));
    let shared = environment("PGSYSCONFDIR").unwrap_or_else(|| "/etc/postgresql-common".to_owned());
    let shared = PathBuf::from(shared).join("pg_service.conf");
    for path in own.into_iter().chain([shared]).filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(&path)
            .map_err(|error| Error::File { path: path.clone(), what: error.to_string() })?;
        if let Some(settings) = section(&text, name) {
            return settings.map_err(|what| Error::File { path, what: what.to_owned() });
        }
    }
    Err(wrong("service", &format!("no service file defines [{name}]")))
}

fn section(text: &str, name: &str) -> Option<Result<Vec<Setting>, &'static str>> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.find(|line| line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) == Some(name))?;
    let pair = |line: &str| match line.split_once('=') {
        Some((key, _)) if key.trim() == "service" => Err("a service refers to another service"),
        Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
        None => Err("a line is neither [service] nor key=value"),
    };
    Some(lines.take_while(|line| !line.starts_with('[')).map(pair).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_ends_where_the_next_begins() {
        let text = "# ours\n[blue]\nhost=a\n port = 5 \n\n[green]\nhost=b\n";
        let expected = vec![("host".to_owned(), "a".to_owned()), ("port".to_owned(), "5".to_owned())];
        assert_eq!(section(text, "blue"), Some(Ok(expected)));
        assert!(section(text, "red").is_none());
        assert!(section("[a]\nservice=b", "a").is_some_and(|found| found.is_err()));
    }
}
