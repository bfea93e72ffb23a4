//! Providers that are read on although their client has left, because what they report is the bill.
//!
//! Promises: at no time more than so many in the process; each ends in a bounded time, after a bounded number of bytes. Refuses to
//! know: which provider deserves it, and what is billed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// How far a provider is read on.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// From the moment in which the client was seen to leave.
    pub max_time: Duration,
    /// Of the answer, from that moment on.
    pub max_bytes: usize,
    /// At once, in the whole process.
    pub max_requests: usize,
}

/// All that is read on at a time. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct Drains {
    settings: Settings,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    open: AtomicUsize,
    turned_away: AtomicU64,
}

/// A place among those that are read on; given back by `Drop`.
#[derive(Debug)]
pub(super) struct Place {
    settings: Settings,
    counts: Arc<Counts>,
}

impl Drains {
    /// None is open yet.
    pub fn new(settings: Settings) -> Self {
        Drains { settings, counts: Arc::default() }
    }

    /// The same places within other bounds. Those that are taken keep theirs.
    pub fn under(&self, settings: Settings) -> Self {
        Drains { settings, counts: Arc::clone(&self.counts) }
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::Relaxed)
    }

    /// How many found no place, ever: their providers were left with their clients.
    pub fn turned_away(&self) -> u64 {
        self.counts.turned_away.load(Ordering::Relaxed)
    }

    /// A place, where there is one.
    pub(super) fn begin(&self) -> Option<Place> {
        let most = self.settings.max_requests;
        let taken = self
            .counts
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < most).then_some(open + 1));
        if taken.is_err() {
            self.counts.turned_away.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Place { settings: self.settings, counts: Arc::clone(&self.counts) })
    }
}

impl Place {
    pub(super) fn settings(&self) -> Settings {
        self.settings
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.counts.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_only_so_many_places_and_each_comes_back() {
        let settings = Settings { max_time: Duration::from_secs(1), max_bytes: 1, max_requests: 2 };
        let drains = Drains::new(settings);
        let first = drains.begin().unwrap();
        let second = drains.clone().begin().unwrap();
        assert!(drains.begin().is_none());
        assert_eq!((drains.open(), drains.turned_away()), (2, 1));
        drop(first);
        assert!(drains.begin().is_some());
        drop(second);
        assert_eq!(drains.open(), 0);
    }
}
