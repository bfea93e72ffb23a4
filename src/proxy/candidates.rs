//! Which models may answer a request, at what price, and who is asked first.

use super::{Judged, Proxy, Rules, model_not_found};
use crate::authenticate::Caller;
use crate::ids::{ModelName, RequestId};
use crate::openai::Ask;
use crate::price::ModelPrice;
use crate::refusal::{Kind, Refused};
use crate::relay::Body;
use crate::route::{Model, NoneLeft, Plan, Wanted};
use std::sync::Arc;

/// What orders routes by cost: English text has so many bytes to a token.
const USUAL_BYTES_PER_TOKEN: u64 = 4;
/// And a usual answer so many tokens.
const USUAL_OUTPUT_TOKENS: u64 = 512;

/// The most output of one choice, whichever of the models answers; `None` where one of them does not say.
pub(super) fn longest_output(models: &[Arc<Model>]) -> Option<u64> {
    let all: Option<Vec<u64>> = models.iter().map(|model| model.max_output_tokens).collect();
    all.and_then(|all| all.into_iter().max())
}

/// Models, the one that is asked for first, and the price of each.
type Chain = (Vec<Arc<Model>>, Vec<Arc<ModelPrice>>);

impl Proxy {
    /// The model that is asked for, and those that may answer in its place, each with its price.
    pub(super) fn chain(&self, rules: &Rules, caller: &Caller, ask: &Ask) -> Judged<Chain> {
        let (book, now) = (self.book.load(), self.clock.wall());
        let priced = |name: &str| {
            let model = rules.catalogue.model(name).filter(|model| model.serves(ask.endpoint))?;
            Some((Arc::clone(model), book.model(name, now)?))
        };
        let asked = priced(&ask.model).ok_or_else(|| model_not_found(&ask.model))?;
        let others = asked.0.fallback.clone();
        let allowed = others.iter().map(ModelName::as_str).filter(|name| caller.may_use(name).is_ok());
        let stand_ins: Vec<_> = allowed.filter_map(priced).collect();
        Ok(std::iter::once(asked).chain(stand_ins).unzip())
    }

    /// Chooses who is asked first.
    pub(super) fn plan(
        &self,
        caller: &Caller,
        ask: &Ask,
        body: &Body,
        chain: Vec<Arc<Model>>,
        request_id: RequestId,
    ) -> Judged<Plan> {
        let is_sticky = chain.iter().any(|model| model.is_sticky);
        let account = caller.policy().account;
        let wanted = Wanted {
            chain,
            endpoint: ask.endpoint,
            is_streamed: ask.stream,
            affinity: is_sticky.then(|| ask.affinity(account.as_bytes(), body)).flatten(),
            input_tokens: ask.input_estimate() / USUAL_BYTES_PER_TOKEN,
            output_tokens: ask.max_output_tokens.unwrap_or(USUAL_OUTPUT_TOKENS),
            random: request_id.low_bits(),
        };
        Plan::begin(wanted, self.clock.now()).map_err(|NoneLeft { retry_after }| {
            Refused::new(Kind::NoCapacity, "The model is overloaded at the moment; try again shortly.")
                .retry_after(retry_after)
                .internal("every provider has said to come back later")
        })
    }
}
