//! A copy of the database at one instant, made while others write to it, and what it says of itself.

use super::open::transact;
use super::sessions::{self, SessionState};
use super::{Store, StoreError};
use crate::clock::UnixMicros;
use crate::ids::SessionId;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{Connection, Row};
use std::path::Path;
use std::time::Duration;

/// What a copy has.
#[derive(Clone, Debug)]
pub struct CopyFacts {
    /// The number of its last migration.
    pub schema_version: i64,
    /// Its accounts.
    pub accounts: u64,
    /// Its requests.
    pub requests: u64,
    /// Its sessions that are not closed.
    pub sessions: Vec<CopiedSession>,
}

/// A session that was not closed.
#[derive(Clone, Debug)]
pub struct CopiedSession {
    /// Its identity.
    pub session_id: SessionId,
    /// The machine that it ran on.
    pub host: String,
    /// Everything up to this sequence number is in the copy.
    pub applied_seq: u64,
}

/// When this database was last put back, and from what.
struct LastRestore {
    at: UnixMicros,
    backup_at: UnixMicros,
}

/// How far the clocks of machines may be apart, and how long before its session is in the database a process may have begun it.
const BEGUN_BEFORE: Duration = Duration::from_secs(600);

impl Store {
    /// Copies the database as it is at one instant into an empty or missing file. Whoever writes is not stopped; the copy is not known to be
    /// on the disk yet.
    pub async fn copy_into(&self, file: &Path) -> Result<(), StoreError> {
        // `VACUUM INTO` reads one snapshot (https://sqlite.org/lang_vacuum.html).
        sqlx::query("VACUUM INTO ?").bind(file.display().to_string()).execute(&self.read).await?;
        Ok(())
    }

    /// Reads what a copy has, once SQLite finds nothing wrong with its pages.
    ///
    /// # Errors
    ///
    /// `Damaged` where it does.
    pub async fn copy_facts(file: &Path) -> Result<CopyFacts, StoreError> {
        let options = SqliteConnectOptions::new().filename(file).read_only(true).immutable(true);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        let facts = facts(&mut connection).await;
        connection.close().await?;
        facts
    }

    /// Makes this database, a copy, the one that goes on. Its live sessions are over: what they settled after the copy is charged to the
    /// accounts as it is found in their journals. Sessions that it does not know can be adopted from then on.
    pub async fn go_on_from_copy(&self, copied_at: UnixMicros, at: UnixMicros) -> Result<(), StoreError> {
        for live in self.live_sessions().await? {
            self.end_session(live.session_id, SessionState::Lost, live.applied_seq, at).await?;
        }
        transact!(self.writing(), |tx| {
            sqlx::query("INSERT INTO restore (restored_at, backup_at) VALUES (?, ?)")
                .bind(at.0)
                .bind(copied_at.0)
                .execute(&mut **tx)
                .await?;
            Ok(())
        })
    }

    /// Whether this database was put back from a backup after this session began. Of one that began since then nothing can be missing.
    pub async fn was_put_back_after(&self, session: SessionId) -> Result<bool, StoreError> {
        let last = self.last_restore().await?;
        Ok(last.is_some_and(|last| begun_at(session) <= last.at))
    }

    /// Takes a session that is not known here for one of the time between the backup and its restore: it is lost, it was granted nothing, and
    /// nothing of it is applied. `false` where this database is no restored one, or the session is older than its backup, or it began
    /// after the restore: then the database that knows it is another one.
    pub async fn adopt_session(&self, session: SessionId, at: UnixMicros) -> Result<bool, StoreError> {
        let Some(last) = self.last_restore().await? else { return Ok(false) };
        let begun_at = begun_at(session);
        if begun_at.saturating_add(BEGUN_BEFORE) < last.backup_at
            || begun_at > last.at.saturating_add(BEGUN_BEFORE)
        {
            return Ok(false);
        }
        transact!(self.writing(), |tx| {
            sqlx::query(
                "INSERT INTO session (id, host, version, state, opened_at, heartbeat_at) VALUES (?, 'unknown', 'unknown', 'lost', ?, ?)",
            )
            .bind(session.as_bytes())
            .bind(begun_at.0)
            .bind(at.0)
            .execute(&mut **tx)
            .await?;
            Ok(())
        })?;
        Ok(true)
    }

