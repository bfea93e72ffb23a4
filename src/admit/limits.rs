//! The limits of tiers, per account and per key: requests and tokens per minute, and requests at once; and the bound on all requests of
//! the process.
//!
//! Promises: what one of two limits gave is given back when the other refuses. Near the bound of the process an account with more than
//! its fair share of it is refused first.

use super::bucket::{Bucket, Standing};
use crate::clock::Clock;
use crate::ids::{AccountId, KeyId};
use crate::refusal::{Kind, Limit, Refused};
use moka::sync::Cache;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a tier allows an account, or a key, in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Requests per minute; at least 1.
    pub requests_per_minute: u64,
    /// Tokens per minute, input and output together; at least 1.
    pub tokens_per_minute: u64,
    /// Requests at once; at least 1.
    pub concurrent_requests: u64,
}

/// The state of everybody's limits.
pub(super) struct Limits {
    subjects: Cache<Subject, Arc<Limited>>,
    load: Arc<Load>,
    clock: Clock,
}

/// Whose limits they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Account(AccountId),
    Key(KeyId),
}

struct Limited {
    /// As clients are told.
    whose: &'static str,
    limits: Named,
    state: Mutex<State>,
}

/// Its limits, as metrics name them.
#[derive(Clone, Copy)]
struct Named {
    requests: Limit,
    tokens: Limit,
    concurrent: Limit,
}

struct State {
    requests: Bucket,
    tokens: Bucket,
    concurrent: u64,
}

/// What the process carries.
struct Load {
    requests_max: AtomicU64,
    requests: AtomicU64,
    /// Accounts with requests under way.
    accounts: AtomicU64,
}

/// A place among the account's concurrent requests, and the key's, given back by `Drop`.
#[must_use]
pub struct Permit {
    account: Arc<Limited>,
    key: Option<Arc<Limited>>,
    load: Arc<Load>,
    clock: Clock,
    tokens_taken: u64,
}

/// What the `x-ratelimit-*` headers of an answer say: of account and key, what leaves less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateStanding {
    /// Requests per minute.
    pub requests: Standing,
    /// Tokens per minute.
    pub tokens: Standing,
}

/// Who asks nothing for this long has full buckets anyway.
const IDLE_MAX: Duration = Duration::from_secs(7_200);
/// Accounts and keys whose limits are kept.
const SUBJECTS_MAX: u64 = 1_000_000;
/// What a client is told to wait when all its places are taken, or the process is full.
const PLACE_WAIT: Duration = Duration::from_secs(1);
/// From this part of the bound on, in percent, accounts are held to their fair share.
const FAIR_FROM_PERCENT: u64 = 75;

impl Limits {
    pub(super) fn new(requests_max: u64, clock: Clock) -> Self {
        let subjects = Cache::builder().max_capacity(SUBJECTS_MAX).time_to_idle(IDLE_MAX).build();
        let requests_max = AtomicU64::new(requests_max);
        let load = Load { requests_max, requests: AtomicU64::new(0), accounts: AtomicU64::new(0) };
        Limits { subjects, load: Arc::new(load), clock }
    }

    /// From now on the process carries so many.
    pub(super) fn set_requests_max(&self, requests_max: u64) {
        self.load.requests_max.store(requests_max, Ordering::Relaxed);
    }

    /// Counts a request and takes a place for it: the account's, and the key's where it has limits of its own.
    pub(super) fn enter(
        &self,
        account: AccountId,
        tier: Tier,
        key: Option<(KeyId, Tier)>,
    ) -> Result<Permit, Refused> {
        let now = self.clock.now();
        let account = self.of(Subject::Account(account), tier);
        let key = key.map(|(key, tier)| (self.of(Subject::Key(key), tier), tier));
        account.enter(tier, &self.load, now)?;
        if let Some(Err(refused)) = key.as_ref().map(|(key, tier)| key.take_place(*tier, now)) {
            account.state().requests.correct(-1, now);
            account.leave(&self.load);
            return Err(refused);
        }
        let key = key.map(|(key, _)| key);
        let (load, clock) = (Arc::clone(&self.load), self.clock.clone());
        Ok(Permit { account, key, load, clock, tokens_taken: 0 })
    }

