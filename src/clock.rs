//! The only reader of time.
//!
//! Promises: wall time in microseconds since 1970 UTC, monotonic time as [`Instant`], and a clock for tests that moves when told.
//! Refuses to know: time zones, calendars, what a deadline is for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMicros(pub i64);

/// A source of time, cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual { start: Instant, wall_start: UnixMicros, passed_us: Arc<AtomicU64> },
}

/// Moves the clock that it was made with.
#[derive(Clone, Debug)]
pub struct Hand(Arc<AtomicU64>);

impl Clock {
    /// The machine's clock.
    pub const fn system() -> Self {
        Clock(Source::System)
    }

    /// A clock that stands still until its [`Hand`] moves it. It starts at `wall_start`.
    #[expect(clippy::disallowed_methods, reason = "the one place where time is read")]
    pub fn manual(wall_start: UnixMicros) -> (Self, Hand) {
        let passed_us = Arc::new(AtomicU64::new(0));
        let source = Source::Manual { start: Instant::now(), wall_start, passed_us: Arc::clone(&passed_us) };
        (Clock(source), Hand(passed_us))
    }

    /// Wall time, which can jump.
    #[expect(clippy::disallowed_methods, reason = "the one place where time is read")]
    pub fn wall(&self) -> UnixMicros {
        match &self.0 {
            Source::System => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                UnixMicros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
            }
            Source::Manual { wall_start, passed_us, .. } => {
                let passed = i64::try_from(passed_us.load(Ordering::SeqCst)).unwrap_or(i64::MAX);
                UnixMicros(wall_start.0.saturating_add(passed))
            }
        }
    }

    /// Monotonic time, which only moves forward.
    #[expect(clippy::disallowed_methods, reason = "the one place where time is read")]
    pub fn now(&self) -> Instant {
        match &self.0 {
            Source::System => Instant::now(),
            Source::Manual { start, passed_us, .. } => {
                *start + Duration::from_micros(passed_us.load(Ordering::SeqCst))
            }
        }
    }
}

impl Hand {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_micros()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }
}

impl UnixMicros {
    /// This time and `by` more, at the end of representable time if it would not fit.
    pub fn saturating_add(self, by: Duration) -> Self {
        UnixMicros(self.0.saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }
}
