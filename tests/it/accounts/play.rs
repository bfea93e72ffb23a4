//! Each operation, done to the store and to the naive ledger.

use super::naive::{Account, Ledger, MICRO, Pocket, Session, Standing, micros};
use super::seen::{Event, Seen};
use proptest::prelude::TestCaseError;
use proptest::{prop_assert, prop_assert_eq};
use std::path::Path;
use tempfile::TempDir;
use weir::clock::UnixMicros;
use weir::ids::{AccountId, KeyId, LotId, ModelName, ProviderName, RequestId, SessionId};
use weir::ledger::{examine, write};
use weir::money::{Micros, Picos};
use weir::store::{
    Grant, GrantRefused, LotKind, NewCredit, NewSession, Opened, Refund, RefundStep, RequestRow,
    SessionState, Store, StoreError, Subject,
};
use weir::usage::{Outcome, Usage, UsageSource};

pub(super) const ACCOUNTS: usize = 2;
const AT: UnixMicros = UnixMicros(1_700_000_000_000_000);

/// What may happen. Sessions and lots are counted round those that there are.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Credit {
        account: usize,
        kind: LotKind,
        amount: i64,
        key: Option<u8>,
    },
    Open,
    Grant {
        session: usize,
        account: usize,
        need: i64,
        want: i64,
    },
    GiveBack {
        session: usize,
        account: usize,
        most: i64,
    },
    Batch {
        session: usize,
        charges: Vec<Charge>,
        is_answer_lost: bool,
    },
    Collect(usize),
    End {
        session: usize,
        is_lost: bool,
    },
    Recall(usize),
    SetActive {
        account: usize,
        is_active: bool,
    },
    /// Until later, or until now: the process that began it has died.
    Freeze {
        account: usize,
        lot: usize,
        has_ended: bool,
    },
    Pay {
        account: usize,
        lot: usize,
        key: Option<u8>,
    },
    Unfreeze(usize),
    WriteOff(usize),
}

#[derive(Clone, Debug)]
pub(super) struct Charge {
    pub(super) account: usize,
    /// In pico-dollars, below its lease or above.
    pub(super) cost: i64,
    /// The database will not take its row.
    pub(super) is_refused: bool,
    /// It was open when its process died: all of it is above the lease.
    pub(super) has_died: bool,
}

pub(super) struct Play {
    store: Store,
    naive: Ledger,
    accounts: Vec<AccountId>,
    lots: Vec<Vec<LotId>>,
    sessions: Vec<SessionId>,
    applied: Vec<u64>,
    taken: Option<RequestId>,
    pub(super) seen: Seen,
    _directory: TempDir,
}

type Checked = Result<(), TestCaseError>;

impl Play {
    pub(super) async fn begin() -> Play {
        // What a disk does is no part of this: where there is memory for it, no commit waits.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let directory = tempfile::tempdir_in(parent).unwrap();
        let url = format!("sqlite:{}", directory.path().join("weir.db").display());
        let store = Store::open(&url, Opened::ByServer).await.unwrap();
        let mut accounts = Vec::new();
        for at in 0..ACCOUNTS {
            accounts.push(store.create_account(&format!("{at}@example.com"), None, AT).await.unwrap());
        }
        let mut naive = Ledger::default();
        naive.accounts.resize_with(ACCOUNTS, Account::default);
        Play {
            store,
            naive,
            accounts,
            lots: vec![Vec::new(); ACCOUNTS],
            sessions: Vec::new(),
            applied: Vec::new(),
            taken: None,
            seen: Seen::default(),
            _directory: directory,
        }
    }

