//! The lease protocol in small numbers: one account, two sessions, a unit of credit for a unit of work.
//!
//! What is modelled is what is decided in `ledger` and `store`: what a process keeps in memory, what its journal holds, what each
//! transaction of the database does. Clocks are not: what a deadline puts off may happen at any time. Nor is a pause a step of its own:
//! a process that takes no step while others do is paused, and may be taken for lost.

use stateright::{Model, Property};

/// A variant of the protocol, and how large a world it is checked in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Protocol {
    /// What the account is credited with, and once more by the top-up.
    pub(super) credit: i8,
    pub(super) top_up: i8,
    /// All requests together.
    pub(super) requests: usize,
    /// What a request may come to; it holds one.
    pub(super) cost_max: i8,
    /// Leases of a silent session are reclaimed before its journal is replayed.
    pub(super) reclaims_early: bool,
    pub(super) late: Late,
    /// A batch is applied only where the one before ended.
    pub(super) has_watermark: bool,
}

/// What becomes of a settlement whose lease has been reclaimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    Charged,
    Rejected,
}

/// A grant takes so much, if it is there.
const SLICE: i8 = 2;
pub(super) const SESSIONS: [usize; 2] = [0, 1];

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    /// The account's row.
    pub(super) available: i8,
    pub(super) owed: i8,
    /// Charged to the account for good.
    pub(super) consumed: i8,
    pub(super) is_topped_up: bool,
    /// In order, since it does not matter which is which.
    pub(super) sessions: [Session; 2],
    /// Witness: what reclaimed leases gave back before their journals were replayed.
    pub(super) reclaimed: i8,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Session {
    pub(super) process: Process,
    /// The process's memory.
    pub(super) free: i8,
    /// Granted by an answer that was lost.
    unlearned: i8,
    pub(super) request: Request,
    believes_applied: usize,
    is_fenced: bool,
    /// The disk: what was settled, in order. A request that was sent is on it, too.
    pub(super) journal: Vec<Row>,
    /// Its rows in the database.
    pub(super) is: Standing,
    /// Granted and not returned.
    pub(super) leased: i8,
    pub(super) lease_consumed: i8,
    pub(super) applied: usize,
    pub(super) over_due: i8,
    /// The sum over its request rows.
    pub(super) billed: i8,
    /// Witness: what its upstream has served.
    pub(super) served: i8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Row {
    pub(super) cost: i8,
    /// What of it the lease did not cover.
    pub(super) over: i8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Process {
    #[default]
    Up,
    Dead,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Request {
    #[default]
    None,
    Held,
    /// The journal says that it was sent.
    Sent,
}

/// As the database has the session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Standing {
    #[default]
    Live,
    Lost,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    TopUp,
    Grant {
        to: usize,
        is_answered: bool,
    },
    /// What a lost answer granted is found in the totals.
    Reread(usize),
    Hold(usize),
    /// A held request ends before anything was sent.
    Release(usize),
    Send(usize),
    Settle {
        session: usize,
        cost: i8,
    },
    Apply {
        session: usize,
        rows: usize,
        is_answered: bool,
    },
    Collect(usize),
    /// Unused credit goes back, recalled or idle. Where the answer says nothing, it is not used again either way.
    Return {
        from: usize,
        went: bool,
    },
    Beat(usize),
    Stop(usize),
    Kill(usize),
    /// Whoever can take the dead one's lock brings one row of its journal to the database.
    Replay(usize),
    CloseReplayed(usize),
    Reclaim(usize),
}

impl Session {
    /// What the journal comes to, once the process is known to be dead: what was open is billed by its input.
    pub(super) fn replayed(&self) -> Vec<Row> {
        let died = (self.process == Process::Dead && self.request == Request::Sent)
            .then_some(Row { cost: 1, over: 1 });
        self.journal.iter().copied().chain(died).collect()
    }

    fn learn_granted(&mut self) {
        self.free += std::mem::take(&mut self.unlearned);
    }

    /// One transaction of the batched writer.
    fn apply(&mut self, protocol: &Protocol, from: usize, rows: &[Row]) {
        self.applied = from + rows.len();
        for row in rows {
            if self.is == Standing::Live {
                self.lease_consumed += row.cost - row.over;
                self.over_due += row.over;
            } else if protocol.late == Late::Rejected {
                continue;
            } else {
                self.over_due += row.cost;
            }
            self.billed += row.cost;
        }
    }
}

impl State {
    /// Credit comes to the account: what it owes is paid first.
    fn receive(&mut self, amount: i8) {
        let paid = self.owed.min(amount);
        self.owed -= paid;
        self.available += amount - paid;
    }

    /// Requests that were sent, or are about to be.
    fn asked(&self) -> usize {
        let open = |session: &Session| usize::from(session.request != Request::None);
        self.sessions.iter().map(|session| session.journal.len() + open(session)).sum()
    }

    fn collect(&mut self, at: usize) {
        let due = std::mem::take(&mut self.sessions[at].over_due);
        let paid = due.min(self.available);
        self.available -= paid;
        self.owed += due - paid;
        self.consumed += due;
    }

    /// Ends a session in the database. Tells what its lease gave back.
    fn end(&mut self, at: usize, standing: Standing) -> i8 {
        self.collect(at);
        let session = &mut self.sessions[at];
        let (leased, consumed) =
            (std::mem::take(&mut session.leased), std::mem::take(&mut session.lease_consumed));
        let residual = leased - consumed;
        self.consumed += consumed;
        // Its totals can no longer be read.
        session.unlearned = 0;
        session.is = standing;
        self.receive(residual);
        residual
    }

    /// What the session's own process may do.
    fn own_steps(&self, at: usize, protocol: &Protocol, steps: &mut Vec<Step>) {
        let session = &self.sessions[at];
        let may_admit = !session.is_fenced && self.asked() < protocol.requests;
        if may_admit && session.is == Standing::Live && self.available > 0 {
            steps.extend([true, false].map(|is_answered| Step::Grant { to: at, is_answered }));
        }
        if session.unlearned > 0 {
            steps.push(Step::Reread(at));
        }
        match session.request {
            Request::None if may_admit && session.free > 0 => steps.push(Step::Hold(at)),
            Request::None => {}
            Request::Held => steps.extend([Step::Release(at), Step::Send(at)]),
            Request::Sent => {
                steps.extend((1..=protocol.cost_max).map(|cost| Step::Settle { session: at, cost }));
            }
        }
        for rows in 1..=session.journal.len() - session.believes_applied {
            steps.extend([true, false].map(|is_answered| Step::Apply { session: at, rows, is_answered }));
        }
        if session.over_due > 0 {
            steps.push(Step::Collect(at));
        }
        if session.free > 0 {
            steps.extend([true, false].map(|went| Step::Return { from: at, went }));
        }
        if session.is != Standing::Live && !session.is_fenced {
            steps.push(Step::Beat(at));
        }
        if session.request == Request::None && session.applied == session.journal.len() {
            steps.push(Step::Stop(at));
        }
        steps.push(Step::Kill(at));
    }

    /// What is done to a session from outside.
    fn steps_around(&self, at: usize, protocol: &Protocol, steps: &mut Vec<Step>) {
        let session = &self.sessions[at];
        match session.process {
            Process::Up => {}
            Process::Dead if session.is == Standing::Closed => {}
            Process::Dead if session.applied < session.replayed().len() => steps.push(Step::Replay(at)),
            Process::Dead => steps.push(Step::CloseReplayed(at)),
        }
        if protocol.reclaims_early && session.is == Standing::Live {
            steps.push(Step::Reclaim(at));
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            available: self.credit,
            owed: 0,
            consumed: 0,
            is_topped_up: self.top_up == 0,
            sessions: Default::default(),
            reclaimed: 0,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if !state.is_topped_up {
            steps.push(Step::TopUp);
        }
        for at in SESSIONS {
            if state.sessions[at].process == Process::Up {
                state.own_steps(at, self, steps);
            }
            state.steps_around(at, self, steps);
        }
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        match step {
            Step::TopUp => {
                state.is_topped_up = true;
                state.receive(self.top_up);
            }
            Step::Grant { to, is_answered } => {
                let amount = SLICE.min(state.available);
                state.available -= amount;
                let session = &mut state.sessions[to];
                session.leased += amount;
                session.unlearned += amount;
                if is_answered {
                    session.learn_granted();
                }
            }
            Step::Reread(at) => state.sessions[at].learn_granted(),
            Step::Hold(at) => {
                state.sessions[at].free -= 1;
                state.sessions[at].request = Request::Held;
            }
            Step::Release(at) => {
                state.sessions[at].free += 1;
                state.sessions[at].request = Request::None;
            }
            Step::Send(at) => state.sessions[at].request = Request::Sent,
            Step::Settle { session, cost } => settle(&mut state.sessions[session], cost),
            Step::Apply { session, rows, is_answered } => {
                self.apply(&mut state.sessions[session], rows, is_answered);
            }
            Step::Collect(at) => state.collect(at),
            Step::Return { from, went } => {
                let session = &mut state.sessions[from];
                let amount = std::mem::take(&mut session.free);
                if went && session.is == Standing::Live {
                    session.leased -= amount;
                    state.receive(amount);
                }
            }
            Step::Beat(at) => state.sessions[at].is_fenced = true,
            Step::Kill(at) => kill(&mut state.sessions[at]),
            Step::Replay(at) => {
                let session = &mut state.sessions[at];
                let row = session.replayed()[session.applied];
                session.apply(self, session.applied, &[row]);
            }
            Step::Stop(at) | Step::CloseReplayed(at) => {
                state.end(at, Standing::Closed);
                forget(&mut state.sessions[at]);
            }
            Step::Reclaim(at) => state.reclaimed += state.end(at, Standing::Lost),
        }
        state.sessions.sort_unstable();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        super::properties::all()
    }
}

impl Protocol {
    /// The writer sends rows from where it believes the database to be.
    fn apply(&self, session: &mut Session, rows: usize, is_answered: bool) {
        let from = session.believes_applied;
        if self.has_watermark && session.applied != from {
            // An answer was lost: the watermark tells what became of that batch.
            session.believes_applied = session.applied;
            return;
        }
        let rows = session.journal[from..from + rows].to_vec();
        session.apply(self, from, &rows);
        if is_answered {
            session.believes_applied = session.applied;
        }
    }
}

fn settle(session: &mut Session, cost: i8) {
    // The hold covers one, then what is free covers the rest.
    let from_hold = cost.min(1);
    let from_free = session.free.min(cost - from_hold);
    session.free += 1 - from_hold - from_free;
    session.request = Request::None;
    session.served += cost;
    session.journal.push(Row { cost, over: cost - from_hold - from_free });
}

/// A request that was sent has cost its input.
fn kill(session: &mut Session) {
    let is_sent = session.request == Request::Sent;
    session.served += i8::from(is_sent);
    session.request = if is_sent { Request::Sent } else { Request::None };
    forget(session);
}

/// The process is gone, and its memory with it.
fn forget(session: &mut Session) {
    (session.process, session.is_fenced) = (Process::Dead, false);
    (session.free, session.unlearned, session.believes_applied) = (0, 0, 0);
}
