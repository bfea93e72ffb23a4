//! What retries may add to the traffic of a model.
//!
//! Promises: over the last ten seconds, retries are at most a share of the requests, and a small number besides, so that a provider that
//! fails under load is not sent its load twice. Refuses to know: what failed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// How much retries may add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Of the requests of the last ten seconds.
    pub percent: u32,
    /// Besides, for models with little traffic.
    pub min_per_second: u32,
}

/// The requests and retries of the last seconds.
#[derive(Debug)]
pub struct RetryBudget {
    settings: Settings,
    memory: Arc<Memory>,
}

#[derive(Debug)]
struct Memory {
    begun: Instant,
    /// Locked for a few additions.
    seconds: Mutex<[Second; SECONDS]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    number: u64,
    requests: u64,
    retries: u64,
}

/// How far back it looks.
const SECONDS: usize = 10;

impl RetryBudget {
    /// One that has seen nothing.
    pub fn new(settings: Settings, now: Instant) -> Self {
        RetryBudget { settings, memory: Arc::new(Memory { begun: now, seconds: Mutex::default() }) }
    }

    /// The same traffic under other settings.
    pub fn under(&self, settings: Settings) -> Self {
        RetryBudget { settings, memory: Arc::clone(&self.memory) }
    }

    /// Counts a request.
    pub fn request(&self, now: Instant) {
        self.with(now, |seconds, at| seconds[at].requests += 1);
    }

    /// Takes one retry, if there is one.
    pub fn take(&self, now: Instant) -> bool {
        let Settings { percent, min_per_second } = self.settings;
        self.with(now, |seconds, at| {
            let newest = seconds[at].number;
            let recent = seconds.iter().filter(|second| second.number + SECONDS as u64 > newest);
            let (requests, retries) =
                recent.fold((0_u64, 0_u64), |sum, second| (sum.0 + second.requests, sum.1 + second.retries));
            let most = requests * u64::from(percent) / 100 + u64::from(min_per_second) * SECONDS as u64;
            let is_left = retries < most;
            if is_left {
                seconds[at].retries += 1;
            }
            is_left
        })
    }

    /// Gives a retry back that was taken and not made.
    pub fn give_back(&self, now: Instant) {
        self.with(now, |seconds, at| seconds[at].retries = seconds[at].retries.saturating_sub(1));
    }

    /// Works on the seconds, that of `now` begun where it is new.
    fn with<T>(&self, now: Instant, work: impl FnOnce(&mut [Second; SECONDS], usize) -> T) -> T {
        let number = now.saturating_duration_since(self.memory.begun).as_secs();
        let mut seconds = self.memory.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        let at = usize::try_from(number % SECONDS as u64).unwrap_or(0);
        if seconds[at].number != number {
            seconds[at] = Second { number, ..Second::default() };
        }
        work(&mut seconds, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, UnixMicros};
    use std::time::Duration;

    #[test]
    fn retries_are_a_share_of_the_traffic_and_a_few_besides() {
        let (clock, hand) = Clock::manual(UnixMicros(0));
        let budget = RetryBudget::new(Settings { percent: 20, min_per_second: 1 }, clock.now());
        let taken = |budget: &RetryBudget| (0..1_000).take_while(|_| budget.take(clock.now())).count();
        assert_eq!(taken(&budget), 10);
        (0..500).for_each(|_| budget.request(clock.now()));
        assert_eq!(taken(&budget), 100);
        hand.advance(Duration::from_secs(9));
        assert_eq!(taken(&budget), 0);
        hand.advance(Duration::from_secs(1));
        // What was ten seconds ago is forgotten, traffic and retries both.
        assert_eq!(taken(&budget), 10);
    }
}
