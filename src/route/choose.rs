//! One choice among candidates.
//!
//! In this order: healthy candidates and those that are due for a probe, of the model and then of each model that may stand in for it;
//! the same of drained providers; for a request that was sent nowhere yet, the least bad of those that are to be left alone.
//!
//! A candidate whose circuit is open is tried as that last resort, because what opened it was seen and not told: it may be well again,
//! and a refusal would make an outage of a guess. One that said when to come back is taken at its word: one request at a time tries it,
//! in case that it is too careful, and the others are told the time.

use super::health::{Standing, Trial};
use super::plan::{NoneLeft, Wanted, Why};
use super::{Candidate, Order, fraction, spread};
use std::time::Instant;

/// A candidate that was chosen: its model's place in the chain and its own, with the attempt at it begun.
pub(super) struct Choice {
    pub(super) at: (usize, usize),
    pub(super) why: Why,
    pub(super) trial: Trial,
}

/// Below this, in seconds, latencies are taken for equal: it is noise that would decide.
const LATENCY_FLOOR_S: f64 = 0.01;
/// So many times the load of the other makes a drawn candidate the clearly worse one. Less than that leaves the weights alone.
const CLEARLY_WORSE: f64 = 2.0;

/// The first choice of a request.
pub(super) fn first(wanted: &Wanted, now: Instant) -> Result<Choice, NoneLeft> {
    next(wanted, &[], now).map_or_else(|| least_bad(wanted, now), Ok)
}

/// A choice among those that were not tried and that are not to be left alone.
pub(super) fn next(wanted: &Wanted, tried: &[(usize, usize)], now: Instant) -> Option<Choice> {
    for is_drained in [false, true] {
        for (at, model) in wanted.chain.iter().enumerate() {
            let untried = || {
                let candidates = model.candidates.iter().enumerate();
                candidates.filter(|(place, candidate)| {
                    candidate.provider.is_drained == is_drained
                        && candidate.serves(wanted.endpoint)
                        && !tried.contains(&(at, *place))
                })
            };
            // Another request may take the place of a probe between the look and the trial: then it is open, and left out.
            for _ in 0..=model.candidates.len() {
                let open: Vec<Open<'_>> =
                    untried().filter_map(|(place, it)| Open::look(place, it, now)).collect();
                let Some((place, why)) = among(wanted, at, open, tried.is_empty(), now) else { break };
                let why = match (is_drained, at, why) {
                    (true, ..) => Why::LastResort,
                    (false, 0, why) | (false, _, why @ Why::Probe) => why,
                    (false, ..) => Why::Fallback,
                };
                let health = &model.candidates[place].health;
                if let Some(trial) = health.try_it(wanted.is_streamed, now) {
                    return Some(Choice { at: (at, place), why, trial });
                }
            }
        }
    }
    None
}

/// A candidate that can be chosen.
struct Open<'a> {
    place: usize,
    candidate: &'a Candidate,
    is_probe: bool,
}

impl<'a> Open<'a> {
    fn look(place: usize, candidate: &'a Candidate, now: Instant) -> Option<Self> {
        match candidate.health.standing(now) {
            Standing::Closed => Some(Open { place, candidate, is_probe: false }),
            Standing::HalfOpen => Some(Open { place, candidate, is_probe: true }),
            Standing::Open(_) | Standing::Cooling(_) | Standing::CoolingTried(_) => None,
        }
    }
}

/// The one of the best priority. One that is due for a probe goes before the others, but for a request that has failed once already.
fn among(
    wanted: &Wanted,
    at: usize,
    mut open: Vec<Open<'_>>,
    is_first: bool,
    now: Instant,
) -> Option<(usize, Why)> {
    let model = &wanted.chain[at];
    if !is_first && open.iter().any(|it| !it.is_probe) {
        open.retain(|it| !it.is_probe);
    }
    let best = open.iter().map(|it| it.candidate.priority).min()?;
    open.retain(|it| it.candidate.priority == best);
    if let Some(probe) = open.iter().find(|it| it.is_probe) {
        return Some((probe.place, Why::Probe));
    }
    if let [only] = open.as_slice() {
        return Some((only.place, if model.candidates.len() == 1 { Why::Only } else { Why::Priority }));
    }
    if let Some(affinity) = wanted.affinity.filter(|_| model.is_sticky) {
        return highest(&open, |it| stickiness(affinity, it.candidate)).map(|place| (place, Why::Sticky));
    }
    match model.order {
        Order::Weight => Some(by_weight(wanted, &open, now)),
        Order::Latency => {
            highest(&open, |it| -load(wanted, it.candidate, now)).map(|place| (place, Why::Latency))
        }
        Order::Cost => {
            let cost = |it: &Open<'_>| it.candidate.cost.of(wanted.input_tokens, wanted.output_tokens);
            let least = open.iter().map(cost).min()?;
            open.retain(|it| cost(it) == least);
            Some((by_weight(wanted, &open, now).0, Why::Cost))
        }
    }
}

