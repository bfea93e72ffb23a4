//! The journals on this machine: a directory for each session, each under a lock that proves, when it can be taken, that its owner is dead.

use super::LedgerError;
use crate::ids::SessionId;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The directory of all of them.
#[derive(Debug)]
pub(super) struct JournalHome {
    path: PathBuf,
}

/// One session's directory, locked for as long as this lives.
#[derive(Debug)]
pub(super) struct SessionDirectory {
    session: SessionId,
    path: PathBuf,
    _lock: File,
}

const LOCK: &str = "lock";
/// Ends the name of a directory that is being removed.
const DONE: &str = "done";

/// The name of this machine.
pub(super) fn name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".to_owned() } else { name.trim().to_owned() }
}

impl JournalHome {
    /// The home at this path, made for the owner alone where it is missing.
    pub(super) fn open(path: &Path) -> Result<Self, LedgerError> {
        let home = JournalHome { path: path.to_owned() };
        make(path).map_err(|cause| home.failed(cause))?;
        Ok(home)
    }

    /// A new session's directory.
    pub(super) fn begin(&self, session: SessionId) -> Result<SessionDirectory, LedgerError> {
        let path = self.path.join(session.to_string());
        // While nobody can see it without its lock, nobody takes it for an orphan.
        let begun = self.whole().and_then(|_whole| {
            make(&path)?;
            let lock = lock_file(&path)?;
            lock.try_lock().map_err(io::Error::from)?;
            File::open(&self.path)?.sync_all()?;
            Ok(lock)
        });
        let lock = begun.map_err(|cause| self.failed(cause))?;
        Ok(SessionDirectory { session, path, _lock: lock })
    }

    /// The directories of sessions whose owners are dead, now locked by us.
    pub(super) fn orphans(&self) -> Result<Vec<SessionDirectory>, LedgerError> {
        let found = self.whole().and_then(|_whole| {
            let mut orphans = Vec::new();
            for entry in fs::read_dir(&self.path)? {
                let path = entry?.path();
                if path.extension().is_some_and(|end| end == DONE) {
                    fs::remove_dir_all(&path)?;
                    continue;
                }
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let Ok(session) = SessionId::from_str(name) else { continue };
                let lock = lock_file(&path)?;
                if lock.try_lock().is_ok() {
                    orphans.push(SessionDirectory { session, path, _lock: lock });
                }
            }
            orphans.sort_by_key(|orphan| orphan.session);
            Ok(orphans)
        });
        found.map_err(|cause| self.failed(cause))
    }

    /// The sessions that have a directory here, dead or alive.
    pub(super) fn sessions(&self) -> Result<Vec<SessionId>, LedgerError> {
        let entries = fs::read_dir(&self.path).map_err(|cause| self.failed(cause))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|name| SessionId::from_str(&name).ok()).collect())
    }

    /// A short lock over the whole home.
    fn whole(&self) -> io::Result<File> {
        let file = lock_file(&self.path)?;
        file.lock()?;
        Ok(file)
    }

    fn failed(&self, cause: io::Error) -> LedgerError {
        LedgerError::Journal { dir: self.path.display().to_string(), cause }
    }
}

impl SessionDirectory {
    pub(super) fn session(&self) -> SessionId {
        self.session
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the directory: everything in it is in the database. It goes at once, whenever the process is killed: half a journal would
    /// be taken for a damaged one.
    pub(super) fn remove(&self) -> io::Result<()> {
        let home = self.path.parent().unwrap_or(Path::new("."));
        let whole = lock_file(home)?;
        whole.lock()?;
        let done = self.path.with_extension(DONE);
        fs::rename(&self.path, &done)?;
        File::open(home)?.sync_all()?;
        fs::remove_dir_all(done)
    }
}

fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn lock_file(directory: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(directory.join(LOCK))
}
