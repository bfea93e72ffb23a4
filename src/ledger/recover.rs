//! Dead sessions: their journals are replayed into the database, what they had open is billed, and their leases go back.
//!
//! Promises: what is settled twice here is in the database once, by the watermark; a replay that is cut off is taken up where it was; a
//! journal that is damaged stops with an error that names the place, and its leases stay out. A session is never resumed.

use super::database::Database;
use super::host::{JournalHome, SessionDirectory};
use super::journal::{Progress, Record, Scanned, Sent, scan};
use super::writer::{WriteError, write};
use super::{LedgerError, rows};
use crate::clock::Clock;
use crate::ids::{RequestId, SessionId};
use crate::store::{RequestRow, SessionState, Store, StoreError};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use uuid::Uuid;

/// What a recovery found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Sessions that were closed.
    pub sessions: u64,
    /// Settlements that the database did not have.
    pub settled: u64,
    /// Requests that were open, and are billed now.
    pub died: u64,
    /// Bytes of torn tails.
    pub torn_bytes: u64,
}

/// Rows brought to the database at once.
const ROWS_MAX: usize = 1_000;

/// Recovers every dead session of this machine. One that cannot be recovered is an error, once all others have had their turn.
pub(super) async fn orphans(
    home: &JournalHome,
    store: &Store,
    clock: &Clock,
) -> Result<Recovered, LedgerError> {
    let mut all = Recovered::default();
    let mut first_error = None;
    for orphan in home.orphans()? {
        match session(&orphan, store, clock).await {
            Ok(one) => {
                all.sessions += one.sessions;
                all.settled += one.settled;
                all.died += one.died;
                all.torn_bytes += one.torn_bytes;
            }
            // The others are not to wait for it.
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    first_error.map_or(Ok(all), Err)
}

async fn session(orphan: &SessionDirectory, store: &Store, clock: &Clock) -> Result<Recovered, LedgerError> {
    let path = orphan.path().display().to_string();
    let scanned = scan(&orphan.disk()).map_err(|cause| LedgerError::Replay { path: path.clone(), cause })?;
    let bytes = scanned.bytes;
    let recovered = replay(orphan.session(), scanned, store, clock).await?;
    orphan.remove().map_err(|cause| LedgerError::Journal { dir: path, cause })?;
    tracing::info!(
        session_id = %orphan.session(),
        settled = recovered.settled,
        died = recovered.died,
        torn_bytes = recovered.torn_bytes,
        journal_bytes = bytes,
        "a dead session is recovered"
    );
    Ok(recovered)
}

/// Replays a journal and ends its session.
pub async fn replay(
    session: SessionId,
    scanned: Scanned,
    database: &dyn Database,
    clock: &Clock,
) -> Result<Recovered, LedgerError> {
    let nothing = Recovered { torn_bytes: scanned.torn_bytes, ..Recovered::default() };
    let known = known(session, &scanned, database, clock).await?;
    let Some((state, applied_seq)) = known else { return Ok(nothing) };
    if state == SessionState::Closed {
        return Ok(nothing);
    }
    if let Some(first_seq) = scanned.first_seq()
        && first_seq > applied_seq + 1
    {
        missing(session, applied_seq, first_seq, database).await?;
    }
    let mut found = Found::default();
    for (seq, record) in scanned.records() {
        found.take(seq, record, applied_seq).map_err(|what| damaged(session, &what))?;
    }
    let last_seq = scanned.last_seq().unwrap_or(applied_seq).max(applied_seq);
    let died = found.died(last_seq + 1, database).await?;
    let recovered = Recovered {
        sessions: 1,
        settled: found.settled,
        died: died.len() as u64,
        torn_bytes: scanned.torn_bytes,
    };
    let mut settled = scanned.records().filter_map(|(seq, record)| unapplied(seq, record, applied_seq));
    let mut died = died.into_iter();
    let mut applied_seq = applied_seq;
    loop {
        let rows: Vec<RequestRow> = settled.by_ref().chain(died.by_ref()).take(ROWS_MAX).collect();
        if rows.is_empty() {
            break;
        }
        let written = write(database, session, applied_seq, &rows, clock.wall()).await.map_err(unwritten)?;
        applied_seq = written.applied_seq;
    }
    database.end_session(session, SessionState::Closed, applied_seq, clock.wall()).await?;
    Ok(recovered)
}

/// How the database has the session. `None` for one that it does not know and that did nothing.
async fn known(
    session: SessionId,
    scanned: &Scanned,
    database: &dyn Database,
    clock: &Clock,
) -> Result<Option<(SessionState, u64)>, LedgerError> {
    if let Some(known) = database.session(session).await? {
        return Ok(Some(known));
    }
    // The process died before the database knew of its session: nothing was granted to it, so nothing was sent.
    let Some(seq) = scanned.last_seq() else { return Ok(None) };
    if !database.adopt_session(session, clock.wall()).await? {
        return Err(LedgerError::Store(StoreError::Refused(format!(
            "the database does not know the session {session}, whose journal has {seq} records: is it another database, or an older \
             copy? A copy is put in place with `weir restore`"
        ))));
    }
    // It was granted credit by a database that is no more: here that did not happen, and what it cost is charged to the accounts.
    tracing::warn!(session_id = %session, "a session of the time after the backup is charged by its journal");
    Ok(database.session(session).await?)
}

/// A segment is removed only once its records are in the database. Where they are in neither, it is an older copy of the database.
async fn missing(
    session: SessionId,
    applied_seq: u64,
    first_seq: u64,
    database: &dyn Database,
) -> Result<(), LedgerError> {
    let what = format!("the records {} to {} of session {session}", applied_seq + 1, first_seq - 1);
    if !database.was_put_back_after(session).await? {
        return Err(LedgerError::Store(StoreError::Refused(format!(
            "{what} are neither in the database nor in its journal: is the database an older copy? A copy is put in place with \
             `weir restore`"
        ))));
    }
    // Whoever put it back was told, and wanted it all the same.
    tracing::error!("{what} are lost: they were no longer kept when the database was put back");
    Ok(())
}

fn unwritten(error: WriteError) -> LedgerError {
    match error {
        WriteError::Store(error) => LedgerError::Store(error),
        set_back @ WriteError::SetBack { .. } => {
            LedgerError::Store(StoreError::Damaged(set_back.to_string()))
        }
    }
}

fn damaged(session: SessionId, what: &str) -> LedgerError {
    LedgerError::Store(StoreError::Damaged(format!("session {session}: {what}")))
}

/// The row of a settlement that the database does not have.
fn unapplied(seq: u64, record: Record, applied_seq: u64) -> Option<RequestRow> {
    match record {
        Record::Settle(settle) if seq > applied_seq => rows::row(seq, &settle),
        Record::Settle(_) | Record::Sent(_) | Record::Failed(_) | Record::Progress(_) | Record::Synced(_) => {
            None
        }
    }
}

/// What a journal says.
#[derive(Default)]
struct Found {
    /// Settlements that the database does not have. Their rows are made when they are written: there may be millions.
    settled: u64,
    /// Requests that were sent and not settled, by the number at which they were first sent.
    open: BTreeMap<u64, (Sent, Option<Progress>)>,
    by_request: HashMap<[u8; 16], u64>,
}

impl Found {
    fn take(&mut self, seq: u64, record: Record, applied_seq: u64) -> Result<(), String> {
        match record {
            Record::Sent(sent) => {
                let first = *self.by_request.entry(sent.request_id).or_insert(seq);
                // Sent once more, or carried forward: what is known of its progress stays, since a kill may have come before it was written
                // again behind this.
                match self.open.entry(first) {
                    Entry::Vacant(open) => _ = open.insert((sent, None)),
                    Entry::Occupied(mut open) => open.get_mut().0 = sent,
                }
            }
            Record::Failed(request_id) => self.close(&request_id),
            Record::Progress(progress) => {
                let first = self.by_request.get(&progress.request_id);
                if let Some((_, known)) = first.and_then(|first| self.open.get_mut(first)) {
                    *known = Some(progress);
                }
            }
            Record::Settle(settle) => {
                self.close(&settle.request_id);
                if seq > applied_seq {
                    rows::row(seq, &settle).ok_or_else(|| format!("the settlement {seq} makes no sense"))?;
                    self.settled += 1;
                }
            }
            Record::Synced(_) => {}
        }
        Ok(())
    }

    fn close(&mut self, request_id: &[u8; 16]) {
        if let Some(first) = self.by_request.remove(request_id) {
            self.open.remove(&first);
        }
    }

    /// The rows of what was open, numbered from `first_seq` on in the order in which it was sent. What an earlier try that was cut off
    /// has billed is left out.
    async fn died(&self, first_seq: u64, database: &dyn Database) -> Result<Vec<RequestRow>, StoreError> {
        let mut died = Vec::new();
        for (sent, progress) in self.open.values() {
            if !database.has_request(RequestId(Uuid::from_bytes(sent.request_id))).await? {
                died.push(rows::died(first_seq + died.len() as u64, sent, progress.as_ref()));
            }
        }
        Ok(died)
    }
}
