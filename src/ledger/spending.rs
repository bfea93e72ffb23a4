//! What keys with a limit of their own have spent in their window.
//!
//! Promises: what this process spends and holds by a key counts at once, and is in the database with the settlements, so that a restart
//! forgets nothing; what other processes spend by it counts here within [`FOLLOW_EVERY`] of its batch. The bound of a limit is therefore
//! the limit, and what other live processes settle and hold in that time, and the error of estimates. A key that was idle is followed no
//! more: its first use reads once what others spent meanwhile, or goes on with what is known where the database does not answer.

use super::Inner;
use super::Shortage;
use crate::clock::UnixMicros;
use crate::ids::KeyId;
use crate::money::Picos;
use crate::spend::{SpendLimit, SpendWindow};
use crate::store::StoreError;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// The keys with a limit that were used.
#[derive(Default)]
pub(super) struct Spending {
    meters: RwLock<HashMap<KeyId, Arc<KeyMeter>>>,
    /// The database has not answered, and [`follow`] has not found it again: nobody waits for it.
    is_away: AtomicBool,
}

/// One key's limit and what counts against it.
pub(super) struct KeyMeter {
    limit: Picos,
    window: SpendWindow,
    /// The first read of what was spent, once; and one read after it was idle.
    loading: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

/// Invariant: nothing here is below zero, but for `held`, which a change of windows does not touch.
struct State {
    /// When the window began.
    start: UnixMicros,
    /// Spent in it by this session.
    own_pico: i64,
    /// By others, as far as it is known.
    others_pico: i64,
    held_pico: i64,
    is_loaded: bool,
    /// It was idle, and others may have spent more than is known.
    is_stale: bool,
    used_at: Instant,
}

/// How often what other processes spend is read.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// A key that is not used for this long is no longer followed.
const STALE_AFTER: Duration = Duration::from_secs(2 * FOLLOW_EVERY.as_secs());
/// A key that is not used for this long is read from the database again when it is.
const IDLE_MAX: Duration = Duration::from_secs(3_600);
/// Keys read at once.
const KEYS_AT_ONCE: usize = 500;

impl Spending {
    /// The meter of a key, turned to the window of this time.
    pub(super) fn meter(&self, key: KeyId, limit: SpendLimit, at: UnixMicros, now: Instant) -> Arc<KeyMeter> {
        let known = self.meters.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let meter = known.unwrap_or_else(|| {
            let mut meters = self.meters.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(meters.entry(key).or_insert_with(|| Arc::new(KeyMeter::new(limit, at, now))))
        });
        meter.turn(at, now);
        meter
    }

    fn used_since(&self, since: Instant) -> Vec<(KeyId, Arc<KeyMeter>)> {
        let meters = self.meters.read().unwrap_or_else(PoisonError::into_inner);
        let is_used = |meter: &KeyMeter| {
            let state = meter.state();
            state.is_loaded && (state.used_at >= since || state.held_pico > 0)
        };
        meters
            .iter()
            .filter(|(_, meter)| is_used(meter))
            .map(|(key, meter)| (*key, Arc::clone(meter)))
            .collect()
    }

    /// Forgets keys that nobody uses. Only where all that this session has settled is in the database, to be read from there.
    fn forget_idle(&self, now: Instant) {
        let mut meters = self.meters.write().unwrap_or_else(PoisonError::into_inner);
        meters.retain(|_, meter| {
            let state = meter.state();
            // One that a request has at hand stays, too.
            let is_idle = now.saturating_duration_since(state.used_at) >= IDLE_MAX && state.held_pico == 0;
            !is_idle || Arc::strong_count(meter) > 1
        });
    }
}

impl KeyMeter {
    fn new(limit: SpendLimit, at: UnixMicros, now: Instant) -> Self {
        let SpendLimit { amount, window } = limit;
        KeyMeter {
            limit: amount.to_picos().unwrap_or(Picos(i64::MAX)),
            window,
            loading: tokio::sync::Mutex::default(),
            state: Mutex::new(State {
                start: window.start(at),
                own_pico: 0,
                others_pico: 0,
                held_pico: 0,
                is_loaded: false,
                is_stale: false,
                used_at: now,
            }),
        }
    }

