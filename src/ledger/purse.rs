//! What a request is paid from: its account's lease, and its key's limit where it has one.
//!
//! Promises: a hold is in both or in neither.

use super::Shortage;
use super::leases::Lease;
use super::need::{Need, Plan, Rate};
use super::spending::KeyMeter;
use crate::clock::UnixMicros;
use crate::feed::Feed;
use crate::ids::AccountId;
use crate::money::Picos;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

#[derive(Clone)]
pub(super) struct Purse {
    pub(super) account: AccountId,
    pub(super) lease: Arc<Lease>,
    pub(super) key: Option<Arc<KeyMeter>>,
}

/// What a hold has, shared by the request and by an extension of it that is under way.
pub(super) struct Held(AtomicI64);

/// The hold has ended.
const ENDED: i64 = -1;

impl Purse {
    /// The hold that is covered at this moment.
    pub(super) fn plan(&self, need: &Need, rate: Rate<'_>) -> Option<Plan> {
        need.plan(rate, self.spendable(), self.all())
    }

    /// What can be held, as far as is known here.
    pub(super) fn spendable(&self) -> Picos {
        let lease = self.lease.spendable();
        self.key.as_ref().map_or(lease, |key| lease.min(key.free()))
    }

    fn all(&self) -> Picos {
        let lease = self.lease.all();
        self.key.as_ref().map_or(lease, |key| lease.min(key.all()))
    }

    /// Whether nothing is known to have come to the account since the database was asked.
    pub(super) fn is_seen(&self, feed: &Feed) -> bool {
        self.lease.is_seen(self.account, feed)
    }

    /// Holds an amount, if both have it.
    pub(super) fn hold(&self, amount: Picos) -> bool {
        if self.key.as_ref().is_some_and(|key| !key.hold(amount)) {
            return false;
        }
        let is_held = self.lease.cell.hold(amount);
        if !is_held && let Some(key) = &self.key {
            key.settle(amount, Picos(0), UnixMicros(0));
        }
        is_held
    }

    /// Ends a hold with what it cost, and tells how much of that the lease covered.
    pub(super) fn settle(&self, held: Picos, cost: Picos, came_at: UnixMicros) -> Picos {
        if let Some(key) = &self.key {
            key.settle(held, cost, came_at);
        }
        self.lease.cell.settle(held, cost)
    }

    /// Ends a hold that cost nothing.
    pub(super) fn release(&self, held: Picos) {
        let _covered = self.settle(held, Picos(0), UnixMicros(0));
    }

    /// Why this much is not there.
    pub(super) fn shortage(&self, least: Picos) -> Shortage {
        if self.key.as_ref().is_some_and(|key| key.all() < least) {
            return Shortage::KeyLimit;
        }
        if self.lease.all() >= least { Shortage::InFlight } else { Shortage::Exhausted }
    }
}

impl Held {
    pub(super) fn new(amount: Picos) -> Arc<Held> {
        Arc::new(Held(AtomicI64::new(amount.0)))
    }

    /// What is held; nothing once it has ended.
    pub(super) fn amount(&self) -> Picos {
        Picos(self.0.load(Ordering::Acquire).max(0))
    }

    /// Adds what was held in addition; `false` where the hold has ended meanwhile.
    pub(super) fn add(&self, more: Picos) -> bool {
        let added = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| {
            (held != ENDED).then(|| held.saturating_add(more.0))
        });
        added.is_ok()
    }

    /// Ends the hold, and tells what it had.
    pub(super) fn end(&self) -> Picos {
        Picos(self.0.swap(ENDED, Ordering::AcqRel).max(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_the_end_of_a_hold_is_not_taken() {
        let held = Held::new(Picos(5));
        assert!(held.add(Picos(2)));
        assert_eq!(held.end(), Picos(7));
        assert!(!held.add(Picos(1)));
        assert_eq!((held.amount(), held.end()), (Picos(0), Picos(0)));
    }
}
