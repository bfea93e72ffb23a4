//! What is shown, from two looks at the metrics.

use crate::cli::scrape::{Sample, Samples};
use serde::Serialize;
use std::collections::BTreeMap;

/// Traffic, models, routes and books at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct View {
    pub(super) is_ready: bool,
    pub(super) requests_in_flight: f64,
    /// Since the process started.
    pub(super) requests_total: f64,
    pub(super) requests_per_s: f64,
    pub(super) units_per_s: f64,
    pub(super) usd_per_s: f64,
    /// By what clients were told.
    pub(super) errors_per_s: BTreeMap<String, f64>,
    pub(super) models: Vec<Model>,
    pub(super) routes: Vec<Route>,
    /// What the books, and the process as a whole, say: the value of each metric.
    pub(super) ledger: BTreeMap<&'static str, f64>,
}

/// What a model does.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) requests_per_s: f64,
    pub(super) units_per_s: f64,
    pub(super) usd_per_s: f64,
    /// Seconds: the median and the slowest hundredth, to the first output and to the end; of the time between the looks, or where there
    /// was none in it, since the start.
    pub(super) first_token_p50_s: Option<f64>,
    pub(super) first_token_p99_s: Option<f64>,
    pub(super) duration_p50_s: Option<f64>,
    pub(super) duration_p99_s: Option<f64>,
}

/// How a route of a model is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Route {
    pub(super) provider: String,
    pub(super) model: String,
    pub(super) state: &'static str,
    pub(super) attempts_in_flight: f64,
    pub(super) attempts_per_s: f64,
}

/// What is shown of the books: its name and its metric.
pub(super) const LEDGER: &[(&str, &str)] = &[
    ("held usd", "weir_ledger_held_usd"),
    ("free usd", "weir_ledger_free_usd"),
    ("open holds", "weir_ledger_open_holds"),
    ("leases", "weir_ledger_leases"),
    ("owed usd", "weir_owed_usd"),
    ("backlog", "weir_ledger_backlog_settlements"),
    ("writer lag s", "weir_ledger_writer_lag_seconds"),
    ("journal MB", "weir_ledger_journal_bytes"),
    ("kept MB", "weir_ledger_journal_kept_bytes"),
    ("audit drift usd", "weir_ledger_audit_drift_usd"),
    ("quarantined", "weir_ledger_quarantine_rows"),
    ("memory MB", "process_resident_memory_bytes"),
];
const TTFT: &str = "gen_ai_server_time_to_first_token_seconds";
const DURATION: &str = "gen_ai_server_request_duration_seconds";
const MODEL_LABEL: &str = "gen_ai_request_model";

impl View {
    /// What happened between two looks that are so many seconds apart.
    pub(super) fn between(before: &Samples, now: &Samples, seconds: f64) -> View {
        let rate = |name: &str, is_meant: &dyn Fn(&Sample) -> bool| {
            // A process that was started anew counts from zero.
            ((now.sum(name, is_meant) - before.sum(name, is_meant)) / seconds).max(0.0)
        };
        let all = |_: &Sample| true;
        let labels = |name: &'static str, label: &'static str| {
            let mut found: Vec<String> = now.of(name).map(|sample| sample.label(label).to_owned()).collect();
            found.sort();
            found.dedup();
            found.retain(|value| !value.is_empty());
            found
        };
        let errors = labels("weir_requests_total", "kind").into_iter().filter(|kind| kind != "ok");
        let errors = errors.map(|kind| {
            let of = rate("weir_requests_total", &|sample| sample.label("kind") == kind);
            (kind, of)
        });
        let model = |name: String| {
            let own = |sample: &Sample| sample.label("model") == name;
            let quantile = |metric: &str, q: f64| quantile(before, now, metric, &name, q);
            Model {
                requests_per_s: rate("weir_requests_total", &own),
                units_per_s: rate("weir_used_units_total", &own),
                usd_per_s: rate("weir_billed_usd_total", &own),
                first_token_p50_s: quantile(TTFT, 0.5),
                first_token_p99_s: quantile(TTFT, 0.99),
                duration_p50_s: quantile(DURATION, 0.5),
                duration_p99_s: quantile(DURATION, 0.99),
                name: name.clone(),
            }
        };
        let route = |sample: &Sample| {
            let (provider, model) = (sample.label("provider").to_owned(), sample.label("model").to_owned());
            let own = |other: &Sample| other.label("provider") == provider && other.label("model") == model;
            Route {
                state: state(sample.value),
                attempts_in_flight: now.sum("weir_route_attempts_in_flight", own),
                attempts_per_s: rate("weir_attempts_total", &own),
                provider: provider.clone(),
                model: model.clone(),
            }
        };
        let ledger =
            LEDGER.iter().map(|(_, metric)| *metric).filter(|metric| now.of(metric).next().is_some());
        let mut view = View {
            is_ready: now.sum("weir_ready", all) > 0.0,
            requests_in_flight: now.sum("weir_requests_in_flight", all),
            requests_total: now.sum("weir_requests_total", all),
            requests_per_s: rate("weir_requests_total", &all),
            units_per_s: rate("weir_used_units_total", &all),
            usd_per_s: rate("weir_billed_usd_total", &all),
            errors_per_s: errors.filter(|(_, rate)| *rate > 0.0).collect(),
            models: labels("weir_requests_total", "model").into_iter().map(model).collect(),
            routes: now.of("weir_route_state").map(route).collect(),
            ledger: ledger.map(|metric| (metric, now.sum(metric, all))).collect(),
        };
        view.models.sort_by(|one, other| other.requests_per_s.total_cmp(&one.requests_per_s));
        view.routes.sort_by(|one, other| (&one.provider, &one.model).cmp(&(&other.provider, &other.model)));
        view
    }
}

