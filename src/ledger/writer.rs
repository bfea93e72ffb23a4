//! The batched writer: the one way in which settlements reach the database.
//!
//! Promises: in the order of the journal, each once; a lost answer to a commit is resolved by the watermark; a row that the database
//! refuses is charged all the same and stops no other. Refuses to know: accounts beyond its session's own rows.

use super::database::Database;
use super::rows;
use super::{Inner, grants};
use crate::clock::UnixMicros;
use crate::ids::SessionId;
use crate::store::{Batch, BatchError, RequestRow, StoreError};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Settlements on their way, in the order of their numbers.
#[derive(Default)]
pub(super) struct Queue {
    rows: Mutex<VecDeque<(RequestRow, Instant)>>,
    is_writer_asleep: AtomicBool,
    arrived: Notify,
    applied_seq: AtomicU64,
    /// Something above a lease is not collected yet.
    is_over_due: AtomicBool,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The watermark after it.
    pub applied_seq: u64,
    /// Rows that the database has now.
    pub rows: usize,
    /// Of those, the ones that it refused as rows.
    pub quarantined: usize,
    /// Something is to be collected from accounts.
    pub has_over: bool,
}

/// Rows in one transaction.
const ROWS_MAX: usize = 1_000;
/// The same, when the writer is far behind.
const ROWS_MAX_BEHIND: usize = 5_000;
/// How long rows are gathered.
const GATHER: Duration = Duration::from_millis(40);
/// After how long without rows the writer must be woken.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// The loop turns at least so often: who watches over the process sees by it that the writer lives.
const TURN_EVERY: Duration = Duration::from_secs(1);
/// Between two tries while the database does not take a batch.
const RETRY_AFTER: Duration = Duration::from_millis(250);
/// Between two lines in the log about a database that takes nothing.
const TELL_EVERY: Duration = Duration::from_secs(30);
/// How long a stop waits for the database to take what is settled.
const DRAIN_MAX: Duration = Duration::from_secs(15);

impl Queue {
    pub(super) fn push(&self, row: RequestRow, now: Instant) {
        self.rows().push_back((row, now));
    }

    /// Wakes the writer, if it sleeps. While rows come it looks by itself.
    pub(super) fn wake(&self) {
        if self.is_writer_asleep.swap(false, Ordering::AcqRel) {
            self.arrived.notify_one();
        }
    }

    pub(super) fn applied_seq(&self) -> u64 {
        self.applied_seq.load(Ordering::Acquire)
    }

    /// How long the oldest row has waited.
    pub(super) fn lag(&self, now: Instant) -> Duration {
        self.rows().front().map_or(Duration::ZERO, |(_, at)| now.saturating_duration_since(*at))
    }

    /// Something is to be collected from accounts.
    pub(super) fn owes(&self) {
        self.is_over_due.store(true, Ordering::Release);
    }

    /// Everything that is settled is in the database.
    pub(super) fn has_written_all(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        self.rows().len()
    }

    fn first(&self, most: usize) -> Vec<RequestRow> {
        self.rows().iter().take(most).map(|(row, _)| row.clone()).collect()
    }

    fn written(&self, applied_seq: u64) -> usize {
        let mut rows = self.rows();
        let before = rows.len();
        while rows.front().is_some_and(|(row, _)| row.seq <= applied_seq) {
            rows.pop_front();
        }
        self.applied_seq.store(applied_seq, Ordering::Release);
        before - rows.len()
    }

    fn rows(&self) -> MutexGuard<'_, VecDeque<(RequestRow, Instant)>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A database that takes nothing: told when it begins, now and then, and when it is over.
#[derive(Default)]
struct Trouble {
    told: Option<(Instant, String)>,
}

impl Trouble {
    fn tell(&mut self, error: &WriteError, backlog: usize, now: Instant) {
        let what = error.to_string();
        let is_told = self.told.as_ref().is_some_and(|(told_at, told)| {
            *told == what && now.saturating_duration_since(*told_at) < TELL_EVERY
        });
        if !is_told {
            tracing::warn!(error = what, backlog, "the database did not take a batch; it is tried again");
            self.told = Some((now, what));
        }
    }

