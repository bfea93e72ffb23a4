//! What is known of one candidate from the requests that it was sent: is it to be left alone, and how quick is it?
//!
//! A circuit opens after failures in a row, or when too many of the recent requests failed. It stays open for a time that doubles with
//! each failed probe and is never quite the same; then one request at a time is let through, and the first that is answered closes it. A
//! provider that says when to come back is left alone until then.

use super::fraction;
use super::latency::Peak;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When a candidate is left alone, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Failures in a row that open the circuit; at least 1.
    pub failures_max: u32,
    /// The share of failed requests that opens it.
    pub error_percent: u32,
    /// Over this time.
    pub error_window: Duration,
    /// If there were at least so many requests.
    pub error_requests_min: u32,
    /// How long it stays open at first.
    pub backoff: Duration,
    /// And at most.
    pub backoff_max: Duration,
    /// The longest that a provider's own word to come back later is obeyed.
    pub cool_down_max: Duration,
}

/// The state of one candidate, shared by all requests.
#[derive(Debug)]
pub struct Health {
    settings: Settings,
    memory: Arc<Memory>,
}

/// What was seen of a candidate, under whatever settings.
#[derive(Debug)]
struct Memory {
    outstanding: AtomicU32,
    /// Locked for a few lines, never across an await.
    state: Mutex<State>,
}

/// Whether a candidate can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is healthy.
    Closed,
    /// It has been left alone for long enough, and nobody tries it at the moment.
    HalfOpen,
    /// It fails; until when it is left alone.
    Open(Instant),
    /// It said when to come back.
    Cooling(Instant),
    /// The same, and a request tries it all the same at the moment.
    CoolingTried(Instant),
}

#[derive(Debug)]
struct State {
    /// `Some` while the circuit is not closed.
    open_until: Option<Instant>,
    cool_until: Option<Instant>,
    /// A request tries it although it is to be left alone; one at a time.
    is_tried: bool,
    in_a_row: u32,
    /// How often it has opened since it was last closed.
    opened: u32,
    window: Window,
    /// Of answers that are whole, and of those that are streamed: the one takes as long as the answer, the other does not.
    latency: [Peak; 2],
}

/// Requests of this half of the window and of the one before.
#[derive(Debug, Default)]
struct Window {
    begun: Option<Instant>,
    halves: [Tally; 2],
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    requests: u32,
    failures: u32,
}

/// One attempt at a candidate, counted among its outstanding ones until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Trial {
    health: Arc<Health>,
    is_streamed: bool,
    begun: Instant,
    /// It holds the place of the one that tries a candidate that is to be left alone.
    has_place: bool,
    /// The candidate was chosen although it was not healthy: an answer shows that it is again.
    is_doubtful: bool,
    is_judged: bool,
}

/// The circuit opens for at most so many doublings of its first time.
const DOUBLINGS_MAX: u32 = 16;

impl Health {
    /// Of a candidate of which nothing has been seen.
    pub fn new(settings: Settings) -> Self {
        let state = State {
            open_until: None,
            cool_until: None,
            is_tried: false,
            in_a_row: 0,
            opened: 0,
            window: Window::default(),
            latency: [Peak::default(); 2],
        };
        Health {
            settings,
            memory: Arc::new(Memory { outstanding: AtomicU32::new(0), state: Mutex::new(state) }),
        }
    }

    /// The same candidate, judged by these settings from now on: what was and is seen of it is seen of both.
    pub fn under(&self, settings: Settings) -> Self {
        Health { settings, memory: Arc::clone(&self.memory) }
    }

    /// Whether it can be chosen now.
    pub fn standing(&self, now: Instant) -> Standing {
        self.state().standing(now)
    }

    /// Attempts under way.
    pub fn outstanding(&self) -> u32 {
        self.memory.outstanding.load(Ordering::Relaxed)
    }

    /// The mean time to the head of an answer, in seconds; 0 where none was seen.
    pub(super) fn latency_s(&self, is_streamed: bool, now: Instant) -> f64 {
        self.state().latency[usize::from(is_streamed)].seconds(now)
    }

