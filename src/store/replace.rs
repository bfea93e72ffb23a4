//! Putting another database in the place of one that nobody uses.

use super::copy::{CopiedSession, copied_session};
use super::open::path_of;
use super::{Store, StoreError};
use crate::clock::UnixMicros;
use crate::money::Micros;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteLockingMode};
use sqlx::{Connection, Row};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The database that is to be replaced, with nobody else in it for as long as this lives.
#[derive(Debug)]
pub struct Replaceable {
    path: PathBuf,
    /// `None` where there is no database, or none that can be read.
    connection: Option<SqliteConnection>,
    unreadable: Option<String>,
}

/// Something that the replaced database has and the other one has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What it is: `credit`, `refund`, `write-off`, `account`, `suspension`, `key`, `revocation` or `prices`.
    pub what: &'static str,
    /// When it was done; `None` where that is not kept.
    pub at: Option<UnixMicros>,
    /// Whose it is, or nobody's.
    pub account: String,
    /// Which one, or why.
    pub detail: String,
    /// How much, where it is money.
    pub amount: Option<Micros>,
}

/// How long another process may take to leave.
const LEAVE_WAIT: Duration = Duration::from_secs(1);

/// How often it is tried to be alone with a database that was just closed.
const GATHER_TRIES: u32 = 50;
const GATHER_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What each kind of difference is. Columns: when, account, detail, micro-dollars.
const DIFFERENCES: [(&str, &str); 8] = [
    (
        "account",
        "SELECT a.created_at, a.email, coalesce('tier ' || a.tier, ''), NULL FROM main.account a \
         WHERE NOT EXISTS (SELECT 1 FROM copy.account c WHERE c.id = a.id) ORDER BY 1",
    ),
    (
        "suspension",
        "SELECT NULL, a.email, coalesce(a.status_reason, ''), NULL FROM main.account a JOIN copy.account c ON c.id = a.id \
         WHERE a.status = 'suspended' AND c.status <> 'suspended' ORDER BY 2",
    ),
    (
        "credit",
        "SELECT l.created_at, a.email, l.kind || ': ' || l.reason, l.amount_micro FROM main.lot l \
         JOIN main.account a ON a.id = l.account_id WHERE NOT EXISTS (SELECT 1 FROM copy.lot c WHERE c.id = l.id) ORDER BY 1",
    ),
    (
        "refund",
        "SELECT NULL, a.email, l.kind || ': ' || l.reason, l.refunded_micro - coalesce(c.refunded_micro, 0) FROM main.lot l \
         JOIN main.account a ON a.id = l.account_id LEFT JOIN copy.lot c ON c.id = l.id \
         WHERE l.refunded_micro > coalesce(c.refunded_micro, 0) ORDER BY 2",
    ),
    (
        "write-off",
        "SELECT NULL, a.email, '', a.written_off_micro - coalesce(c.written_off_micro, 0) FROM main.account a \
         LEFT JOIN copy.account c ON c.id = a.id WHERE a.written_off_micro > coalesce(c.written_off_micro, 0) ORDER BY 2",
    ),
    (
        "key",
        "SELECT k.created_at, a.email, coalesce(k.name, '') || ' ' || k.prefix || '...' || k.last_four, NULL FROM main.api_key k \
         JOIN main.account a ON a.id = k.account_id WHERE k.revoked_at IS NULL \
         AND NOT EXISTS (SELECT 1 FROM copy.api_key c WHERE c.id = k.id) ORDER BY 1",
    ),
    (
        "revocation",
        "SELECT k.revoked_at, a.email, coalesce(k.name, '') || ' ' || k.prefix || '...' || k.last_four, NULL FROM main.api_key k \
         JOIN main.account a ON a.id = k.account_id JOIN copy.api_key c ON c.id = k.id \
         WHERE k.revoked_at IS NOT NULL AND c.revoked_at IS NULL ORDER BY 1",
    ),
    (
        "prices",
        "SELECT p.imported_at, '', 'version ' || p.version, NULL FROM main.price_version p \
         WHERE NOT EXISTS (SELECT 1 FROM copy.price_version c WHERE c.version = p.version) ORDER BY 1",
    ),
];

