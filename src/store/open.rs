//! Opening: the file and its modes, the migrations, the connections and what each is for.

use super::StoreError;
use sqlx::SqlSafeStr;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, Sqlite, SqlitePool, Transaction};
use std::fs::{self, DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Who opens it, which decides how long it waits for another process's write lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// A server: requests wait for a grant, so 300 ms at most.
    ByServer,
    /// A command: a person waits, 5 s at most. It does not migrate under a live session.
    ByCommand,
}

/// The database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    /// Everything that writes but the batches.
    write: SqlitePool,
    /// The batched writer's own, so that a slow batch delays no grant here.
    batch: SqlitePool,
    pub(super) read: SqlitePool,
}

/// How long the batched writer waits for the write lock before it tries again.
const BATCH_WAIT: Duration = Duration::from_secs(2);
/// A session whose heart has not beaten for this long is taken for ended when a command wants to migrate.
const HEARTBEAT_MAX_US: i64 = 60_000_000;

/// The migrations, in order.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "books", include_str!("../../migrations/sqlite/0001_books.sql")),
    (2, "frozen_until", include_str!("../../migrations/sqlite/0002_frozen_until.sql")),
    (3, "key_policy", include_str!("../../migrations/sqlite/0003_key_policy.sql")),
    (4, "restore", include_str!("../../migrations/sqlite/0004_restore.sql")),
];

impl Store {
    /// Opens the database at `sqlite:PATH`, creates what is missing and applies what migrations are missing.
    ///
    /// # Errors
    ///
    /// `Open` where the file cannot be used or belongs to another user, `Schema` for tables of a newer version, or of an older one while
    /// a server is live and a command opens them.
    pub async fn open(url: &str, opened: Opened) -> Result<Store, StoreError> {
        let path = path_of(url)?;
        prepare(&path)?;
        let patience = match opened {
            Opened::ByServer => Duration::from_millis(300),
            Opened::ByCommand => Duration::from_secs(5),
        };
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("journal_size_limit", "67108864")
            .pragma("cache_size", "-1024");
        // SQLite rolls back by itself where the disk is full or broken (<https://sqlite.org/lang_transaction.html>), and the library, whose
        // own rollback is then refused, takes the connection to be in that transaction for ever: such a one is replaced.
        let pool = |wait: Duration, connections: u32| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(wait + Duration::from_secs(1))
                .test_before_acquire(false)
                .idle_timeout(None)
                .max_lifetime(None)
                .before_acquire(|connection, _| Box::pin(async { Ok(!connection.is_in_transaction()) }))
                .connect_lazy_with(options.clone().busy_timeout(wait))
        };
        // Opening waits as a command does: a server that starts beside another may find the lock taken.
        let opening = pool(Duration::from_secs(5), 1);
        let migrated = migrate(&opening, opened).await;
        opening.close().await;
        migrated.map_err(|error| at(&path, error))?;
        Ok(Store { write: pool(patience, 1), batch: pool(BATCH_WAIT, 1), read: pool(patience, 2) })
    }

    /// Closes the connections, once what is under way has ended.
    pub async fn close(&self) {
        self.write.close().await;
        self.batch.close().await;
        self.read.close().await;
    }

    /// The number of the last migration.
    pub fn schema_version() -> i64 {
        MIGRATIONS.last().map_or(0, |(version, ..)| *version)
    }

    /// Begins a transaction that writes. `BEGIN IMMEDIATE`: a transaction that begins to read cannot wait for the write lock later.
    pub(super) async fn writing(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.write.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// The same on the batched writer's connection.
    pub(super) async fn batching(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.batch.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// Begins a transaction that only reads, all of it from one snapshot.
    pub(super) async fn reading(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.read.begin().await?)
    }
}

