//! What the books do by themselves: write, beat, note holds, answer recalls, recover siblings, give idle credit back, audit.

use super::leases::Lease;
use super::recover::{self, Recovered};
use super::{Inner, audit, claim, grants, micros_for, spending, writer};
use crate::ids::{AccountId, SessionId};
use crate::money::Micros;
use crate::store::{Change, SessionState, Subject};
use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;

/// Between two beats of the heart, at most. Siblings that died are looked for as often.
const BEAT_MAX: Duration = Duration::from_secs(5);
/// Between two notes of what is held: what people see is at most so old.
const NOTE_EVERY: Duration = Duration::from_millis(500);
/// Between two looks for leases that nobody uses.
const IDLE_EVERY: Duration = Duration::from_secs(30);
/// Between two audits. The first one comes soon after the start.
const AUDIT_EVERY: Duration = Duration::from_secs(3_600);
/// Between two removals of what has served its time.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// Between two looks at what is kept of journals: so much may come beyond the bound.
const PRUNE_EVERY: Duration = Duration::from_secs(30);
const FIRST_AUDIT: Duration = Duration::from_secs(60);

impl Inner {
    pub(super) fn start_tasks(self: &Arc<Self>) {
        let start = |name, task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            self.tasks.start(&self.books, name, task);
        };
        start("writer", Box::pin(writer::run(Arc::clone(self))));
        start("heartbeat", Box::pin(beat(Arc::clone(self))));
        start("notes of holds", Box::pin(note_holds(Arc::clone(self))));
        start("answers to recalls", Box::pin(answer_recalls(Arc::clone(self))));
        start("returns of idle credit", Box::pin(return_idle(Arc::clone(self))));
        start("audit", Box::pin(audit_at_times(Arc::clone(self))));
        start("spend of keys", Box::pin(spending::follow(Arc::clone(self))));
        start("sweep", Box::pin(sweep(Arc::clone(self))));
        start("removal of old journals", Box::pin(prune(Arc::clone(self))));
    }

    /// A few beats fit into the time for which a silent database is borne.
    fn beat_every(&self) -> Duration {
        BEAT_MAX.min(self.settings.max_stale / 3)
    }

    pub(super) fn note_recovered(&self, recovered: &Recovered) {
        self.counts.sessions_recovered.fetch_add(recovered.sessions, Ordering::Relaxed);
        self.counts.torn_bytes.fetch_add(recovered.torn_bytes, Ordering::Relaxed);
    }
}

/// Tells the database that this session lives, recovers siblings on this machine that do not, and gives up sessions of lost hosts.
async fn beat(inner: Arc<Inner>) {
    let mut silent: HashMap<SessionId, (i64, Duration)> = HashMap::new();
    loop {
        tokio::time::sleep(inner.beat_every()).await;
        match inner.store.heartbeat(inner.session, inner.clock.wall()).await {
            Ok(SessionState::Live) => inner.heart.beats(&inner.clock),
            Ok(SessionState::Closed | SessionState::Lost) => {
                if !inner.heart.is_fenced.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        "the database has this session as ended: nothing more is admitted, and the process stops"
                    );
                }
                // What it settles late is charged to the accounts, whatever its leases covered.
                inner.queue.owes();
            }
            Err(error) => {
                tracing::warn!(%error, "the database does not take the heartbeat");
                continue;
            }
        }
        if let Err(error) = writer::collect_over(&inner).await {
            tracing::warn!(%error, "costs above leases are not collected yet");
        }
        match recover::orphans(&inner.home, &inner.store, &inner.clock).await {
            Ok(recovered) => inner.note_recovered(&recovered),
            Err(error) => tracing::error!(%error, "a dead session is not recovered"),
        }
        give_up_lost(&inner, &mut silent).await;
    }
}

/// Ends sessions that have been silent for longer than any of their streams can last, counted in time in which this process saw the
/// database answer: an outage must not age them. Sessions with a journal on this machine are the business of their recovery.
async fn give_up_lost(inner: &Inner, silent: &mut HashMap<SessionId, (i64, Duration)>) {
    let (Ok(live), Ok(here)) = (inner.store.live_sessions().await, inner.home.sessions()) else { return };
    let deadline = inner.settings.max_stale + inner.settings.max_stream_time + inner.beat_every() * 2;
    silent.retain(|session, _| live.iter().any(|other| other.session_id == *session));
    for other in
        live.iter().filter(|other| other.session_id != inner.session && !here.contains(&other.session_id))
    {
        let (beat, silent_for) =
            silent.entry(other.session_id).or_insert((other.heartbeat_at.0, Duration::ZERO));
        if *beat != other.heartbeat_at.0 {
            *beat = other.heartbeat_at.0;
            *silent_for = Duration::ZERO;
            continue;
        }
        *silent_for += inner.beat_every();
        if *silent_for < deadline {
            continue;
        }
        let ended = inner
            .store
            .end_session(other.session_id, SessionState::Lost, other.applied_seq, inner.clock.wall())
            .await;
        match ended {
            Ok(()) => {
                tracing::error!(session_id = %other.session_id, host = %other.host, "a session is given up: its host has been silent for too long")
            }
            Err(error) => {
                tracing::warn!(session_id = %other.session_id, %error, "a lost session is not ended yet")
            }
        }
    }
}

