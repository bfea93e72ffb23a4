//! A database that loses answers, goes away and refuses rows, and that never bears what an audit would find.

use super::rng::Rng;
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use weir::clock::UnixMicros;
use weir::ids::{AccountId, RequestId, SessionId};
use weir::ledger::Database;
use weir::store::{Batch, BatchError, RequestRow, SessionState, StoreError};

pub(super) struct SimDatabase(Mutex<Tables>);

pub(super) struct Tables {
    rng: Rng,
    pub(super) faults: Faults,
    sessions: BTreeMap<SessionId, Session>,
    pub(super) rows: BTreeMap<RequestId, RequestRow>,
    session_of: BTreeMap<RequestId, SessionId>,
    /// What was refused as a row, and is charged all the same.
    pub(super) quarantined: BTreeSet<RequestId>,
    /// What will be refused.
    pub(super) poison: BTreeSet<RequestId>,
    pub(super) accounts: BTreeMap<AccountId, Account>,
    leases: BTreeMap<(SessionId, AccountId), Lease>,
}

/// All in pico-dollars.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Account {
    pub(super) credited: i64,
    available: i64,
    consumed: i64,
    owed: i64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Lease {
    granted: i64,
    consumed: i64,
    is_closed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Session {
    state: SessionState,
    applied_seq: u64,
    over_seq: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// How many further calls are not answered, and not done.
    pub(super) away: u32,
    /// Once in so many calls the answer is lost, after the commit or before anything was done; 0 for never.
    pub(super) lost_once_in: u64,
}

enum Answer {
    Given,
    Lost,
}

impl SimDatabase {
    pub(super) fn new(rng: Rng) -> Self {
        SimDatabase(Mutex::new(Tables {
            rng,
            faults: Faults::default(),
            sessions: BTreeMap::new(),
            rows: BTreeMap::new(),
            session_of: BTreeMap::new(),
            quarantined: BTreeSet::new(),
            poison: BTreeSet::new(),
            accounts: BTreeMap::new(),
            leases: BTreeMap::new(),
        }))
    }

    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    pub(super) fn top_up(&mut self, account: AccountId, amount: i64) {
        let account = self.accounts.entry(account).or_default();
        account.credited += amount;
        account.available += amount;
    }

    pub(super) fn open_session(&mut self, session: SessionId) {
        let row = Session { state: SessionState::Live, applied_seq: 0, over_seq: 0 };
        assert!(self.sessions.insert(session, row).is_none(), "a session is opened once");
    }

    /// Takes up to this much from the account for the session, and tells how much.
    pub(super) fn grant(&mut self, session: SessionId, account: AccountId, most: i64) -> i64 {
        let row = self.accounts.get_mut(&account).expect("an account");
        let granted = most.min(row.available);
        row.available -= granted;
        self.leases.entry((session, account)).or_default().granted += granted;
        granted
    }

    pub(super) fn applied_seq(&self, session: SessionId) -> u64 {
        self.sessions[&session].applied_seq
    }

    pub(super) fn is_closed(&self, session: SessionId) -> bool {
        self.sessions[&session].state == SessionState::Closed
    }

    /// The equation of every account, and what was billed against what was charged.
    pub(super) fn audit(&self) {
        for (id, account) in &self.accounts {
            assert!(account.available >= 0 && account.owed >= 0, "{id}: {account:?}");
            let of = |lease: &&((SessionId, AccountId), Lease)| lease.0.1 == *id && !lease.1.is_closed;
            let leases: Vec<_> = self.leases.iter().map(|(key, lease)| (*key, *lease)).collect();
            let leased: i64 = leases.iter().filter(of).map(|(_, lease)| lease.granted).sum();
            let using: i64 = leases.iter().filter(of).map(|(_, lease)| lease.consumed).sum();
            let left = account.available + leased + account.consumed - account.owed;
            assert_eq!(account.credited, left, "{id}: {account:?}, leased {leased}");
            let rows = || self.rows.values().filter(|row| row.account == *id);
            let billed: i64 = rows().map(|row| row.cost.0).sum();
            let due =
                rows().filter(|row| row.seq > self.sessions[&self.session_of[&row.request_id]].over_seq);
            let due: i64 = due.map(|row| row.over.0).sum();
            assert_eq!(billed, account.consumed + using + due, "{id}: billed against charged");
        }
    }

    fn answer(&mut self) -> Result<Answer, StoreError> {
        let gone = || StoreError::Busy("no answer".to_owned());
        if let Some(away) = self.faults.away.checked_sub(1) {
            self.faults.away = away;
            return Err(gone());
        }
        if self.faults.lost_once_in > 0 && self.rng.chance(self.faults.lost_once_in) {
            return if self.rng.chance(2) { Err(gone()) } else { Ok(Answer::Lost) };
        }
        Ok(Answer::Given)
    }

    fn take(&mut self, batch: &Batch<'_>, is_quarantine: bool) -> Result<(), BatchError> {
        let session = self.sessions.get_mut(&batch.session).expect("a session");
        if session.applied_seq != batch.applied_seq {
            return Err(BatchError::Moved(session.applied_seq));
        }
        let seqs: Vec<u64> = batch.rows.iter().map(|row| row.seq).collect();
        assert!(seqs.is_sorted_by(|a, b| a < b), "in order: {seqs:?}");
        assert!(seqs.first().is_some_and(|first| *first > batch.applied_seq), "{seqs:?} after {batch:?}");
        assert_eq!(seqs.last(), Some(&batch.seq_to));
        if !is_quarantine && batch.rows.iter().any(|row| self.poison.contains(&row.request_id)) {
            return Err(BatchError::Row("refused".to_owned()));
        }
        session.applied_seq = batch.seq_to;
        let is_live = session.state == SessionState::Live;
        for row in batch.rows {
            let over = if is_live { row.over } else { row.cost };
            let known = self.rows.insert(row.request_id, RequestRow { over, ..row.clone() });
            assert!(known.is_none(), "billed twice: {row:?} and {known:?}");
            self.session_of.insert(row.request_id, batch.session);
            if is_quarantine {
                self.quarantined.insert(row.request_id);
            }
            let lease = self.leases.entry((batch.session, row.account)).or_default();
            lease.consumed += row.cost.0 - over.0;
            assert!(lease.consumed <= lease.granted, "{lease:?} after {row:?}");
        }
        Ok(())
    }

    fn collect(&mut self, session: SessionId) {
        let row = self.sessions.get_mut(&session).expect("a session");
        let over_seq = std::mem::replace(&mut row.over_seq, row.applied_seq);
        for row in self.rows.values() {
            if self.session_of[&row.request_id] == session && row.seq > over_seq {
                let account = self.accounts.get_mut(&row.account).expect("an account");
                let paid = row.over.0.min(account.available);
                account.available -= paid;
                account.owed += row.over.0 - paid;
                account.consumed += row.over.0;
            }
        }
    }
}

fn answered<T>(answer: &Answer, done: T) -> Result<T, StoreError> {
    match answer {
        Answer::Given => Ok(done),
        Answer::Lost => Err(StoreError::Busy("the answer was lost".to_owned())),
    }
}

#[async_trait]
impl Database for SimDatabase {
    async fn apply_batch(&self, batch: &Batch<'_>, _at: UnixMicros) -> Result<(), BatchError> {
        let mut tables = self.tables();
        let answer = tables.answer()?;
        let taken = tables.take(batch, false);
        tables.audit();
        answered(&answer, taken)?
    }

    async fn quarantine(
        &self,
        batch: &Batch<'_>,
        record: &[u8],
        _error: &str,
        _at: UnixMicros,
    ) -> Result<(), BatchError> {
        assert!(batch.rows.len() == 1 && !record.is_empty(), "one row, whole");
        let mut tables = self.tables();
        let answer = tables.answer()?;
        let taken = tables.take(batch, true);
        tables.audit();
        answered(&answer, taken)?
    }

    async fn collect_over(&self, session: SessionId, _at: UnixMicros) -> Result<(), StoreError> {
        let mut tables = self.tables();
        let answer = tables.answer()?;
        tables.collect(session);
        tables.audit();
        answered(&answer, ())
    }

    async fn session(&self, session: SessionId) -> Result<Option<(SessionState, u64)>, StoreError> {
        let mut tables = self.tables();
        let answer = tables.answer()?;
        answered(&answer, tables.sessions.get(&session).map(|row| (row.state, row.applied_seq)))
    }

    async fn adopt_session(&self, session: SessionId, _at: UnixMicros) -> Result<bool, StoreError> {
        panic!("{session} is not known, and nothing was put back")
    }

    async fn was_put_back_after(&self, _session: SessionId) -> Result<bool, StoreError> {
        let mut tables = self.tables();
        let answer = tables.answer()?;
        answered(&answer, false)
    }

    async fn has_request(&self, request: RequestId) -> Result<bool, StoreError> {
        let mut tables = self.tables();
        let answer = tables.answer()?;
        answered(&answer, tables.rows.contains_key(&request))
    }

    async fn end_session(
        &self,
        session: SessionId,
        end: SessionState,
        applied_seq: u64,
        _at: UnixMicros,
    ) -> Result<(), StoreError> {
        let mut tables = self.tables();
        let answer = tables.answer()?;
        let row = tables.sessions[&session];
        if row.state == SessionState::Closed || row.state == end {
            return answered(&answer, ());
        }
        assert_eq!(row.applied_seq, applied_seq, "a session ends where its watermark is");
        tables.collect(session);
        let Tables { leases, accounts, .. } = &mut *tables;
        for ((_, account), lease) in leases.iter_mut().filter(|((of, _), _)| *of == session) {
            let account = accounts.get_mut(account).expect("an account");
            account.available += lease.granted - lease.consumed;
            account.consumed += lease.consumed;
            lease.is_closed = true;
        }
        tables.sessions.get_mut(&session).expect("a session").state = end;
        tables.audit();
        answered(&answer, ())
    }
}
