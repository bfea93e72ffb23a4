//! An exact token bucket: capacity is the limit per minute, refilled continuously.

use std::time::{Duration, Instant};

/// A level is kept in units times microseconds per minute, so that refilling is exact in integers.
const SCALE: i64 = 60_000_000;

/// A bucket of at most `per_minute` units.
#[derive(Debug)]
pub(super) struct Bucket {
    per_minute: i64,
    level: i64,
    filled_at: Instant,
}

/// Where a bucket stands, for the `x-ratelimit-*` headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Units per minute.
    pub limit: u64,
    /// Whole units left.
    pub remaining: u64,
    /// Time until the bucket is full.
    pub reset: Duration,
}

impl Bucket {
    /// A full bucket. Limits above 10^11 a minute count as 10^11.
    pub(super) fn new(per_minute: u64, now: Instant) -> Self {
        let per_minute = i64::try_from(per_minute.min(100_000_000_000)).unwrap_or(i64::MAX / SCALE);
        Bucket { per_minute, level: per_minute * SCALE, filled_at: now }
    }

    /// From now on its limit is this: what was taken before stays taken.
    pub(super) fn limit(&mut self, per_minute: u64, now: Instant) {
        let Bucket { per_minute, level: full, .. } = Bucket::new(per_minute, now);
        if per_minute == self.per_minute {
            return;
        }
        self.refill(now);
        let taken = self.per_minute * SCALE - self.level;
        self.per_minute = per_minute;
        self.level = full.saturating_sub(taken).clamp(-full, full);
    }

    /// Units per minute.
    pub(super) fn per_minute(&self) -> u64 {
        self.per_minute.unsigned_abs()
    }

    /// Takes units, or says how long until there are enough.
    pub(super) fn take(&mut self, units: u64, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        let wanted = scaled(units);
        if self.level >= wanted {
            self.level -= wanted;
            return Ok(());
        }
        Err(self.time_for(wanted.saturating_sub(self.level)))
    }

    /// Corrects what was taken before: positive takes more, negative gives back. The level never leaves
    /// minus capacity to capacity.
    pub(super) fn correct(&mut self, units: i64, now: Instant) {
        self.refill(now);
        let capacity = self.per_minute * SCALE;
        self.level = self.level.saturating_sub(units.saturating_mul(SCALE)).clamp(-capacity, capacity);
    }

    pub(super) fn standing(&mut self, now: Instant) -> Standing {
        self.refill(now);
        let capacity = self.per_minute * SCALE;
        Standing {
            limit: self.per_minute(),
            remaining: (self.level.max(0) / SCALE).unsigned_abs(),
            reset: self.time_for(capacity - self.level),
        }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at).as_micros();
        let passed_us = i64::try_from(passed).unwrap_or(i64::MAX);
        self.filled_at = self.filled_at.max(now);
        let refilled = self.level.saturating_add(passed_us.saturating_mul(self.per_minute));
        self.level = refilled.min(self.per_minute * SCALE);
    }

    fn time_for(&self, missing: i64) -> Duration {
        let microseconds = missing.max(0).unsigned_abs().div_ceil(self.per_minute.unsigned_abs().max(1));
        Duration::from_micros(microseconds)
    }
}

fn scaled(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX).saturating_mul(SCALE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, UnixMicros};

    #[test]
    fn the_limit_is_exact_and_refills_continuously() {
        let (clock, hand) = Clock::manual(UnixMicros(0));
        let mut bucket = Bucket::new(60, clock.now());
        for _ in 0..60 {
            assert!(bucket.take(1, clock.now()).is_ok());
        }
        assert_eq!(bucket.take(1, clock.now()), Err(Duration::from_secs(1)));
        hand.advance(Duration::from_micros(999_999));
        assert_eq!(bucket.take(1, clock.now()), Err(Duration::from_micros(1)));
        hand.advance(Duration::from_micros(1));
        assert!(bucket.take(1, clock.now()).is_ok());
        assert!(bucket.take(1, clock.now()).is_err());
        let standing = bucket.standing(clock.now());
        assert_eq!(standing, Standing { limit: 60, remaining: 0, reset: Duration::from_secs(60) });
    }

    #[test]
    fn another_limit_forgets_nothing_of_what_was_taken() {
        let (clock, hand) = Clock::manual(UnixMicros(0));
        let mut bucket = Bucket::new(100, clock.now());
        bucket.take(90, clock.now()).unwrap();
        bucket.limit(1_000, clock.now());
        assert_eq!(bucket.standing(clock.now()).remaining, 910);
        bucket.limit(60, clock.now());
        // 90 of 60 are taken: the next is there when 31 have come back.
        assert_eq!(bucket.take(1, clock.now()), Err(Duration::from_secs(31)));
        bucket.limit(100, clock.now());
        assert_eq!(bucket.standing(clock.now()).remaining, 10);
        hand.advance(Duration::from_secs(60));
        bucket.limit(100_000, clock.now());
        bucket.take(100_000, clock.now()).unwrap();
        bucket.limit(1, clock.now());
        // As deep as a bucket can be.
        assert_eq!(bucket.standing(clock.now()).reset, Duration::from_secs(120));
    }

    #[test]
    fn corrections_stay_between_minus_capacity_and_capacity() {
        let (clock, hand) = Clock::manual(UnixMicros(0));
        let mut bucket = Bucket::new(100, clock.now());
        bucket.correct(1_000, clock.now());
        assert_eq!(bucket.standing(clock.now()).reset, Duration::from_secs(120));
        hand.advance(Duration::from_secs(60));
        assert_eq!(bucket.standing(clock.now()).remaining, 0);
        bucket.correct(-1_000_000, clock.now());
        assert_eq!(bucket.standing(clock.now()).remaining, 100);
    }
}