    /// Where they stand, for an answer that took no place.
    pub(super) fn standing(
        &self,
        account: AccountId,
        tier: Tier,
        key: Option<(KeyId, Tier)>,
    ) -> RateStanding {
        let now = self.clock.now();
        let standing = self.of(Subject::Account(account), tier).standing_in(tier, now);
        let own = key.map(|(key, tier)| self.of(Subject::Key(key), tier).standing_in(tier, now));
        own.map_or(standing, |own| standing.tighter(own))
    }

    fn of(&self, subject: Subject, tier: Tier) -> Arc<Limited> {
        self.subjects.get_with(subject, || Arc::new(Limited::new(subject, tier, &self.clock)))
    }
}

impl Limited {
    fn new(subject: Subject, tier: Tier, clock: &Clock) -> Self {
        let now = clock.now();
        let state = State {
            requests: Bucket::new(tier.requests_per_minute, now),
            tokens: Bucket::new(tier.tokens_per_minute, now),
            concurrent: 0,
        };
        let (whose, requests, tokens, concurrent) = match subject {
            Subject::Account(_) => {
                ("This account", Limit::AccountRequests, Limit::AccountTokens, Limit::AccountConcurrent)
            }
            Subject::Key(_) => ("This API key", Limit::KeyRequests, Limit::KeyTokens, Limit::KeyConcurrent),
        };
        let limits = Named { requests, tokens, concurrent };
        Limited { whose, limits, state: Mutex::new(state) }
    }

    /// Takes a place of the account and one of the process.
    fn enter(&self, tier: Tier, load: &Load, now: Instant) -> Result<(), Refused> {
        let carried = load.requests.fetch_add(1, Ordering::AcqRel);
        let own = self.state().concurrent;
        match load.admit(carried, own).and_then(|()| self.take_place(tier, now)) {
            Ok(taken) => {
                if taken == 1 {
                    load.accounts.fetch_add(1, Ordering::AcqRel);
                }
                Ok(())
            }
            Err(refused) => {
                load.requests.fetch_sub(1, Ordering::AcqRel);
                Err(refused)
            }
        }
    }

    /// Counts a request and takes a place, and tells how many are taken now.
    fn take_place(&self, tier: Tier, now: Instant) -> Result<u64, Refused> {
        let Tier { concurrent_requests, requests_per_minute, .. } = tier;
        let mut state = self.state();
        state.limit(tier, now);
        if state.concurrent >= concurrent_requests {
            return Err(limited(
                format!("{} already has {concurrent_requests} requests under way, its limit.", self.whose),
                PLACE_WAIT,
            )
            .limit(self.limits.concurrent));
        }
        state.requests.take(1, now).map_err(|wait| {
            limited(format!("{} is limited to {requests_per_minute} requests per minute.", self.whose), wait)
                .limit(self.limits.requests)
        })?;
        state.concurrent += 1;
        Ok(state.concurrent)
    }

