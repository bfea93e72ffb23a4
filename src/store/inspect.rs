//! A look at a database that changes nothing in it: also at one of another version, which is not migrated by it.

use super::open::path_of;
use super::{Store, StoreError};
use crate::clock::{Clock, UnixMicros};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection, Row};
use std::path::PathBuf;
use std::time::Duration;

/// What was seen.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// The number of its last migration.
    pub schema_version: i64,
    /// The latest time that a session or a request in it was noted with.
    pub newest_at: UnixMicros,
    /// The versions of the program whose sessions live, by their heartbeats.
    pub live_versions: Vec<String>,
}

/// A heart that has not beaten for so long beats no more.
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);
/// How long another process's lock is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

impl Store {
    /// Where the database at `sqlite:PATH` is.
    pub fn path(url: &str) -> Result<PathBuf, StoreError> {
        path_of(url)
    }

    /// Looks at the database at `sqlite:PATH`, which must be there.
    pub async fn inspect(url: &str, now: UnixMicros) -> Result<Inspected, StoreError> {
        let options =
            SqliteConnectOptions::new().filename(path_of(url)?).read_only(true).busy_timeout(PATIENCE);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        let seen = inspect(&mut connection, now).await;
        connection.close().await?;
        seen
    }

    /// How long a commit takes that changes nothing.
    pub async fn commit_time(&self, clock: &Clock) -> Result<Duration, StoreError> {
        let begun = clock.now();
        super::open::transact!(self.writing(), |tx| {
            sqlx::query("UPDATE config_version SET v = v WHERE id = 1").execute(&mut **tx).await?;
            Ok(())
        })?;
        Ok(clock.now().saturating_duration_since(begun))
    }
}

async fn inspect(connection: &mut SqliteConnection, now: UnixMicros) -> Result<Inspected, StoreError> {
    let schema_version: i64 =
        sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(&mut *connection).await?;
    // A request's identity is ordered by time: the last one is found without a scan.
    let newest: i64 = sqlx::query_scalar(
        "SELECT max(coalesce((SELECT max(heartbeat_at) FROM session), 0), \
         coalesce((SELECT created_at FROM request ORDER BY id DESC LIMIT 1), 0))",
    )
    .fetch_one(&mut *connection)
    .await?;
    let since = now.0.saturating_sub_unsigned(u64::try_from(HEARTBEAT_MAX.as_micros()).unwrap_or(u64::MAX));
    let rows = sqlx::query(
        "SELECT DISTINCT version FROM session WHERE state = 'live' AND heartbeat_at > ? ORDER BY version",
    )
    .bind(since)
    .fetch_all(&mut *connection)
    .await?;
    Ok(Inspected {
        schema_version,
        newest_at: UnixMicros(newest),
        live_versions: rows.iter().map(|row| row.get(0)).collect(),
    })
}
