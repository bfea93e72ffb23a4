//! The journal: what requests did, on the disk of this machine before anyone is told.
//!
//! Promises: a record that was appended survives `kill -9` at once, and a power cut after the next wait for the disk; sequence numbers
//! have no gap; room for what is under way to be settled is kept, so that a full disk stops admission and nothing else; a file that failed
//! once is not written to again. Refuses to know: the database, prices, what a record is for.
//!
//! Sequence number and write are under one short lock: what is found on the disk after a kill is a prefix of what was appended. Nobody
//! waits for the disk but who asks to.

mod disk;
mod keep;
mod record;
mod records;
mod scan;
mod state;
mod threads;
mod unsynced;

pub(super) use disk::keep;
#[cfg(test)]
pub(super) use disk::with_relief;
pub use disk::{Directory, Disk, Relief, Segment};
pub use record::{Progress, Record, Sent, Settle};
pub(super) use scan::{SEGMENT_EXTENSION, first_seq, trim};
pub use scan::{ScanError, Scanned, scan};

use state::State;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use threads::Threads;
use tokio::sync::watch;

/// What a client has been told of is on the disk when?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The operating system writes it in its own time: a kill loses nothing, a power cut some seconds.
    Os,
    /// Written every few milliseconds behind the requests: a power cut loses those.
    Group,
    /// The end of an answer waits for it: a power cut loses nothing that a client saw end.
    Strict,
}

/// Sizes.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How much a power cut may lose.
    pub durability: Durability,
    /// The size of a segment; at least 64 KiB.
    pub segment_bytes: u64,
    /// All segments together; beyond that nothing is admitted until the database has caught up.
    pub max_bytes: u64,
}

/// A session's journal. Cheap to clone.
#[derive(Clone)]
pub struct Journal(Arc<Shared>);

struct Shared {
    disk: Box<dyn Disk>,
    settings: Settings,
    state: Mutex<State>,
    /// Wakes the thread that waits for the disk.
    to_sync: Condvar,
    /// Wakes the thread that makes and removes segments.
    to_keep: Condvar,
    /// Everything up to this number is on the disk.
    durable: watch::Sender<u64>,
    threads: Threads,
}

/// Room in the journal for everything that one request will write, given back by `Drop`.
#[must_use]
pub struct Reservation(Journal);

/// The journal in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct JournalStats {
    /// The last sequence number.
    pub appended_seq: u64,
    /// Everything up to here is on the disk.
    pub durable_seq: u64,
    /// Everything up to here is in the database.
    pub applied_seq: u64,
    /// Segments on the disk, made ahead of need included.
    pub segments: u64,
    /// What they take, in bytes.
    pub bytes: u64,
    /// Requests that were sent and are not settled.
    pub open_requests: u64,
    /// A file failed, and no other could take its place yet.
    pub is_failed: bool,
}

/// What one request writes at most: being sent to each of its candidates, and its settlement.
const REQUEST_BYTES: u64 = 8 * 1024;

impl Journal {
    /// A new journal in an empty directory, with its threads.
    ///
    /// # Errors
    ///
    /// No room for the first segments, or no thread.
    pub fn start(disk: impl Disk, settings: Settings) -> io::Result<Journal> {
        let journal = Journal::without_threads(disk, settings)?;
        Threads::start(&journal)?;
        Ok(journal)
    }

    /// A new journal whose waiting and tidying is done by who holds it, with [`Journal::sync_once`] and [`Journal::keep_once`]: in
    /// simulations.
    pub fn without_threads(disk: impl Disk, settings: Settings) -> io::Result<Journal> {
        let shared = Shared {
            disk: Box::new(disk),
            settings,
            state: Mutex::new(State::new(settings.segment_bytes)),
            to_sync: Condvar::new(),
            to_keep: Condvar::new(),
            durable: watch::channel(0).0,
            threads: Threads::default(),
        };
        let journal = Journal(Arc::new(shared));
        journal.keep_once()?;
        Ok(journal)
    }