/// Two are drawn by weight; the second stands where the first is clearly worse.
fn by_weight(wanted: &Wanted, open: &[Open<'_>], now: Instant) -> (usize, Why) {
    let total: u64 = open.iter().map(|it| u64::from(it.candidate.weight)).sum();
    let draw = |random: u64| {
        let mut left = random % total.max(1);
        let drawn = open.iter().find(|it| {
            let weight = u64::from(it.candidate.weight);
            let is_here = left < weight;
            left = left.saturating_sub(weight);
            is_here
        });
        drawn.unwrap_or(&open[0])
    };
    let (first, second) = (draw(wanted.random), draw(spread(wanted.random)));
    if first.place == second.place {
        return (first.place, Why::Weight);
    }
    // What is under way is compared with the share that is due, so that a load as the weights want it is no reason to leave them.
    let share = |it: &Open<'_>| total as f64 / (f64::from(it.candidate.weight) * open.len() as f64);
    let weighed = |it: &Open<'_>| {
        let latency = it.candidate.health.latency_s(wanted.is_streamed, now).max(LATENCY_FLOOR_S);
        latency * (f64::from(it.candidate.health.outstanding()) * share(it) + 1.0)
    };
    if weighed(first) > weighed(second) * CLEARLY_WORSE {
        (second.place, Why::Latency)
    } else {
        (first.place, Why::Weight)
    }
}

/// What a request would wait for, more or less: the latency, times the requests that are there with it.
fn load(wanted: &Wanted, candidate: &Candidate, now: Instant) -> f64 {
    let latency = candidate.health.latency_s(wanted.is_streamed, now).max(LATENCY_FLOOR_S);
    latency * (f64::from(candidate.health.outstanding()) + 1.0)
}

/// Rendezvous hashing by weight (Schindelhauer, Schomaker 2005): each candidate has a number for each conversation, and the highest
/// stands. A candidate that comes or goes moves only the conversations that are its own.
fn stickiness(affinity: u64, candidate: &Candidate) -> f64 {
    let own = [candidate.provider.name.as_str(), "\n", &candidate.upstream_model]
        .into_iter()
        .flat_map(str::bytes)
        .fold(affinity, |hash, byte| spread(hash ^ u64::from(byte)));
    -f64::from(candidate.weight) / fraction(own).max(f64::MIN_POSITIVE).ln()
}

/// The place of the one with the highest number; of equals the first.
fn highest(open: &[Open<'_>], number: impl Fn(&Open<'_>) -> f64) -> Option<usize> {
    let numbered = open.iter().map(|it| (number(it), it.place));
    numbered.reduce(|best, other| if other.0 > best.0 { other } else { best }).map(|(_, place)| place)
}

/// A candidate that is to be left alone.
struct Bad<'a> {
    is_drained: bool,
    at: (usize, usize),
    until: Instant,
    candidate: &'a Candidate,
}

/// The one of those to be left alone whose time is over first, of the model and then of those that may stand in for it; drained ones
/// after the others.
fn least_bad(wanted: &Wanted, now: Instant) -> Result<Choice, NoneLeft> {
    let mut bad: Vec<Bad<'_>> = Vec::new();
    for (at, model) in wanted.chain.iter().enumerate() {
        let candidates = model.candidates.iter().enumerate().filter(|(_, it)| it.serves(wanted.endpoint));
        bad.extend(candidates.map(|(place, candidate)| {
            let until = match candidate.health.standing(now) {
                Standing::Open(until) | Standing::Cooling(until) | Standing::CoolingTried(until) => until,
                // Its time has ended since the last look.
                Standing::Closed | Standing::HalfOpen => now,
            };
            Bad { is_drained: candidate.provider.is_drained, at: (at, place), until, candidate }
        }));
    }
    bad.sort_by_key(|it| (it.is_drained, it.at.0, it.until));
    for Bad { at, candidate, .. } in &bad {
        if let Some(trial) = candidate.health.try_it(wanted.is_streamed, now) {
            return Ok(Choice { at: *at, why: Why::LastResort, trial });
        }
    }
    let first_back = bad.iter().map(|it| it.until).min().unwrap_or(now);
    Err(NoneLeft { retry_after: first_back.saturating_duration_since(now) })
}