    async fn last_restore(&self) -> Result<Option<LastRestore>, StoreError> {
        transact!(self.reading(), |tx| {
            let last =
                sqlx::query("SELECT restored_at, backup_at FROM restore ORDER BY restored_at DESC LIMIT 1");
            let last = last.fetch_optional(&mut **tx).await?;
            Ok(last.map(|row| LastRestore { at: UnixMicros(row.get(0)), backup_at: UnixMicros(row.get(1)) }))
        })
    }
}

/// When a process began the session, by the time in its identity.
fn begun_at(session: SessionId) -> UnixMicros {
    let begun_us = session.0.get_timestamp().map_or(0, |time| {
        let (seconds, nanos) = time.to_unix();
        seconds.saturating_mul(1_000_000).saturating_add(u64::from(nanos / 1_000))
    });
    UnixMicros(i64::try_from(begun_us).unwrap_or(i64::MAX))
}

async fn facts(connection: &mut SqliteConnection) -> Result<CopyFacts, StoreError> {
    let said: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut *connection).await?;
    if said != "ok" {
        return Err(StoreError::damaged(said));
    }
    let row = sqlx::query(
        "SELECT (SELECT max(version) FROM _sqlx_migrations), (SELECT count(*) FROM account), (SELECT count(*) FROM request)",
    )
    .fetch_one(&mut *connection)
    .await?;
    let count = |at: usize| u64::try_from(row.get::<i64, _>(at)).map_err(StoreError::damaged);
    let rows = sqlx::query("SELECT id, host, applied_seq FROM session WHERE state <> 'closed' ORDER BY id")
        .fetch_all(&mut *connection)
        .await?;
    Ok(CopyFacts {
        schema_version: row.get::<Option<i64>, _>(0).unwrap_or(0),
        accounts: count(1)?,
        requests: count(2)?,
        sessions: rows.iter().map(copied_session).collect::<Result<_, StoreError>>()?,
    })
}

/// From the columns `id`, `host` and `applied_seq`.
pub(super) fn copied_session(row: &SqliteRow) -> Result<CopiedSession, StoreError> {
    Ok(CopiedSession {
        session_id: SessionId::from_slice(row.get("id"))
            .ok_or_else(|| StoreError::damaged("a session's identity"))?,
        host: row.get("host"),
        applied_seq: sessions::unsigned(row, "applied_seq")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Opened;
    use uuid::{NoContext, Timestamp, Uuid};

    const HOUR_US: i64 = 3_600_000_000;

    fn begun(at: i64) -> SessionId {
        let seconds = u64::try_from(at / 1_000_000).unwrap();
        SessionId(Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, 0)))
    }

    #[tokio::test]
    async fn a_restore_excuses_only_sessions_that_began_before_it() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", directory.path().join("weir.db").display());
        let store = Store::open(&url, Opened::ByCommand).await.unwrap();
        let (backup_at, restored_at) = (UnixMicros(500_000 * HOUR_US), UnixMicros(500_010 * HOUR_US));
        let meanwhile = begun(500_005 * HOUR_US);
        assert!(!store.was_put_back_after(meanwhile).await.unwrap());
        assert!(!store.adopt_session(meanwhile, restored_at).await.unwrap());
        store.go_on_from_copy(backup_at, restored_at).await.unwrap();
        assert!(store.was_put_back_after(meanwhile).await.unwrap());
        assert!(store.adopt_session(meanwhile, restored_at).await.unwrap());
        assert_eq!(store.session(meanwhile).await.unwrap(), Some((SessionState::Lost, 0)));
        let (before, since) = (begun(499_995 * HOUR_US), begun(500_015 * HOUR_US));
        assert!(!store.adopt_session(before, restored_at).await.unwrap());
        assert!(!store.was_put_back_after(since).await.unwrap());
        assert!(!store.adopt_session(since, restored_at).await.unwrap());
        store.close().await;
    }
}
