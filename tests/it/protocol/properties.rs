//! What holds in every state of the protocol, and what must happen in some for the check to say anything.

use super::model::{Process, Protocol, Request, SESSIONS, Session, Standing, State};
use stateright::Property;

pub(super) const NOTHING_LOST: &str = "no debit is lost";
pub(super) const OVERSPENT: &str = "overspend reaches its bound";
pub(super) const NOTHING_DOUBLED: &str = "no debit is doubled";

pub(super) fn all() -> Vec<Property<Protocol>> {
    vec![
        Property::always(NOTHING_LOST, |_, state| {
            each(state, |session| {
                session.billed >= passed(session) && (!is_over(session) || session.billed >= session.served)
            })
        }),
        Property::always(NOTHING_DOUBLED, |_, state| {
            each(state, |session| session.billed <= passed(session) && session.billed <= session.served)
        }),
        Property::always(
            "available and owed are not below zero, and never both above",
            |_, state: &State| {
                state.available >= 0 && state.owed >= 0 && (state.available == 0 || state.owed == 0)
            },
        ),
        Property::always("the account equation", |protocol, state| {
            let leased = sum(state, |session| session.leased);
            credited(protocol, state) == state.available + leased + state.consumed - state.owed
        }),
        Property::always("what is billed is charged, or will be", |_, state| {
            let open = sum(state, |session| session.lease_consumed);
            let due = sum(state, |session| session.over_due);
            sum(state, |session| session.billed) == state.consumed + open + due
        }),
        Property::always("a lease is consumed by what it was granted", |_, state| {
            each(state, |session| session.lease_consumed <= session.leased)
        }),
        Property::always("a process spends no more than its lease", |_, state| {
            each(state, |session| session.is != Standing::Live || in_memory(session) <= session.leased)
        }),
        Property::always(
            "overspend is within what was reclaimed early and what costs exceed holds",
            |protocol, state| {
                sum(state, |session| session.served) - credited(protocol, state) <= bound(state)
            },
        ),
        // Where nothing is reclaimed early and no cost exceeds its hold that bound is 0; elsewhere it is reached.
        Property::sometimes(OVERSPENT, |protocol, state| {
            let overspent = sum(state, |session| session.served) - credited(protocol, state);
            overspent > 0 && overspent == bound(state)
        }),
        Property::always("after the end only the account has credit", |protocol, state: &State| {
            let is_over = state.sessions.iter().all(is_over);
            !is_over
                || credited(protocol, state) - sum(state, |session| session.served)
                    == state.available - state.owed
        }),
        Property::sometimes("all credit is spent, by both", |protocol, state| {
            each(state, |session| is_over(session) && session.served > 0)
                && state.available == 0
                && credited(protocol, state) == state.consumed
        }),
        Property::sometimes("a dead session's open request is billed", |_, state: &State| {
            state.sessions.iter().any(|session| is_over(session) && session.request == Request::Sent)
        }),
    ]
}

fn credited(protocol: &Protocol, state: &State) -> i8 {
    protocol.credit + if state.is_topped_up { protocol.top_up } else { 0 }
}

/// What reclaimed leases gave back too early, and what costs exceeded their leases by.
fn bound(state: &State) -> i8 {
    state.reclaimed + sum(state, |session| session.journal.iter().map(|row| row.over).sum())
}

fn each(state: &State, holds: fn(&Session) -> bool) -> bool {
    SESSIONS.iter().all(|at| holds(&state.sessions[*at]))
}

fn sum(state: &State, of: fn(&Session) -> i8) -> i8 {
    state.sessions.iter().map(of).sum()
}

/// The cost of everything that the watermark has passed.
fn passed(session: &Session) -> i8 {
    session.replayed().iter().take(session.applied).map(|row| row.cost).sum()
}

fn is_over(session: &Session) -> bool {
    session.process == Process::Dead && session.is == Standing::Closed
}

/// What the process has promised of its lease: free, held, and what its settlements took.
fn in_memory(session: &Session) -> i8 {
    let held = i8::from(session.request != Request::None);
    session.free + held + session.journal.iter().map(|row| row.cost - row.over).sum::<i8>()
}
