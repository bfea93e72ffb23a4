//! Putting a backup in place, with journals that are newer than it.
//!
//! Promises: nobody is at the database or the journals meanwhile; what would be lost is told before anything is changed; the database is
//! replaced in one step, and the replaced one stays beside; whatever was billed after the backup, and is still kept, is billed by the
//! next start, once. Can be done again at any time. Refuses to know: what a person entered after the backup beyond telling it.
//!
//! What the restored database granted is over: its sessions are ended, and what they settle after the backup is charged to the accounts, as
//! is what sessions settled that it does not know. Grants after the backup have not happened in it.

use super::backup::{BackupError, Manifest, ManifestSession, failed, manifest, unpack};
use super::host::{self, AtRest, JournalHome};
use crate::clock::{Clock, UnixMicros};
use crate::store::{CopiedSession, Difference, Opened, Replaceable, SessionState, Store};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What is to be put in place of what.
#[derive(Clone, Copy, Debug)]
pub struct Restore<'a> {
    /// The backup's directory.
    pub backup: &'a Path,
    /// The database.
    pub url: &'a str,
    /// The journals.
    pub journal_dir: &'a Path,
    /// Also where what was billed after the backup is not kept any more.
    pub accept_loss: bool,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Restored {
    /// What was put in place.
    pub manifest: Manifest,
    /// Where the replaced database is.
    pub replaced: Option<PathBuf>,
    /// Sessions whose journals the next start replays.
    pub sessions: u64,
    /// Segments that were brought back for that.
    pub segments: u64,
    /// What is lost.
    pub losses: Vec<String>,
    /// What was entered after the backup, and is not in it.
    pub differences: Vec<Difference>,
    /// Why that cannot be told.
    pub unknown: Option<String>,
}

/// Puts the backup in place.
pub async fn restore(restore: Restore<'_>, clock: &Clock) -> Result<Restored, BackupError> {
    let manifest = manifest(restore.backup)?;
    let home = JournalHome::open(restore.journal_dir, clock.clone())?;
    let rest = home.rest()?.map_err(|session| {
        BackupError::InUse(format!("the process of session {session} lives: stop it first"))
    })?;
    let told = |losses: &[String]| match losses.is_empty() || restore.accept_loss {
        true => Ok(()),
        false => Err(BackupError::Loss(losses.to_vec())),
    };
    let mut losses = losses(&home, &manifest).map_err(failed(restore.journal_dir))?;
    told(&losses)?;
    let mut old = Replaceable::claim(restore.url).await?;
    let new = Beside::of(old.path());
    unpack(restore.backup, &manifest, &new.0)?;
    losses.extend(losses_of_replaced(&mut old, &new.0, &manifest, &home).await?);
    told(&losses)?;
    let (differences, unknown) = match (old.differences(&new.0).await, old.unreadable()) {
        (Ok(_), Some(why)) => (Vec::new(), Some(why.to_owned())),
        (Ok(differences), None) => (differences, None),
        (Err(error), _) => (Vec::new(), Some(error.to_string())),
    };
    let (sessions, segments) = prepare(&new.0, &manifest, &home, &rest, clock).await?;
    let ending = format!("replaced-{}", clock.wall().0);
    let replaced = old.put(&new.0, &ending).map_err(failed(old.path()))?;
    Ok(Restored { manifest, replaced, sessions, segments, losses, differences, unknown })
}

/// The new database until it is in its place.
struct Beside(PathBuf);

impl Beside {
    fn of(path: &Path) -> Beside {
        let mut name = path.to_owned().into_os_string();
        name.push(".restoring");
        let beside = Beside(name.into());
        beside.remove();
        beside
    }

