//! Every metric of the process, declared in one place.
//!
//! Promises: labels are enums of ours or names of the catalogue, never a key, an account, or a text that a client sent; counting a
//! request is one look-up and a few atomic additions. Refuses to know: where a number comes from, and who reads it.
//!
//! Our own names begin in `weir_`; the four `gen_ai_*` histograms are those of the Envoy AI Gateway, with its buckets.

mod certificates;
mod families;
mod levels;
mod process;
mod routes;
mod series;

pub use levels::Level;
pub use routes::{RouteLevel, RouteState};

use crate::ids::{ModelName, ProviderName};
use crate::money::Picos;
use crate::openai::Endpoint;
use crate::refusal::{Kind, Limit};
use crate::usage::{Outcome, Usage, UsageSource};
use arc_swap::ArcSwap;
use certificates::Certificates;
use families::Families;
use levels::Levels;
use prometheus::{Registry, TextEncoder};
use routes::Routes;
use series::{Key, Series};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// The metrics of the process. Cheap to clone; clones count together.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    families: Families,
    levels: Levels,
    routes: Routes,
    certificates: Certificates,
    /// As many as there are combinations of endpoint, model and provider that were asked for; read without a lock.
    series: ArcSwap<HashMap<Key, Arc<Series>>>,
}

/// A metric is declared or shown in a way that the format does not have.
#[derive(Debug, thiserror::Error)]
#[error("the metrics are at fault: {0}")]
pub struct BadMetric(prometheus::Error);

/// One request, as it ended.
#[derive(Clone, Copy, Debug)]
pub struct RequestEnd<'a> {
    /// What was asked for; `None` when the request was refused before that was known.
    pub endpoint: Option<Endpoint>,
    /// The model, once it was found in the catalogue.
    pub model: Option<&'a ModelName>,
    /// The provider that was tried last.
    pub provider: Option<&'a ProviderName>,
    /// The HTTP status that the client has been sent; 499 when it left before, 0 when nothing is known.
    pub status: u16,
    /// Why it was refused or failed.
    pub kind: Option<Kind>,
    /// The limit by which it was refused.
    pub limit: Option<Limit>,
    /// Whether the answer was asked for as a stream.
    pub stream: bool,
    /// From the head of the request to the end of its answer.
    pub latency: Duration,
    /// From the head of the request to the first output.
    pub ttft: Option<Duration>,
    /// The bill, if something was sent to a provider.
    pub bill: Option<Billed>,
    /// The attempts at providers, in order.
    pub attempts: &'a [Attempt],
    /// The limit by which there were no more attempts.
    pub retry_denied: Option<&'static str>,
}

/// One attempt at a provider.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The model that was to be answered for.
    pub model: ModelName,
    /// Who was asked.
    pub provider: ProviderName,
    /// Why this one.
    pub why: &'static str,
    /// What came of it.
    pub outcome: &'static str,
    /// Whether its connection had been used before; `None` where there was none.
    pub reused: Option<bool>,
    /// When it began, since the head of the request.
    pub begun: Duration,
    /// When its outcome was known, since then; `None` where it never was.
    pub ended: Option<Duration>,
    /// The provider is left alone from now on.
    pub opened_circuit: bool,
}

/// What a request was billed.
#[derive(Clone, Copy, Debug)]
pub struct Billed {
    /// How it ended.
    pub outcome: Outcome,
    /// Who counted.
    pub source: UsageSource,
    /// What was used.
    pub usage: Usage,
    /// What it cost.
    pub cost: Picos,
    /// What of the cost was above the credit held for it.
    pub over: Picos,
    /// A used class had no price of its own.
    pub fallback: bool,
}