    /// Keeps room for a request. `None` when there is none: the request must not be begun.
    pub fn reserve(&self) -> Option<Reservation> {
        let mut state = self.state();
        let has_room = !state.has_failed()
            && !state.is_behind()
            && state.room_bytes().saturating_sub(state.reserved_bytes) >= REQUEST_BYTES;
        if has_room {
            state.reserved_bytes += REQUEST_BYTES;
        }
        if (!has_room || state.is_low()) && state.want_keeper() {
            self.0.to_keep.notify_one();
        }
        drop(state);
        has_room.then(|| Reservation(self.clone()))
    }

    /// Notes that a request goes to a provider next. Returns its number once `write(2)` has returned.
    pub fn sent(&self, _room: &Reservation, sent: &Sent) -> u64 {
        let body = Record::Sent(sent.clone()).into_body();
        let mut state = self.state();
        let seq = self.append(&mut state, &body);
        state.opened(sent.request_id, seq, body);
        seq
    }

    /// Notes that the attempt ended and its provider bills nothing.
    pub fn failed(&self, _room: &Reservation, request_id: [u8; 16]) -> u64 {
        let mut state = self.state();
        let seq = self.append(&mut state, &Record::Failed(request_id).into_body());
        state.closed(request_id, seq);
        seq
    }

    /// Notes how far an answer is, if that takes no room from what must be written.
    pub fn progress(&self, progress: Progress) -> Option<u64> {
        let body = Record::Progress(progress).into_body();
        let mut state = self.state();
        let spare = state.room_bytes().saturating_sub(state.reserved_bytes);
        if state.has_failed() || spare < REQUEST_BYTES {
            return None;
        }
        state.progressed(progress.request_id, &body);
        Some(self.append(&mut state, &body))
    }

    /// Notes how a request ended. `then` is called with its number before any later one is given out, so that a queue that it fills is in
    /// the order of the numbers.
    pub fn settle(&self, _room: &Reservation, settle: &Settle, then: impl FnOnce(u64)) -> u64 {
        let body = Record::Settle(settle.clone()).into_body();
        let mut state = self.state();
        let seq = self.append(&mut state, &body);
        state.closed(settle.request_id, seq);
        then(seq);
        seq
    }

    /// Notes that everything up to this number is in the database: its segments can go.
    pub fn applied(&self, seq: u64) {
        let mut state = self.state();
        state.applied_seq = state.applied_seq.max(seq);
        if state.has_old() && state.want_keeper() {
            self.0.to_keep.notify_one();
        }
    }

    /// Tells what is on the disk.
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.0.durable.subscribe()
    }

    /// How much a power cut may lose.
    pub fn durability(&self) -> Durability {
        self.0.settings.durability
    }

    /// The journal in numbers.
    pub fn stats(&self) -> JournalStats {
        let state = self.state();
        JournalStats {
            appended_seq: state.last_seq(),
            durable_seq: *self.0.durable.borrow(),
            applied_seq: state.applied_seq,
            segments: state.segments(),
            bytes: state.segments() * self.0.settings.segment_bytes,
            open_requests: state.open_requests(),
            is_failed: state.has_failed(),
        }
    }

    /// Ends the threads, after one more wait for the disk. What is in the directory stays there.
    pub fn stop(&self) {
        self.0.threads.stop(self);
    }

    /// Appends, whatever becomes of the file: a record that cannot be written stays in memory until another file takes it.
    fn append(&self, state: &mut State, body: &[u8]) -> u64 {
        let failures = state.failures();
        let seq = state.append(body);
        if state.take_syncer() {
            self.0.to_sync.notify_one();
        }
        if state.failures() != failures && state.want_keeper() {
            self.0.to_keep.notify_one();
        }
        seq
    }

    /// The lock is held for an append: a copy, a checksum and one write to the page cache.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.reserved_bytes = state.reserved_bytes.saturating_sub(REQUEST_BYTES);
    }
}