    /// Also what an earlier try that was killed left behind.
    fn remove(&self) {
        for end in ["", "-wal", "-shm", "-journal"] {
            let mut name = self.0.clone().into_os_string();
            name.push(end);
            // Most are not there; what is and stays is in the way of the next step, which tells.
            let _gone = fs::remove_file(name);
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What was billed after the backup and is in no journal here, in words.
fn losses(home: &JournalHome, manifest: &Manifest) -> io::Result<Vec<String>> {
    let mut losses = Vec::new();
    let pruned_to = home.kept().pruned_to()?.filter(|pruned_to| pruned_to.0 >= manifest.started_at_us);
    if pruned_to.is_some() {
        losses.push(
            "Journals of the time after this backup are no longer kept: what was billed in them is lost. \
             [journal] keep_ms and keep_bytes say how much is kept."
                .to_owned(),
        );
    }
    for session in &manifest.sessions {
        losses.extend(lost(home, session)?);
    }
    Ok(losses)
}

/// The same, by what the database has that is to be replaced: a backup that was made while no server ran names no session.
async fn losses_of_replaced(
    old: &mut Replaceable,
    new: &Path,
    manifest: &Manifest,
    home: &JournalHome,
) -> Result<Vec<String>, BackupError> {
    let can_be_read = old.unreadable().is_none();
    let ahead = match old.sessions_ahead(new).await {
        Ok(ahead) if can_be_read => ahead,
        Ok(_) | Err(_) => {
            let kept = home.kept().sessions().map_err(failed(home.path()))?;
            let is_bare = kept.is_empty() && home.sessions()?.is_empty();
            return Ok(Vec::from_iter(is_bare.then(|| {
                "The database that is there cannot be read, and there are no journals here: what was billed after this backup is lost."
                    .to_owned()
            })));
        }
    };
    let is_told = |session| manifest.sessions.iter().any(|one| one.session_id == session);
    let mut losses = Vec::new();
    for CopiedSession { session_id, host, applied_seq } in ahead {
        if !is_told(session_id) {
            let session = ManifestSession { session_id, host, applied_seq };
            losses.extend(lost(home, &session).map_err(failed(home.path()))?);
        }
    }
    Ok(losses)
}

/// What is to be told of a session whose journal behind this number is not here.
fn lost(home: &JournalHome, session: &ManifestSession) -> io::Result<Option<String>> {
    let is_here = match home.first_seq(session.session_id)? {
        Some(seq) => seq <= session.applied_seq + 1,
        // It did nothing, where there is a place of it.
        None => home.has(session.session_id),
    };
    let place = if session.host == host::name() { "" } else { ", of another machine" };
    Ok((!is_here).then(|| {
        format!(
            "The journal of session {} of {}{place} is not here, or not whole: what it billed after this backup is lost.",
            session.session_id, session.host
        )
    }))
}

/// Makes the copy the one that goes on, and brings the journals back that are newer. How many sessions they are of, and how many segments.
async fn prepare(
    new: &Path,
    manifest: &Manifest,
    home: &JournalHome,
    rest: &AtRest,
    clock: &Clock,
) -> Result<(u64, u64), BackupError> {
    // As a server: nobody else can have it open, whatever heartbeats the copy has.
    let store = Store::open(&format!("sqlite:{}", new.display()), Opened::ByServer).await?;
    let done = prepared(&store, manifest, home, rest, clock).await;
    store.close().await;
    Replaceable::gather(new).await?;
    done
}

async fn prepared(
    store: &Store,
    manifest: &Manifest,
    home: &JournalHome,
    rest: &AtRest,
    clock: &Clock,
) -> Result<(u64, u64), BackupError> {
    store.go_on_from_copy(UnixMicros(manifest.started_at_us), clock.wall()).await?;
    let kept = home.kept().sessions().map_err(failed(home.path()))?;
    let mut segments = 0;
    for session in kept {
        // What is closed in the copy had nothing open, and settled nothing after it.
        if let Some((SessionState::Closed, _)) = store.session(session).await? {
            continue;
        }
        segments += home.bring_back(rest, session).map_err(failed(home.path()))? as u64;
    }
    let sessions = home.sessions()?.len() as u64;
    Ok((sessions, segments))
}