    /// Begins the window anew where its time has come. Time that goes back does not bring an old one back.
    fn turn(&self, at: UnixMicros, now: Instant) {
        let start = self.window.start(at);
        let mut state = self.state();
        state.is_stale |= state.is_loaded && now.saturating_duration_since(state.used_at) > STALE_AFTER;
        state.used_at = now;
        if start > state.start {
            (state.start, state.own_pico, state.others_pico) = (start, 0, 0);
        }
    }

    /// Reads what was spent before this process, once.
    pub(super) async fn load(&self, inner: &Inner, key: KeyId) -> Result<(), StoreError> {
        let _loading = self.loading.lock().await;
        let start = {
            let state = self.state();
            if state.is_loaded {
                return Ok(());
            }
            state.start
        };
        let (own, others) = inner.store.key_spent_by(key, start, inner.session).await?;
        let mut state = self.state();
        if state.start == start {
            state.own_pico = state.own_pico.saturating_add(own.0);
            state.others_pico = others.0;
        }
        state.is_loaded = true;
        Ok(())
    }

    /// Reads what others have spent, once after the key was idle. What was spent here is known.
    async fn freshen(&self, inner: &Inner, key: KeyId) -> Result<(), StoreError> {
        let _loading = self.loading.lock().await;
        let start = {
            let state = self.state();
            if !state.is_stale {
                return Ok(());
            }
            state.start
        };
        let sums = inner.store.spent_by_others(&[(key, start)], inner.session).await?;
        self.note_others(start, sums.get(&key).copied());
        Ok(())
    }

    /// Others have spent so much in the window that began then.
    fn note_others(&self, start: UnixMicros, sum: Option<Picos>) {
        let mut state = self.state();
        if state.start == start {
            state.others_pico = sum.map_or(0, |sum| sum.0);
            state.is_stale = false;
        }
    }

    /// What neither is spent nor held.
    pub(super) fn free(&self) -> Picos {
        let state = self.state();
        Picos(self.unspent(&state).saturating_sub(state.held_pico).max(0))
    }

    /// What is not spent, held or not.
    pub(super) fn all(&self) -> Picos {
        Picos(self.unspent(&self.state()))
    }

    pub(super) fn hold(&self, amount: Picos) -> bool {
        let mut state = self.state();
        let fits = self.unspent(&state).saturating_sub(state.held_pico) >= amount.0;
        if fits {
            state.held_pico = state.held_pico.saturating_add(amount.0);
        }
        fits
    }

    /// Ends a hold with what it cost. A cost counts in the window in which its request came.
    pub(super) fn settle(&self, held: Picos, cost: Picos, came_at: UnixMicros) {
        let start = self.window.start(came_at);
        let mut state = self.state();
        state.held_pico = state.held_pico.saturating_sub(held.0);
        if state.start == start {
            state.own_pico = state.own_pico.saturating_add(cost.0);
        }
    }

