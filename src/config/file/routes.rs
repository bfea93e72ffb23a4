//! Who answers and what for: providers, models, routes, and how a route is chosen.

use super::{label, new_name, one_of, secret, time};
use crate::config::loaded::Outside;
use crate::config::{ATTEMPTS_MAX, Model, Provider, Route, Routing};
use crate::document::{Table, Value};
use crate::ids::{ModelName, ProviderName};
use crate::money::{Micros, PricePicos};
use crate::provider::{self, Dialect};
use crate::relay::{OnClientGone, Origin};
use crate::route::{Cost, Order, Retry};
use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::time::Duration;

/// The longest name of anything, in bytes.
const NAME_MAX_BYTES: usize = 256;
const TOKENS: RangeInclusive<u64> = 1..=1_000_000_000;
const WEIGHTS: RangeInclusive<u64> = 1..=1_000_000;
const PRIORITIES: RangeInclusive<u64> = 0..=1_000;
const ATTEMPTS: RangeInclusive<u64> = 1..=ATTEMPTS_MAX as u64;
const COUNTS: RangeInclusive<u64> = 1..=1_000_000;
const PERCENT: RangeInclusive<u64> = 1..=100;

pub(super) fn routing(table: &mut Table<'_>) -> Routing {
    let default = Routing::default();
    let mut number = |key, default: u32, range| {
        let told = table.optional(key, |value| value.integer(range));
        told.map_or(default, |told| u32::try_from(told).unwrap_or(u32::MAX))
    };
    let attempts_max = number("attempts_max", default.attempts_max, ATTEMPTS);
    let retry_percent = number("retry_percent", default.retry_percent, 0..=1_000);
    let retry_min_per_second = number("retry_min_per_second", default.retry_min_per_second, 0..=1_000_000);
    let circuit_failures = number("circuit_failures", default.circuit_failures, COUNTS);
    let circuit_error_percent = number("circuit_error_percent", default.circuit_error_percent, PERCENT);
    let circuit_error_requests = number("circuit_error_requests", default.circuit_error_requests, COUNTS);
    let routing = Routing {
        attempts_max,
        retry_percent,
        retry_min_per_second,
        circuit_failures,
        circuit_error_percent,
        circuit_error_requests,
        circuit_error_window: time(table, "circuit_error_window_ms", default.circuit_error_window),
        circuit_open: time(table, "circuit_open_ms", default.circuit_open),
        circuit_open_max: time(table, "circuit_open_max_ms", default.circuit_open_max),
        cool_down_max: time(table, "cool_down_max_ms", default.cool_down_max),
    };
    if routing.circuit_open_max < routing.circuit_open {
        table.problem_at("circuit_open_max_ms", "`circuit_open_max_ms`: less than `circuit_open_ms`");
    }
    routing
}

