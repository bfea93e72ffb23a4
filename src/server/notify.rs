//! What the service manager is told: sd_notify(3), over the socket in `NOTIFY_SOCKET`, where there is one.
//!
//! Promises: ready is said once every listener accepts; the watchdog is fed by turns of the batched writer and by nothing else, so that a
//! process whose settlements go nowhere is started anew, and one whose database is away is left alone. Refuses to know: who listens.

use super::starter::Process;
use super::stop::Stop;
use crate::ledger::Ledger;
use rustix::process::Signal;
use sd_notify::NotifyState;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Tells the service manager. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Notifier {
    /// Another process speaks for the service.
    is_mute: Arc<AtomicBool>,
}

/// Looks at the writer in the time after which the service manager loses patience.
const LOOKS: u32 = 4;

impl Notifier {
    /// Every listener accepts: after a start, or a reload.
    pub(super) fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The configuration is being read anew. [`Notifier::ready`] must follow.
    pub(super) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(fault) => tracing::warn!(%fault, "the monotonic clock cannot be read"),
        }
    }

    /// The process stops, and may take so long for it, also where the service manager would wait for less. It is the time of all processes
    /// of the service.
    pub(super) fn stopping(&self, status: &str, most: Duration) {
        let most = u32::try_from(most.as_micros()).unwrap_or(u32::MAX);
        self.tell(&[
            NotifyState::Stopping,
            NotifyState::Status(status),
            NotifyState::ExtendTimeoutUsec(most),
        ]);
    }

    /// What the process does, for people.
    pub(super) fn status(&self, status: &str) {
        self.tell(&[NotifyState::Status(status)]);
    }

    /// From now on that process is the service, and this one says nothing more.
    pub(super) fn hand_over(&self, process_id: u32) {
        self.tell(&[NotifyState::MainPid(process_id)]);
        self.is_mute.store(true, Ordering::Release);
    }

    /// The process that took over is gone: this one is the service again, for as long as it takes to end.
    pub(super) fn take_back(&self, status: &str) {
        self.is_mute.store(false, Ordering::Release);
        self.tell(&[NotifyState::MainPid(std::process::id()), NotifyState::Status(status)]);
    }

    /// Tells the process that has just taken over to stop, too: who stops this one may not know of it yet. A service manager does, and
    /// tells every process itself; a second signal would hurry this one.
    pub(super) fn pass_on(&self, stop: Stop, to: &Process) {
        if Self::is_managed() {
            return;
        }
        let signal = match stop {
            Stop::Drain => Signal::TERM,
            Stop::Now => Signal::INT,
        };
        if let Err(fault) = to.signal(signal) {
            tracing::error!(%fault, process_id = to.id(), "the new process is not told to stop");
        }
    }

    /// Whether there is a service manager, which tells every process of the service itself to stop.
    pub(super) fn is_managed() -> bool {
        std::env::var_os("NOTIFY_SOCKET").is_some()
    }

    /// Feeds the watchdog, if the service manager keeps one, whenever the writer has turned since the last look.
    pub(super) async fn watch(self, ledger: Ledger) {
        let Some(patience) = sd_notify::watchdog_enabled() else { return };
        let mut seen = None;
        loop {
            let turns = ledger.writer_turns();
            if seen.replace(turns) != Some(turns) {
                self.tell(&[NotifyState::Watchdog]);
            }
            tokio::time::sleep(patience / LOOKS).await;
        }
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if !self.is_mute.load(Ordering::Acquire)
            && let Err(fault) = sd_notify::notify(states)
        {
            tracing::warn!(%fault, "the service manager cannot be told");
        }
    }
}
