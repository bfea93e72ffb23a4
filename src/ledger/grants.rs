//! Credit moves between accounts and this process's leases.
//!
//! Totals of a lease only grow in the database, so that a lost answer is made good: the cell is brought to what the totals say.

use super::leases::{Lease, Moving};
use super::{Inner, Shortage, micros_for};
use crate::ids::AccountId;
use crate::money::{Micros, PICOS_PER_MICRO, Picos};
use crate::store::{Grant, GrantRefused, LeaseTotals, StoreError};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long nothing is fetched ahead of need after there was nothing to fetch.
const REFILL_PAUSE: Duration = Duration::from_secs(5);
/// How long other sessions are given to return what they do not use.
const RECALL_WAIT: Duration = Duration::from_millis(400);

/// Gets credit from the account and holds it. A request that is dropped meanwhile does not stop a grant half way.
pub(super) async fn grant_and_hold(
    inner: &Arc<Inner>,
    lease: &Arc<Lease>,
    account: AccountId,
    amount: Picos,
) -> Result<(), Shortage> {
    lease.asked(amount);
    let (of, in_lease) = (Arc::clone(inner), Arc::clone(lease));
    let granting = inner.books.spawn(async move {
        let mut moving = in_lease.moving.lock().await;
        if let Some(held) = Held::take(&in_lease, amount) {
            return Ok(held);
        }
        granted(&of, &in_lease, &mut moving, account, amount).await?;
        Held::take(&in_lease, amount).ok_or(Shortage::InFlight)
    });
    match tokio::time::timeout(inner.settings.grant_timeout, granting).await {
        Ok(Ok(result)) => result.map(Held::keep),
        // The grant goes on; its credit is in the lease for the next request.
        Ok(Err(_)) | Err(_) => Err(Shortage::Unavailable),
    }
}

/// What was held for a request that may not be waiting for it any more: then it is free again.
struct Held {
    lease: Arc<Lease>,
    amount: Picos,
    is_kept: bool,
}

impl Held {
    fn take(lease: &Arc<Lease>, amount: Picos) -> Option<Held> {
        lease.cell.hold(amount).then(|| Held { lease: Arc::clone(lease), amount, is_kept: false })
    }

    /// The request has it.
    fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.is_kept {
            self.lease.cell.release(self.amount);
        }
    }
}

/// Fetches more ahead of need where free credit runs low. Returns at once.
pub(super) fn refill(inner: &Arc<Inner>, lease: &Arc<Lease>, account: AccountId, amount: Picos) {
    lease.asked(amount);
    if lease.cell.free().0 >= lease.low_pico.load(Ordering::Relaxed) {
        return;
    }
    // Until the refill ends no other is begun.
    lease.low_pico.store(i64::MIN, Ordering::Relaxed);
    let (inner, lease) = (Arc::clone(inner), Arc::clone(lease));
    let books = inner.books.clone();
    books.spawn(async move {
        let mut moving = lease.moving.lock().await;
        let now = inner.clock.now();
        let wanted = lease.wanted(&mut moving, now);
        let grant = Grant { session: inner.session, account, need: Micros(0), want: micros_for(wanted) };
        let granted = inner.store.grant(&grant, inner.clock.wall()).await;
        if let Ok(Ok(totals)) = &granted {
            bring_to(&lease, &mut moving, *totals);
            inner.counts.grants.fetch_add(1, Ordering::Relaxed);
        }
        drop(moving);
        if !matches!(granted, Ok(Ok(_))) {
            // Nothing to fetch, or nobody to ask: the next request that needs more asks for itself.
            tokio::time::sleep(REFILL_PAUSE).await;
        }
        lease.low_pico.store(wanted.0 / 2, Ordering::Relaxed);
    });
}