    fn unspent(&self, state: &State) -> i64 {
        self.limit.0.saturating_sub(state.own_pico).saturating_sub(state.others_pico).max(0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The meter of a key with a limit, ready to be held by.
pub(super) async fn meter(
    inner: &Arc<Inner>,
    key: KeyId,
    limit: SpendLimit,
    came_at: UnixMicros,
) -> Result<Arc<KeyMeter>, Shortage> {
    let meter = inner.spending.meter(key, limit, came_at, inner.clock.now());
    let (is_loaded, is_stale) = {
        let state = meter.state();
        (state.is_loaded, state.is_stale)
    };
    if is_loaded {
        if is_stale && !inner.spending.is_away.load(Ordering::Relaxed) {
            freshen(inner, key, &meter).await;
        }
        return Ok(meter);
    }
    let (of, cold) = (Arc::clone(inner), Arc::clone(&meter));
    let loading = inner.books.spawn(async move { cold.load(&of, key).await });
    match tokio::time::timeout(inner.settings.grant_timeout, loading).await {
        Ok(Ok(Ok(()))) => Ok(meter),
        Ok(Ok(Err(error))) => {
            tracing::warn!(key_id = %key, %error, "what a key has spent could not be read");
            Err(Shortage::Unavailable)
        }
        Ok(Err(_)) | Err(_) => Err(Shortage::Unavailable),
    }
}

/// Brings a meter that was idle up to date. Where that cannot be done in time, what is known stays in force, and those who come after do
/// not wait for it.
async fn freshen(inner: &Arc<Inner>, key: KeyId, meter: &Arc<KeyMeter>) {
    let (of, stale) = (Arc::clone(inner), Arc::clone(meter));
    let reading = inner.books.spawn(async move { stale.freshen(&of, key).await });
    let fault = match tokio::time::timeout(inner.settings.grant_timeout, reading).await {
        Ok(Ok(Ok(()))) => return,
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(dropped)) => dropped.to_string(),
        Err(late) => late.to_string(),
    };
    inner.spending.is_away.store(true, Ordering::Relaxed);
    tracing::warn!(key_id = %key, fault, "what other processes spent by a key could not be read; what is known stays in force");
}

/// Reads again and again what other processes spend by the keys that are used here.
pub(super) async fn follow(inner: Arc<Inner>) {
    let mut since = inner.clock.now();
    loop {
        tokio::time::sleep(FOLLOW_EVERY).await;
        let now = inner.clock.now();
        let used = inner.spending.used_since(since);
        let mut is_read = true;
        for used in used.chunks(KEYS_AT_ONCE) {
            let windows: Vec<(KeyId, UnixMicros)> =
                used.iter().map(|(key, meter)| (*key, meter.state().start)).collect();
            match inner.store.spent_by_others(&windows, inner.session).await {
                Ok(sums) => {
                    note_others(used, &windows, &sums);
                    inner.spending.is_away.store(false, Ordering::Relaxed);
                }
                Err(error) => {
                    tracing::warn!(%error, "what other processes spend by keys with a limit could not be read");
                    is_read = false;
                }
            }
        }
        if is_read {
            since = now;
        }
        if inner.queue.has_written_all() {
            inner.spending.forget_idle(now);
        }
    }
}

fn note_others(
    used: &[(KeyId, Arc<KeyMeter>)],
    windows: &[(KeyId, UnixMicros)],
    sums: &HashMap<KeyId, Picos>,
) {
    for ((key, meter), (_, start)) in used.iter().zip(windows) {
        meter.note_others(*start, sums.get(key).copied());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::money::Micros;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_key_spends_its_limit_in_each_window_and_no_more() {
        let (clock, hand) = Clock::manual(UnixMicros(0));
        let limit = SpendLimit { amount: Micros(100), window: SpendWindow::Day };
        let (spending, key) = (Spending::default(), KeyId::new());
        let meter = || spending.meter(key, limit, clock.wall(), clock.now());
        let micros = |amount: i64| Micros(amount).to_picos().unwrap();
        let came_at = clock.wall();
        assert!(meter().hold(micros(60)));
        assert!(!meter().hold(micros(41)));
        assert_eq!((meter().free(), meter().all()), (micros(40), micros(100)));
        meter().settle(micros(60), micros(75), came_at);
        assert_eq!(meter().free(), micros(25));
        assert!(meter().hold(micros(20)));
        hand.advance(DAY);
        // What is still held counts in the new day until it ends; what it costs belongs to the day in which it came.
        assert_eq!(meter().free(), micros(80));
        meter().settle(micros(20), micros(20), came_at);
        assert_eq!(meter().free(), micros(100));
    }

    #[test]
    fn a_total_never_begins_anew_and_others_count() {
        let (clock, hand) = Clock::manual(UnixMicros(0));
        let limit = SpendLimit { amount: Micros(100), window: SpendWindow::Total };
        let (spending, key) = (Spending::default(), KeyId::new());
        let meter = spending.meter(key, limit, clock.wall(), clock.now());
        meter.settle(Picos(0), Picos(40_000_000), clock.wall());
        hand.advance(DAY * 1_000);
        let windows = [(key, UnixMicros(0))];
        note_others(&[(key, Arc::clone(&meter))], &windows, &HashMap::from([(key, Picos(60_000_000))]));
        assert!(!spending.meter(key, limit, clock.wall(), clock.now()).hold(Picos(1)));
    }
}
