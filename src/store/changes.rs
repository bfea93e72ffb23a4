//! What changed, in the order of commit, for processes that keep copies in memory.

use super::open::transact;
use super::{Store, StoreError};
use crate::ids::{AccountId, KeyId};
use sqlx::{Row, Sqlite, Transaction};

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its place in the order of commits; one higher than the one before.
    pub version: u64,
    /// What it is about.
    pub subject: Subject,
}

/// What a change is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Status, tier or credit of an account.
    Account(AccountId),
    /// A key was made or revoked.
    Key(KeyId),
    /// The price book.
    Prices,
    /// A session is short of this account's credit: others return what they do not use.
    Recall(AccountId),
}

/// Changes read at once.
const CHANGES_MAX: i64 = 1_000;
/// Changes kept: who is further behind drops all that it keeps.
const CHANGES_KEPT: i64 = 100_000;

impl Store {
    /// The version of the last change.
    pub async fn version(&self) -> Result<u64, StoreError> {
        transact!(self.reading(), |tx| { version(tx).await })
    }

    /// The changes after a version, in order, 1,000 at most. `None` when some of them are no longer kept.
    pub async fn changes_since(&self, known: u64) -> Result<Option<Vec<Change>>, StoreError> {
        transact!(self.reading(), |tx| {
            let rows = sqlx::query("SELECT v, kind, subject FROM change WHERE v > ? ORDER BY v LIMIT ?")
                .bind(signed(known))
                .bind(CHANGES_MAX)
                .fetch_all(&mut **tx)
                .await?;
            let changes: Vec<Change> = rows
                .iter()
                .map(|row| change(row.get(0), row.get(1), row.get(2)))
                .collect::<Result<_, _>>()?;
            let is_gapless = match changes.first() {
                Some(first) => first.version == known + 1,
                None => version(tx).await? == known,
            };
            Ok(is_gapless.then_some(changes))
        })
    }
}

/// Notes a change, in the transaction that makes it.
pub(super) async fn note(tx: &mut Transaction<'static, Sqlite>, subject: Subject) -> Result<(), StoreError> {
    let version: i64 = sqlx::query_scalar("UPDATE config_version SET v = v + 1 WHERE id = 1 RETURNING v")
        .fetch_one(&mut **tx)
        .await?;
    let (kind, id) = match &subject {
        Subject::Account(account) => ("account", Some(account.as_bytes())),
        Subject::Key(key) => ("key", Some(key.as_bytes())),
        Subject::Prices => ("prices", None),
        Subject::Recall(account) => ("recall", Some(account.as_bytes())),
    };
    sqlx::query("INSERT INTO change (v, kind, subject) VALUES (?, ?, ?)")
        .bind(version)
        .bind(kind)
        .bind(id)
        .execute(&mut **tx)
        .await?;
    if version % 1_000 == 0 {
        sqlx::query("DELETE FROM change WHERE v <= ?")
            .bind(version - CHANGES_KEPT)
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

pub(super) async fn version(tx: &mut Transaction<'static, Sqlite>) -> Result<u64, StoreError> {
    let version: i64 =
        sqlx::query_scalar("SELECT v FROM config_version WHERE id = 1").fetch_one(&mut **tx).await?;
    u64::try_from(version).map_err(StoreError::damaged)
}

fn change(version: i64, kind: &str, subject: Option<&[u8]>) -> Result<Change, StoreError> {
    let damaged = || StoreError::damaged(format!("the change {version}"));
    let id = subject.unwrap_or_default();
    let subject = match kind {
        "account" => AccountId::from_slice(id).map(Subject::Account),
        "key" => KeyId::from_slice(id).map(Subject::Key),
        "prices" => Some(Subject::Prices),
        "recall" => AccountId::from_slice(id).map(Subject::Recall),
        _ => None,
    };
    Ok(Change {
        version: u64::try_from(version).map_err(StoreError::damaged)?,
        subject: subject.ok_or_else(damaged)?,
    })
}

/// For columns: numbers of ours stay far below 2^63.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