async fn granted(
    inner: &Inner,
    lease: &Lease,
    moving: &mut Moving,
    account: AccountId,
    amount: Picos,
) -> Result<(), Shortage> {
    let mut has_recalled = false;
    loop {
        let version = inner.feed.version();
        let missing = Picos(amount.0.saturating_sub(lease.cell.free().0).max(1));
        let want = micros_for(lease.wanted(moving, inner.clock.now()));
        let grant = Grant { session: inner.session, account, need: micros_for(missing), want };
        match inner.store.grant(&grant, inner.clock.wall()).await {
            Ok(Ok(totals)) => {
                bring_to(lease, moving, totals);
                lease.low_pico.store(want.0.saturating_mul(PICOS_PER_MICRO) / 2, Ordering::Relaxed);
                lease.is_empty_at(None);
                inner.counts.grants.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            Ok(Err(GrantRefused::Short { available, elsewhere })) => {
                // An earlier grant whose answer was lost may be what is missing here.
                let before = lease.cell.free();
                reread(inner, lease, moving, account).await;
                if lease.cell.free() > before {
                    continue;
                }
                if elsewhere.0 > 0 && !has_recalled {
                    has_recalled = true;
                    recall(inner, account).await;
                    continue;
                }
                return Err(shortage(lease, amount, available, elsewhere, version));
            }
            Ok(Err(GrantRefused::Suspended)) => return Err(Shortage::Suspended),
            Ok(Err(GrantRefused::Frozen)) => return Err(Shortage::Unavailable),
            Ok(Err(GrantRefused::NotLive)) => {
                inner.heart.is_fenced.store(true, Ordering::Relaxed);
                return Err(Shortage::Backlog);
            }
            Err(error) => {
                inner.counts.grant_failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(account_id = %account, %error, "no grant");
                return Err(Shortage::Unavailable);
            }
        }
    }
}

/// Too little is left in the account. Is there more in use?
fn shortage(lease: &Lease, amount: Picos, available: Micros, elsewhere: Micros, version: u64) -> Shortage {
    let (free, held) = (lease.cell.free(), lease.cell.held());
    if available.0 == 0 && elsewhere.0 == 0 && free.0 == 0 && held.0 == 0 {
        lease.is_empty_at(Some(version));
    }
    let outside = i128::from(available.0 + elsewhere.0) * i128::from(PICOS_PER_MICRO);
    let all = outside + i128::from(free.0) + i128::from(held.0);
    if all >= i128::from(amount.0) && (held.0 > 0 || elsewhere.0 > 0) {
        Shortage::InFlight
    } else {
        Shortage::Exhausted
    }
}

async fn recall(inner: &Inner, account: AccountId) {
    match inner.store.recall(account).await {
        Ok(()) => tokio::time::sleep(RECALL_WAIT).await,
        Err(error) => {
            tracing::warn!(account_id = %account, %error, "credit of other sessions could not be recalled")
        }
    }
}

/// Brings the cell to what the database says, after an answer that may have been lost.
async fn reread(inner: &Inner, lease: &Lease, moving: &mut Moving, account: AccountId) {
    match inner.store.lease_totals(inner.session, account).await {
        Ok(Some(totals)) => bring_to(lease, moving, totals),
        Ok(None) => {}
        Err(error) => tracing::warn!(account_id = %account, %error, "a lease could not be read again"),
    }
}

/// Puts into the cell what the totals have gained.
fn bring_to(lease: &Lease, moving: &mut Moving, totals: LeaseTotals) {
    let granted = totals.granted.0 - moving.known.granted.0;
    moving.known.granted = totals.granted;
    if let Some(amount) = Micros(granted.max(0)).to_picos() {
        lease.cell.put(amount);
    }
}

/// Returns what the lease has free in whole micro-dollars.
pub(super) async fn give_back(inner: &Inner, lease: &Lease, account: AccountId) -> Result<(), StoreError> {
    let mut moving = lease.moving.lock().await;
    reread(inner, lease, &mut moving, account).await;
    let taken = lease.cell.take_units(Picos(i64::MAX), Picos(PICOS_PER_MICRO));
    let amount = taken.split().0;
    if amount.0 == 0 {
        return Ok(());
    }
    let before = moving.known.returned;
    match inner.store.give_back(inner.session, account, amount, inner.clock.wall()).await {
        Ok(totals) => {
            moving.known.returned = totals.returned;
            lease.low_pico.store(0, Ordering::Relaxed);
            Ok(())
        }
        Err(error) => {
            // Whether it went is not known until the totals are read: only what is seen not to have gone is put back.
            let totals = inner.store.lease_totals(inner.session, account).await;
            if let Ok(Some(totals)) = totals
                && totals.returned == before
            {
                lease.cell.put(taken);
            } else if let Ok(Some(totals)) = totals {
                moving.known.returned = totals.returned;
            }
            Err(error)
        }
    }
}
