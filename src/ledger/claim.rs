//! A request's hold on its account's idempotency key.

use super::{Inner, Shortage};
use crate::clock::UnixMicros;
use crate::ids::{AccountId, RequestId};
use crate::store::{Claimed, NewClaim};
use std::sync::Arc;
use std::time::Duration;

/// The key is this request's. Given back by `Drop`, unless the request was sent and billed.
#[must_use]
pub struct Claim {
    inner: Arc<Inner>,
    account: AccountId,
    key: String,
    request: RequestId,
    is_kept: bool,
}

/// Why a request does not get the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unclaimed {
    /// Another request has it, and has not ended.
    InProgress(RequestId),
    /// Another request had it, and has ended.
    Done(RequestId),
    /// It is not known.
    Shortage(Shortage),
}

/// How long a key stands for its first request.
pub(super) const KEPT: Duration = Duration::from_secs(24 * 3_600);
/// Tries to give back a key that was not used; with the waits between them, a minute.
const FREE_TRIES_MAX: u32 = 9;
/// Before the second of them. Each further wait is twice as long.
const FREE_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Claims a key; one round trip.
pub(super) async fn claim(
    inner: &Arc<Inner>,
    account: AccountId,
    key: String,
    request: RequestId,
) -> Result<Claim, Unclaimed> {
    let of = Arc::clone(inner);
    let now = inner.clock.wall();
    let claiming = inner.books.spawn(async move {
        let new =
            NewClaim { account, key: key.clone(), request, session: of.session, since: kept_since(now) };
        let claimed = of.store.claim(&new, now).await;
        // Made here, so that the key goes back should nobody be waiting any more.
        claimed.map(|claimed| match claimed {
            Claimed::Taken => Ok(Claim { inner: of, account, key, request, is_kept: false }),
            Claimed::InProgress(first) => Err(Unclaimed::InProgress(first)),
            Claimed::Done(first) => Err(Unclaimed::Done(first)),
        })
    });
    match tokio::time::timeout(inner.settings.grant_timeout, claiming).await {
        Ok(Ok(Ok(claimed))) => claimed,
        Ok(Ok(Err(error))) => {
            tracing::warn!(account_id = %account, %error, "an idempotency key could not be claimed");
            Err(Unclaimed::Shortage(Shortage::Unavailable))
        }
        Ok(Err(_)) | Err(_) => Err(Unclaimed::Shortage(Shortage::Unavailable)),
    }
}

/// Claims from before this time count no more.
pub(super) fn kept_since(now: UnixMicros) -> UnixMicros {
    UnixMicros(now.0.saturating_sub(i64::try_from(KEPT.as_micros()).unwrap_or(i64::MAX)))
}

impl Claim {
    /// The request has a row: the key is its own for as long as it is kept.
    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let (inner, key) = (Arc::clone(&self.inner), std::mem::take(&mut self.key));
        let (account, request) = (self.account, self.request);
        let books = inner.books.clone();
        books.spawn(async move {
            for tries in 0..FREE_TRIES_MAX {
                if tries > 0 {
                    tokio::time::sleep(FREE_AGAIN_AFTER * 2u32.pow(tries - 1)).await;
                }
                let Err(error) = inner.store.free_claim(account, &key, request).await else { return };
                // It is free when this session has ended, at the latest.
                tracing::warn!(account_id = %account, %error, "an idempotency key that was not used is not free yet");
            }
        });
    }
}