    fn leave(&self, load: &Load) {
        load.requests.fetch_sub(1, Ordering::AcqRel);
        if self.leave_place() == 0 {
            load.accounts.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Gives a place back, and tells how many are still taken.
    fn leave_place(&self) -> u64 {
        let mut state = self.state();
        state.concurrent = state.concurrent.saturating_sub(1);
        state.concurrent
    }

    /// Takes tokens. An estimate above a whole minute's can never pass.
    fn take_tokens(&self, estimate: u64, now: Instant) -> Result<(), Refused> {
        let mut state = self.state();
        let limit = state.tokens.per_minute();
        if estimate > limit {
            return Err(Refused::new(
                Kind::TokensExceedLimit,
                format!(
                    "This request needs about {estimate} tokens. {} is limited to {limit} per minute. \
                     Shorten the input or lower the output limit.",
                    self.whose
                ),
            )
            .limit(self.limits.tokens));
        }
        state.tokens.take(estimate, now).map_err(|wait| {
            limited(format!("{} is limited to {limit} tokens per minute.", self.whose), wait)
                .limit(self.limits.tokens)
        })
    }

    fn standing_in(&self, tier: Tier, now: Instant) -> RateStanding {
        self.state().limit(tier, now);
        self.standing(now)
    }

    fn standing(&self, now: Instant) -> RateStanding {
        let mut state = self.state();
        RateStanding { requests: state.requests.standing(now), tokens: state.tokens.standing(now) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The limits may have changed since the last request.
    fn limit(&mut self, tier: Tier, now: Instant) {
        self.requests.limit(tier.requests_per_minute, now);
        self.tokens.limit(tier.tokens_per_minute, now);
    }
}

impl Load {
    /// Whether one more request is carried, of an account that has `own` of the `carried` ones.
    fn admit(&self, carried: u64, own: u64) -> Result<(), Refused> {
        let requests_max = self.requests_max.load(Ordering::Relaxed);
        let is_near = carried >= requests_max.saturating_mul(FAIR_FROM_PERCENT) / 100;
        let share = (requests_max / self.accounts.load(Ordering::Acquire).max(1)).max(1);
        if carried < requests_max && (!is_near || own < share) {
            return Ok(());
        }
        Err(Refused::new(Kind::NoCapacity, "The service is busy at the moment; try again shortly.")
            .retry_after(PLACE_WAIT)
            .limit(Limit::ProcessConcurrent)
            .internal(format!("{carried} requests are under way, {own} of them of this account")))
    }
}

impl Permit {
    /// Takes the estimated tokens of the request.
    pub(super) fn take_tokens(&mut self, estimate: u64) -> Result<(), Refused> {
        let now = self.clock.now();
        self.account.take_tokens(estimate, now)?;
        if let Some(Err(refused)) = self.key.as_ref().map(|key| key.take_tokens(estimate, now)) {
            self.account.state().tokens.correct(-tokens(estimate), now);
            return Err(refused);
        }
        self.tokens_taken = estimate;
        Ok(())
    }

    /// Corrects the estimate by what was used.
    pub fn used_tokens(&mut self, used: u64) {
        let difference = tokens(used) - tokens(self.tokens_taken);
        self.tokens_taken = used;
        let now = self.clock.now();
        self.each(|limited| limited.state().tokens.correct(difference, now));
    }

    /// Gives back the request that was counted on the head: its body was refused.
    pub fn forgive_request(&mut self) {
        let now = self.clock.now();
        self.each(|limited| limited.state().requests.correct(-1, now));
    }

    /// Where account and key stand after this request.
    pub fn standing(&self) -> RateStanding {
        let now = self.clock.now();
        let account = self.account.standing(now);
        self.key.as_ref().map_or(account, |key| account.tighter(key.standing(now)))
    }

    fn each(&self, act: impl Fn(&Limited)) {
        std::iter::once(&self.account).chain(&self.key).for_each(|limited| act(limited));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.account.leave(&self.load);
        if let Some(key) = &self.key {
            key.leave_place();
        }
    }
}

impl RateStanding {
    /// Of each limit the one that leaves less.
    fn tighter(self, other: RateStanding) -> RateStanding {
        let less = |one: Standing, other: Standing| if other.remaining < one.remaining { other } else { one };
        RateStanding {
            requests: less(self.requests, other.requests),
            tokens: less(self.tokens, other.tokens),
        }
    }
}

fn tokens(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn limited(message: String, wait: Duration) -> Refused {
    Refused::new(Kind::RateLimitExceeded, message + " Try again after the time in Retry-After.")
        .retry_after(wait)
}

#[cfg(test)]
mod tests;