impl Replaceable {
    /// The database at `sqlite:PATH`, which may be missing or damaged. It is one file afterwards, without a write-ahead log.
    ///
    /// # Errors
    ///
    /// `Refused` while another process has it open; any other where it may be a good one that cannot be read now, or by this version.
    pub async fn claim(url: &str) -> Result<Replaceable, StoreError> {
        let path = path_of(url)?;
        if !path.exists() {
            return Ok(Replaceable { path, connection: None, unreadable: None });
        }
        match alone(&path).await {
            Ok(connection) => Ok(Replaceable { path, connection: Some(connection), unreadable: None }),
            Err(StoreError::Busy(_)) => Err(StoreError::Refused(format!(
                "another process has the database {} open: stop it first",
                path.display()
            ))),
            Err(error) if is_unreadable(&error) => {
                Ok(Replaceable { path, connection: None, unreadable: Some(error.to_string()) })
            }
            Err(error) => Err(error),
        }
    }

    /// Brings all of a database, which its processes have closed, into its one file, and that on the disk: what is in a write-ahead log
    /// would not go with the file.
    ///
    /// # Errors
    ///
    /// `Busy` where somebody has it open for longer than a connection takes to close.
    pub async fn gather(file: &Path) -> Result<(), StoreError> {
        // A connection may go on closing for a moment after its pool is closed.
        let mut tries = 0;
        let connection = loop {
            match alone(file).await {
                Err(StoreError::Busy(_)) if tries < GATHER_TRIES => tries += 1,
                other => break other?,
            }
            tokio::time::sleep(GATHER_AGAIN_AFTER).await;
        };
        connection.close().await?;
        let on_disk = || {
            let mut log = file.to_owned().into_os_string();
            log.push("-wal");
            match Path::new(&log).exists() {
                true => Err(std::io::Error::other("its write-ahead log is still there")),
                false => File::open(file)?.sync_all(),
            }
        };
        on_disk().map_err(|error| StoreError::Open(format!("{}: {error}", file.display())))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why what it has cannot be told, where that is so.
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// What it has and the copy in this file has not, of what a person or a program entered.
    pub async fn differences(&mut self, copy: &Path) -> Result<Vec<Difference>, StoreError> {
        let Some(connection) = &mut self.connection else { return Ok(Vec::new()) };
        sqlx::query("ATTACH ? AS copy").bind(copy.display().to_string()).execute(&mut *connection).await?;
        let found = differences(connection).await;
        sqlx::query("DETACH copy").execute(&mut *connection).await?;
        found
    }

    /// The sessions of which it has more than the copy in this file, and how far the copy has them; those that are closed in the copy have
    /// no more.
    pub async fn sessions_ahead(&mut self, copy: &Path) -> Result<Vec<CopiedSession>, StoreError> {
        let Some(connection) = &mut self.connection else { return Ok(Vec::new()) };
        sqlx::query("ATTACH ? AS copy").bind(copy.display().to_string()).execute(&mut *connection).await?;
        let found = sqlx::query(
            "SELECT s.id, s.host, coalesce(c.applied_seq, 0) AS applied_seq FROM main.session s \
             LEFT JOIN copy.session c ON c.id = s.id \
             WHERE s.applied_seq > coalesce(c.applied_seq, 0) AND coalesce(c.state, '') <> 'closed' ORDER BY s.id",
        )
        .fetch_all(&mut *connection)
        .await;
        sqlx::query("DETACH copy").execute(&mut *connection).await?;
        found?.iter().map(copied_session).collect()
    }

    /// Puts the file in its place, in one step. The replaced one stays beside, under the name that is told; nothing where there was none.
    pub fn put(&self, file: &Path, ending: &str) -> std::io::Result<Option<PathBuf>> {
        let named = |end: &str| {
            let mut name = self.path.clone().into_os_string();
            name.push(end);
            PathBuf::from(name)
        };
        let replaced = named(&format!(".{ending}"));
        // Left only by a database that could not be opened; it would be taken for the new one's.
        for end in ["-wal", "-shm", "-journal"] {
            if named(end).exists() {
                fs::rename(named(end), named(&format!(".{ending}{end}")))?;
            }
        }
        let was_there = self.path.exists();
        if was_there {
            fs::hard_link(&self.path, &replaced)?;
        }
        fs::rename(file, &self.path)?;
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(was_there.then_some(replaced))
    }
}

/// A connection that keeps all others out until it is closed.
async fn alone(path: &Path) -> Result<SqliteConnection, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .locking_mode(SqliteLockingMode::Exclusive)
        .journal_mode(SqliteJournalMode::Delete)
        .busy_timeout(LEAVE_WAIT);
    let mut connection = SqliteConnection::connect_with(&options).await?;
    match take(&mut connection).await {
        Ok(()) => Ok(connection),
        Err(error) => {
            // Closed here and not some time later: its end deletes the journal at this path, which may be another database's by then. Why
            // it could not be taken says more than how its end fails.
            let _closed = connection.close().await;
            Err(error)
        }
    }
}

