//! The attempts of one request: whose turn it is, what became of each, and whether another follows.

use super::trace::{ANSWERED, Trace};
use crate::clock::{Clock, UnixMicros};
use crate::price::ModelPrice;
use crate::relay::{Failure, Next, Patience, Silence};
use crate::route::{Candidate, Model, Plan};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Statuses of a provider that refuses the operator and not the request: its key, its credit.
const OPERATOR_REFUSED: [u16; 2] = [401, 402];

/// The attempts so far, and the one under way.
pub(super) struct Attempts {
    plan: Plan,
    /// What customers pay for the models of the plan's chain, in its order.
    prices: Vec<Arc<ModelPrice>>,
    clock: Clock,
    /// Candidates that were tried.
    made: u32,
    /// Why the last attempt ended, for the client when there is no other.
    failure: Option<Failure>,
    /// When the first of those that are limited said to come back.
    come_back: Option<Duration>,
    /// The one fresh connection after an idle race has been used.
    has_raced: bool,
    on_fresh_connection: bool,
    /// When the answer of this attempt has to be whole, and how long it may be silent until then.
    ends_by: Option<(Instant, Silence)>,
}

impl Attempts {
    pub(super) fn new(plan: Plan, prices: Vec<Arc<ModelPrice>>, clock: Clock) -> Self {
        plan.asked().budget.request(clock.now());
        Attempts {
            plan,
            prices,
            clock,
            made: 1,
            failure: None,
            come_back: None,
            has_raced: false,
            on_fresh_connection: false,
            ends_by: None,
        }
    }

    /// Whose turn it is.
    pub(super) fn candidate(&self) -> &Candidate {
        self.plan.candidate()
    }

    /// The model that is answered for, and what it costs customers: the one that was asked for, or another of its chain. The chain may
    /// come back to an earlier one.
    pub(super) fn served(&self) -> Option<(&Arc<Model>, &Arc<ModelPrice>)> {
        self.prices.get(self.plan.model_index()).map(|price| (self.plan.model(), price))
    }

    /// The model that is answered for.
    pub(super) fn model(&self) -> &Arc<Model> {
        self.plan.model()
    }

    pub(super) fn on_fresh_connection(&self) -> bool {
        self.on_fresh_connection
    }

    /// Why the last attempt ended.
    pub(super) fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// When to come back, where a provider said it.
    pub(super) fn come_back(&self) -> Option<Duration> {
        self.come_back
    }

    /// The attempt begins. How long the provider may be silent: the end of its time is never waited beyond.
    pub(super) fn begin(&mut self, patience: &Patience, trace: &mut Trace) -> Silence {
        let (candidate, now) = (self.plan.candidate(), self.clock.now());
        trace.attempt(&candidate.provider.name, &self.plan.model().name, self.plan.why(), now);
        let silence = Silence {
            first_byte_timeout: patience.silence.first_byte_timeout.min(patience.total),
            idle_timeout: patience.silence.idle_timeout.min(patience.total),
        };
        self.ends_by = Some((now + patience.total, silence));
        silence
    }

    /// Where the answer's time ends before the provider's next silence would: what is left of it, and the silence for that.
    pub(super) fn last_silence(&self) -> Option<(Duration, Silence)> {
        let (ends_by, silence) = self.ends_by?;
        let left = ends_by.saturating_duration_since(self.clock.now());
        (left < silence.idle_timeout).then_some((left, Silence { idle_timeout: left, ..silence }))
    }

    /// Wall time.
    pub(super) fn wall(&self) -> UnixMicros {
        self.clock.wall()
    }

    /// The head of an answer is there that is passed on.
    pub(super) fn answered(&mut self, status: u16, trace: &mut Trace) {
        let now = self.clock.now();
        if (200..300).contains(&status) {
            self.plan.trial().answered(now);
            trace.attempt_ended(ANSWERED, false, now);
        } else {
            let is_broken = OPERATOR_REFUSED.contains(&status);
            let opened = if is_broken { self.blame(now, None) } else { false };
            trace.attempt_ended("refused", opened, now);
        }
    }

    /// The answer that had begun is whole, or the provider broke it off.
    pub(super) fn ended(&mut self, is_whole: bool) {
        let now = self.clock.now();
        if is_whole {
            self.plan.trial().completed(now);
        } else {
            self.blame(now, None);
        }
    }

    /// The attempt failed before an answer began. True where another follows, which is wanted; it is set up then.
    pub(super) fn failed(
        &mut self,
        failure: Failure,
        come_back: Option<Duration>,
        is_wanted: bool,
        trace: &mut Trace,
    ) -> bool {
        let now = self.clock.now();
        self.failure = Some(failure);
        self.come_back = self.come_back.into_iter().chain(come_back).min();
        self.on_fresh_connection = false;
        let next = failure.next(self.plan.asked().retry, self.has_raced);
        if next == Next::FreshConnection && is_wanted {
            trace.attempt_ended(failure.as_str(), false, now);
            self.has_raced = true;
            self.on_fresh_connection = true;
            self.plan.trial().again(now);
            return true;
        }
        let opened = self.blame(now, come_back);
        trace.attempt_ended(failure.as_str(), opened, now);
        is_wanted && next == Next::NextCandidate && self.advance(now, trace)
    }

    /// The next candidate, if there is one and the limits allow it. A fresh connection is not counted: it goes to a provider that did
    /// nothing yet.
    fn advance(&mut self, now: Instant, trace: &mut Trace) -> bool {
        let (attempts_max, asked) = (self.plan.asked().attempts_max, Arc::clone(self.plan.asked()));
        if self.made >= attempts_max {
            trace.retry_denied("attempts_max");
            return false;
        }
        if !asked.budget.take(now) {
            trace.retry_denied("budget");
            return false;
        }
        if !self.plan.advance(now) {
            asked.budget.give_back(now);
            return false;
        }
        self.made += 1;
        true
    }

    fn blame(&mut self, now: Instant, come_back: Option<Duration>) -> bool {
        let random = self.plan.random();
        self.plan.trial().failed(now, random, come_back)
    }
}
