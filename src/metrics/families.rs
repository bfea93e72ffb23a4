//! The metrics of requests: name, help, labels and buckets of each.

use crate::refusal::Limit;
use prometheus::core::Collector;
use prometheus::{CounterVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

/// The families that requests are counted in.
pub(super) struct Families {
    pub(super) requests: IntCounterVec,
    pub(super) settlements: IntCounterVec,
    pub(super) used_units: IntCounterVec,
    pub(super) billed_usd: CounterVec,
    pub(super) over_usd: CounterVec,
    pub(super) price_fallbacks: IntCounterVec,
    /// By the index of the limit among all.
    limits: Vec<IntCounter>,
    pub(super) routing: Routing,
    pub(super) token_usage: HistogramVec,
    pub(super) duration: HistogramVec,
    pub(super) time_to_first_token: HistogramVec,
    pub(super) time_per_output_token: HistogramVec,
}

/// Those that attempts at providers are counted in.
pub(super) struct Routing {
    pub(super) attempts: IntCounterVec,
    pub(super) choices: IntCounterVec,
    pub(super) connections: IntCounterVec,
    pub(super) circuits_opened: IntCounterVec,
    pub(super) retries_denied: IntCounterVec,
}

const REQUEST: &[&str] = &["route", "model", "provider", "kind"];
const SETTLEMENT: &[&str] = &["model", "provider", "outcome", "source"];
const CLASS: &[&str] = &["model", "provider", "class"];
const MODEL: &[&str] = &["model", "provider"];
const ATTEMPT: &[&str] = &["model", "provider", "outcome"];
const CHOICE: &[&str] = &["model", "provider", "why"];
const CONNECTION: &[&str] = &["provider", "connection"];
const LIMIT: &[&str] = &["limit"];
const DENIED: &[&str] = &["model", "reason"];
const GEN_AI: &[&str] = &["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"];
const GEN_AI_TOKENS: &[&str] =
    &["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_token_type"];
const GEN_AI_ENDED: &[&str] =
    &["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "error_type"];

const TOKENS: &[f64] = &[
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
const DURATION: &[f64] =
    &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0,
    30.0, 45.0, 60.0,
];
const OUTPUT_TOKEN: &[f64] = &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];

impl Families {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let count = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let sum = |name: &str, help: &str, labels: &[&str]| {
            register(registry, CounterVec::new(Opts::new(name, help), labels)?)
        };
        let spread = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            register(
                registry,
                HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?,
            )
        };
        Ok(Families {
            requests: count(
                "weir_requests_total",
                "Requests that have ended, by what the client was told.",
                REQUEST,
            )?,
            settlements: count(
                "weir_settlements_total",
                "Requests that were sent to a provider, by how they ended and who counted their usage.",
                SETTLEMENT,
            )?,
            used_units: count("weir_used_units_total", "Units billed, by disjoint usage class.", CLASS)?,
            billed_usd: sum(
                "weir_billed_usd_total",
                "What requests cost their accounts, in US dollars.",
                MODEL,
            )?,
            over_usd: sum(
                "weir_billed_over_lease_usd_total",
                "Cost that the credit leased for its account did not cover, in US dollars: it is collected from the account.",
                MODEL,
            )?,
            price_fallbacks: count(
                "weir_price_fallbacks_total",
                "Requests that used a class without a price of its own and were billed by another's.",
                MODEL,
            )?,
            limits: limits(registry)?,
            routing: Routing::new(registry)?,
            token_usage: spread(
                "gen_ai_client_token_usage_token",
                "Billed input and output tokens of a request.",
                GEN_AI_TOKENS,
                TOKENS,
            )?,
            duration: spread(
                "gen_ai_server_request_duration_seconds",
                "From the head of a request to the end of its answer, for requests that were sent to a provider.",
                GEN_AI_ENDED,
                DURATION,
            )?,
            time_to_first_token: spread(
                "gen_ai_server_time_to_first_token_seconds",
                "From the head of a request to the first output of its stream.",
                GEN_AI,
                FIRST_TOKEN,
            )?,
            time_per_output_token: spread(
                "gen_ai_server_time_per_output_token_seconds",
                "Mean time between the output tokens of a stream after the first.",
                GEN_AI,
                OUTPUT_TOKEN,
            )?,
        })
    }
}

impl Families {
    /// Counts a request that ran into this limit.
    pub(super) fn limit_hit(&self, limit: Limit) {
        let index = Limit::ALL.iter().position(|other| *other == limit);
        if let Some(hit) = index.and_then(|index| self.limits.get(index)) {
            hit.inc();
        }
    }
}

impl Routing {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let count = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        Ok(Routing {
            attempts: count(
                "weir_attempts_total",
                "Attempts at providers, by what came of them before an answer began.",
                ATTEMPT,
            )?,
            choices: count(
                "weir_route_choices_total",
                "Attempts at providers, by why the provider was chosen.",
                CHOICE,
            )?,
            connections: count(
                "weir_provider_connections_total",
                "Connections to providers that attempts were made on: new ones, and ones that were used before.",
                CONNECTION,
            )?,
            circuits_opened: count(
                "weir_circuits_opened_total",
                "How often a provider was left alone because it failed.",
                MODEL,
            )?,
            retries_denied: count(
                "weir_retries_denied_total",
                "Failed attempts after which another provider could have been tried, were it not for a limit.",
                DENIED,
            )?,
        })
    }
}

/// All of them from the start: a limit that was never hit stands at zero.
fn limits(registry: &Registry) -> Result<Vec<IntCounter>, prometheus::Error> {
    let help = "Requests that were refused since they ran into a limit, by whose limit it is and of what.";
    let hit = register(registry, IntCounterVec::new(Opts::new("weir_limits_hit_total", help), LIMIT)?)?;
    Ok(Limit::ALL.iter().map(|limit| hit.with_label_values(&[limit.as_str()])).collect())
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, family: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}