/// Writes down what open requests hold, where it has changed.
async fn note_holds(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(NOTE_EVERY).await;
        let changed: Vec<(AccountId, Micros)> = {
            let noted = inner.leases.noted.lock().unwrap_or_else(PoisonError::into_inner);
            let held = |lease: &Lease| micros_for(lease.cell.held());
            let all = inner.leases.all().into_iter().map(|(account, lease)| (account, held(&lease)));
            all.filter(|(account, held)| noted.get(account).copied().unwrap_or(0) != held.0).collect()
        };
        if changed.is_empty() {
            continue;
        }
        // While the database is away this is tried again with what is true then.
        if inner.store.note_holds(inner.session, &changed).await.is_ok() {
            let mut noted = inner.leases.noted.lock().unwrap_or_else(PoisonError::into_inner);
            noted.extend(changed.iter().map(|(account, held)| (*account, held.0)));
        }
    }
}

/// Returns what is not used of an account's credit when another session, or a refund, asks for it.
async fn answer_recalls(inner: Arc<Inner>) {
    let mut changes = inner.feed.subscribe();
    loop {
        let account = match changes.recv().await {
            Ok(Change { subject: Subject::Recall(account), .. }) => account,
            Ok(Change { subject: Subject::Account(_) | Subject::Key(_) | Subject::Prices, .. })
            | Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        if let Some(lease) = inner.leases.get(account)
            && let Err(error) = grants::give_back(&inner, &lease, account).await
        {
            tracing::warn!(account_id = %account, %error, "credit that was recalled is not returned yet");
        }
    }
}

async fn return_idle(inner: Arc<Inner>) {
    let mut seen: HashMap<AccountId, (u64, Duration)> = HashMap::new();
    loop {
        tokio::time::sleep(IDLE_EVERY).await;
        for (account, lease) in inner.leases.all() {
            let uses = lease.uses.load(Ordering::Relaxed);
            let (before, idle) = seen.entry(account).or_insert((uses, Duration::ZERO));
            if *before != uses || lease.cell.held().0 > 0 {
                (*before, *idle) = (uses, Duration::ZERO);
                continue;
            }
            *idle += IDLE_EVERY;
            if *idle >= inner.settings.idle_return
                && let Err(error) = grants::give_back(&inner, &lease, account).await
            {
                tracing::warn!(account_id = %account, %error, "idle credit is not returned yet");
            }
        }
    }
}

async fn audit_at_times(inner: Arc<Inner>) {
    let mut wait = FIRST_AUDIT;
    loop {
        tokio::time::sleep(wait).await;
        wait = AUDIT_EVERY;
        match audit(&inner.store, &inner.settings.journal.dir, &inner.clock).await {
            Ok(report) => {
                *inner.counts.audit_drift.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(report.drift_pico_usd);
                if !report.ok {
                    tracing::error!(drift_pico_usd = report.drift_pico_usd, findings = report.off.len(), first = ?report.off.first(), "the books are off");
                }
            }
            Err(error) => tracing::warn!(%error, "the books could not be audited"),
        }
    }
}

/// Removes idempotency keys and sums of what keys spent that nobody asks for any more.
async fn sweep(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let now = inner.clock.wall();
        let claims = inner.store.sweep_claims(claim::kept_since(now)).await;
        if let Err(error) = claims.and(inner.store.sweep_key_spend(now).await) {
            tracing::warn!(%error, "old idempotency keys and key totals are not removed yet");
        }
    }
}

/// Removes what is kept of journals for too long.
async fn prune(inner: Arc<Inner>) {
    loop {
        let own = Arc::clone(&inner);
        let pruned = tokio::task::spawn_blocking(move || own.home.prune(own.settings.journal.keep)).await;
        match pruned.map_err(std::io::Error::other).flatten() {
            Ok(stats) => *inner.counts.kept.lock().unwrap_or_else(PoisonError::into_inner) = stats,
            Err(error) => tracing::warn!(%error, "what is kept of journals is not tidied yet"),
        }
        tokio::time::sleep(PRUNE_EVERY).await;
    }
}
