//! Credit moves between accounts and this process's leases.
//!
//! Totals of a lease only grow in the database, so that a lost answer is made good: the cell is brought to what the totals say.

use super::hold::HoldRequest;
use super::leases::{Lease, Moving};
use super::need::{Need, Plan, Rate};
use super::purse::{Held, Purse};
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
/// Looks at the lease and at the account for one request: others may take what was seen, so often at most.
const ROUNDS_MAX: usize = 8;
/// How long a request under way is kept waiting for more credit.
const EXTENSION_MAX: Duration = Duration::from_secs(1);
/// Between two tries in that time.
const EXTENSION_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Credit that was held for a request that may have gone; released by `Drop` unless it is taken over.
struct Secured {
    purse: Purse,
    plan: Plan,
    is_taken: bool,
}

/// Holds what a request needs, where that is not known to be free here. A request that is dropped meanwhile stops no grant half way, and
/// leaves nothing held.
pub(super) async fn secure(
    inner: &Arc<Inner>,
    purse: &Purse,
    request: &HoldRequest,
) -> Result<Plan, Shortage> {
    let (of, from) = (Arc::clone(inner), purse.clone());
    let (need, price, tier) = (request.need, Arc::clone(&request.price), request.service_tier.clone());
    let stand_ins = request.stand_ins.clone();
    let granting = inner.books.spawn(async move {
        let lease = Arc::clone(&from.lease);
        // Who waits for longer has no client left to wait for it.
        let moving = tokio::time::timeout(of.settings.grant_timeout, lease.moving.lock()).await;
        let mut moving = moving.map_err(|_| Shortage::Unavailable)?;
        let rate = Rate { price: &price, stand_ins: &stand_ins, service_tier: tier.as_deref() };
        let plan = secured(&of, &from, &mut moving, &need, rate).await?;
        Ok(Secured { purse: from, plan, is_taken: false })
    });
    match tokio::time::timeout(inner.settings.grant_timeout, granting).await {
        Ok(Ok(secured)) => secured.map(Secured::take),
        // The grant goes on; its credit is in the lease for the next request.
        Ok(Err(_)) | Err(_) => Err(Shortage::Unavailable),
    }
}

/// Holds more for a request under way, as far as there is any within [`EXTENSION_MAX`]. Tells whether something was added.
pub(super) async fn extend(inner: &Inner, purse: &Purse, held: &Held, more: Picos, least: Picos) -> bool {
    let until = inner.clock.now() + EXTENSION_MAX;
    loop {
        if extended(inner, purse, held, more, least).await {
            return true;
        }
        // Other requests of the account may end meanwhile.
        if inner.clock.now() + EXTENSION_AGAIN_AFTER >= until {
            return false;
        }
        tokio::time::sleep(EXTENSION_AGAIN_AFTER).await;
    }
}

