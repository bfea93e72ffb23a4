//! The protocol of leases, checked in every order of its steps: grants, holds, settlements, batches whose answer is lost, pauses, kills,
//! replays by a sibling, reclaims after a deadline, late debits, returns, a top-up.

mod model;
mod properties;

use model::{Late, Protocol};
use properties::{NOTHING_DOUBLED, NOTHING_LOST, OVERSPENT};
use stateright::{Checker, Expectation, HasDiscoveries, Model};
use std::time::{Duration, Instant};

/// As the product is: leases are reclaimed after their journal is replayed, and no cost is above its hold.
const PROTOCOL: Protocol = Protocol {
    credit: 3,
    top_up: 1,
    requests: 5,
    cost_max: 1,
    reclaims_early: false,
    late: Late::Charged,
    has_watermark: true,
};

const TIME_MAX: Duration = Duration::from_secs(60);

/// Visits every state, and fails where a property does not hold, or where what must be possible is not.
fn check(what: &str, protocol: Protocol, is_overspent: bool) {
    let begun = Instant::now();
    let checked = protocol.checker().threads(2).timeout(TIME_MAX).spawn_bfs().join();
    let (unique, all) = (checked.unique_state_count(), checked.state_count());
    eprintln!("{what}: {unique} states, {all} steps, {} deep, {:?}", checked.max_depth(), begun.elapsed());
    assert!(begun.elapsed() < TIME_MAX, "{what}: not every state was visited in time");
    for property in protocol.properties() {
        let found = checked.discovery(property.name);
        let is_expected = match property.expectation {
            Expectation::Always | Expectation::Eventually => false,
            Expectation::Sometimes => property.name != OVERSPENT || is_overspent,
        };
        let steps = found.as_ref().map(|path| (path.clone().into_actions(), path.last_state().clone()));
        assert_eq!(found.is_some(), is_expected, "{what}: {}: {steps:?}", property.name);
    }
}

/// Visits states until the property is broken, and tells by which steps.
fn broken(what: &str, protocol: Protocol, property: &'static str) {
    let only = HasDiscoveries::AnyOf([property].into());
    let checked = protocol.checker().finish_when(only).timeout(TIME_MAX).spawn_bfs().join();
    let found = checked.discovery(property);
    let found = found
        .unwrap_or_else(|| panic!("{what}: {property}: holds in {} states", checked.unique_state_count()));
    let steps = found.into_actions();
    eprintln!(
        "{what}: broken in {} steps, after {} states: {steps:?}",
        steps.len(),
        checked.unique_state_count()
    );
}

#[test]
fn leases_reclaimed_after_replay_lose_nothing_double_nothing_and_never_overspend() {
    check("as it is", PROTOCOL, false);
}

#[test]
fn a_cost_above_its_hold_is_the_only_overspend_while_journals_are_replayed_first() {
    check("costs above holds", Protocol { cost_max: 2, requests: 4, ..PROTOCOL }, true);
}

#[test]
fn leases_reclaimed_early_overspend_at_most_what_was_reclaimed() {
    check("reclaimed early", Protocol { credit: 2, requests: 4, reclaims_early: true, ..PROTOCOL }, true);
}

#[test]
fn to_reject_late_debits_would_lose_them() {
    let mutant = Protocol { reclaims_early: true, late: Late::Rejected, ..PROTOCOL };
    broken("late debits rejected", mutant, NOTHING_LOST);
}

#[test]
fn without_a_watermark_a_lost_answer_would_double_debits() {
    broken("no watermark", Protocol { has_watermark: false, ..PROTOCOL }, NOTHING_DOUBLED);
}
