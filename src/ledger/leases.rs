//! The leases of this process, by account. Never an evicting cache: a lease that is forgotten is credit that is lost until the session ends.

use super::Standing;
use super::cell::Cell;
use crate::feed::Feed;
use crate::ids::AccountId;
use crate::money::{Micros, Picos};
use crate::store::LeaseTotals;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// What this process has of an account's credit.
pub(super) struct Lease {
    pub(super) cell: Cell,
    /// One grant or return at a time.
    pub(super) moving: tokio::sync::Mutex<Moving>,
    /// Below so much free credit, more is fetched ahead of need.
    pub(super) low_pico: AtomicI64,
    /// What the account had besides, when the database was last asked.
    available_pico: AtomicI64,
    /// What other sessions had of it then.
    elsewhere_pico: AtomicI64,
    /// The version of the changes at which that was so, plus one; 0 is "never asked".
    seen_at: AtomicU64,
    /// The largest hold that was asked for.
    biggest_pico: AtomicI64,
    /// Spent since the last grant.
    spent_pico: AtomicI64,
    /// Requests since the last look at idle leases.
    pub(super) uses: AtomicU64,
}

/// What only who holds the lock may know and change.
pub(super) struct Moving {
    /// The totals that the cell reflects.
    pub(super) known: LeaseTotals,
    /// Spent per second, smoothed.
    rate_pico: f64,
    granted_at: Option<Instant>,
    recalled_at: Option<Instant>,
}

/// Sums over the leases.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) count: u64,
    pub(super) free: Picos,
    pub(super) held: Picos,
}

#[derive(Default)]
pub(super) struct Leases {
    shards: [RwLock<HashMap<AccountId, Arc<Lease>>>; SHARDS],
    /// What each lease was last written down to hold.
    pub(super) noted: Mutex<HashMap<AccountId, i64>>,
}

const SHARDS: usize = 16;

impl Lease {
    fn new() -> Self {
        Lease {
            cell: Cell::new(),
            moving: tokio::sync::Mutex::new(Moving {
                known: LeaseTotals::default(),
                rate_pico: 0.0,
                granted_at: None,
                recalled_at: None,
            }),
            low_pico: AtomicI64::new(0),
            available_pico: AtomicI64::new(0),
            elsewhere_pico: AtomicI64::new(0),
            seen_at: AtomicU64::new(0),
            biggest_pico: AtomicI64::new(0),
            spent_pico: AtomicI64::new(0),
            uses: AtomicU64::new(0),
        }
    }

    pub(super) fn standing(&self, account: AccountId, feed: &Feed) -> Standing {
        if self.cell.free().0 > 0 {
            return Standing::Funded;
        }
        let is_empty = self.all().0 == 0 && self.is_seen(account, feed);
        if is_empty { Standing::Empty } else { Standing::Unknown }
    }

    /// Notes what the database said that the account has besides, and that it said so at that version of the changes.
    pub(super) fn saw(&self, version: u64, available: Micros, elsewhere: Micros) {
        let picos = |amount: Micros| amount.to_picos().map_or(i64::MAX, |picos| picos.0);
        self.available_pico.store(picos(available), Ordering::Release);
        self.elsewhere_pico.store(picos(elsewhere), Ordering::Release);
        self.seen_at.store(version + 1, Ordering::Release);
    }

    /// Whether nothing is known to have come to the account since the database was asked.
    pub(super) fn is_seen(&self, account: AccountId, feed: &Feed) -> bool {
        let seen_at = self.seen_at.load(Ordering::Acquire);
        seen_at > 0 && feed.is_account_current(seen_at - 1, account)
    }

    /// What can be held: free here, or in the account when it was last seen.
    pub(super) fn spendable(&self) -> Picos {
        self.cell.free().saturating_add(Picos(self.available_pico.load(Ordering::Acquire)))
    }

    /// What other sessions had of the account when it was last seen.
    pub(super) fn elsewhere(&self) -> Picos {
        Picos(self.elsewhere_pico.load(Ordering::Acquire))
    }

