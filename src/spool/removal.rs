//! The end of a migration's spool.

use std::path::Path;

use crate::model::SourceIdentity;

use super::Error;
use super::directory::Directory;
use super::state::StateFile;

/// Refuses while a daemon uses the directory, and when what it holds came from another source than `source`.
pub fn may_be_removed(dir: &Path, source: &SourceIdentity) -> Result<(), Error> {
    if !dir.exists() {
        return Ok(());
    }
    let directory = Directory::lock(dir)?;
    // What cannot be read is of no use to anybody.
    let Ok(Some(state)) = StateFile::open(&directory) else { return Ok(()) };
    let found = &state.state().source.system_identifier;
    if *found == source.system_identifier {
        return Ok(());
    }
    let what = format!("it holds changes of the system {found}, and not of {}", source.system_identifier);
    Err(Error::Foreign { path: dir.to_owned(), what })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::Lsn;
    use crate::spool::state::{Mark, State};
    use crate::spool::testing::TempDir;

    fn identity(system: &str) -> SourceIdentity {
        SourceIdentity { system_identifier: system.to_owned(), timeline: 1 }
    }

    #[test]
    fn only_what_is_ours_and_not_in_use_may_be_removed() {
        let dir = TempDir::new();
        may_be_removed(&dir.path().join("nothing"), &identity("1")).unwrap();
        let directory = Directory::lock(dir.path()).unwrap();
        let begin = Mark { seq: 0, through: Lsn::new(1).unwrap() };
        let state = State {
            migration: "shop".to_owned(),
            source: identity("1"),
            consistent_point: begin.through,
            epoch: 1,
            begin,
            joined: BTreeMap::new(),
        };
        StateFile::create(&directory, state).unwrap();
        let refused = |system| may_be_removed(dir.path(), &identity(system)).unwrap_err();
        assert!(matches!(refused("1"), Error::Locked { .. }));
        drop(directory);
        assert!(matches!(refused("2"), Error::Foreign { .. }));
        may_be_removed(dir.path(), &identity("1")).unwrap();
    }
}