/// Locks a database against everybody else, and reads it.
async fn take(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    // Exclusive from the first write on, of which this is none; the lock stays (https://sqlite.org/pragma.html#pragma_locking_mode).
    sqlx::raw_sql("BEGIN EXCLUSIVE; COMMIT").execute(&mut *connection).await?;
    // A database that cannot be read is found out here, and not later.
    let version: i64 =
        sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(connection).await?;
    if version > Store::schema_version() {
        return Err(StoreError::Schema(format!("it has migration {version}, of a newer weir")));
    }
    Ok(())
}

/// Whether the error says that there is no database of ours, or a damaged one. Of any other, such as a disk that fails to be read or that is
/// full, what the database has is not known to be lost.
fn is_unreadable(error: &StoreError) -> bool {
    let StoreError::Database(cause) = error else { return false };
    cause.as_database_error().is_some_and(|said| {
        let code = said.code().and_then(|code| code.parse::<i64>().ok());
        // SQLITE_CORRUPT and SQLITE_NOTADB, with their extended codes (https://sqlite.org/rescode.html).
        matches!(code.map(|code| code & 0xff), Some(11 | 26))
            || said.message().contains("no such table: _sqlx_migrations")
    })
}

async fn differences(connection: &mut SqliteConnection) -> Result<Vec<Difference>, StoreError> {
    let mut all = Vec::new();
    for (what, query) in DIFFERENCES {
        for row in sqlx::query(query).fetch_all(&mut *connection).await? {
            all.push(Difference {
                what,
                at: row.get::<Option<i64>, _>(0).map(UnixMicros),
                account: row.get(1),
                detail: row.get::<String, _>(2).trim().to_owned(),
                amount: row.get::<Option<i64>, _>(3).map(Micros),
            });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Opened;

    #[tokio::test]
    async fn only_what_is_no_database_of_ours_counts_as_unreadable() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weir.db");
        let url = format!("sqlite:{}", path.display());
        for bytes in [&b"neither a database nor empty"[..], b""] {
            fs::write(&path, bytes).unwrap();
            let claimed = Replaceable::claim(&url).await.unwrap();
            assert!(claimed.unreadable().is_some(), "{claimed:?}");
        }
        fs::remove_file(&path).unwrap();
        let store = Store::open(&url, Opened::ByCommand).await.unwrap();
        store.close().await;
        let mut connection = alone(&path).await.unwrap();
        sqlx::raw_sql("UPDATE _sqlx_migrations SET version = version + 1000")
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        let refused = Replaceable::claim(&url).await.unwrap_err();
        assert!(matches!(refused, StoreError::Schema(_)), "{refused}");
        // A directory is no file that could be read; that says nothing of a database.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(Replaceable::claim(&url).await.is_err());
    }
}