    pub(super) async fn step(&mut self, op: &Op) -> Checked {
        let session = |session: usize| session.checked_rem(self.sessions.len());
        match *op {
            Op::Credit { account, kind, amount, key } => self.credit(account, kind, amount, key).await,
            Op::Open => self.open().await,
            Op::Recall(account) => self.recall(account).await,
            Op::SetActive { account, is_active } => self.set_active(account, is_active).await,
            Op::Unfreeze(account) => {
                self.store.unfreeze(self.accounts[account]).await.unwrap();
                self.naive.accounts[account].is_frozen = false;
                Ok(())
            }
            Op::WriteOff(account) => {
                let given_up = self.store.write_off(self.accounts[account], AT).await.unwrap();
                prop_assert_eq!(given_up.0, self.naive.accounts[account].write_off());
                self.seen.note(Event::WriteOff, given_up.0 > 0);
                Ok(())
            }
            Op::Freeze { account, lot, has_ended } => match lot.checked_rem(self.lots[account].len()) {
                Some(lot) => self.freeze(account, lot, has_ended).await,
                None => Ok(()),
            },
            Op::Pay { account, lot, key } => match lot.checked_rem(self.lots[account].len()) {
                Some(lot) => self.pay(account, lot, key).await,
                None => Ok(()),
            },
            Op::Grant { session: at, account, need, want } => match session(at) {
                Some(at) => self.grant(at, account, need, want).await,
                None => Ok(()),
            },
            Op::GiveBack { session: at, account, most } => match session(at) {
                Some(at) => self.give_back(at, account, most).await,
                None => Ok(()),
            },
            Op::Batch { session: at, ref charges, is_answer_lost } => match session(at) {
                Some(at) => self.batch(at, charges, is_answer_lost).await,
                None => Ok(()),
            },
            Op::Collect(at) => match session(at) {
                Some(at) => {
                    self.store.collect_over(self.sessions[at], AT).await.unwrap();
                    self.naive.collect(at);
                    Ok(())
                }
                None => Ok(()),
            },
            Op::End { session: at, is_lost } => match session(at) {
                Some(at) => self.end(at, is_lost).await,
                None => Ok(()),
            },
        }
    }

    /// The books against themselves, and against the naive ledger.
    pub(super) async fn compare(&mut self, op: &Op) -> Checked {
        let report = examine(&self.store.snapshot().await.unwrap());
        prop_assert!(report.ok, "after {op:?}: {:?}", report.off);
        let most = u32::try_from(ACCOUNTS).unwrap();
        let listed = self.store.accounts(None, most, AT).await.unwrap().accounts;
        for (at, id) in self.accounts.iter().enumerate() {
            let (account, naive) = (self.store.account(*id).await.unwrap(), &self.naive.accounts[at]);
            prop_assert_eq!(&listed[at].account, &account, "listed after {:?}", op);
            let own = (account.balance.0, account.owed.0, account.consumed.0);
            let spent = micros(naive.spent.div_euclid(MICRO));
            prop_assert_eq!(
                own,
                (self.naive.balance(at), naive.owed(), spent),
                "balance, owed, consumed after {:?}",
                op
            );
            let lots = self.store.lots(*id).await.unwrap();
            let own: Vec<_> = lots
                .iter()
                .map(|lot| (lot.lot_id, lot.kind, lot.amount.0, lot.refunded.0, lot.unused.0))
                .collect();
            let other: Vec<_> = std::iter::zip(&self.lots[at], &naive.lots)
                .map(|(id, lot)| (*id, lot.kind, lot.amount, lot.refunded, lot.unused()))
                .collect();
            prop_assert_eq!(own, other, "lots after {:?}", op);
            self.seen.note(Event::Owed, account.owed.0 > 0);
        }
        Ok(())
    }

    async fn credit(&mut self, account: usize, kind: LotKind, amount: i64, key: Option<u8>) -> Checked {
        let new = NewCredit {
            account_id: self.accounts[account],
            amount: Micros(amount),
            kind,
            reason: "a test".to_owned(),
            idempotency_key: key.map(|key| format!("key-{key}")),
        };
        let request = format!("credit {account} {kind:?} {amount}");
        let done = self.store.add_credit(&new, AT).await;
        if let Some((before, lot, _)) = key.and_then(|key| self.naive.keys.get(&key)) {
            if *before != request {
                self.seen.note(Event::Conflict, true);
                prop_assert!(matches!(done, Err(StoreError::Conflict(_))), "{done:?}");
            } else {
                self.seen.note(Event::Repeat, true);
                prop_assert_eq!(done.unwrap().lot_id, self.lots[account][*lot]);
            }
            return Ok(());
        }
        self.naive.accounts[account].credit(kind, amount);
        if let Some(key) = key {
            self.naive.keys.insert(key, (request, self.lots[account].len(), amount));
        }
        let done = done.unwrap();
        self.lots[account].push(done.lot_id);
        prop_assert_eq!(done.balance.0, self.naive.balance(account));
        Ok(())
    }

    async fn open(&mut self) -> Checked {
        let session_id = SessionId::new();
        let new = NewSession { session_id, host: "here".to_owned(), version: "0".to_owned() };
        self.store.open_session(&new, AT).await.unwrap();
        self.sessions.push(session_id);
        self.applied.push(0);
        self.naive
            .sessions
            .push(Session { standing: Standing::Live, pockets: vec![Pocket::default(); ACCOUNTS] });
        Ok(())
    }