    /// Begins an attempt at it. `None` where its standing allows one at a time and another was first.
    pub(super) fn try_it(self: &Arc<Self>, is_streamed: bool, now: Instant) -> Option<Trial> {
        let mut state = self.state();
        let standing = state.standing(now);
        let needs_place = match standing {
            Standing::CoolingTried(_) => return None,
            Standing::HalfOpen | Standing::Cooling(_) => true,
            Standing::Closed | Standing::Open(_) => false,
        };
        state.is_tried |= needs_place;
        drop(state);
        self.memory.outstanding.fetch_add(1, Ordering::Relaxed);
        Some(Trial {
            health: Arc::clone(self),
            is_streamed,
            begun: now,
            has_place: needs_place,
            is_doubtful: standing != Standing::Closed,
            is_judged: false,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.memory.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn standing(&self, now: Instant) -> Standing {
        match (self.cool_until.filter(|until| *until > now), self.open_until) {
            (Some(until), open) => {
                let until = open.map_or(until, |open| open.max(until));
                if self.is_tried { Standing::CoolingTried(until) } else { Standing::Cooling(until) }
            }
            (None, None) => Standing::Closed,
            (None, Some(until)) if until > now || self.is_tried => Standing::Open(until),
            (None, Some(_)) => Standing::HalfOpen,
        }
    }

    /// Whether what was seen is enough to leave it alone.
    fn is_bad(&self, settings: &Settings) -> bool {
        let Tally { requests, failures } = self.window.sum();
        let rate = u64::from(failures) * 100 >= u64::from(requests) * u64::from(settings.error_percent);
        self.in_a_row >= settings.failures_max || (requests >= settings.error_requests_min && rate)
    }

    /// Leaves it alone for the first time, twice that after each failed probe, at most the longest; each time with up to a half of it
    /// off, so that probes of many processes do not come together.
    fn open(&mut self, settings: &Settings, now: Instant, random: u64) {
        let doubled = settings.backoff.saturating_mul(1 << self.opened.min(DOUBLINGS_MAX));
        let time = doubled.min(settings.backoff_max).mul_f64(1.0 - fraction(random) / 2.0);
        self.open_until = Some(now + time);
        self.opened = self.opened.saturating_add(1);
    }

    fn close(&mut self) {
        self.open_until = None;
        self.cool_until = None;
        self.opened = 0;
        self.in_a_row = 0;
        self.window = Window::default();
    }
}

impl Window {
    fn count(&mut self, now: Instant, length: Duration, failed: bool) {
        let half = length / 2;
        let begun = *self.begun.get_or_insert(now);
        let age = now.saturating_duration_since(begun);
        if age >= length {
            *self = Window { begun: Some(now), ..Window::default() };
        } else if age >= half {
            self.halves = [Tally::default(), self.halves[0]];
            self.begun = Some(begun + half);
        }
        self.halves[0].requests = self.halves[0].requests.saturating_add(1);
        self.halves[0].failures = self.halves[0].failures.saturating_add(u32::from(failed));
    }

    fn sum(&self) -> Tally {
        let [this, last] = self.halves;
        Tally {
            requests: this.requests.saturating_add(last.requests),
            failures: this.failures.saturating_add(last.failures),
        }
    }
}

impl Trial {
    /// The same candidate is tried once more, from now on.
    pub fn again(&mut self, now: Instant) {
        self.begun = now;
    }

    /// The head of a success is there.
    pub fn answered(&mut self, now: Instant) {
        let sample = now.saturating_duration_since(self.begun);
        let mut state = self.health.state();
        state.latency[usize::from(self.is_streamed)].observe(now, sample);
        if self.is_doubtful {
            state.close();
        }
        if self.has_place {
            state.is_tried = false;
            self.has_place = false;
        }
    }

    /// The answer is whole.
    pub fn completed(&mut self, now: Instant) {
        if std::mem::replace(&mut self.is_judged, true) {
            return;
        }
        let mut state = self.health.state();
        state.in_a_row = 0;
        state.window.count(now, self.health.settings.error_window, false);
    }

    /// The attempt failed by the provider's doing. With `come_back`, the provider said when. True where the circuit opened by it.
    pub fn failed(&mut self, now: Instant, random: u64, come_back: Option<Duration>) -> bool {
        if std::mem::replace(&mut self.is_judged, true) {
            return false;
        }
        let settings = &self.health.settings;
        let mut state = self.health.state();
        if std::mem::take(&mut self.has_place) {
            state.is_tried = false;
        }
        if let Some(wait) = come_back {
            let until = now + wait.min(settings.cool_down_max);
            state.cool_until = state.cool_until.max(Some(until));
        }
        state.in_a_row = state.in_a_row.saturating_add(1);
        state.window.count(now, settings.error_window, true);
        let opens = match state.open_until {
            None => state.is_bad(settings),
            // Of those that fail while it is open, only the one that came after its time says anything new.
            Some(until) => self.is_doubtful && self.begun >= until,
        };
        if opens {
            state.open(settings, now, random);
        }
        opens
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.health.memory.outstanding.fetch_sub(1, Ordering::Relaxed);
        if self.has_place {
            self.health.state().is_tried = false;
        }
    }
}