fn state(value: f64) -> &'static str {
    match value {
        0.0 => "closed",
        1.0 => "half open",
        2.0 => "cooling",
        _ => "open",
    }
}

/// A quantile of a model's histogram, as `histogram_quantile` has it: linear within a bucket.
fn quantile(before: &Samples, now: &Samples, metric: &str, model: &str, q: f64) -> Option<f64> {
    let name = format!("{metric}_bucket");
    let buckets = |samples: &Samples| {
        let mut sums: Vec<(f64, f64)> = Vec::new();
        for sample in samples.of(&name).filter(|sample| sample.label(MODEL_LABEL) == model) {
            let bound = match sample.label("le") {
                "+Inf" => f64::INFINITY,
                bound => bound.parse().unwrap_or(f64::NAN),
            };
            match sums.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, sum)) => *sum += sample.value,
                None => sums.push((bound, sample.value)),
            }
        }
        sums.sort_by(|one, other| one.0.total_cmp(&other.0));
        sums
    };
    let (old, new) = (buckets(before), buckets(now));
    let since = |(bound, count): &(f64, f64)| {
        let known = old.iter().find(|(other, _)| other == bound).map_or(0.0, |(_, count)| *count);
        (*bound, count - known)
    };
    let between: Vec<(f64, f64)> = new.iter().map(since).collect();
    let counts = if between.last().is_some_and(|(_, count)| *count > 0.0) { between } else { new };
    let total = counts.last().filter(|(_, count)| *count > 0.0)?.1;
    let (mut low, mut below) = (0.0, 0.0);
    for (bound, count) in counts {
        if count >= q * total {
            let is_open = bound.is_infinite() || count <= below;
            return Some(if is_open {
                low
            } else {
                low + (bound - low) * (q * total - below) / (count - below)
            });
        }
        (low, below) = (bound, count);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(text: &str) -> Samples {
        Samples::parse(text).unwrap()
    }

    #[test]
    fn rates_are_of_the_time_between_and_quantiles_lie_within_their_bucket() {
        let before = samples("weir_requests_total{kind=\"ok\",model=\"m\"} 10\nweir_ready 1\n");
        let now = samples(
            "weir_requests_total{kind=\"ok\",model=\"m\"} 30\nweir_requests_total{kind=\"upstream_error\",model=\"m\"} 4\nweir_ready 1\n\
             gen_ai_server_request_duration_seconds_bucket{gen_ai_request_model=\"m\",le=\"1\"} 5\n\
             gen_ai_server_request_duration_seconds_bucket{gen_ai_request_model=\"m\",le=\"3\"} 10\n\
             gen_ai_server_request_duration_seconds_bucket{gen_ai_request_model=\"m\",le=\"+Inf\"} 10\n\
             weir_route_state{model=\"m\",provider=\"p\"} 3\nweir_ledger_journal_bytes 2000000\n",
        );
        let view = View::between(&before, &now, 2.0);
        assert_eq!((view.is_ready, view.requests_per_s), (true, 12.0));
        assert_eq!(view.errors_per_s, BTreeMap::from([("upstream_error".to_owned(), 2.0)]));
        assert_eq!((view.models[0].duration_p50_s, view.models[0].first_token_p50_s), (Some(1.0), None));
        assert!((view.models[0].duration_p99_s.unwrap() - 2.96).abs() < 1e-9, "{view:?}");
        assert_eq!((view.routes[0].state, view.ledger["weir_ledger_journal_bytes"]), ("open", 2e6));
        // Started anew between the looks.
        assert_eq!(View::between(&now, &before, 2.0).requests_per_s, 0.0);
    }
}
