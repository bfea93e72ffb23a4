//! The journal's two threads: one waits for the disk, one makes and removes segments. Neither is ever waited for by a request.

use super::{Journal, PoisonError};
use std::io;
use std::sync::Mutex;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

#[derive(Default)]
pub(super) struct Threads(Mutex<Vec<JoinHandle<()>>>);

/// Between two waits for the disk: the most that a power cut loses, with the wait itself.
const GROUP: Duration = Duration::from_millis(5);
/// While records come, the thread looks again by itself, so that an append need not wake it.
const IDLE_AFTER: Duration = Duration::from_millis(500);
/// Between two looks at whether segments are needed.
const KEEP_EVERY: Duration = Duration::from_millis(250);

impl Threads {
    pub(super) fn start(journal: &Journal) -> io::Result<()> {
        let (to_sync, to_keep) = (journal.clone(), journal.clone());
        let syncer = Builder::new().name("journal-sync".to_owned()).spawn(move || sync(&to_sync))?;
        let keeper = Builder::new().name("journal-keep".to_owned()).spawn(move || keep(&to_keep))?;
        journal.0.threads.0.lock().unwrap_or_else(PoisonError::into_inner).extend([syncer, keeper]);
        Ok(())
    }

    pub(super) fn stop(&self, journal: &Journal) {
        journal.state().is_stopping = true;
        journal.0.to_sync.notify_all();
        journal.0.to_keep.notify_all();
        let threads = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the journal ended in a panic");
            }
        }
        if journal.state().has_failed()
            && let Err(error) = journal.keep_once()
        {
            tracing::error!(%error, "the journal ends with records that no file took");
        }
        journal.sync_once();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long the thread has been idle; no rule of the product depends on it"
)]
fn sync(journal: &Journal) {
    let mut busy_at = Instant::now();
    loop {
        if journal.sync_once() {
            busy_at = Instant::now();
        }
        let mut state = journal.state();
        if state.is_stopping {
            return;
        }
        // What came since the look above has woken nobody.
        if busy_at.elapsed() < IDLE_AFTER || state.has_to_sync() {
            drop(state);
            std::thread::sleep(GROUP);
            continue;
        }
        state.syncer_sleeps();
        let woken = journal.0.to_sync.wait_timeout(state, KEEP_EVERY * 8);
        woken.unwrap_or_else(PoisonError::into_inner).0.take_syncer();
    }
}

fn keep(journal: &Journal) {
    let mut was_full = false;
    loop {
        let kept = journal.keep_once();
        let is_full = kept.is_err();
        if let Err(error) = kept
            && !was_full
        {
            tracing::error!(%error, "the journal cannot be tidied, or gets no further segment; what is under way has its room");
        }
        was_full = is_full;
        let mut state = journal.state();
        if state.is_stopping {
            return;
        }
        if is_full {
            // Nobody who is refused makes a full disk be tried again at once.
            let waited = journal.0.to_keep.wait_timeout_while(state, KEEP_EVERY, |state| !state.is_stopping);
            drop(waited);
            continue;
        }
        if state.is_keeper_wanted() {
            // Asked for since the look above, when there was nobody to wake.
            drop(state);
            std::thread::sleep(GROUP);
            continue;
        }
        state.keeper_sleeps();
        let waited = journal.0.to_keep.wait_timeout(state, KEEP_EVERY);
        drop(waited);
    }
}
