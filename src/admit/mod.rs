//! Whether a request may go on: the limits of its tier, then the credit for it.
//!
//! Promises: what is taken is given back by `Drop`; credit is taken before anything is sent; what can be refused on the head
//! alone is refused before a body is read. Refuses to know: providers, sockets, what an answer costs in the end.

mod bucket;
mod guard;
mod limits;

pub use bucket::Standing;
pub use guard::Guard;
pub use limits::{Permit, RateStanding, Tier};

use crate::authenticate::Caller;
use crate::clock::{Clock, UnixMicros};
use crate::ids::{ModelName, RequestId, TierName};
use crate::ledger::{self, Hold, HoldRequest, Ledger, Shortage};
use crate::openai::Ask;
use crate::price::ModelPrice;
use crate::refusal::{Kind, Refused};
use limits::Limits;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Tiers by name, and the one for accounts that name none.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Every tier.
    pub tiers: HashMap<TierName, Tier>,
    /// For accounts without a tier, or with one that is not in the configuration.
    pub default_tier: Tier,
    /// The output that a hold covers when neither the request nor the model says how long an answer can be, in tokens.
    pub output_tokens_assumed: u64,
}

/// Decides what may go on.
pub struct Admitter {
    settings: Settings,
    limits: Limits,
    ledger: Ledger,
}

/// What a request asks for, as far as credit goes.
pub struct Order {
    /// The request.
    pub request_id: RequestId,
    /// When it came.
    pub created_at: UnixMicros,
    /// The client's own name for it.
    pub client_request_id: Option<String>,
    /// The model, as the catalogue calls it.
    pub model: ModelName,
    /// The most output of one choice that the model gives, in tokens.
    pub max_output_tokens: Option<u64>,
    /// The model's price in force.
    pub price: Arc<ModelPrice>,
}

/// Proof that a request may be sent: a place and credit, both given back by `Drop`.
#[must_use]
pub struct Admission {
    /// Credit for the request.
    pub hold: Hold,
    /// The place among the account's requests, and the tokens taken.
    pub permit: Permit,
}

/// What a client waits for when its credit is held by its own requests.
const IN_FLIGHT_WAIT: Duration = Duration::from_secs(2);
/// What a client waits for when the ledger cannot answer.
const LEDGER_WAIT: Duration = Duration::from_secs(1);

impl Admitter {
    /// An admitter before this ledger.
    pub fn new(settings: Settings, ledger: Ledger, clock: Clock) -> Self {
        Admitter { settings, limits: Limits::new(clock), ledger }
    }

    /// On the head alone: is the process taking requests, is there any credit, is there a place.
    pub fn enter(&self, caller: &Caller) -> Result<Permit, Refused> {
        self.ledger.admitting().map_err(refuse_shortage)?;
        let policy = caller.policy();
        match self.ledger.standing(policy.account) {
            ledger::Standing::Empty => return Err(refuse_shortage(Shortage::Exhausted)),
            ledger::Standing::Unknown | ledger::Standing::Funded => {}
        }
        self.limits.enter(policy.account, self.tier(caller))
    }

    /// Where the caller stands in its limits, for answers that take no place.
    pub fn standing(&self, caller: &Caller) -> RateStanding {
        self.limits.standing(caller.policy().account, self.tier(caller))
    }

    /// With the body known: takes the estimated tokens and the credit that the request can cost.
    pub async fn admit(
        &self,
        caller: &Caller,
        mut permit: Permit,
        ask: &Ask,
        order: Order,
    ) -> Result<Admission, Refused> {
        let input_bound = ask.input_estimate();
        let output_tokens = self.output_bound(ask, order.max_output_tokens);
        permit.take_tokens(usual_input(input_bound).saturating_add(output_tokens.min(token_share(ask))))?;
        let amount = order.price.bound(input_bound, output_tokens, ask.service_tier.as_deref());
        let request = HoldRequest {
            request_id: order.request_id,
            account: caller.policy().account,
            key: caller.policy().key,
            model: order.model,
            amount,
            price: order.price,
            service_tier: ask.service_tier.clone(),
            stream: ask.stream,
            created_at: order.created_at,
            client_request_id: order.client_request_id,
            input_tokens: usual_input(input_bound),
        };
        match self.ledger.hold(request).await {
            Ok(hold) => Ok(Admission { hold, permit }),
            Err(shortage) => {
                permit.used_tokens(0);
                Err(refuse_shortage(shortage))
            }
        }
    }

    fn tier(&self, caller: &Caller) -> Tier {
        let named = caller.policy().tier.as_ref().and_then(|name| self.settings.tiers.get(name));
        *named.unwrap_or(&self.settings.default_tier)
    }

    /// The most output that the request can be answered with, over all its choices, in tokens.
    fn output_bound(&self, ask: &Ask, model_max: Option<u64>) -> u64 {
        if !ask.endpoint.has_output() {
            return 0;
        }
        let model_max = model_max.unwrap_or(self.settings.output_tokens_assumed);
        let per_choice = ask.max_output_tokens.map_or(model_max, |asked| asked.min(model_max));
        per_choice.saturating_mul(ask.choices)
    }
}

/// What a text takes that is bounded by one token a byte: four bytes make a token in English and in code, fewer elsewhere.
fn usual_input(bound: u64) -> u64 {
    bound.div_ceil(4)
}

/// What an answer is assumed to take from the tokens per minute: what was asked for, else a usual answer, so that a model's
/// whole output limit is not charged to each short request. It is corrected when the answer has ended.
fn token_share(ask: &Ask) -> u64 {
    ask.max_output_tokens.unwrap_or(USUAL_OUTPUT_TOKENS).saturating_mul(ask.choices)
}

/// The output assumed of a request that names no limit, in tokens.
const USUAL_OUTPUT_TOKENS: u64 = 512;

fn refuse_shortage(shortage: Shortage) -> Refused {
    match shortage {
        Shortage::Exhausted => Refused::new(
            Kind::CreditBalanceExhausted,
            "This account's credit does not cover the request. Add credit, or lower the output limit.",
        ),
        Shortage::InFlight => Refused::new(
            Kind::CreditInFlight,
            "This account's credit is held by requests under way. It is free again when they end.",
        )
        .retry_after(IN_FLIGHT_WAIT),
        Shortage::Suspended => Refused::new(
            Kind::AccountSuspended,
            "This account is suspended. Contact the operator of this service.",
        ),
        Shortage::Unavailable => Refused::new(
            Kind::NoCapacity,
            "The service cannot reserve credit at the moment; try again shortly.",
        )
        .retry_after(LEDGER_WAIT)
        .internal("the database did not grant credit in time"),
        Shortage::Backlog => {
            Refused::new(Kind::NoCapacity, "The service is catching up with its books; try again shortly.")
                .retry_after(LEDGER_WAIT)
                .internal("the ledger's backlog is full or its view of the database too old")
        }
    }
}
