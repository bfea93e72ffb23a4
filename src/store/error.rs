//! What can go wrong with the database, as far as a caller can act on it.

use std::fmt;

/// Why a verb did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// What was named is not there.
    #[error("{0}")]
    NotFound(String),
    /// It exists already, or was done for something else.
    #[error("{0}")]
    Conflict(String),
    /// The books do not allow it.
    #[error("{0}")]
    Refused(String),
    /// The database did not answer in time, or another process held its write lock. Whether the change was made is not known.
    #[error("the database is busy: {0}")]
    Busy(String),
    /// The database cannot be opened.
    #[error("cannot open the database {0}")]
    Open(String),
    /// The tables are not those of this version.
    #[error("{0}")]
    Schema(String),
    /// What is stored cannot be what this program wrote.
    #[error("the database holds something that cannot be right: {0}")]
    Damaged(String),
    /// The database said something else.
    #[error("database: {0}")]
    Database(#[source] sqlx::Error),
}

impl StoreError {
    /// A name for programs.
    pub const fn kind(&self) -> &'static str {
        match self {
            StoreError::NotFound(_) => "not_found",
            StoreError::Conflict(_) => "conflict",
            StoreError::Refused(_) => "refused",
            StoreError::Busy(_) => "busy",
            StoreError::Open(_) => "open",
            StoreError::Schema(_) => "schema",
            StoreError::Damaged(_) => "damaged",
            StoreError::Database(_) => "database",
        }
    }

    /// Whether it was asked after this process had closed it, which happens to what is still running at a stop.
    pub const fn is_closed(&self) -> bool {
        matches!(self, StoreError::Database(sqlx::Error::PoolClosed))
    }

    pub(super) fn not_found(what: impl fmt::Display) -> Self {
        StoreError::NotFound(what.to_string())
    }

    pub(super) fn damaged(what: impl fmt::Display) -> Self {
        StoreError::Damaged(what.to_string())
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        // SQLITE_BUSY and its extended codes end in 5 in the low byte, SQLITE_LOCKED in 6 (https://sqlite.org/rescode.html).
        let code = error.as_database_error().and_then(|database| database.code()?.parse::<i64>().ok());
        match (code.map(|code| code & 0xff), &error) {
            (Some(5 | 6), _) | (_, sqlx::Error::PoolTimedOut) => StoreError::Busy(error.to_string()),
            (_, _) => StoreError::Database(error),
        }
    }
}
