//! How long a candidate takes to begin an answer: a mean that believes bad news at once and good news slowly.

use std::time::{Duration, Instant};

/// A peak-sensitive, exponentially weighted mean (as Finagle's peak EWMA): a sample above it becomes it, one below it pulls it down by
/// its age. It also fades while nothing is seen, so that a slow candidate is tried again some time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peak {
    seconds: f64,
    seen_at: Option<Instant>,
}

/// The time in which the weight of what was seen falls to 1/e.
const MEMORY: Duration = Duration::from_secs(30);

impl Peak {
    /// The mean now, in seconds; 0 where nothing was ever seen.
    pub(super) fn seconds(&self, now: Instant) -> f64 {
        self.seconds * self.weight(now)
    }

    pub(super) fn observe(&mut self, now: Instant, sample: Duration) {
        let (weight, sample) = (self.weight(now), sample.as_secs_f64());
        self.seconds = if sample >= self.seconds * weight {
            sample
        } else {
            self.seconds * weight + sample * (1.0 - weight)
        };
        self.seen_at = Some(now);
    }

    fn weight(&self, now: Instant) -> f64 {
        let age = self.seen_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        (-age.as_secs_f64() / MEMORY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, UnixMicros};

    #[test]
    fn bad_news_count_at_once_good_news_slowly_and_old_news_fade() {
        let (clock, hand) = Clock::manual(UnixMicros(0));
        let mut peak = Peak::default();
        peak.observe(clock.now(), Duration::from_millis(100));
        peak.observe(clock.now(), Duration::from_secs(2));
        assert!((peak.seconds(clock.now()) - 2.0).abs() < 1e-9);
        hand.advance(Duration::from_secs(3));
        peak.observe(clock.now(), Duration::from_millis(100));
        let after = peak.seconds(clock.now());
        assert!((1.5..2.0).contains(&after), "{after}");
        hand.advance(Duration::from_secs(300));
        assert!(peak.seconds(clock.now()) < 0.001);
    }
}
