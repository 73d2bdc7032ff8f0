//! The directory the files live in: ours alone, empty at start.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::Error;

const LOCK: &str = "changeover.lock";
const PREFIX: &str = "changeover-";
const SEGMENT: &str = "segment-";
const STASH: &str = "stash-";
const SUFFIX: &str = ".spool";

/// A directory held by this process until dropped.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Locked; the lock ends with the file, also when the process is killed.
    _lock: File,
}

impl Directory {
    /// Takes the directory and removes what an earlier run left there. Files of other names are not touched.
    pub(super) fn take(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Directory { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(failed)?;
        let lock = File::options().create(true).truncate(false).write(true).open(path.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        for entry in fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if is_ours(&entry.file_name().to_string_lossy()) && entry.file_type().map_err(failed)?.is_file() {
                remove(&entry.path())?;
            }
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub(super) fn segment(&self, number: u64) -> PathBuf {
        self.path.join(format!("{PREFIX}{SEGMENT}{number:016x}{SUFFIX}"))
    }

    pub(super) fn stash(&self, number: u64) -> PathBuf {
        self.path.join(format!("{PREFIX}{STASH}{number:016x}{SUFFIX}"))
    }
}

pub(super) fn remove(path: &Path) -> Result<(), Error> {
    fs::remove_file(path).map_err(|source| Error::Remove { path: path.to_owned(), source })
}

fn is_ours(name: &str) -> bool {
    let number = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(SUFFIX));
    let number = number.and_then(|name| name.strip_prefix(SEGMENT).or_else(|| name.strip_prefix(STASH)));
    number.is_some_and(|number| number.len() == 16 && number.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::testing::TempDir;

    #[test]
    fn only_our_own_files_of_an_earlier_run_are_removed() {
        let dir = TempDir::new();
        let first = Directory::take(dir.path()).unwrap();
        let (segment, stash) = (first.segment(7), first.stash(0xabc));
        let foreign = ["notes.txt", "changeover-segment-7.spool", "changeover-segment-000000000000000g.spool"];
        for path in [&segment, &stash] {
            fs::write(path, b"left").unwrap();
        }
        for name in foreign {
            fs::write(dir.path().join(name), b"foreign").unwrap();
        }
        drop(first);
        let _second = Directory::take(dir.path()).unwrap();
        assert!(!segment.exists() && !stash.exists());
        assert!(foreign.iter().all(|name| dir.path().join(name).exists()));
    }

    #[test]
    fn two_daemons_cannot_share_a_directory() {
        let dir = TempDir::new();
        let first = Directory::take(dir.path()).unwrap();
        let refused = Directory::take(dir.path());
        assert!(matches!(refused, Err(Error::Locked { .. })));
        drop(first);
        Directory::take(dir.path()).unwrap();
    }
}
