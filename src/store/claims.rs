//! Which request has an account's idempotency key.
//!
//! A claim is nowhere marked as done: it is once its request has a row, which is written with the settlement.

use super::open::transact;
use super::{Store, StoreError};
use crate::clock::UnixMicros;
use crate::ids::{AccountId, RequestId, SessionId};
use crate::usage::Outcome;
use sqlx::{Row, Sqlite, Transaction};

/// A request that claims a key.
#[derive(Clone, Debug)]
pub struct NewClaim {
    /// Whose key it is.
    pub account: AccountId,
    /// The key, as the client sent it.
    pub key: String,
    /// The request.
    pub request: RequestId,
    /// The session that serves it.
    pub session: SessionId,
    /// Claims from before this time count no more.
    pub since: UnixMicros,
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// The request has the key.
    Taken,
    /// Another request has it, and has not ended.
    InProgress(RequestId),
    /// Another request had it, and has ended.
    Done(RequestId),
}

impl Store {
    /// Claims a key for a request.
    pub async fn claim(&self, new: &NewClaim, at: UnixMicros) -> Result<Claimed, StoreError> {
        transact!(self.writing(), |tx| {
            match holder(tx, new).await? {
                Some(other) => Ok(other),
                None => {
                    sqlx::query(
                        "INSERT OR REPLACE INTO claim (account_id, idempotency_key, request_id, session_id, created_at) \
                         VALUES (?, ?, ?, ?, ?)",
                    )
                    .bind(new.account.as_bytes())
                    .bind(&new.key)
                    .bind(new.request.as_bytes())
                    .bind(new.session.as_bytes())
                    .bind(at.0)
                    .execute(&mut **tx)
                    .await?;
                    Ok(Claimed::Taken)
                }
            }
        })
    }

    /// Gives a key back that its request has not used.
    pub async fn free_claim(
        &self,
        account: AccountId,
        key: &str,
        request: RequestId,
    ) -> Result<(), StoreError> {
        transact!(self.writing(), |tx| {
            sqlx::query("DELETE FROM claim WHERE account_id = ? AND idempotency_key = ? AND request_id = ?")
                .bind(account.as_bytes())
                .bind(key)
                .bind(request.as_bytes())
                .execute(&mut **tx)
                .await?;
            Ok(())
        })
    }

    /// Removes claims from before this time.
    pub async fn sweep_claims(&self, before: UnixMicros) -> Result<(), StoreError> {
        transact!(self.writing(), |tx| {
            sqlx::query("DELETE FROM claim WHERE created_at < ?").bind(before.0).execute(&mut **tx).await?;
            Ok(())
        })
    }
}

/// The request that has the key, if there is one that keeps it: not one that is too old, nor one that ended without an answer and without
/// a cost, nor one that its session has left behind unsent.
async fn holder(
    tx: &mut Transaction<'static, Sqlite>,
    new: &NewClaim,
) -> Result<Option<Claimed>, StoreError> {
    let found = sqlx::query(
        "SELECT c.request_id, r.outcome, r.cost_pico = 0 AND r.usage = '{}' AS is_unused, s.state <> 'closed' AS is_open, \
         EXISTS (SELECT 1 FROM quarantine q WHERE q.request_id = c.request_id) AS is_aside \
         FROM claim c LEFT JOIN request r ON r.id = c.request_id LEFT JOIN session s ON s.id = c.session_id \
         WHERE c.account_id = ? AND c.idempotency_key = ? AND c.created_at >= ?",
    )
    .bind(new.account.as_bytes())
    .bind(&new.key)
    .bind(new.since.0)
    .fetch_optional(&mut **tx)
    .await?;
    let Some(row) = found else { return Ok(None) };
    let request =
        RequestId::from_slice(row.get(0)).ok_or_else(|| StoreError::damaged("a claim's request"))?;
    let unanswered =
        [Outcome::UpstreamError, Outcome::UpstreamTimeout, Outcome::Shutdown, Outcome::ClientGone]
            .map(Outcome::as_str);
    let is_open = row.get::<Option<bool>, _>("is_open").unwrap_or(false);
    Ok(match row.get::<Option<&str>, _>("outcome") {
        Some(outcome)
            if unanswered.contains(&outcome) && row.get::<Option<bool>, _>("is_unused") == Some(true) =>
        {
            None
        }
        Some(_) => Some(Claimed::Done(request)),
        None if row.get::<bool, _>("is_aside") => Some(Claimed::Done(request)),
        None => is_open.then_some(Claimed::InProgress(request)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{NewSession, Opened, SessionState};

    #[tokio::test(flavor = "current_thread")]
    async fn a_key_whose_request_was_never_sent_is_free_once_its_session_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", directory.path().join("weir.db").display());
        let store = Store::open(&url, Opened::ByCommand).await.unwrap();
        let (first, second) = (SessionId::new(), SessionId::new());
        for session_id in [first, second] {
            let new = NewSession { session_id, host: "h".into(), version: "1".into() };
            store.open_session(&new, UnixMicros(1)).await.unwrap();
        }
        let account = AccountId::new();
        let claim = |session, since| NewClaim {
            account,
            key: "k".to_owned(),
            request: RequestId::new(),
            session,
            since: UnixMicros(since),
        };
        let held = claim(first, 0);
        assert_eq!(store.claim(&held, UnixMicros(5)).await.unwrap(), Claimed::Taken);
        let taken = Claimed::InProgress(held.request);
        assert_eq!(store.claim(&claim(second, 0), UnixMicros(6)).await.unwrap(), taken);
        // A lost session may bill it still.
        store.end_session(first, SessionState::Lost, 0, UnixMicros(7)).await.unwrap();
        assert_eq!(store.claim(&claim(second, 0), UnixMicros(8)).await.unwrap(), taken);
        store.end_session(first, SessionState::Closed, 0, UnixMicros(9)).await.unwrap();
        let next = claim(second, 0);
        assert_eq!(store.claim(&next, UnixMicros(10)).await.unwrap(), Claimed::Taken);
        // Freed by who does not have it: nothing. By who has it: free. Too old: free.
        store.free_claim(account, "k", held.request).await.unwrap();
        assert_eq!(store.claim(&held, UnixMicros(11)).await.unwrap(), Claimed::InProgress(next.request));
        store.free_claim(account, "k", next.request).await.unwrap();
        let last = claim(second, 0);
        assert_eq!(store.claim(&last, UnixMicros(12)).await.unwrap(), Claimed::Taken);
        assert_eq!(store.claim(&claim(second, 13), UnixMicros(14)).await.unwrap(), Claimed::Taken);
        store.sweep_claims(UnixMicros(100)).await.unwrap();
        assert_eq!(store.claim(&claim(second, 0), UnixMicros(15)).await.unwrap(), Claimed::Taken);
    }
}
