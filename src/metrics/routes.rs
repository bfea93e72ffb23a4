//! What is known of each candidate at the moment that the metrics are read.

use crate::ids::{ModelName, ProviderName};
use prometheus::{IntGaugeVec, Opts, Registry};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// One candidate of a model, as it stands.
#[derive(Clone, Copy, Debug)]
pub struct RouteLevel<'a> {
    /// The model.
    pub model: &'a ModelName,
    /// Who would answer.
    pub provider: &'a ProviderName,
    /// Whether it can be chosen.
    pub state: RouteState,
    /// Attempts under way.
    pub outstanding: u32,
}

/// Whether a candidate can be chosen; the order is from good to bad, and the numbers are those of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteState {
    /// It is healthy.
    Closed,
    /// It was left alone for long enough, and the next request tries it.
    HalfOpen,
    /// It said when to come back.
    Cooling,
    /// It fails and is left alone.
    Open,
}

pub(super) struct Routes {
    state: IntGaugeVec,
    outstanding: IntGaugeVec,
    /// Held while the candidates of one catalogue take the place of those of another.
    noting: Mutex<()>,
}

const ROUTE: &[&str] = &["model", "provider"];

impl Routes {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| {
            let family = IntGaugeVec::new(Opts::new(name, help), ROUTE)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        Ok(Routes {
            state: gauge(
                "weir_route_state",
                "Of a model's route to a provider: 0 closed (healthy), 1 half open (tried next), 2 cooling (told to come back later), \
                 3 open (left alone, it fails).",
            )?,
            outstanding: gauge(
                "weir_route_attempts_in_flight",
                "Attempts under way at a model's route to a provider.",
            )?,
            noting: Mutex::default(),
        })
    }

    /// Notes all candidates there are; those of before that are not among them are forgotten. Of two routes of a model to one provider
    /// the better stands.
    pub(super) fn set<'a>(&self, routes: impl Iterator<Item = RouteLevel<'a>>) {
        let mut all: BTreeMap<[&str; 2], (RouteState, i64)> = BTreeMap::new();
        for route in routes {
            let labels = [route.model.as_str(), route.provider.as_str()];
            let known = all.entry(labels).or_insert((route.state, 0));
            known.0 = known.0.min(route.state);
            known.1 += i64::from(route.outstanding);
        }
        let _noting = self.noting.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.reset();
        self.outstanding.reset();
        for (labels, (state, outstanding)) in all {
            self.state.with_label_values(&labels).set(state.number());
            self.outstanding.with_label_values(&labels).set(outstanding);
        }
    }
}

impl RouteState {
    const fn number(self) -> i64 {
        match self {
            RouteState::Closed => 0,
            RouteState::HalfOpen => 1,
            RouteState::Cooling => 2,
            RouteState::Open => 3,
        }
    }
}