impl Metrics {
    /// Everything at zero, in a registry of its own.
    ///
    /// # Errors
    ///
    /// Two metrics have one name, or one has none that Prometheus takes: a fault of this module, shown at every start.
    pub fn new() -> Result<Self, BadMetric> {
        let registry = Registry::new();
        let families = Families::new(&registry).map_err(BadMetric)?;
        let levels = Levels::new(&registry).map_err(BadMetric)?;
        let routes = Routes::new(&registry).map_err(BadMetric)?;
        let certificates = Certificates::new(&registry).map_err(BadMetric)?;
        let series = ArcSwap::default();
        Ok(Metrics(Arc::new(Inner { registry, families, levels, routes, certificates, series })))
    }

    /// Counts a request that has ended.
    pub fn request_ended(&self, end: &RequestEnd<'_>) {
        let key = Key::of(end);
        let series = self.0.series.load();
        match series.get(&key) {
            Some(series) => series.count(&self.0.families, end),
            None => self.begin(&key).count(&self.0.families, end),
        }
    }

    /// Notes what a part of the process says of itself. A total that falls is taken for one that stands still.
    pub fn set(&self, level: Level, value: f64) {
        self.0.levels.set(level, value);
    }

    /// Notes how every candidate of the catalogue stands; those that are not among them are forgotten.
    pub fn set_routes<'a>(&self, routes: impl Iterator<Item = RouteLevel<'a>>) {
        self.0.routes.set(routes);
    }

    /// Counts one more of what is a total.
    pub fn add(&self, level: Level) {
        self.0.levels.add(level);
    }

    /// Notes when each certificate ends, in seconds since 1970; those that are not among them are forgotten.
    pub fn set_certificates<'a>(&self, expiries: impl Iterator<Item = (&'a str, i64)>) {
        self.0.certificates.set(expiries);
    }

    /// Everything in the Prometheus text format, with what the kernel says of the process.
    ///
    /// # Errors
    ///
    /// A metric that the format cannot carry: a fault of this module.
    pub fn render(&self) -> Result<String, BadMetric> {
        for (level, value) in process::read() {
            self.set(level, value);
        }
        TextEncoder::new().encode_to_string(&self.0.registry.gather()).map_err(BadMetric)
    }

    fn begin(&self, key: &Key) -> Arc<Series> {
        let fresh = Arc::new(Series::new(key.clone()));
        self.0.series.rcu(|known| {
            let mut known = HashMap::clone(known);
            known.entry(key.clone()).or_insert_with(|| Arc::clone(&fresh));
            known
        });
        // Another thread may have been first; its handles and these lead to the same numbers.
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts() -> [Attempt; 2] {
        ["spare", "main"].map(|provider| Attempt {
            model: ModelName::from("tiny"),
            provider: ProviderName::from(provider),
            why: "weight",
            outcome: if provider == "main" { "answered" } else { "reset" },
            begun: Duration::ZERO,
            ended: None,
            reused: Some(provider == "main"),
            opened_circuit: provider != "main",
        })
    }

    fn end<'a>(
        model: Option<&'a ModelName>,
        provider: Option<&'a ProviderName>,
        attempts: &'a [Attempt],
    ) -> RequestEnd<'a> {
        RequestEnd {
            attempts,
            retry_denied: Some("budget"),
            endpoint: Some(Endpoint::ChatCompletions),
            model,
            provider,
            status: 200,
            kind: None,
            limit: Some(Limit::AccountTokens),
            stream: true,
            latency: Duration::from_millis(1_250),
            ttft: Some(Duration::from_millis(250)),
            bill: Some(Billed {
                outcome: Outcome::Completed,
                source: UsageSource::Reported,
                usage: Usage { input: 10, cache_read: 5, output: 11, ..Usage::default() },
                cost: Picos(2_500_000_000_000),
                over: Picos(0),
                fallback: true,
            }),
        }
    }

    #[test]
    fn a_request_shows_in_every_family_under_its_catalogue_names() {
        let metrics = Metrics::new().unwrap();
        let (model, provider) = (ModelName::from("tiny"), ProviderName::from("main"));
        metrics.request_ended(&end(Some(&model), Some(&provider), &attempts()));
        metrics.request_ended(&end(Some(&model), Some(&provider), &attempts()));
        let text = metrics.render().unwrap();
        for line in [
            "weir_requests_total{kind=\"ok\",model=\"tiny\",provider=\"main\",route=\"chat_completions\"} 2",
            "weir_settlements_total{model=\"tiny\",outcome=\"completed\",provider=\"main\",source=\"reported\"} 2",
            "weir_used_units_total{class=\"cache_read\",model=\"tiny\",provider=\"main\"} 10",
            "weir_billed_usd_total{model=\"tiny\",provider=\"main\"} 5",
            "weir_price_fallbacks_total{model=\"tiny\",provider=\"main\"} 2",
            "weir_attempts_total{model=\"tiny\",outcome=\"answered\",provider=\"main\"} 2",
            "weir_attempts_total{model=\"tiny\",outcome=\"reset\",provider=\"spare\"} 2",
            "weir_route_choices_total{model=\"tiny\",provider=\"spare\",why=\"weight\"} 2",
            "weir_circuits_opened_total{model=\"tiny\",provider=\"spare\"} 2",
            "weir_provider_connections_total{connection=\"reused\",provider=\"main\"} 2",
            "weir_provider_connections_total{connection=\"new\",provider=\"spare\"} 2",
            "weir_limits_hit_total{limit=\"account_tokens_per_minute\"} 2",
            "weir_limits_hit_total{limit=\"key_spend\"} 0",
            "weir_retries_denied_total{model=\"tiny\",reason=\"budget\"} 2",
            "gen_ai_client_token_usage_token_sum{gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"main\",\
             gen_ai_request_model=\"tiny\",gen_ai_token_type=\"input\"} 30",
            "gen_ai_server_time_to_first_token_seconds_sum{gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"main\",\
             gen_ai_request_model=\"tiny\"} 0.5",
            "gen_ai_server_time_per_output_token_seconds_sum{gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"main\",\
             gen_ai_request_model=\"tiny\"} 0.2",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn names_units_and_help_are_as_promtool_wants_them() {
        let metrics = Metrics::new().unwrap();
        metrics.request_ended(&end(
            Some(&ModelName::from("tiny")),
            Some(&ProviderName::from("main")),
            &attempts(),
        ));
        let text = metrics.render().unwrap();
        let mut families = 0;
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            families += 1;
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            for part in name.split('_') {
                assert!(
                    !["ms", "milliseconds", "microseconds", "kilobytes", "percent"].contains(&part),
                    "{name}"
                );
            }
            let help = text.lines().find_map(|line| line.strip_prefix(&format!("# HELP {name} ")));
            assert!(help.is_some_and(|help| help.len() > 10), "{name} explains itself");
        }
        assert!(families > 25, "{text}");
    }

    #[test]
    fn routes_that_are_gone_are_forgotten_and_of_two_the_better_stands() {
        let metrics = Metrics::new().unwrap();
        let (tiny, main, spare) =
            (ModelName::from("tiny"), ProviderName::from("main"), ProviderName::from("spare"));
        let route = |provider, state| RouteLevel { model: &tiny, provider, state, outstanding: 2 };
        let before = [route(&spare, RouteState::Closed), route(&main, RouteState::Open)];
        metrics.set_routes(before.into_iter());
        metrics.set_routes([route(&main, RouteState::Open), route(&main, RouteState::HalfOpen)].into_iter());
        let text = metrics.render().unwrap();
        assert!(text.contains("weir_route_state{model=\"tiny\",provider=\"main\"} 1"), "{text}");
        assert!(text.contains("weir_route_attempts_in_flight{model=\"tiny\",provider=\"main\"} 4"), "{text}");
        assert!(!text.contains("provider=\"spare\""), "{text}");
    }

    #[test]
    fn a_total_never_falls() {
        let metrics = Metrics::new().unwrap();
        for value in [5.0, 3.0, 7.0] {
            metrics.set(Level::KeyCacheHits, value);
        }
        let text = metrics.render().unwrap();
        assert!(text.contains("weir_key_cache_hits_total 7"), "{text}");
    }
}
