//! The directory the files live in: ours alone.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::Error;

const LOCK: &str = "changeover.lock";
const STATE: &str = "changeover.state";
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
    /// Takes the directory; makes it when it is missing.
    pub(super) fn lock(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Directory { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(failed)?;
        let lock = File::options().create(true).truncate(false).write(true).open(path.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Removes what an earlier run left of transactions in progress: the source sends those again.
    pub(super) fn clear_stashes(&self) -> Result<(), Error> {
        self.numbers(STASH)?.into_iter().try_for_each(|number| remove(&self.stash(number)))
    }

    /// Removes every segment, and the state first: without it segments are nobody's. Files of other names are not
    /// touched.
    pub(super) fn clear(&self) -> Result<(), Error> {
        if self.state().exists() {
            remove(&self.state())?;
            self.sync()?;
        }
        self.clear_stashes()?;
        self.segments()?.into_iter().try_for_each(|number| remove(&self.segment(number)))
    }

    /// Makes the names in it durable.
    pub(super) fn sync(&self) -> Result<(), Error> {
        let synced = File::open(&self.path).and_then(|directory| directory.sync_all());
        synced.map_err(|source| Error::Directory { path: self.path.clone(), source })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn state(&self) -> PathBuf {
        self.path.join(STATE)
    }

    pub(super) fn segment(&self, number: u64) -> PathBuf {
        self.path.join(format!("{PREFIX}{SEGMENT}{number:016x}{SUFFIX}"))
    }

    pub(super) fn stash(&self, number: u64) -> PathBuf {
        self.path.join(format!("{PREFIX}{STASH}{number:016x}{SUFFIX}"))
    }

    /// The segments that are there, by number, which is the `seq` of their first batch.
    pub(super) fn segments(&self) -> Result<Vec<u64>, Error> {
        self.numbers(SEGMENT)
    }

    fn numbers(&self, kind: &str) -> Result<Vec<u64>, Error> {
        let failed = |source| Error::Directory { path: self.path.clone(), source };
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let Some(number) = number_of(&entry.file_name().to_string_lossy(), kind)
                && entry.file_type().map_err(failed)?.is_file()
            {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

pub(super) fn remove(path: &Path) -> Result<(), Error> {
    fs::remove_file(path).map_err(|source| Error::Remove { path: path.to_owned(), source })
}

fn number_of(name: &str, kind: &str) -> Option<u64> {
    let number = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.strip_prefix(kind)?;
    let written_by_us = number.len() == 16 && number.bytes().all(|byte| byte.is_ascii_hexdigit());
    if written_by_us { u64::from_str_radix(number, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::testing::TempDir;

    #[test]
    fn only_our_own_files_of_an_earlier_run_are_removed() {
        let dir = TempDir::new();
        let directory = Directory::lock(dir.path()).unwrap();
        let (segment, stash) = (directory.segment(7), directory.stash(0xabc));
        let foreign = ["notes.txt", "changeover-segment-7.spool", "changeover-segment-000000000000000g.spool"];
        for path in [&segment, &stash, &directory.state()] {
            fs::write(path, b"left").unwrap();
        }
        for name in foreign {
            fs::write(dir.path().join(name), b"foreign").unwrap();
        }
        assert_eq!(directory.segments().unwrap(), [7]);
        directory.clear().unwrap();
        assert!(!segment.exists() && !stash.exists() && !directory.state().exists());
        assert!(foreign.iter().all(|name| dir.path().join(name).exists()));
    }

    #[test]
    fn two_daemons_cannot_share_a_directory() {
        let dir = TempDir::new();
        let first = Directory::lock(dir.path()).unwrap();
        let refused = Directory::lock(dir.path());
        assert!(matches!(refused, Err(Error::Locked { .. })));
        drop(first);
        Directory::lock(dir.path()).unwrap();
    }
}