    async fn grant(&mut self, session: usize, account: usize, need: i64, want: i64) -> Checked {
        let grant = Grant {
            session: self.sessions[session],
            account: self.accounts[account],
            need: Micros(need),
            want: Micros(want),
        };
        let done = self.store.grant(&grant, AT).await.unwrap();
        let of = &mut self.naive.accounts[account];
        let live = self.naive.sessions.iter().filter(|session| session.standing == Standing::Live).count();
        let available = of.available();
        let amount = need.max(want.min(available / (2 * i64::try_from(live).unwrap().max(1))));
        let elsewhere = self.naive.sessions.iter().enumerate().filter(|(at, _)| *at != session);
        let elsewhere = elsewhere.map(|(_, session)| session.pockets[account].net).sum();
        let refused = if self.naive.sessions[session].standing != Standing::Live {
            Some(GrantRefused::NotLive)
        } else if of.is_suspended {
            Some(GrantRefused::Suspended)
        } else if of.is_frozen {
            Some(GrantRefused::Frozen)
        } else if amount > available || amount == 0 {
            self.seen.note(Event::Short, true);
            Some(GrantRefused::Short { available: Micros(available), elsewhere: Micros(elsewhere) })
        } else {
            None
        };
        prop_assert_eq!(done.err(), refused);
        if refused.is_none() {
            of.purse -= i128::from(amount) * MICRO;
            let pocket = &mut self.naive.sessions[session].pockets[account];
            (pocket.net, pocket.has_lease) = (pocket.net + amount, true);
            let totals = done.unwrap();
            prop_assert_eq!(totals.totals.granted.0 - totals.totals.returned.0, pocket.net);
        }
        Ok(())
    }

    async fn give_back(&mut self, session: usize, account: usize, most: i64) -> Checked {
        let (id, of) = (self.sessions[session], self.accounts[account]);
        let naive = &mut self.naive.sessions[session];
        let pocket = &mut naive.pockets[account];
        if naive.standing != Standing::Live || !pocket.has_lease {
            let done = self.store.give_back(id, of, Micros(most), AT).await;
            prop_assert!(matches!(done, Err(StoreError::Refused(_))), "{done:?}");
            return Ok(());
        }
        let amount = most.min(micros(pocket.free().div_euclid(MICRO)));
        let totals = self.store.give_back(id, of, Micros(amount), AT).await.unwrap();
        pocket.net -= amount;
        self.naive.accounts[account].purse += i128::from(amount) * MICRO;
        prop_assert_eq!(totals.granted.0 - totals.returned.0, pocket.net);
        Ok(())
    }

    async fn batch(&mut self, session: usize, charges: &[Charge], is_answer_lost: bool) -> Checked {
        let (id, applied) = (self.sessions[session], self.applied[session]);
        let is_live = self.naive.sessions[session].standing == Standing::Live;
        let mut rows = Vec::new();
        let mut quarantined = 0;
        for (seq, charge) in (applied + 1..).zip(charges) {
            let pocket = &mut self.naive.sessions[session].pockets[charge.account];
            let cost = i128::from(charge.cost);
            // A process that is taken for lost does not know: it says that its lease covers what it does.
            let covered = match (charge.has_died, is_live) {
                (true, _) => 0,
                (false, true) => cost.min(pocket.free()),
                (false, false) => cost,
            };
            if is_live {
                pocket.consumed += covered;
                pocket.due += cost - covered;
            } else {
                pocket.due += cost;
                self.seen.note(Event::Late, cost > 0);
            }
            self.naive.accounts[charge.account].spend(cost);
            let twice = self.taken.filter(|_| charge.is_refused);
            quarantined += usize::from(twice.is_some());
            let over = Picos(charge.cost - micros(covered));
            rows.push(row(
                seq,
                twice.unwrap_or_default(),
                self.accounts[charge.account],
                Picos(charge.cost),
                over,
            ));
        }
        let written = write(&self.store, id, applied, &rows, AT).await.unwrap();
        prop_assert_eq!((written.rows, written.quarantined), (rows.len(), quarantined));
        if is_answer_lost {
            let again = write(&self.store, id, applied, &rows, AT).await.unwrap();
            prop_assert_eq!(again.applied_seq, written.applied_seq);
        }
        self.applied[session] = written.applied_seq;
        self.seen.note(Event::Quarantine, quarantined > 0);
        self.taken = self.taken.or(rows.first().map(|row| row.request_id));
        Ok(())
    }

