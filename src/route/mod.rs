//! Which candidate is tried, and whether another may be tried after it.
//!
//! Promises: a choice is a function of the configuration, of what was seen of the candidates, and of the time and the randomness passed
//! in; a candidate whose circuit is open is never chosen while one with a closed circuit is left; a drained provider is chosen when
//! nothing else is left. Refuses to know: sockets, credit, what a failure looks like on the wire.

mod budget;
mod choose;
mod health;
mod latency;
mod plan;

pub use budget::{RetryBudget, Settings as RetryBudgetSettings};
pub use health::{Health, Settings as HealthSettings, Standing, Trial};
pub use plan::{NoneLeft, Plan, Wanted, Why};

use crate::ids::{ModelName, ProviderName};
use crate::money::PricePicos;
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
    /// It gets no new request unless nothing else is left.
    pub is_drained: bool,
}

/// One way to have a model answered.
pub struct Candidate {
    /// Who answers.
    pub provider: Arc<Provider>,
    /// What the provider calls the model.
    pub upstream_model: String,
    /// Candidates with a lower number are tried first.
    pub priority: u32,
    /// The share of traffic relative to the other candidates of its priority; at least 1.
    pub weight: u32,
    /// What the operator pays; what customers pay is in the price book.
    pub cost: Cost,
    /// What was seen of it; candidates of one provider and upstream model share it.
    pub health: Arc<Health>,
}

/// What the operator pays a provider, in pico-dollars per token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// For an input token.
    pub input: PricePicos,
    /// For an output token.
    pub output: PricePicos,
}

/// By what a candidate is chosen among the healthy ones of a priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By weight, but not the clearly worse of two drawn ones.
    #[default]
    Weight,
    /// The cheapest for the operator.
    Cost,
    /// The quickest, by its latency and by what it has to do at the moment.
    Latency,
}

/// What may be tried again with the next candidate, before the first byte went to the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retry {
    /// What the provider cannot have executed, or answered with an error that it does not bill.
    #[default]
    Safe,
    /// Also what it may have executed: the operator may pay twice, the customer pays once.
    Any,
    /// Nothing.
    Never,
}

/// A model that clients can ask for.
pub struct Model {
    /// What clients call it, and what the price book calls it.
    pub name: ModelName,
    /// Input and output together, in tokens.
    pub context_tokens: u64,
    /// The most output of one choice, in tokens; `None` for models without output tokens.
    pub max_output_tokens: Option<u64>,
    /// It thinks in tokens that it bills and does not show: only its own report tells what an answer cost.
    pub hidden_reasoning: bool,
    /// At least one.
    pub candidates: Vec<Candidate>,
    /// How one is chosen.
    pub order: Order,
    /// Whether a conversation stays with one candidate, for the sake of its prompt cache.
    pub is_sticky: bool,
    /// What may be tried again.
    pub retry: Retry,
    /// The most attempts of one request, over all models of its chain; at least 1. A fresh connection to the same candidate is no
    /// attempt of its own.
    pub attempts_max: u32,
    /// The models that are tried, in this order, when no candidate of this one is left. Their own fallbacks play no part.
    pub fallback: Vec<ModelName>,
    /// What attempts after the first may add to the traffic.
    pub budget: RetryBudget,
}

/// The models of the configuration.
#[derive(Default)]
pub struct Catalogue(BTreeMap<String, Arc<Model>>);

impl Model {
    /// Whether some candidate can answer that endpoint.
    pub fn serves(&self, endpoint: Endpoint) -> bool {
        self.candidates.iter().any(|candidate| candidate.serves(endpoint))
    }
}

impl Candidate {
    /// Whether it can answer that endpoint.
    pub fn serves(&self, endpoint: Endpoint) -> bool {
        self.provider.dialect.serves(endpoint)
    }
}

impl Cost {
    /// What so many tokens cost the operator, in pico-dollars.
    fn of(self, input_tokens: u64, output_tokens: u64) -> i128 {
        let times = |tokens: u64, price: PricePicos| i128::from(tokens).saturating_mul(i128::from(price.0));
        times(input_tokens, self.input).saturating_add(times(output_tokens, self.output))
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

/// splitmix64 (Steele, Lea, Flood 2014): spreads the bits of any seed.
fn spread(state: u64) -> u64 {
    let mixed = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// A number from 0 up to and without 1, from random bits.
fn fraction(random: u64) -> f64 {
    // The 53 bits that the mantissa holds.
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests;
