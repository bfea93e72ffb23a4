//! The journals on this machine: a directory for each session, each under a lock that proves, when it can be taken, that its owner is dead;
//! and beside them what is kept of journals that are in the database.

use super::LedgerError;
use super::journal::{self, Directory, Relief};
use super::kept::{self, KeepSettings, Kept, KeptStats};
use crate::clock::Clock;
use crate::ids::SessionId;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// The directory of all of them.
#[derive(Debug)]
pub(super) struct JournalHome {
    path: PathBuf,
    kept: Kept,
    clock: Clock,
}

/// The home with nobody in it, for as long as this lives.
#[derive(Debug)]
pub(super) struct AtRest {
    _whole: File,
    _orphans: Vec<SessionDirectory>,
}

/// One session's directory, locked for as long as this lives.
#[derive(Debug)]
pub(super) struct SessionDirectory {
    session: SessionId,
    path: PathBuf,
    kept: Kept,
    clock: Clock,
    _lock: File,
}

/// What a journal that finds the disk full may have of what is kept.
#[derive(Debug)]
struct Room {
    home: PathBuf,
    kept: Kept,
    clock: Clock,
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
    pub(super) fn open(path: &Path, clock: Clock) -> Result<Self, LedgerError> {
        let home = JournalHome { path: path.to_owned(), kept: Kept::beside(path), clock };
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
        Ok(self.directory(session, path, lock))
    }

    /// The directories of sessions whose owners are dead, now locked by us.
    pub(super) fn orphans(&self) -> Result<Vec<SessionDirectory>, LedgerError> {
        let found = self.whole().and_then(|_whole| self.look());
        found.map(|(orphans, _)| orphans).map_err(|cause| self.failed(cause))
    }

    /// Keeps everybody out, where nobody is in. `Err` names a session whose process lives.
    pub(super) fn rest(&self) -> Result<Result<AtRest, SessionId>, LedgerError> {
        let found = self.whole().and_then(|whole| Ok((whole, self.look()?)));
        let (whole, (orphans, live)) = found.map_err(|cause| self.failed(cause))?;
        Ok(match live.first() {
            Some(live) => Err(*live),
            None => Ok(AtRest { _whole: whole, _orphans: orphans }),
        })
    }

    /// Brings all segments that are kept of a session back into its directory: one from before the backup may be the only one that says that
    /// a request was sent which was open then. What they settle that the database has is not settled again.
    pub(super) fn bring_back(&self, _rest: &AtRest, session: SessionId) -> io::Result<usize> {
        let segments = kept::segments(&self.kept.of(session))?;
        let into = self.path.join(session.to_string());
        // The latest first: what is there is the end of the journal, whenever this is cut off, and the next try brings the rest.
        for segment in segments.iter().rev() {
            journal::keep(segment, &into, self.clock.wall())?;
        }
        File::open(&self.path)?.sync_all()?;
        Ok(segments.len())
    }

    /// The number of the first record that is here of a session, kept or not.
    pub(super) fn first_seq(&self, session: SessionId) -> io::Result<Option<u64>> {
        let mut first = None;
        for directory in [self.kept.of(session), self.path.join(session.to_string())] {
            for segment in kept::segments(&directory)? {
                let seq = journal::first_seq(&segment)?;
                first = [first, seq].into_iter().flatten().min();
            }
        }
        Ok(first)
    }

    /// Whether there is a place of the session, be there nothing in it.
    pub(super) fn has(&self, session: SessionId) -> bool {
        self.path.join(session.to_string()).is_dir() || self.kept.of(session).is_dir()
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is kept of journals that are in the database.
    pub(super) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Removes of that what is too old or too much.
    pub(super) fn prune(&self, settings: KeepSettings) -> io::Result<KeptStats> {
        let _whole = self.whole()?;
        self.kept.prune(settings, self.clock.wall(), |session| self.path.join(session.to_string()).exists())
    }

    /// Orphans, and the sessions that live.
    fn look(&self) -> io::Result<(Vec<SessionDirectory>, Vec<SessionId>)> {
        let (mut orphans, mut live) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            let Ok(session) = SessionId::from_str(name) else { continue };
            if path.extension().is_some_and(|end| end == DONE) {
                // It is in the database; whoever looks next tries again.
                if let Err(error) = put_away(&self.kept, session, &path, &self.clock) {
                    tracing::warn!(%error, path = %path.display(), "a journal that is done with is still there");
                }
                continue;
            }
            let lock = lock_file(&path)?;
            match lock.try_lock() {
                Ok(()) => orphans.push(self.directory(session, path, lock)),
                Err(TryLockError::WouldBlock) => live.push(session),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        orphans.sort_by_key(|orphan| orphan.session);
        Ok((orphans, live))
    }

    fn directory(&self, session: SessionId, path: PathBuf, lock: File) -> SessionDirectory {
        SessionDirectory { session, path, kept: self.kept.clone(), clock: self.clock.clone(), _lock: lock }
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

impl Relief for Room {
    fn make_room(&self, bytes: u64) -> io::Result<bool> {
        let whole = lock_file(&self.home)?;
        whole.lock()?;
        let is_live = |session: SessionId| self.home.join(session.to_string()).exists();
        let has_made = self.kept.shrink(bytes, self.clock.wall(), is_live)?;
        if has_made {
            tracing::warn!("the disk is full: the oldest journals that are kept are removed");
        }
        Ok(has_made)
    }
}

impl SessionDirectory {
    pub(super) fn session(&self) -> SessionId {
        self.session
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory for its journal; what that needs no more is kept.
    pub(super) fn disk(&self) -> Directory {
        let room = Room {
            home: self.path.parent().unwrap_or(Path::new(".")).to_owned(),
            kept: self.kept.clone(),
            clock: self.clock.clone(),
        };
        Directory::keeping(&self.path, self.kept.of(self.session), self.clock.clone())
            .with_relief(Arc::new(room))
    }

    /// Removes the directory: everything in it is in the database, and kept for a while. It goes at once, whenever the process is killed:
    /// half a journal would be taken for a damaged one.
    pub(super) fn remove(&self) -> io::Result<()> {
        let home = self.path.parent().unwrap_or(Path::new("."));
        let whole = lock_file(home)?;
        whole.lock()?;
        let done = self.path.with_extension(DONE);
        fs::rename(&self.path, &done)?;
        File::open(home)?.sync_all()?;
        put_away(&self.kept, self.session, &done, &self.clock)
    }
}

fn put_away(kept: &Kept, session: SessionId, done: &Path, clock: &Clock) -> io::Result<()> {
    kept.take(session, done, clock.wall())?;
    fs::remove_dir_all(done)
}

fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn lock_file(directory: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(directory.join(LOCK))
}