pub(super) fn provider(
    table: &mut Table<'_>,
    names: &mut HashSet<String>,
    outside: &mut Outside,
) -> Option<Provider> {
    let name = new_name(table, label, names).map(|name| ProviderName::from(name.as_str()));
    let dialect = table.required("dialect", dialect);
    let origin =
        table.required("base_url", |value| Origin::parse(value.text()?).map_err(|fault| fault.to_string()));
    let api_key = table.confidential("api_key", secret);
    if let Some(reference) = &api_key {
        outside.read_key(table, name.as_ref(), reference, dialect);
    }
    let connect_timeout = time(table, "connect_timeout_ms", CONNECT_TIMEOUT);
    let tls_timeout = time(table, "tls_timeout_ms", TLS_TIMEOUT);
    let first_byte_timeout = time(table, "first_byte_timeout_ms", FIRST_BYTE_TIMEOUT);
    let idle_timeout = time(table, "idle_timeout_ms", IDLE_TIMEOUT);
    let total_timeout = time(table, "total_timeout_ms", TOTAL_TIMEOUT);
    let is_drained = table.optional("drain", |value| value.boolean()).unwrap_or(false);
    let choices = [("cancel", OnClientGone::Cancel), ("drain", OnClientGone::Drain)];
    let on_client_gone = table.optional("on_client_gone", |value| one_of(value, &choices));
    Some(Provider {
        name: name?,
        dialect: dialect?,
        origin: origin?,
        api_key,
        connect_timeout,
        tls_timeout,
        first_byte_timeout,
        idle_timeout,
        total_timeout,
        is_drained,
        on_client_gone,
    })
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TLS_TIMEOUT: Duration = Duration::from_secs(5);
/// As long as the official clients wait: an answer that is not streamed has no byte before its end.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(600);
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest answer that there is. The books count on it: see `max_stream_time` there.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(900);

/// The models, with those that they fall back to known to exist.
pub(super) fn models(root: &mut Table<'_>, providers: &HashSet<String>) -> Vec<Model> {
    let mut names = HashSet::new();
    let mut places = Vec::new();
    let models = root.tables("model", |table| {
        let model = model(table, providers, &mut names);
        places.push(table.place("fallback"));
        model
    });
    for (model, place) in models.iter().zip(&places) {
        let Some(model) = model else { continue };
        for (at, other) in model.fallback.iter().enumerate() {
            if *other == model.name || model.fallback[..at].contains(other) {
                root.problem_in(place, format!("`fallback`: `{other}` is tried already"));
            } else if !names.contains(other.as_str()) {
                root.problem_in(place, format!("`fallback`: there is no [[model]] `{other}`"));
            }
        }
    }
    models.into_iter().flatten().collect()
}

fn model(table: &mut Table<'_>, providers: &HashSet<String>, names: &mut HashSet<String>) -> Option<Model> {
    let name = new_name(table, name, names);
    let context_tokens = table.required("context_tokens", |value| value.integer(TOKENS));
    let max_output_tokens = table.optional("max_output_tokens", |value| value.integer(TOKENS));
    let hidden_reasoning = table.optional("hidden_reasoning", |value| value.boolean()).unwrap_or(false);
    let orders = [("weight", Order::Weight), ("cost", Order::Cost), ("latency", Order::Latency)];
    let order = table.optional("order", |value| one_of(value, &orders)).unwrap_or_default();
    let is_sticky = table.optional("sticky", |value| value.boolean()).unwrap_or(false);
    let retries = [("safe", Retry::Safe), ("any", Retry::Any), ("never", Retry::Never)];
    let retry = table.optional("retry", |value| one_of(value, &retries)).unwrap_or_default();
    let fallback = table.list("fallback", |value| value.text().map(ModelName::from)).unwrap_or_default();
    let routes = table.tables("routes", |table| route(table, name.as_deref(), providers));
    if !table.has("routes") {
        table.problem("`routes` is missing");
    } else if table.is_empty_list("routes") {
        table.problem_at("routes", "`routes`: at least one route is needed");
    } else if order == Order::Cost && routes.iter().flatten().any(|route| route.cost.is_none()) {
        table.problem_at("order", "`order`: \"cost\" needs `input_cost` and `output_cost` of every route");
    }
    Some(Model {
        name: ModelName::from(name?.as_str()),
        context_tokens: context_tokens?,
        max_output_tokens,
        hidden_reasoning,
        order,
        is_sticky,
        retry,
        fallback,
        routes: routes.into_iter().flatten().collect(),
    })
}

fn route(table: &mut Table<'_>, model: Option<&str>, providers: &HashSet<String>) -> Option<Route> {
    let known = |value: Value<'_>| {
        let name = value.text()?;
        providers
            .contains(name)
            .then(|| name.to_owned())
            .ok_or_else(|| format!("there is no [[provider]] `{name}`"))
    };
    let provider = table.required("provider", known);
    let upstream_model = table.optional("model", name).or_else(|| model.map(str::to_owned));
    let weight = table.optional("weight", |value| value.integer(WEIGHTS)).unwrap_or(1);
    let priority = table.optional("priority", |value| value.integer(PRIORITIES)).unwrap_or(0);
    let input_cost = table.optional("input_cost", cost);
    let output_cost = table.optional("output_cost", cost);
    if table.has("input_cost") != table.has("output_cost") {
        table.problem("`input_cost` and `output_cost` go together");
    }
    Some(Route {
        provider: ProviderName::from(provider?.as_str()),
        model: upstream_model?,
        weight: u32::try_from(weight).unwrap_or(u32::MAX),
        priority: u32::try_from(priority).unwrap_or(u32::MAX),
        cost: input_cost.zip(output_cost).map(|(input, output)| Cost { input, output }),
    })
}

/// Dollars per million tokens, as prices are written: a price of a token in pico-dollars.
fn cost(value: Value<'_>) -> Result<PricePicos, String> {
    let Micros(per_million) = Micros::parse_usd(value.text()?).map_err(|fault| fault.to_string())?;
    Ok(PricePicos(per_million))
}

fn dialect(value: Value<'_>) -> Result<&'static dyn Dialect, String> {
    let name = value.text()?;
    provider::dialect(name).ok_or_else(|| {
        let built: Vec<&str> = provider::DIALECTS.iter().map(|dialect| dialect.name()).collect();
        format!("the dialect `{name}` is not built; there are: {}", built.join(", "))
    })
}

/// A name that clients and providers use for a model.
fn name(value: Value<'_>) -> Result<String, String> {
    let name = value.text()?;
    let is_usual = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '?' | '#' | '%');
    if !(1..=NAME_MAX_BYTES).contains(&name.len()) || !name.chars().all(is_usual) {
        return Err(format!(
            "a name has 1 to {NAME_MAX_BYTES} ASCII characters, no spaces and none of \" \\ ? # %"
        ));
    }
    Ok(name.to_owned())
}