    async fn end(&mut self, session: usize, is_lost: bool) -> Checked {
        let (state, standing) = if is_lost {
            (SessionState::Lost, Standing::Lost)
        } else {
            (SessionState::Closed, Standing::Closed)
        };
        self.store.end_session(self.sessions[session], state, self.applied[session], AT).await.unwrap();
        self.naive.end(session, standing);
        Ok(())
    }

    async fn recall(&mut self, account: usize) -> Checked {
        let version = self.store.version().await.unwrap();
        self.store.recall(self.accounts[account]).await.unwrap();
        let changes = self.store.changes_since(version).await.unwrap().unwrap();
        let subjects: Vec<Subject> = changes.iter().map(|change| change.subject).collect();
        prop_assert_eq!(subjects, [Subject::Recall(self.accounts[account])]);
        Ok(())
    }

    async fn set_active(&mut self, account: usize, is_active: bool) -> Checked {
        let id = self.accounts[account];
        if is_active {
            self.store.resume_account(id, AT).await.unwrap();
        } else {
            self.store.suspend_account(id, "a test", AT).await.unwrap();
        }
        self.naive.accounts[account].is_suspended = !is_active;
        Ok(())
    }

    fn refund(&self, account: usize, lot: usize, key: Option<u8>) -> Refund {
        Refund {
            account_id: self.accounts[account],
            lot_id: self.lots[account][lot],
            idempotency_key: key.map(|key| format!("key-{key}")),
        }
    }

    async fn freeze(&mut self, account: usize, lot: usize, has_ended: bool) -> Checked {
        let until = UnixMicros(AT.0 + i64::from(!has_ended));
        let done = self.store.freeze_for_refund(&self.refund(account, lot, None), until).await;
        if self.naive.accounts[account].lots[lot].kind != LotKind::Paid {
            prop_assert!(matches!(done, Err(StoreError::Refused(_))), "{done:?}");
            return Ok(());
        }
        self.naive.accounts[account].is_frozen = !has_ended;
        done.unwrap();
        Ok(())
    }

    async fn pay(&mut self, account: usize, lot: usize, key: Option<u8>) -> Checked {
        let done = self.store.pay_refund(&self.refund(account, lot, key), AT).await;
        let request = format!("refund {account} {lot}");
        let (unreturned, due) = (self.naive.unreturned(account), self.naive.due(account));
        let before = key.and_then(|key| self.naive.keys.get(&key)).cloned();
        let of = &mut self.naive.accounts[account];
        let expected = match before {
            Some((before, ..)) if before != request => {
                self.seen.note(Event::Conflict, true);
                prop_assert!(matches!(done, Err(StoreError::Conflict(_))), "{done:?}");
                return Ok(());
            }
            Some((_, _, amount)) => {
                self.seen.note(Event::Repeat, true);
                amount
            }
            None if unreturned > 0 => {
                self.seen.note(Event::Wait, true);
                prop_assert_eq!(done.unwrap(), RefundStep::Waiting { unreturned: Micros(unreturned) });
                return Ok(());
            }
            None if of.lots[lot].kind != LotKind::Paid => {
                prop_assert!(matches!(done, Err(StoreError::Refused(_))), "{done:?}");
                return Ok(());
            }
            None => {
                // What is spent already is not given back, be it collected or not.
                let left = micros((of.purse - due).div_euclid(MICRO)).max(0);
                let amount = of.lots[lot].unused().min(left);
                of.lots[lot].refunded += amount;
                of.purse -= i128::from(amount) * MICRO;
                self.seen.note(Event::Refund, amount > 0);
                self.seen.note(Event::PartialRefund, amount > 0 && amount < of.lots[lot].amount);
                if let Some(key) = key {
                    self.naive.keys.insert(key, (request, lot, amount));
                }
                amount
            }
        };
        of.is_frozen = false;
        let RefundStep::Paid { refunded, balance } = done.unwrap() else { panic!("nothing is waited for") };
        prop_assert_eq!((refunded.0, balance.0), (expected, self.naive.balance(account)));
        Ok(())
    }
}

fn row(seq: u64, request_id: RequestId, account: AccountId, cost: Picos, over: Picos) -> RequestRow {
    RequestRow {
        seq,
        request_id,
        account,
        key: KeyId::new(),
        created_at: AT,
        client_request_id: None,
        model: ModelName::from("m"),
        provider: ProviderName::from("p"),
        upstream_model: "u".to_owned(),
        service_tier: None,
        status: 200,
        outcome: Outcome::Completed,
        stream: false,
        usage: Usage { input: 1, ..Usage::default() },
        source: UsageSource::Reported,
        price_version: 1,
        cost,
        over,
        latency_ms: 1,
        ttft_ms: None,
    }
}
