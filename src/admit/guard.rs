//! The guard in front: how often one address may fail to authenticate.
//!
//! The sketch over-counts when it is small; at this size 50,000 addresses at once are over-counted in about one case in ten.
//! It guards, it does not meter: paid limits are exact and live elsewhere.

use crate::refusal::{Kind, Refused};
use pingora_limits::rate::Rate;
use std::net::IpAddr;
use std::time::Duration;

const HASHES: usize = 4;
const SLOTS: usize = 65_536;
/// The window. Below one second the sketch's clock arithmetic can fail.
const WINDOW: Duration = Duration::from_secs(1);

/// Counts failures by address.
pub struct Guard {
    failures: Rate,
    failures_per_second: isize,
}

impl Guard {
    /// A guard that lets an address fail so often in a second.
    pub fn new(failures_per_second: u32) -> Self {
        Guard {
            failures: Rate::new_with_estimator_config(WINDOW, HASHES, SLOTS),
            failures_per_second: isize::try_from(failures_per_second).unwrap_or(isize::MAX),
        }
    }

    /// Counts a failure of this address. Loopback is never limited: it is the operator, or a proxy in front.
    pub fn failed(&self, address: IpAddr) -> Result<(), Refused> {
        if address.is_loopback() || self.failures.observe(&address, 1) <= self.failures_per_second {
            return Ok(());
        }
        Err(Refused::new(
            Kind::RateLimitExceeded,
            "Too many requests without a valid API key from this address.",
        )
        .retry_after(WINDOW))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_limited_loopback_is_not() {
        let guard = Guard::new(5);
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let refused = (0..100).filter(|_| guard.failed(one).is_err()).count();
        // The window may turn once while this runs.
        assert!((90..=95).contains(&refused), "{refused}");
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        assert!((0..100).all(|_| guard.failed(loopback).is_ok()));
    }
}
