//! The candidates of one request, one after the other.

use super::choose::{self, Choice};
use super::health::Trial;
use super::{Candidate, Model, spread};
use crate::openai::Endpoint;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a request wants of the router.
#[derive(Clone)]
pub struct Wanted {
    /// The model that is asked for, then those that may stand in for it; at least one serves the endpoint.
    pub chain: Vec<Arc<Model>>,
    /// What is asked.
    pub endpoint: Endpoint,
    /// Whether the answer comes as events.
    pub is_streamed: bool,
    /// Requests with one number stay with one candidate, where the model is sticky.
    pub affinity: Option<u64>,
    /// What the request is expected to use, in tokens; decides what is cheapest.
    pub input_tokens: u64,
    /// The same for its answer.
    pub output_tokens: u64,
    /// Random bits.
    pub random: u64,
}

/// Why a candidate was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// The model has no other.
    Only,
    /// No other of its priority can be chosen.
    Priority,
    /// Drawn by weight.
    Weight,
    /// The quicker one.
    Latency,
    /// The cheapest.
    Cost,
    /// The conversation was there before.
    Sticky,
    /// It is tried whether it is healthy again.
    Probe,
    /// Those before it failed.
    Failover,
    /// It answers for another model, no candidate of which is left.
    Fallback,
    /// It is drained or not healthy, and nothing else is left.
    LastResort,
}

/// No candidate can be tried now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoneLeft {
    /// When the first of them said to come back.
    pub retry_after: Duration,
}

/// The choice of one request. Holds the place of the attempt under way.
pub struct Plan {
    wanted: Wanted,
    at: (usize, usize),
    why: Why,
    trial: Trial,
    /// The candidates that have been chosen, by model of the chain and place in it.
    tried: Vec<(usize, usize)>,
}

impl Why {
    /// Every reason.
    pub const ALL: [Why; 10] = [
        Why::Only,
        Why::Priority,
        Why::Weight,
        Why::Latency,
        Why::Cost,
        Why::Sticky,
        Why::Probe,
        Why::Failover,
        Why::Fallback,
        Why::LastResort,
    ];

    /// The name in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Why::Only => "only",
            Why::Priority => "priority",
            Why::Weight => "weight",
            Why::Latency => "latency",
            Why::Cost => "cost",
            Why::Sticky => "sticky",
            Why::Probe => "probe",
            Why::Failover => "failover",
            Why::Fallback => "fallback",
            Why::LastResort => "last_resort",
        }
    }
}

impl Plan {
    /// Chooses the first candidate.
    ///
    /// # Errors
    ///
    /// Every candidate has said to come back later, and is being tried all the same by another request.
    pub fn begin(mut wanted: Wanted, now: Instant) -> Result<Plan, NoneLeft> {
        wanted.random = spread(wanted.random);
        let Choice { at, why, trial } = choose::first(&wanted, now)?;
        Ok(Plan { wanted, at, why, trial, tried: vec![at] })
    }

    /// Whose turn it is.
    pub fn candidate(&self) -> &Candidate {
        let (model, candidate) = self.at;
        &self.wanted.chain[model].candidates[candidate]
    }

    /// The model that the candidate answers for: its place in the chain, 0 for the one that was asked for.
    pub fn model_index(&self) -> usize {
        self.at.0
    }

    /// The model that the candidate answers for.
    pub fn model(&self) -> &Arc<Model> {
        &self.wanted.chain[self.at.0]
    }

    /// The model that was asked for.
    pub fn asked(&self) -> &Arc<Model> {
        &self.wanted.chain[0]
    }

    /// Why this candidate.
    pub fn why(&self) -> Why {
        self.why
    }

    /// The attempt under way.
    pub fn trial(&mut self) -> &mut Trial {
        &mut self.trial
    }

    /// Moves to the next candidate: one that was not tried and is healthy, of the model or of the next in the chain, or one that is
    /// drained. False where none is left: those that are to be left alone are not tried after others failed.
    pub fn advance(&mut self, now: Instant) -> bool {
        self.wanted.random = spread(self.wanted.random);
        let Some(Choice { at, why, trial }) = choose::next(&self.wanted, &self.tried, now) else {
            return false;
        };
        let is_ordinary = !matches!(why, Why::Probe | Why::LastResort);
        self.why = match at.0 {
            0 if is_ordinary => Why::Failover,
            _ => why,
        };
        self.at = at;
        self.trial = trial;
        self.tried.push(at);
        true
    }

    /// Random bits for what follows from this choice.
    pub fn random(&mut self) -> u64 {
        self.wanted.random = spread(self.wanted.random);
        self.wanted.random
    }
}
