//! A backup: a copy of the database at one instant, and a manifest that says what it is.
//!
//! Promises: made while servers run, without stopping them; whole and on the disk when it has its name, or not there; for its owner alone.
//! What is settled after its instant is in the journals, and kept there for a while: see [`super::restore()`]. Refuses to know: when
//! backups are made, and how many are worth keeping.

use super::LedgerError;
use crate::clock::{Clock, UnixMicros};
use crate::ids::SessionId;
use crate::store::{Store, StoreError};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Display;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a backup says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// How the rest is to be read: 1.
    pub format: u32,
    /// The program that made it.
    pub weir_version: String,
    /// Everything that was committed by then is in it, in microseconds since 1970 UTC.
    pub started_at_us: i64,
    /// The number of the last migration.
    pub schema_version: i64,
    /// The size of the database.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// How many accounts are in it.
    pub accounts: u64,
    /// How many requests.
    pub requests: u64,
    /// The sessions that were not closed.
    pub sessions: Vec<ManifestSession>,
}

/// A session that was not closed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ManifestSession {
    /// Its identity.
    pub session_id: SessionId,
    /// The machine that it ran on.
    pub host: String,
    /// Everything up to this sequence number is in the backup.
    pub applied_seq: u64,
}

/// A backup that is there.
#[derive(Clone, Debug, Serialize)]
pub struct Backup {
    /// Its directory.
    pub path: PathBuf,
    /// What it says of itself.
    #[serde(flatten)]
    pub manifest: Manifest,
}

/// Why a backup is not made, not good, or not put in place.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The database.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The journals.
    #[error("{0}")]
    Ledger(#[from] LedgerError),
    /// A file of the backup, or beside the database.
    #[error("{path}: {cause}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// It is no backup, or not what was written.
    #[error("{path} is no good backup: {what}", path = path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Someone is at it.
    #[error("{0}")]
    InUse(String),
    /// It would lose what was billed.
    #[error("{}\nWith --accept-loss it is put in place all the same", .0.join("\n"))]
    Loss(Vec<String>),
}

/// The database's name in a backup.
pub(super) const DATABASE: &str = "weir.db";
const MANIFEST: &str = "manifest.json";
pub(super) const FORMAT: u32 = 1;
/// Ends the name of a directory that is not a backup yet.
const PARTIAL: &str = "partial";

/// Makes a backup in a new directory below `into`, which is made where it is missing.
pub async fn backup(store: &Store, into: &Path, clock: &Clock) -> Result<Backup, BackupError> {
    let _others_wait = claim(into)?;
    let started_at = clock.wall();
    let name = name(started_at);
    let partial = into.join(format!(".{name}.{PARTIAL}"));
    let written = write(store, &partial, started_at).await;
    let path = into.join(name);
    let named = written.and_then(|manifest| {
        let named = fs::rename(&partial, &path).and_then(|()| File::open(into)?.sync_all());
        named.map(|()| manifest).map_err(failed(&path))
    });
    match named {
        Ok(manifest) => Ok(Backup { path, manifest }),
        Err(error) => {
            // What is left of it is in the way of the next one, on a disk that may be full. The error above is the one to tell.
            let _gone = fs::remove_dir_all(&partial);
            Err(error)
        }
    }
}

/// Reads a backup's manifest.
pub(super) fn manifest(backup: &Path) -> Result<Manifest, BackupError> {
    let path = backup.join(MANIFEST);
    let text = fs::read(&path).map_err(failed(&path))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| damaged(backup, error))?;
    if manifest.format != FORMAT {
        return Err(damaged(backup, format!("its format is {}, known is {FORMAT}", manifest.format)));
    }
    if manifest.schema_version > Store::schema_version() {
        return Err(damaged(backup, "it is of a newer weir"));
    }
    Ok(manifest)
}

/// Copies a backup's database to a new file, for its owner alone and on the disk, if it is what was written.
pub(super) fn unpack(backup: &Path, manifest: &Manifest, to: &Path) -> Result<(), BackupError> {
    let from = backup.join(DATABASE);
    let mut file = new_file(to).map_err(failed(to))?;
    let (bytes, sha256) = digest(&from, |piece| file.write_all(piece)).map_err(failed(&from))?;
    if (bytes, &sha256) != (manifest.bytes, &manifest.sha256) {
        return Err(damaged(backup, format!("{DATABASE} is not what its checksum says")));
    }
    file.sync_all().map_err(failed(to))
}

pub(super) fn failed(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    |cause| BackupError::File { path: path.to_owned(), cause }
}

fn damaged(path: &Path, what: impl Display) -> BackupError {
    BackupError::Damaged { path: path.to_owned(), what: format!("{what}") }
}

/// One backup at a time in a directory. What one that was killed left behind is removed.
fn claim(into: &Path) -> Result<File, BackupError> {
    let claimed = || {
        DirBuilder::new().recursive(true).mode(0o700).create(into)?;
        let lock = File::open(into)?;
        lock.try_lock()?;
        for entry in fs::read_dir(into)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with(".weir-") && name.ends_with(PARTIAL) {
                fs::remove_dir_all(path)?;
            }
        }
        Ok(lock)
    };
    claimed().map_err(|error: io::Error| {
        if error.kind() == io::ErrorKind::WouldBlock {
            return BackupError::InUse(format!("{}: another backup is being made", into.display()));
        }
        failed(into)(error)
    })
}

/// `weir-20261125T084215.123456Z`: names sort as times do.
fn name(at: UnixMicros) -> String {
    let time = Timestamp::from_microsecond(at.0).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("weir-{}", format!("{time:.6}").replace(['-', ':'], ""))
}

async fn write(store: &Store, partial: &Path, started_at: UnixMicros) -> Result<Manifest, BackupError> {
    DirBuilder::new().mode(0o700).create(partial).map_err(failed(partial))?;
    let database = partial.join(DATABASE);
    // Made before, so that SQLite does not make it for everyone.
    let file = new_file(&database).map_err(failed(&database))?;
    store.copy_into(&database).await?;
    file.sync_all().map_err(failed(&database))?;
    let facts = Store::copy_facts(&database).await?;
    let (bytes, sha256) = digest(&database, |_| Ok(())).map_err(failed(&database))?;
    let sessions = facts.sessions.into_iter().map(|session| ManifestSession {
        session_id: session.session_id,
        host: session.host,
        applied_seq: session.applied_seq,
    });
    let manifest = Manifest {
        format: FORMAT,
        weir_version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at_us: started_at.0,
        schema_version: facts.schema_version,
        bytes,
        sha256,
        accounts: facts.accounts,
        requests: facts.requests,
        sessions: sessions.collect(),
    };
    let path = partial.join(MANIFEST);
    let written = || {
        let text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::other)?;
        let mut file = new_file(&path)?;
        file.write_all(&text)?;
        file.sync_all()?;
        File::open(partial)?.sync_all()
    };
    written().map_err(failed(&path))?;
    Ok(manifest)
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)
}

/// A file's size and SHA-256; each piece of it is handed on.
fn digest(path: &Path, mut hand_on: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let (mut bytes, mut hash, mut piece) = (0, Sha256::new(), vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            let hex = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            return Ok((bytes, hex));
        }
        hash.update(&piece[..read]);
        hand_on(&piece[..read])?;
        bytes += read as u64;
    }
}
