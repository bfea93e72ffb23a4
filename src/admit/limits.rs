//! The limits of a tier, per account: requests and tokens per minute, and requests at once.

use super::bucket::{Bucket, Standing};
use crate::clock::Clock;
use crate::ids::AccountId;
use crate::refusal::{Kind, Refused};
use moka::sync::Cache;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What a tier allows an account in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Requests per minute; at least 1.
    pub requests_per_minute: u64,
    /// Tokens per minute, input and output together; at least 1.
    pub tokens_per_minute: u64,
    /// Requests at once; at least 1.
    pub concurrent_requests: u64,
}

/// The state of every account's limits.
pub(super) struct Limits {
    accounts: Cache<AccountId, Arc<AccountLimits>>,
    clock: Clock,
}

struct AccountLimits {
    tier: Tier,
    state: Mutex<State>,
}

struct State {
    requests: Bucket,
    tokens: Bucket,
    concurrent: u64,
}

/// A place among the account's concurrent requests, given back by `Drop`.
#[must_use]
pub struct Permit {
    limits: Arc<AccountLimits>,
    clock: Clock,
    tokens_taken: u64,
}

/// What the `x-ratelimit-*` headers of an answer say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateStanding {
    /// Requests per minute.
    pub requests: Standing,
    /// Tokens per minute.
    pub tokens: Standing,
}

/// An account that asks nothing for this long has full buckets anyway.
const IDLE_MAX: Duration = Duration::from_secs(7_200);
/// Accounts whose limits are kept.
const ACCOUNTS_MAX: u64 = 1_000_000;
/// What a client is told to wait when all its places are taken.
const CONCURRENCY_WAIT: Duration = Duration::from_secs(1);

impl Limits {
    pub(super) fn new(clock: Clock) -> Self {
        Limits { accounts: Cache::builder().max_capacity(ACCOUNTS_MAX).time_to_idle(IDLE_MAX).build(), clock }
    }

    /// Counts a request and takes a place for it.
    pub(super) fn enter(&self, account: AccountId, tier: Tier) -> Result<Permit, Refused> {
        let limits = self.of(account, tier);
        let now = self.clock.now();
        {
            let mut state = limits.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.concurrent >= tier.concurrent_requests {
                return Err(limited(
                    format!(
                        "This account already has {} requests under way, its limit.",
                        tier.concurrent_requests
                    ),
                    CONCURRENCY_WAIT,
                ));
            }
            state.requests.take(1, now).map_err(|wait| {
                limited(
                    format!("This account is limited to {} requests per minute.", tier.requests_per_minute),
                    wait,
                )
            })?;
            state.concurrent += 1;
        }
        Ok(Permit { limits, clock: self.clock.clone(), tokens_taken: 0 })
    }

    /// Where the account stands, for an answer that took no place.
    pub(super) fn standing(&self, account: AccountId, tier: Tier) -> RateStanding {
        self.of(account, tier).standing(&self.clock)
    }

    fn of(&self, account: AccountId, tier: Tier) -> Arc<AccountLimits> {
        let fresh = || Arc::new(AccountLimits::new(tier, &self.clock));
        let limits = self.accounts.get_with(account, fresh);
        if limits.tier == tier {
            return limits;
        }
        let changed = fresh();
        self.accounts.insert(account, Arc::clone(&changed));
        changed
    }
}

impl AccountLimits {
    fn new(tier: Tier, clock: &Clock) -> Self {
        let now = clock.now();
        let state = State {
            requests: Bucket::new(tier.requests_per_minute, now),
            tokens: Bucket::new(tier.tokens_per_minute, now),
            concurrent: 0,
        };
        AccountLimits { tier, state: Mutex::new(state) }
    }

    fn standing(&self, clock: &Clock) -> RateStanding {
        let now = clock.now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        RateStanding { requests: state.requests.standing(now), tokens: state.tokens.standing(now) }
    }
}

impl Permit {
    /// Takes the estimated tokens of the request. An estimate above a whole minute's tokens can never pass.
    pub(super) fn take_tokens(&mut self, estimate: u64) -> Result<(), Refused> {
        let limit = self.limits.tier.tokens_per_minute;
        if estimate > limit {
            return Err(Refused::new(
                Kind::TokensExceedLimit,
                format!(
                    "This request needs about {estimate} tokens; this account is limited to {limit} per minute. \
                     Shorten the input or lower the output limit."
                ),
            ));
        }
        let mut state = self.limits.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.tokens.take(estimate, self.clock.now()).map_err(|wait| {
            limited(format!("This account is limited to {limit} tokens per minute."), wait)
        })?;
        drop(state);
        self.tokens_taken = estimate;
        Ok(())
    }

    /// Corrects the estimate by what was used.
    pub fn used_tokens(&mut self, used: u64) {
        let difference =
            i64::try_from(used).unwrap_or(i64::MAX) - i64::try_from(self.tokens_taken).unwrap_or(i64::MAX);
        self.tokens_taken = used;
        let mut state = self.limits.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.tokens.correct(difference, self.clock.now());
    }

    /// Gives back the request that was counted on the head: its body was refused.
    pub fn forgive_request(&mut self) {
        let mut state = self.limits.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.requests.correct(-1, self.clock.now());
    }

    /// Where the account stands after this request.
    pub fn standing(&self) -> RateStanding {
        self.limits.standing(&self.clock)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.limits.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.concurrent = state.concurrent.saturating_sub(1);
    }
}

fn limited(message: String, wait: Duration) -> Refused {
    Refused::new(Kind::RateLimitExceeded, message + " Try again after the time in Retry-After.")
        .retry_after(wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMicros;

    const TIER: Tier = Tier { requests_per_minute: 10, tokens_per_minute: 100, concurrent_requests: 2 };

    #[test]
    fn a_place_comes_back_by_drop_and_a_refusal_takes_none() {
        let (clock, _hand) = Clock::manual(UnixMicros(0));
        let (limits, account) = (Limits::new(clock), AccountId::new());
        let first = limits.enter(account, TIER).unwrap();
        let _second = limits.enter(account, TIER).unwrap();
        assert_eq!(limits.enter(account, TIER).err().unwrap().kind, Kind::RateLimitExceeded);
        drop(first);
        assert!(limits.enter(account, TIER).is_ok());
        assert_eq!(limits.standing(account, TIER).requests.remaining, 7);
    }

    #[test]
    fn an_estimate_is_corrected_by_what_was_used() {
        let (clock, _hand) = Clock::manual(UnixMicros(0));
        let (limits, account) = (Limits::new(clock), AccountId::new());
        let mut permit = limits.enter(account, TIER).unwrap();
        assert_eq!(permit.take_tokens(101).unwrap_err().kind, Kind::TokensExceedLimit);
        permit.take_tokens(80).unwrap();
        permit.used_tokens(30);
        assert_eq!(permit.standing().tokens.remaining, 70);
        permit.forgive_request();
        assert_eq!(permit.standing().requests.remaining, 10);
    }
}