/// Runs a block in the transaction that `begun` gives, and commits it where the block succeeds. A macro, because a closure that borrows
/// both its argument and its surroundings makes futures that no runtime takes.
macro_rules! transact {
    ($begun:expr, |$tx:ident| $work:block) => {{
        let mut transaction = $begun.await?;
        let worked = {
            let $tx = &mut transaction;
            async { $work }.await
        };
        crate::store::open::commit(transaction, worked).await
    }};
}
pub(super) use transact;

/// Commits what worked; what did not is rolled back.
pub(super) async fn commit<T>(
    transaction: Transaction<'static, Sqlite>,
    worked: Result<T, StoreError>,
) -> Result<T, StoreError> {
    let result = worked?;
    transaction.commit().await?;
    Ok(result)
}

pub(super) fn path_of(url: &str) -> Result<PathBuf, StoreError> {
    let path = url.strip_prefix("sqlite:").map(|rest| rest.strip_prefix("//").unwrap_or(rest));
    match path {
        Some(path) if !path.is_empty() && !path.starts_with(':') => Ok(PathBuf::from(path)),
        Some(_) | None => Err(StoreError::Open(format!("{url:?}: only \"sqlite:PATH\" is supported"))),
    }
}

/// Makes the directory and the file for the owner alone, and refuses those of another user: run as root, a command would leave files
/// behind that the service cannot open.
fn prepare(path: &Path) -> Result<(), StoreError> {
    let failed = |error: std::io::Error| StoreError::Open(format!("{}: {error}", path.display()));
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !directory.exists() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    }
    let own = fs::metadata("/proc/self").map_err(failed)?.uid();
    let owner = fs::metadata(directory).map_err(failed)?.uid();
    if own != owner {
        return Err(StoreError::Open(format!(
            "{}: its directory belongs to user {owner}, this process runs as user {own}; run it as the directory's owner",
            path.display()
        )));
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(failed)?;
    Ok(())
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a foreign enum that grows: the rest is all about the tables"
)]
async fn migrate(pool: &SqlitePool, opened: Opened) -> Result<(), StoreError> {
    let migrations = MIGRATIONS.iter().map(|(version, name, sql)| {
        Migration::new(*version, (*name).into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    let migrator = Migrator::with_migrations(migrations.collect());
    if opened == Opened::ByCommand && is_behind(pool).await? && has_live_session(pool).await? {
        return Err(StoreError::Schema(
            "the database is of an older version and a server of that version is live: upgrade the server first".to_owned(),
        ));
    }
    migrator.run(pool).await.map_err(|error| match error {
        MigrateError::VersionMissing(version) => StoreError::Schema(format!(
            "the database has migration {version}, this version of weir knows up to {}: use a newer weir",
            Store::schema_version()
        )),
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
        other => StoreError::Schema(other.to_string()),
    })
}

/// Whether the tables are there and a migration is missing.
async fn is_behind(pool: &SqlitePool) -> Result<bool, StoreError> {
    let has_tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_master WHERE name = '_sqlx_migrations'")
            .fetch_one(pool)
            .await?;
    if has_tables == 0 {
        return Ok(false);
    }
    let last: Option<i64> =
        sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(pool).await?;
    Ok(last.is_some_and(|last| last < Store::schema_version()))
}

async fn has_live_session(pool: &SqlitePool) -> Result<bool, StoreError> {
    let live: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM session WHERE state = 'live' \
         AND heartbeat_at > CAST(unixepoch('subsec') * 1000000 AS INTEGER) - ?",
    )
    .bind(HEARTBEAT_MAX_US)
    .fetch_one(pool)
    .await?;
    Ok(live > 0)
}

fn at(path: &Path, error: StoreError) -> StoreError {
    match error {
        StoreError::Database(ref cause) => StoreError::Open(format!("{}: {cause}", path.display())),
        StoreError::NotFound(_)
        | StoreError::Conflict(_)
        | StoreError::Refused(_)
        | StoreError::Busy(_)
        | StoreError::Open(_)
        | StoreError::Schema(_)
        | StoreError::Damaged(_) => error,
    }
}
