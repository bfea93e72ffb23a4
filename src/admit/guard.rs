//! The guard in front: how often an address may ask, how often it may fail to authenticate, and how much of both the process takes.
//!
//! The sketch over-counts when it is small; at this size 50,000 addresses at once are over-counted in about one case in ten.
//! It guards, it does not meter: paid limits are exact and live elsewhere. Loopback is never limited by address: it is the operator, or a
//! proxy in front.

use crate::refusal::{Kind, Limit, Refused};
use pingora_limits::rate::Rate;
use std::net::IpAddr;
use std::time::Duration;

/// How much is let through in a second. 0 sets no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardSettings {
    /// Requests of all addresses.
    pub requests: u32,
    /// Requests of one address.
    pub requests_per_address: u32,
    /// Requests without a good key, of all addresses.
    pub failures: u32,
    /// Requests without a good key, of one address.
    pub failures_per_address: u32,
}

/// Counts requests and failures: of each address, and of all together.
pub struct Guard {
    requests: Rate,
    failures: Rate,
}

const HASHES: usize = 4;
const SLOTS: usize = 65_536;
/// The window. Below one second the sketch's clock arithmetic can fail.
const WINDOW: Duration = Duration::from_secs(1);

impl Default for Guard {
    /// A guard that has counted nothing.
    fn default() -> Self {
        let sketch = || Rate::new_with_estimator_config(WINDOW, HASHES, SLOTS);
        Guard { requests: sketch(), failures: sketch() }
    }
}

impl Guard {
    /// Counts a request of this address. Refuses with `no_capacity` where the process takes no more, with `rate_limit_exceeded` where the
    /// address asks too often.
    pub fn arrived(&self, settings: &GuardSettings, address: Option<IpAddr>) -> Result<(), Refused> {
        let GuardSettings { requests, requests_per_address, .. } = *settings;
        // The address first: what it is refused counts for nobody else.
        let own = address.filter(is_limited).map(subscriber);
        if own.is_some() && is_above(&self.requests, own, requests_per_address) {
            return Err(too_many("Too many requests from this address.", Limit::AddressRequests));
        }
        if is_above(&self.requests, None, requests) {
            return Err(Refused::new(
                Kind::NoCapacity,
                "The service is busy at the moment; try again shortly.",
            )
            .retry_after(WINDOW)
            .limit(Limit::ProcessRequests)
            .internal("the process is asked more often than it is to be in a second"));
        }
        Ok(())
    }

    /// Counts a failure of this address.
    pub fn failed(&self, settings: &GuardSettings, address: Option<IpAddr>) -> Result<(), Refused> {
        let GuardSettings { failures, failures_per_address, .. } = *settings;
        let Some(address) = address.filter(is_limited).map(subscriber) else { return Ok(()) };
        let of_all = is_above(&self.failures, None, failures);
        if is_above(&self.failures, Some(address), failures_per_address) || of_all {
            return Err(too_many("Too many requests without a valid API key.", Limit::AddressFailures));
        }
        Ok(())
    }
}

/// Whose address it is, as far as limits go: a customer of an access provider has an IPv4 address, or a whole /64 of IPv6 (RFC 6177).
pub fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
    }
}

fn is_limited(address: &IpAddr) -> bool {
    !address.to_canonical().is_loopback()
}

/// Counts one more of `whose`, `None` being everybody, and tells whether that is above the limit.
fn is_above(sketch: &Rate, whose: Option<IpAddr>, limit: u32) -> bool {
    limit > 0 && sketch.observe(&whose, 1) > isize::try_from(limit).unwrap_or(isize::MAX)
}

fn too_many(message: &str, limit: Limit) -> Refused {
    Refused::new(Kind::RateLimitExceeded, message).retry_after(WINDOW).limit(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: GuardSettings =
        GuardSettings { requests: 0, requests_per_address: 0, failures: 0, failures_per_address: 0 };

    /// The window may turn once while this runs.
    fn refused(mut ask: impl FnMut() -> Result<(), Refused>) -> (usize, Option<Kind>) {
        let refusals: Vec<Refused> = (0..100).filter_map(|_| ask().err()).collect();
        (refusals.len(), refusals.first().map(|refused| refused.kind))
    }

    #[test]
    fn an_address_is_limited_loopback_is_not() {
        let one: Option<IpAddr> = Some("192.0.2.1".parse().unwrap());
        let limits = GuardSettings { failures_per_address: 5, requests_per_address: 7, ..NONE };
        let guard = Guard::default();
        let (failures, kind) = refused(|| guard.failed(&limits, one));
        assert!((90..=95).contains(&failures) && kind == Some(Kind::RateLimitExceeded), "{failures}");
        let (requests, kind) = refused(|| guard.arrived(&limits, one));
        assert!((86..=93).contains(&requests) && kind == Some(Kind::RateLimitExceeded), "{requests}");
        let other: Option<IpAddr> = Some("192.0.2.2".parse().unwrap());
        assert!(guard.failed(&limits, other).is_ok() && guard.arrived(&limits, other).is_ok());
        for local in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            let local = Some(local.parse().unwrap());
            assert_eq!(
                (refused(|| guard.failed(&limits, local)).0, refused(|| guard.arrived(&limits, local)).0),
                (0, 0)
            );
        }
    }

    #[test]
    fn all_addresses_together_are_limited_too() {
        let limits = GuardSettings { requests: 10, failures: 10, ..NONE };
        let guard = Guard::default();
        let mut last = 0;
        let mut next = || {
            last += 1;
            Some(IpAddr::from([192, 0, 2, last]))
        };
        let (failures, kind) = refused(|| guard.failed(&limits, next()));
        assert!((80..=90).contains(&failures) && kind == Some(Kind::RateLimitExceeded), "{failures}");
        let (requests, kind) = refused(|| guard.arrived(&limits, None));
        assert!((80..=90).contains(&requests) && kind == Some(Kind::NoCapacity), "{requests}");
    }

    #[test]
    fn zero_is_no_limit() {
        let (guard, limits) = (Guard::default(), NONE);
        let one: Option<IpAddr> = Some("192.0.2.1".parse().unwrap());
        assert_eq!(
            (refused(|| guard.failed(&limits, one)).0, refused(|| guard.arrived(&limits, one)).0),
            (0, 0)
        );
    }
}
