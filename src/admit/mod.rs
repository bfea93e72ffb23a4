//! Whether a request may go on: the limits of its tier, then the credit for it.
//!
//! Promises: what is taken is given back by `Drop`; credit is taken before anything is sent; what can be refused on the head
//! alone is refused before a body is read. Refuses to know: providers, sockets, what an answer costs in the end.

mod bucket;
mod guard;
mod limits;
mod origin;

pub use bucket::Standing;
pub use guard::{Guard, GuardSettings, subscriber};
pub use limits::{Permit, RateStanding, Tier};
pub use origin::{Countries, CountryMap, CountryMapError, OriginSettings};

use crate::authenticate::Caller;
use crate::clock::{Clock, UnixMicros};
use crate::ids::{KeyId, ModelName, RequestId, TierName};
use crate::ledger::{self, Claim, Hold, HoldRequest, Ledger, Need, Shortage, Unclaimed};
use crate::openai::Ask;
use crate::price::ModelPrice;
use crate::refusal::{Kind, Limit, Refused};
use limits::Limits;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// On what terms requests are admitted: tiers by name, and the one for accounts that name none.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Every tier.
    pub tiers: HashMap<TierName, Tier>,
    /// For accounts without a tier, or with one that is not in the configuration.
    pub default_tier: Tier,
    /// The output that a hold covers when neither the request nor the model says how long an answer can be, in tokens.
    pub output_tokens_assumed: u64,
    /// Service tiers that keys without a list of their own may ask for.
    pub service_tiers: Vec<String>,
}

/// Decides what may go on.
pub struct Admitter {
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
    /// The prices in force of the models that may answer in its place.
    pub stand_ins: Vec<Arc<ModelPrice>>,
    /// The account's idempotency key, if the request has claimed one.
    pub claim: Option<Claim>,
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
    /// An admitter before this ledger. `requests_max` requests are under way in this process, of all accounts together; at least 1.
    pub fn new(requests_max: u64, ledger: Ledger, clock: Clock) -> Self {
        Admitter { limits: Limits::new(requests_max, clock), ledger }
    }

    /// From now on so many requests are under way at most. Those that are go on.
    pub fn set_requests_max(&self, requests_max: u64) {
        self.limits.set_requests_max(requests_max);
    }

    /// On the head alone: is the process taking requests, is there any credit, is there a place.
    pub fn enter(&self, terms: &Terms, caller: &Caller) -> Result<Permit, Refused> {
        self.ledger.admitting().map_err(refuse_shortage)?;
        let policy = caller.policy();
        match self.ledger.standing(policy.account) {
            ledger::Standing::Empty => return Err(refuse_shortage(Shortage::Exhausted)),
            ledger::Standing::Unknown | ledger::Standing::Funded => {}
        }
        self.limits.enter(policy.account, terms.account_tier(caller), terms.key_tier(caller))
    }

    /// Where the caller stands in its limits, for answers that take no place.
    pub fn standing(&self, terms: &Terms, caller: &Caller) -> RateStanding {
        self.limits.standing(caller.policy().account, terms.account_tier(caller), terms.key_tier(caller))
    }

    /// Claims the account's idempotency key for the request: one round trip. Refuses with `request_in_progress` or
    /// `request_already_done` where another request has it.
    pub async fn claim(&self, caller: &Caller, key: String, request: RequestId) -> Result<Claim, Refused> {
        self.ledger.claim(caller.policy().account, key, request).await.map_err(refuse_unclaimed)
    }

    /// With the body known: takes the estimated tokens and credit. What the hold lowers the output to is in it.
    pub async fn admit(
        &self,
        terms: &Terms,
        caller: &Caller,
        mut permit: Permit,
        ask: &Ask,
        order: Order,
    ) -> Result<Admission, Refused> {
        let policy = caller.policy();
        caller.may_ask_for(ask.service_tier.as_deref(), &terms.service_tiers)?;
        let need = terms.need(ask, order.max_output_tokens);
        let output_tokens = need.output.saturating_mul(need.choices);
        permit.take_tokens(need.input_usual.saturating_add(output_tokens.min(token_share(ask))))?;
        let request = HoldRequest {
            request_id: order.request_id,
            account: policy.account,
            key: policy.key,
            model: order.model,
            need,
            spend_limit: policy.spend_limit,
            price: order.price,
            stand_ins: order.stand_ins,
            service_tier: ask.service_tier.clone(),
            stream: ask.stream,
            created_at: order.created_at,
            client_request_id: order.client_request_id,
        };
        match self.ledger.hold(request, order.claim).await {
            Ok(hold) => Ok(Admission { hold, permit }),
            Err(shortage) => {
                permit.used_tokens(0);
                Err(refuse_shortage(shortage))
            }
        }
    }
}

impl Terms {
    fn account_tier(&self, caller: &Caller) -> Tier {
        let named = caller.policy().account_tier.as_ref().and_then(|name| self.tiers.get(name));
        *named.unwrap_or(&self.default_tier)
    }

    /// The limits of the key's own. A tier that the configuration has no more is the default one: the key was to be limited.
    fn key_tier(&self, caller: &Caller) -> Option<(KeyId, Tier)> {
        let policy = caller.policy();
        let name = policy.key_tier.as_ref()?;
        Some((policy.key, *self.tiers.get(name).unwrap_or(&self.default_tier)))
    }

    /// What the request can take at most, and what it usually takes.
    fn need(&self, ask: &Ask, model_max: Option<u64>) -> Need {
        let model_max = model_max.unwrap_or(self.output_tokens_assumed);
        let asked = ask.max_output_tokens.map_or(model_max, |asked| asked.min(model_max));
        let output = if ask.endpoint.has_output() { asked } else { 0 };
        let input_bound = ask.input_estimate();
        Need {
            input_usual: usual_input(input_bound),
            input_bound,
            output,
            output_least: output.min(OUTPUT_TOKENS_LEAST),
            choices: ask.choices,
            is_extendable: ask.stream,
        }
    }
}

/// Fewer output tokens than these are not worth an input, unless the client asks for fewer.
const OUTPUT_TOKENS_LEAST: u64 = 64;

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
        Shortage::KeyLimit => Refused::new(
            Kind::KeySpendLimitReached,
            "This API key has reached its spend limit. Use another key, or wait until the limit begins anew.",
        )
        .limit(Limit::KeySpend),
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
                .limit(Limit::LedgerBacklog)
                .internal("the ledger's backlog is full or its view of the database too old")
        }
    }
}

fn refuse_unclaimed(unclaimed: Unclaimed) -> Refused {
    match unclaimed {
        Unclaimed::InProgress(first) => Refused::new(
            Kind::RequestInProgress,
            format!("The request {first} has this Idempotency-Key and has not ended. Try again when it has."),
        )
        .original(first)
        .retry_after(IN_FLIGHT_WAIT),
        Unclaimed::Done(first) => Refused::new(
            Kind::RequestAlreadyDone,
            format!(
                "The request {first} had this Idempotency-Key and was answered; answers are not kept. Use another key for another request."
            ),
        )
        .original(first),
        Unclaimed::Shortage(shortage) => refuse_shortage(shortage),
    }
}
