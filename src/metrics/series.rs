//! The handles of one combination of endpoint, model and provider, made at its first use and kept.

use super::families::Families;
use super::{Attempt, Billed, RequestEnd};
use crate::ids::{ModelName, ProviderName};
use crate::money::Picos;
use crate::openai::Endpoint;
use crate::refusal::Kind;
use crate::usage::{Class, Outcome, UsageSource};
use prometheus::{Counter, Histogram, IntCounter, IntCounterVec};
use std::sync::OnceLock;
use std::time::Duration;

/// What the handles belong to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    route: Route,
    model: Option<ModelName>,
    provider: Option<ProviderName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Route {
    ChatCompletions,
    Completions,
    Embeddings,
    Other,
}

/// The handles. A child of a family is made when it is counted for the first time, so that none stands at zero for ever.
pub(super) struct Series {
    key: Key,
    requests: [OnceLock<IntCounter>; Kind::ALL.len() + 3],
    attempts: [OnceLock<(&'static str, IntCounter)>; LABELS_MAX],
    route_choices: [OnceLock<(&'static str, IntCounter)>; LABELS_MAX],
    /// New, and used before.
    connections: [OnceLock<IntCounter>; CONNECTIONS.len()],
    settlements: [OnceLock<IntCounter>; Outcome::ALL.len() * 2],
    used_units: [OnceLock<IntCounter>; Class::ALL.len()],
    billed_usd: OnceLock<Counter>,
    tokens: [OnceLock<Histogram>; TokenType::NAMES.len()],
    durations: [OnceLock<Histogram>; Outcome::ALL.len()],
    time_to_first_token: OnceLock<Histogram>,
    time_per_output_token: OnceLock<Histogram>,
}

/// A label's value where there is nothing to name.
const NONE: &str = "none";
/// As many outcomes of an attempt, or reasons for a choice, keep their handles.
const LABELS_MAX: usize = 16;
/// Whether an attempt's connection had been used before.
const CONNECTIONS: [&str; 2] = ["new", "reused"];
/// The status of a client that left before its answer.
const CLIENT_GONE: u16 = 499;

impl Key {
    pub(super) fn of(end: &RequestEnd<'_>) -> Self {
        let route = match end.endpoint {
            Some(Endpoint::ChatCompletions) => Route::ChatCompletions,
            Some(Endpoint::Completions) => Route::Completions,
            Some(Endpoint::Embeddings) => Route::Embeddings,
            None => Route::Other,
        };
        Key { route, model: end.model.cloned(), provider: end.provider.cloned() }
    }

    fn model(&self) -> &str {
        self.model.as_ref().map_or(NONE, ModelName::as_str)
    }

    fn provider(&self) -> &str {
        self.provider.as_ref().map_or(NONE, ProviderName::as_str)
    }
}

impl Route {
    const fn as_str(self) -> &'static str {
        match self {
            Route::ChatCompletions => "chat_completions",
            Route::Completions => "completions",
            Route::Embeddings => "embeddings",
            Route::Other => "other",
        }
    }

    /// `gen_ai.operation.name` of the OpenTelemetry conventions.
    const fn operation(self) -> &'static str {
        match self {
            Route::ChatCompletions => "chat",
            Route::Completions => "text_completion",
            Route::Embeddings => "embeddings",
            Route::Other => NONE,
        }
    }
}

/// `gen_ai.token.type`, with the values that the Envoy AI Gateway adds.
#[derive(Clone, Copy)]
enum TokenType {
    Input,
    CachedInput,
    Output,
    Reasoning,
}

impl TokenType {
    const NAMES: [&'static str; 4] = ["input", "cached_input", "output", "reasoning"];

    const fn index(self) -> usize {
        match self {
            TokenType::Input => 0,
            TokenType::CachedInput => 1,
            TokenType::Output => 2,
            TokenType::Reasoning => 3,
        }
    }
}

/// What the client was told, as an index of the handles and as a label.
fn told(end: &RequestEnd<'_>) -> (usize, &'static str) {
    let after = Kind::ALL.len();
    match end.kind.and_then(|kind| Some((Kind::ALL.iter().position(|other| *other == kind)?, kind.as_str())))
    {
        Some(told) => told,
        None if end.status == CLIENT_GONE => (after, "client_gone"),
        None if (200..300).contains(&end.status) => (after + 1, "ok"),
        None => (after + 2, NONE),
    }
}

impl Series {
    pub(super) fn new(key: Key) -> Self {
        Series {
            key,
            requests: [const { OnceLock::new() }; Kind::ALL.len() + 3],
            attempts: [const { OnceLock::new() }; LABELS_MAX],
            route_choices: [const { OnceLock::new() }; LABELS_MAX],
            connections: [const { OnceLock::new() }; CONNECTIONS.len()],
            settlements: [const { OnceLock::new() }; Outcome::ALL.len() * 2],
            used_units: [const { OnceLock::new() }; Class::ALL.len()],
            billed_usd: OnceLock::new(),
            tokens: [const { OnceLock::new() }; TokenType::NAMES.len()],
            durations: [const { OnceLock::new() }; Outcome::ALL.len()],
            time_to_first_token: OnceLock::new(),
            time_per_output_token: OnceLock::new(),
        }
    }

    pub(super) fn count(&self, families: &Families, end: &RequestEnd<'_>) {
        let (index, kind) = told(end);
        let Key { route, .. } = self.key;
        child(&self.requests, index, || {
            families.requests.with_label_values(&[
                route.as_str(),
                self.key.model(),
                self.key.provider(),
                kind,
            ])
        })
        .inspect(|requests| requests.inc());
        for attempt in end.attempts {
            self.count_attempt(families, attempt);
        }
        if let Some(limit) = end.limit {
            families.limit_hit(limit);
        }
        if let Some(reason) = end.retry_denied {
            families.routing.retries_denied.with_label_values(&[self.key.model(), reason]).inc();
        }
        if let Some(bill) = &end.bill {
            self.count_bill(families, bill);
            self.time(families, end, bill);
        }
    }

    fn count_attempt(&self, families: &Families, attempt: &Attempt) {
        let Attempt { model, provider, why, outcome, reused, opened_circuit, begun: _, ended: _ } = attempt;
        let labels = [model.as_str(), provider.as_str()];
        if *opened_circuit {
            families.routing.circuits_opened.with_label_values(&labels).inc();
        }
        let counted =
            |family: &IntCounterVec, label| family.with_label_values(&[labels[0], labels[1], label]);
        // The last attempt of a request, and nearly always the only one, is at what these handles belong to.
        if labels == [self.key.model(), self.key.provider()] {
            labelled(&self.attempts, outcome, || counted(&families.routing.attempts, outcome));
            labelled(&self.route_choices, why, || counted(&families.routing.choices, why));
            if let Some(index) = reused.map(usize::from) {
                child(&self.connections, index, || connected(families, provider, index))
                    .inspect(|connections| connections.inc());
            }
        } else {
            counted(&families.routing.attempts, outcome).inc();
            counted(&families.routing.choices, why).inc();
            if let Some(reused) = reused {
                connected(families, provider, usize::from(*reused)).inc();
            }
        }
    }

    fn count_bill(&self, families: &Families, bill: &Billed) {
        let Key { route, .. } = self.key;
        let (model, provider) = (self.key.model(), self.key.provider());
        let outcome = outcome_index(bill.outcome);
        let by = match bill.source {
            UsageSource::Reported => 0,
            UsageSource::Counted => 1,
        };
        child(&self.settlements, outcome * 2 + by, || {
            let labels = [model, provider, bill.outcome.as_str(), bill.source.as_str()];
            families.settlements.with_label_values(&labels)
        })
        .inspect(|settlements| settlements.inc());
        for (index, (class, units)) in
            bill.usage.by_class().into_iter().enumerate().filter(|(_, used)| used.1 > 0)
        {
            child(&self.used_units, index, || {
                families.used_units.with_label_values(&[model, provider, class.as_str()])
            })
            .inspect(|used| used.inc_by(units));
        }
        let usage = &bill.usage;
        for (token_type, tokens) in [
            (TokenType::Input, usage.input_total()),
            (TokenType::CachedInput, usage.cache_read),
            (TokenType::Output, usage.output_total()),
            (TokenType::Reasoning, usage.reasoning),
        ] {
            if tokens > 0 {
                let index = token_type.index();
                child(&self.tokens, index, || {
                    let labels = [route.operation(), provider, model, TokenType::NAMES[index]];
                    families.token_usage.with_label_values(&labels)
                })
                .inspect(|spread| spread.observe(tokens as f64));
            }
        }
        self.billed_usd
            .get_or_init(|| families.billed_usd.with_label_values(&[model, provider]))
            .inc_by(usd(bill.cost));
        if bill.over.0 > 0 {
            families.over_usd.with_label_values(&[model, provider]).inc_by(usd(bill.over));
        }
        if bill.fallback {
            families.price_fallbacks.with_label_values(&[model, provider]).inc();
        }
    }

    fn time(&self, families: &Families, end: &RequestEnd<'_>, bill: &Billed) {
        let labels = [self.key.route.operation(), self.key.provider(), self.key.model()];
        child(&self.durations, outcome_index(bill.outcome), || {
            let error_type = if bill.outcome == Outcome::Completed { "" } else { bill.outcome.as_str() };
            families.duration.with_label_values(&[labels[0], labels[1], labels[2], error_type])
        })
        .inspect(|spread| spread.observe(end.latency.as_secs_f64()));
        let Some(ttft) = end.ttft.filter(|_| end.stream) else { return };
        self.time_to_first_token
            .get_or_init(|| families.time_to_first_token.with_label_values(&labels))
            .observe(ttft.as_secs_f64());
        if let Some(each) = time_per_token(end.latency.saturating_sub(ttft), bill.usage.output_total()) {
            self.time_per_output_token
                .get_or_init(|| families.time_per_output_token.with_label_values(&labels))
                .observe(each);
        }
    }
}

fn connected(families: &Families, provider: &ProviderName, index: usize) -> IntCounter {
    families.routing.connections.with_label_values(&[provider.as_str(), CONNECTIONS[index]])
}

/// The handle at this place, made if need be.
fn child<T>(handles: &[OnceLock<T>], index: usize, make: impl FnOnce() -> T) -> Option<&T> {
    handles.get(index).map(|handle| handle.get_or_init(make))
}

/// Counts one under the label, by its handle where there is one or room for one.
fn labelled(
    handles: &[OnceLock<(&'static str, IntCounter)>],
    label: &'static str,
    make: impl Fn() -> IntCounter,
) {
    for handle in handles {
        let (have, counter) = handle.get_or_init(|| (label, make()));
        if *have == label {
            return counter.inc();
        }
    }
    make().inc();
}

fn outcome_index(outcome: Outcome) -> usize {
    Outcome::ALL.iter().position(|other| *other == outcome).unwrap_or(Outcome::ALL.len())
}

/// In seconds; `None` for fewer than two tokens.
fn time_per_token(after_first: Duration, tokens: u64) -> Option<f64> {
    (tokens > 1).then(|| after_first.as_secs_f64() / (tokens - 1) as f64)
}

/// For people alone: money is counted in integers elsewhere.
fn usd(amount: Picos) -> f64 {
    amount.0.max(0) as f64 / 1e12
}
