//! Which candidates may answer for a model, in which order.
//!
//! Promises: the order is a function of the weights and of the randomness passed in; a model is in the catalogue under one name.
//! Refuses to know: sockets, credit, what a request says beyond its model.

use crate::ids::{ModelName, ProviderName};
use crate::openai::Endpoint;
use crate::provider::Dialect;
use crate::secret::SecretString;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One upstream service and how to speak to it.
pub struct Provider {
    /// The name in the configuration, and the metric label.
    pub name: ProviderName,
    /// How it speaks.
    pub dialect: &'static dyn Dialect,
    /// The operator's key for it; sent only to it.
    pub api_key: Option<SecretString>,
}

/// One way to have a model answered.
pub struct Candidate {
    /// Who answers.
    pub provider: Arc<Provider>,
    /// What the provider calls the model.
    pub upstream_model: String,
    /// The share of traffic relative to the other candidates; at least 1.
    pub weight: u32,
}

/// A model that clients can ask for.
pub struct Model {
    /// What clients call it, and what the price book calls it.
    pub name: ModelName,
    /// Input and output together, in tokens.
    pub context_tokens: u64,
    /// The most output of one choice, in tokens; `None` for models without output tokens.
    pub max_output_tokens: Option<u64>,
    /// At least one.
    pub candidates: Vec<Candidate>,
}

/// The models of the configuration.
#[derive(Default)]
pub struct Catalogue(BTreeMap<String, Arc<Model>>);

/// The candidates of one request, in the order in which they are tried.
#[derive(Clone)]
pub struct Plan {
    model: Arc<Model>,
    order: Vec<usize>,
    position: usize,
}

impl Model {
    /// Whether some candidate can answer that endpoint.
    pub fn serves(&self, endpoint: Endpoint) -> bool {
        self.candidates.iter().any(|candidate| candidate.provider.dialect.serves(endpoint))
    }
}

impl Catalogue {
    /// A catalogue of these models; of two with one name the later stands.
    pub fn new(models: impl IntoIterator<Item = Model>) -> Self {
        Catalogue(models.into_iter().map(|model| (model.name.as_str().to_owned(), Arc::new(model))).collect())
    }

    /// The model of that name.
    pub fn model(&self, name: &str) -> Option<&Arc<Model>> {
        self.0.get(name)
    }

    /// Every model, by name.
    pub fn models(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.0.values()
    }
}

impl Plan {
    /// Orders the candidates that serve the endpoint: each place is drawn by weight among those that are left. `None` when
    /// no candidate serves it. The same randomness gives the same order.
    pub fn new(model: &Arc<Model>, endpoint: Endpoint, mut randomness: u64) -> Option<Plan> {
        let serves = |at: &usize| model.candidates[*at].provider.dialect.serves(endpoint);
        let mut left: Vec<usize> = (0..model.candidates.len()).filter(serves).collect();
        let mut order = Vec::with_capacity(left.len());
        while left.len() > 1 {
            let total: u64 = left.iter().map(|at| u64::from(model.candidates[*at].weight)).sum();
            randomness = next_random(randomness);
            let mut draw = randomness % total.max(1);
            let chosen = left.iter().position(|at| {
                let weight = u64::from(model.candidates[*at].weight);
                let here = draw < weight;
                draw = draw.saturating_sub(weight);
                here
            });
            order.push(left.remove(chosen.unwrap_or(0)));
        }
        order.extend(left);
        (!order.is_empty()).then(|| Plan { model: Arc::clone(model), order, position: 0 })
    }

    /// The model that is asked for.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The candidate whose turn it is.
    pub fn candidate(&self) -> &Candidate {
        &self.model.candidates[self.order[self.position]]
    }

    /// Whether there is a candidate after this one.
    pub fn has_next(&self) -> bool {
        self.position + 1 < self.order.len()
    }

    /// Moves to the next candidate; stays at the last.
    pub fn advance(&mut self) {
        if self.has_next() {
            self.position += 1;
        }
    }
}

/// splitmix64 (Steele, Lea, Flood 2014): spreads the bits of any seed.
fn next_random(state: u64) -> u64 {
    let mixed = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::dialect;

    fn model(weights: &[u32]) -> Arc<Model> {
        let candidates = weights.iter().enumerate().map(|(at, weight)| Candidate {
            provider: Arc::new(Provider {
                name: ProviderName::from(format!("p{at}").as_str()),
                dialect: dialect("openai").unwrap(),
                api_key: None,
            }),
            upstream_model: "m".into(),
            weight: *weight,
        });
        Arc::new(Model {
            name: ModelName::from("m"),
            context_tokens: 1,
            max_output_tokens: None,
            candidates: candidates.collect(),
        })
    }

    #[test]
    fn every_candidate_is_tried_once_and_then_there_is_no_next() {
        let model = model(&[1, 5, 2]);
        for seed in 0..100 {
            let mut plan = Plan::new(&model, Endpoint::ChatCompletions, seed).unwrap();
            let mut seen = vec![plan.candidate().provider.name.clone()];
            while plan.has_next() {
                plan.advance();
                seen.push(plan.candidate().provider.name.clone());
            }
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), 3);
        }
    }

    #[test]
    fn first_places_follow_the_weights_within_sampling_error() {
        let model = model(&[1, 3]);
        let heavy = (0..10_000u64)
            .filter(|seed| {
                let plan = Plan::new(&model, Endpoint::ChatCompletions, *seed).unwrap();
                plan.candidate().weight == 3
            })
            .count();
        // 7,500 expected; five standard deviations are 217.
        assert!((7_283..=7_717).contains(&heavy), "{heavy}");
    }
}