async fn extended(inner: &Inner, purse: &Purse, held: &Held, more: Picos, least: Picos) -> bool {
    let mut moving = purse.lease.moving.lock().await;
    for _ in 0..ROUNDS_MAX {
        let part = more.min(purse.spendable());
        if part >= least {
            if purse.hold(part) {
                let is_added = held.add(part);
                if !is_added {
                    purse.release(part);
                }
                return is_added;
            }
        } else if purse.is_seen(&inner.feed) {
            return false;
        }
        let missing = Picos(part.0.saturating_sub(purse.lease.cell.free().0).max(0));
        if ask(inner, &purse.lease, &mut moving, purse.account, missing).await.is_err() {
            return false;
        }
    }
    false
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
        let version = inner.feed.version();
        let granted = inner.store.grant(&grant, inner.clock.wall()).await;
        if let Ok(Ok(granted)) = &granted {
            bring_to(&lease, &mut moving, granted.totals);
            lease.saw(version, granted.available, granted.elsewhere);
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

/// Holds what is needed: from the lease, with what the account still has, with what other sessions give back.
async fn secured(
    inner: &Inner,
    purse: &Purse,
    moving: &mut Moving,
    need: &Need,
    rate: Rate<'_>,
) -> Result<Plan, Shortage> {
    let lease = &purse.lease;
    for _ in 0..ROUNDS_MAX {
        let missing = match purse.plan(need, rate) {
            // More may have come to the account than is known here.
            Some(plan) if plan.is_tight && !purse.is_seen(&inner.feed) => Picos(0),
            Some(plan) => {
                lease.asked(plan.amount);
                if purse.hold(plan.amount) {
                    return Ok(plan);
                }
                Picos(plan.amount.0.saturating_sub(lease.cell.free().0).max(0))
            }
            None if !purse.is_seen(&inner.feed) => Picos(0),
            None if lease.elsewhere().0 > 0 && moving.may_recall(inner.clock.now()) => {
                recall(inner, purse.account).await;
                Picos(0)
            }
            None => return Err(purse.shortage(need.least(rate))),
        };
        ask(inner, lease, moving, purse.account, missing).await?;
    }
    Err(Shortage::InFlight)
}

/// Asks the database for credit: as much as is needed, more where there is plenty. What it says of the account is known afterwards,
/// whether it gave any or not.
async fn ask(
    inner: &Inner,
    lease: &Lease,
    moving: &mut Moving,
    account: AccountId,
    need: Picos,
) -> Result<(), Shortage> {
    let version = inner.feed.version();
    let want = micros_for(lease.wanted(moving, inner.clock.now()));
    let grant = Grant { session: inner.session, account, need: micros_for(need), want };
    match inner.store.grant(&grant, inner.clock.wall()).await {
        Ok(Ok(granted)) => {
            bring_to(lease, moving, granted.totals);
            lease.saw(version, granted.available, granted.elsewhere);
            lease.low_pico.store(want.0.saturating_mul(PICOS_PER_MICRO) / 2, Ordering::Relaxed);
            inner.counts.grants.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        Ok(Err(GrantRefused::Short { available, elsewhere })) => {
            // An earlier grant whose answer was lost may be what is missing here.
            reread(inner, lease, moving, account).await;
            lease.saw(version, available, elsewhere);
            Ok(())
        }
        Ok(Err(GrantRefused::Suspended)) => Err(Shortage::Suspended),
        Ok(Err(GrantRefused::Frozen)) => Err(Shortage::Unavailable),
        Ok(Err(GrantRefused::NotLive)) => {
            inner.heart.is_fenced.store(true, Ordering::Relaxed);
            Err(Shortage::Backlog)
        }
        Err(error) => {
            inner.counts.grant_failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(account_id = %account, %error, "no grant");
            Err(Shortage::Unavailable)
        }
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

/// Puts into the cell what the totals have gained, and what was taken out of it to be returned and was not.
fn bring_to(lease: &Lease, moving: &mut Moving, totals: LeaseTotals) {
    let known = std::mem::replace(&mut moving.known, totals);
    let granted = totals.granted.0.saturating_sub(known.granted.0).max(0);
    let kept = known.returned.0.saturating_sub(totals.returned.0).max(0);
    if let Some(amount) = Micros(granted.saturating_add(kept)).to_picos() {
        lease.cell.put(amount);
    }
}

/// Takes what is free out of the cell, in whole micro-dollars, to be returned. Whether it goes is for the next totals to tell.
fn take_free(lease: &Lease, moving: &mut Moving) -> Micros {
    let taken = lease.cell.take_units(Picos(i64::MAX), Picos(PICOS_PER_MICRO)).split().0;
    moving.known.returned.0 = moving.known.returned.0.saturating_add(taken.0);
    taken
}

/// Returns what the lease has free in whole micro-dollars.
pub(super) async fn give_back(inner: &Inner, lease: &Lease, account: AccountId) -> Result<(), StoreError> {
    let mut moving = lease.moving.lock().await;
    reread(inner, lease, &mut moving, account).await;
    let amount = take_free(lease, &mut moving);
    if amount.0 == 0 {
        return Ok(());
    }
    match inner.store.give_back(inner.session, account, amount, inner.clock.wall()).await {
        Ok(totals) => {
            bring_to(lease, &mut moving, totals);
            lease.low_pico.store(0, Ordering::Relaxed);
            Ok(())
        }
        Err(error) => {
            reread(inner, lease, &mut moving, account).await;
            Err(error)
        }
    }
}

impl Secured {
    fn take(mut self) -> Plan {
        self.is_taken = true;
        self.plan
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        if !self.is_taken {
            self.purse.release(self.plan.amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::leases::Leases;
    use super::*;

    /// What is free after a return of everything whose answer was lost, once the totals could be read.
    async fn free_after_a_return_with(returned: Micros) -> Picos {
        let lease = Leases::default().of(AccountId::new());
        let mut moving = lease.moving.lock().await;
        bring_to(&lease, &mut moving, LeaseTotals { granted: Micros(100), returned: Micros(0) });
        assert_eq!(take_free(&lease, &mut moving), Micros(100));
        assert_eq!(lease.cell.free(), Picos(0));
        let totals = LeaseTotals { granted: Micros(100), returned };
        bring_to(&lease, &mut moving, totals);
        let free = lease.cell.free();
        // The same totals again change nothing.
        bring_to(&lease, &mut moving, totals);
        assert_eq!(lease.cell.free(), free);
        free
    }

    #[tokio::test]
    async fn a_return_of_unknown_outcome_is_free_again_if_it_did_not_go_and_only_then() {
        assert_eq!(free_after_a_return_with(Micros(0)).await, Picos(100 * PICOS_PER_MICRO));
        assert_eq!(free_after_a_return_with(Micros(100)).await, Picos(0));
    }
}
