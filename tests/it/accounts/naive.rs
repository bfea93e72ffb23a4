//! An account's life in a hundred lines: exact amounts, no column that another one could be derived from.

use std::collections::HashMap;
use weir::store::LotKind;

/// Pico-dollars in a micro-dollar.
pub(super) const MICRO: i128 = 1_000_000;

#[derive(Default)]
pub(super) struct Account {
    /// What no session has, in pico-dollars. Below zero it is debt, but for the part of a micro-dollar that is carried.
    pub(super) purse: i128,
    pub(super) spent: i128,
    pub(super) lots: Vec<Lot>,
    /// Spent beyond all lots.
    unpaid: i128,
    pub(super) is_suspended: bool,
    pub(super) is_frozen: bool,
}

pub(super) struct Lot {
    pub(super) kind: LotKind,
    pub(super) amount: i64,
    pub(super) refunded: i64,
    used: i128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Live,
    Lost,
    Closed,
}

/// What a session has of one account.
#[derive(Clone, Default)]
pub(super) struct Pocket {
    pub(super) has_lease: bool,
    /// Granted and not returned, in micro-dollars.
    pub(super) net: i64,
    pub(super) consumed: i128,
    /// Spent, and neither taken from the lease nor collected.
    pub(super) due: i128,
}

pub(super) struct Session {
    pub(super) standing: Standing,
    pub(super) pockets: Vec<Pocket>,
}

#[derive(Default)]
pub(super) struct Ledger {
    pub(super) accounts: Vec<Account>,
    pub(super) sessions: Vec<Session>,
    /// What each idempotency key stands for: the request, its lot, its amount.
    pub(super) keys: HashMap<u8, (String, usize, i64)>,
}

impl Lot {
    fn rest(&self) -> i128 {
        i128::from(self.amount - self.refunded) * MICRO - self.used
    }

    pub(super) fn unused(&self) -> i64 {
        micros(self.rest().max(0).div_euclid(MICRO))
    }
}

impl Pocket {
    pub(super) fn free(&self) -> i128 {
        i128::from(self.net) * MICRO - self.consumed
    }
}

impl Account {
    pub(super) fn available(&self) -> i64 {
        micros(-(-self.purse).div_euclid(MICRO)).max(0)
    }

    pub(super) fn owed(&self) -> i64 {
        micros((-self.purse).div_euclid(MICRO)).max(0)
    }

    pub(super) fn credit(&mut self, kind: LotKind, amount: i64) {
        self.purse += i128::from(amount) * MICRO;
        self.lots.push(Lot { kind, amount, refunded: 0, used: 0 });
        let unpaid = std::mem::take(&mut self.unpaid);
        self.use_up(unpaid);
    }

    pub(super) fn spend(&mut self, cost: i128) {
        self.spent += cost;
        self.use_up(cost);
    }

    /// First in, first out.
    fn use_up(&mut self, mut cost: i128) {
        for lot in &mut self.lots {
            let part = cost.min(lot.rest().max(0));
            lot.used += part;
            cost -= part;
        }
        self.unpaid += cost;
    }

    /// Debt is given up: the last that was spent has cost nothing.
    pub(super) fn write_off(&mut self) -> i64 {
        let owed = self.owed();
        let mut given = i128::from(owed) * MICRO;
        self.purse += given;
        let unpaid = given.min(self.unpaid);
        self.unpaid -= unpaid;
        given -= unpaid;
        for lot in self.lots.iter_mut().rev() {
            let part = given.min(lot.used);
            lot.used -= part;
            given -= part;
        }
        owed
    }
}

impl Ledger {
    /// What sessions have of it and have not spent, begun micro-dollars counting as spent.
    pub(super) fn unreturned(&self, account: usize) -> i64 {
        let pockets = self.sessions.iter().map(|session| &session.pockets[account]);
        pockets.map(|pocket| micros(pocket.free().div_euclid(MICRO))).sum()
    }

    pub(super) fn due(&self, account: usize) -> i128 {
        self.sessions.iter().map(|session| session.pockets[account].due).sum()
    }

    pub(super) fn balance(&self, account: usize) -> i64 {
        let of = &self.accounts[account];
        let free: i128 = self.sessions.iter().map(|session| session.pockets[account].free()).sum();
        let left = of.purse + i128::from(of.owed()) * MICRO + free - self.due(account);
        micros(left.div_euclid(MICRO)).max(0)
    }

    pub(super) fn collect(&mut self, session: usize) {
        for (account, pocket) in self.accounts.iter_mut().zip(&mut self.sessions[session].pockets) {
            account.purse -= std::mem::take(&mut pocket.due);
        }
    }

    pub(super) fn end(&mut self, session: usize, standing: Standing) {
        if self.sessions[session].standing == Standing::Closed || self.sessions[session].standing == standing
        {
            return;
        }
        self.collect(session);
        for (account, pocket) in self.accounts.iter_mut().zip(&mut self.sessions[session].pockets) {
            account.purse += pocket.free();
            (pocket.net, pocket.consumed) = (0, 0);
        }
        self.sessions[session].standing = standing;
    }
}

pub(super) fn micros(amount: i128) -> i64 {
    i64::try_from(amount).unwrap()
}