    /// All credit of the account, held or not. What is held is read first: it becomes free, not the other way.
    pub(super) fn all(&self) -> Picos {
        let held = self.cell.held();
        held.saturating_add(self.spendable()).saturating_add(self.elsewhere())
    }

    pub(super) fn spent(&self, cost: Picos) {
        self.spent_pico.fetch_add(cost.0, Ordering::Relaxed);
    }

    pub(super) fn asked(&self, amount: Picos) {
        self.biggest_pico.fetch_max(amount.0, Ordering::Relaxed);
        self.uses.fetch_add(1, Ordering::Relaxed);
    }

    /// How much credit it would be good to have, in pico-dollars: for fifteen minutes at the rate of late, for four of the largest
    /// requests, and for half a dollar.
    pub(super) fn wanted(&self, moving: &mut Moving, now: Instant) -> Picos {
        let spent = self.spent_pico.swap(0, Ordering::Relaxed);
        if let Some(before) = moving.granted_at.replace(now) {
            let seconds = now.saturating_duration_since(before).as_secs_f64().max(1.0);
            #[expect(
                clippy::cast_precision_loss,
                reason = "a rate to size leases by; no amount is derived from it exactly"
            )]
            let rate = spent as f64 / seconds;
            moving.rate_pico = (moving.rate_pico + rate) / 2.0;
        }
        #[expect(clippy::cast_possible_truncation, reason = "clamped on the next line")]
        let by_rate = (moving.rate_pico * OUTAGE.as_secs_f64()) as i64;
        let by_size = self.biggest_pico.load(Ordering::Relaxed).saturating_mul(HOLDS_WANTED);
        Picos(by_rate.max(by_size).clamp(WANTED_MIN_PICO, WANTED_MAX_PICO))
    }
}

impl Moving {
    /// Whether other sessions may be asked for what they do not use, which takes a while: not by each request of an account that has
    /// nothing left.
    pub(super) fn may_recall(&mut self, now: Instant) -> bool {
        let may = self.recalled_at.is_none_or(|at| now.saturating_duration_since(at) >= RECALL_AGAIN_AFTER);
        if may {
            self.recalled_at = Some(now);
        }
        may
    }
}

/// Between two recalls of an account's credit.
const RECALL_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// What a lease should last for: the database may be away so long.
const OUTAGE: Duration = Duration::from_secs(900);
/// Requests of the largest kind that a lease should cover.
const HOLDS_WANTED: i64 = 4;
/// Half a dollar.
const WANTED_MIN_PICO: i64 = 500_000_000_000;
/// A million dollars; nine times that is what 64 bits hold.
const WANTED_MAX_PICO: i64 = 1_000_000_000_000_000_000;

impl Leases {
    pub(super) fn get(&self, account: AccountId) -> Option<Arc<Lease>> {
        self.shard(account).read().unwrap_or_else(PoisonError::into_inner).get(&account).cloned()
    }

    pub(super) fn of(&self, account: AccountId) -> Arc<Lease> {
        if let Some(lease) = self.get(account) {
            return lease;
        }
        let mut shard = self.shard(account).write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(shard.entry(account).or_insert_with(|| Arc::new(Lease::new())))
    }

    pub(super) fn all(&self) -> Vec<(AccountId, Arc<Lease>)> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            all.extend(shard.iter().map(|(account, lease)| (*account, Arc::clone(lease))));
        }
        all
    }

    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for (_, lease) in self.all() {
            totals.count += 1;
            totals.free = totals.free.saturating_add(lease.cell.free());
            totals.held = totals.held.saturating_add(lease.cell.held());
        }
        totals
    }

    fn shard(&self, account: AccountId) -> &RwLock<HashMap<AccountId, Arc<Lease>>> {
        // The last byte of a UUID version 7 is random.
        &self.shards[usize::from(account.as_bytes()[15]) % SHARDS]
    }
}