    fn is_over(&mut self) {
        if self.told.take().is_some() {
            tracing::info!("the database takes batches again");
        }
    }
}

/// Writes for ever.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut idle_since = inner.clock.now();
    let mut trouble = Trouble::default();
    loop {
        inner.tasks.writer_turns.fetch_add(1, Ordering::Relaxed);
        if inner.queue.len() == 0 {
            if inner.clock.now().saturating_duration_since(idle_since) < IDLE_AFTER {
                tokio::time::sleep(GATHER).await;
                continue;
            }
            inner.queue.is_writer_asleep.store(true, Ordering::Release);
            // A row that came between the look and the store has not woken anyone.
            if inner.queue.len() == 0 {
                // Whether it is woken or turns by itself makes no difference.
                let _ended = tokio::time::timeout(TURN_EVERY, inner.queue.arrived.notified()).await;
            }
            inner.queue.is_writer_asleep.store(false, Ordering::Release);
        }
        tokio::time::sleep(GATHER).await;
        while inner.queue.len() > 0 {
            inner.tasks.writer_turns.fetch_add(1, Ordering::Relaxed);
            match write_some(&inner).await {
                Ok(()) => trouble.is_over(),
                Err(error) => {
                    inner.counts.batch_failures.fetch_add(1, Ordering::Relaxed);
                    trouble.tell(&error, inner.queue.len(), inner.clock.now());
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
            if inner.queue.len() < ROWS_MAX {
                break;
            }
        }
        idle_since = inner.clock.now();
    }
}

/// Writes what is left, within bounds, and tells how many rows are not in the database.
pub(super) async fn drain(inner: &Inner) -> usize {
    let until = inner.clock.now() + DRAIN_MAX;
    let mut trouble = Trouble::default();
    while inner.queue.len() > 0 && inner.clock.now() < until {
        if let Err(error) = write_some(inner).await {
            trouble.tell(&error, inner.queue.len(), inner.clock.now());
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
    inner.queue.len()
}

async fn write_some(inner: &Inner) -> Result<(), WriteError> {
    let most = if inner.queue.len() > ROWS_MAX_BEHIND { ROWS_MAX_BEHIND } else { ROWS_MAX };
    let batch = inner.queue.first(most);
    let written =
        write(&inner.store, inner.session, inner.queue.applied_seq(), &batch, inner.clock.wall()).await?;
    let done = inner.queue.written(written.applied_seq);
    inner.journal.applied(written.applied_seq);
    inner.counts.backlog.fetch_sub(done as u64, Ordering::AcqRel);
    inner.counts.batches.fetch_add(1, Ordering::Relaxed);
    inner.counts.rows.fetch_add(done as u64, Ordering::Relaxed);
    inner.counts.quarantined.fetch_add(written.quarantined as u64, Ordering::Relaxed);
    inner.queue.is_over_due.fetch_or(written.has_over, Ordering::AcqRel);
    for row in batch.iter().filter(|row| row.over.0 > 0 && row.seq <= written.applied_seq) {
        // What its lease has free again by now pays before the account owes.
        if let Some(lease) = inner.leases.get(row.account) {
            grants::give_back(inner, &lease, row.account).await.map_err(WriteError::Store)?;
        }
    }
    collect_over(inner).await
}

/// Collects what leases did not cover, if there is something to collect. What fails is tried again with the next batch, or the next
/// beat of the heart.
pub(super) async fn collect_over(inner: &Inner) -> Result<(), WriteError> {
    // Taken before, so that what falls due while it is being done is not forgotten.
    if inner.queue.is_over_due.swap(false, Ordering::AcqRel)
        && let Err(error) = inner.store.collect_over(inner.session, inner.clock.wall()).await
    {
        inner.queue.owes();
        return Err(WriteError::Store(error));
    }
    Ok(())
}

/// Why a batch is not in the database.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// It did not answer, or said no. Whether it took the batch is told by the watermark, the next time.
    #[error("{0}")]
    Store(StoreError),
    /// It is further on, or further back, than this process has ever brought it.
    #[error(
        "the database is at {found} of session {session}, this process has it at {known}: it was set back or written by another"
    )]
    SetBack {
        /// Which session.
        session: SessionId,
        /// Its watermark.
        found: u64,
        /// Where it should be.
        known: u64,
    },
}

/// Writes these rows, which follow the watermark `applied_seq`, in as few transactions as the database allows.
pub async fn write(
    database: &dyn Database,
    session: SessionId,
    applied_seq: u64,
    batch: &[RequestRow],
    at: UnixMicros,
) -> Result<Written, WriteError> {
    let mut written = Written { applied_seq, ..Written::default() };
    // Parts still to be written, the next one last.
    let mut parts: Vec<&[RequestRow]> = vec![batch];
    while let Some(rows) = parts.pop() {
        let Some(last) = rows.last() else { continue };
        let attempt = Batch { session, applied_seq: written.applied_seq, seq_to: last.seq, rows };
        let refused = match database.apply_batch(&attempt, at).await {
            Ok(()) => None,
            // The answer to an earlier try was lost, and it had gone through.
            Err(BatchError::Moved(found)) if found == last.seq => None,
            // So had a part of it.
            Err(BatchError::Moved(found)) if rows.iter().any(|row| row.seq == found) => {
                let rest = rows.partition_point(|row| row.seq <= found);
                written.applied_seq = found;
                written.rows += rest;
                written.has_over |= rows[..rest].iter().any(|row| row.over.0 > 0);
                parts.push(&rows[rest..]);
                continue;
            }
            Err(BatchError::Moved(found)) => {
                return Err(WriteError::SetBack { session, found, known: written.applied_seq });
            }
            Err(BatchError::Row(error)) => Some(error),
            Err(BatchError::Store(error)) => return Err(WriteError::Store(error)),
        };
        match refused {
            Some(_) if rows.len() > 1 => {
                let (first, second) = rows.split_at(rows.len() / 2);
                parts.extend([second, first]);
                continue;
            }
            Some(error) => {
                set_aside(database, &attempt, &error, at).await?;
                written.quarantined += 1;
            }
            None => {}
        }
        written.applied_seq = last.seq;
        written.rows += rows.len();
        written.has_over |= rows.iter().any(|row| row.over.0 > 0);
    }
    Ok(written)
}

/// A row that the database refuses for itself.
async fn set_aside(
    database: &dyn Database,
    attempt: &Batch<'_>,
    error: &str,
    at: UnixMicros,
) -> Result<(), WriteError> {
    let Some(row) = attempt.rows.first() else { return Ok(()) };
    tracing::error!(request_id = %row.request_id, error, "the database refuses a settlement; it is charged and kept aside");
    let record = postcard::to_allocvec(&rows::settle(row)).unwrap_or_default();
    match database.quarantine(attempt, &record, error, at).await {
        Ok(()) => Ok(()),
        Err(BatchError::Moved(found)) if found == row.seq => Ok(()),
        Err(BatchError::Moved(found)) => {
            Err(WriteError::SetBack { session: attempt.session, found, known: attempt.applied_seq })
        }
        Err(BatchError::Row(error)) => Err(WriteError::Store(StoreError::Damaged(error))),
        Err(BatchError::Store(error)) => Err(WriteError::Store(error)),
    }
}
