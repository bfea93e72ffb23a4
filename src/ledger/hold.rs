//! A hold: credit for one request, settled exactly once.

use super::claim::Claim;
use super::journal::{Durability, Progress, Reservation, Sent};
use super::need::{Need, Plan, Rate};
use super::purse::{Held, Purse};
use super::{Inner, grants, rows};
use crate::clock::UnixMicros;
use crate::ids::{AccountId, KeyId, ModelName, ProviderName, RequestId};
use crate::money::Picos;
use crate::price::ModelPrice;
use crate::spend::SpendLimit;
use crate::store::RequestRow;
use crate::usage::{Outcome, Usage, UsageSource};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What credit is held for.
#[derive(Clone, Debug)]
pub struct HoldRequest {
    /// The request.
    pub request_id: RequestId,
    /// Who pays.
    pub account: AccountId,
    /// By which key.
    pub key: KeyId,
    /// The model, as the catalogue calls it.
    pub model: ModelName,
    /// What it can take. It is billed by the usual input should this process die before the input is counted.
    pub need: Need,
    /// What its key may spend.
    pub spend_limit: Option<SpendLimit>,
    /// By which the request will be billed, whatever becomes of the book meanwhile.
    pub price: Arc<ModelPrice>,
    /// The prices of the models that may answer in the place of this one. What is held covers the dearest.
    pub stand_ins: Vec<Arc<ModelPrice>>,
    /// The service tier that was asked for.
    pub service_tier: Option<String>,
    /// Whether the answer is a stream.
    pub stream: bool,
    /// When the request came.
    pub created_at: UnixMicros,
    /// The client's own name for it.
    pub client_request_id: Option<String>,
}

/// How a request ended.
#[derive(Clone, Debug)]
pub struct End {
    /// What is billed.
    pub usage: Usage,
    /// Who counted it.
    pub source: UsageSource,
    /// How it ended.
    pub outcome: Outcome,
    /// The HTTP status that was sent.
    pub status: u16,
    /// From its arrival to its end.
    pub latency_ms: u64,
    /// From its arrival to the first output that passed.
    pub ttft_ms: Option<u64>,
    /// The service tier that the answer names.
    pub service_tier: Option<String>,
}

/// Ends when a settlement is on the disk.
pub type Synced = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// What a settlement came to.
#[derive(Clone, Copy, Debug)]
pub struct Settled {
    /// The whole cost.
    pub cost: Picos,
    /// The part of it that the lease did not cover.
    pub over: Picos,
    /// A class was used that has no price of its own.
    pub fallback: bool,
    /// The settlement's number in the journal.
    pub seq: u64,
}

/// Ends with whether a hold covers what has passed.
pub type Extending = Pin<Box<dyn Future<Output = bool> + Send + Sync>>;

/// Credit held for a request. Dropped without having been settled, it is released where nothing was sent, and else settled at the
/// progress that it carries.
#[must_use]
pub struct Hold {
    inner: Arc<Inner>,
    purse: Purse,
    held: Arc<Held>,
    room: Reservation,
    request: HoldRequest,
    claim: Option<Claim>,
    output_limit: Option<u64>,
    sent: Option<Attempt>,
    input_tokens: u64,
    output_tokens: u64,
    /// When so much output has passed, more is held.
    extend_at: u64,
    is_fetching: Arc<AtomicBool>,
    is_ended: bool,
}

struct Attempt {
    provider: ProviderName,
    upstream_model: String,
    /// The journal says that it was sent, and not that it failed.
    is_open: bool,
}

impl HoldRequest {
    pub(super) fn rate(&self) -> Rate<'_> {
        let HoldRequest { price, stand_ins, service_tier, .. } = self;
        Rate { price, stand_ins, service_tier: service_tier.as_deref() }
    }
}

impl Hold {
    pub(super) fn new(
        inner: Arc<Inner>,
        purse: Purse,
        room: Reservation,
        request: HoldRequest,
        plan: Plan,
        claim: Option<Claim>,
    ) -> Self {
        inner.counts.open_holds.fetch_add(1, Ordering::AcqRel);
        inner.counts.backlog.fetch_add(1, Ordering::AcqRel);
        let mut hold = Hold {
            inner,
            purse,
            held: Held::new(plan.amount),
            room,
            claim,
            output_limit: plan.output_limit,
            sent: None,
            input_tokens: request.need.input_usual,
            output_tokens: 0,
            extend_at: 0,
            is_fetching: Arc::default(),
            is_ended: false,
            request,
        };
        hold.extend_at = hold.covered().unwrap_or(0) / 2;
        hold
    }

    /// The output of one choice to which the request is lowered, because credit does not cover what it asks for.
    pub fn output_limit(&self) -> Option<u64> {
        self.output_limit
    }

    /// Notes that so much output has passed, over all choices, and holds more where half of what was held for it is used: at once where
    /// the lease has it, else in the background. Tells whether what has passed is covered; where it is not, [`Hold::extending`] is to
    /// be awaited before more passes. One comparison where nothing is to be done.
    pub fn extend(&mut self, output_tokens: u64) -> bool {
        if output_tokens < self.extend_at {
            return true;
        }
        let (more, slice) = (self.missing(output_tokens), self.request.need.total_slice());
        if more.0 == 0 {
            // Fetched meanwhile, or all that was asked for is held.
            self.extend_at = self.covered().unwrap_or(0).saturating_sub(slice / 2).max(output_tokens + 1);
        } else if self.purse.hold(more) {
            if !self.held.add(more) {
                self.purse.release(more);
            }
            self.extend_at = output_tokens.saturating_add(slice / 2);
            grants::refill(&self.inner, &self.purse.lease, self.request.account, more);
        } else {
            self.fetch(more);
            // Asked again soon, and in any case with the first token that is not covered.
            let soon = output_tokens.saturating_add((slice / 16).max(1));
            self.extend_at = soon.min(self.covered().unwrap_or(0).saturating_add(1));
        }
        self.rate().bound(self.input_tokens, output_tokens) <= self.held.amount()
    }

    /// Below so much output over all choices [`Hold::extend`] has nothing to do.
    pub fn extend_at(&self) -> u64 {
        self.extend_at
    }

    /// Gets more credit, if there is any within a second, and ends with whether so much output is covered and something more.
    pub fn extending(&self, output_tokens: u64) -> Extending {
        let (inner, purse, held) = (Arc::clone(&self.inner), self.purse.clone(), Arc::clone(&self.held));
        let (needed, least) = (self.rate().bound(self.input_tokens, output_tokens), self.least());
        let more = self.missing(output_tokens);
        let books = self.inner.books.clone();
        let asking = books.spawn(async move {
            let is_covered = || held.amount().0 >= needed.0.saturating_add(least.0);
            let lacking = Picos(needed.0.saturating_add(least.0).saturating_sub(held.amount().0));
            if is_covered() {
                return true;
            }
            // What a fetch in the background adds meanwhile counts as well.
            let _is_added = grants::extend(&inner, &purse, &held, more.max(least), lacking.max(least)).await;
            is_covered()
        });
        Box::pin(async move { asking.await.unwrap_or(false) })
    }

    /// Holds more in the background, once at a time.
    fn fetch(&self, more: Picos) {
        if self.is_fetching.swap(true, Ordering::AcqRel) {
            return;
        }
        let (inner, purse, held) = (Arc::clone(&self.inner), self.purse.clone(), Arc::clone(&self.held));
        let (is_fetching, least) = (Arc::clone(&self.is_fetching), self.least());
        let books = self.inner.books.clone();
        books.spawn(async move {
            // What it finds is seen in what is held.
            let _is_extended = grants::extend(&inner, &purse, &held, more, least).await;
            is_fetching.store(false, Ordering::Release);
        });
    }

    /// What is to be held in addition for a slice beyond this output, or for all that the request may have.
    fn missing(&self, output_tokens: u64) -> Picos {
        let need = &self.request.need;
        let all = need.total_output();
        let target = output_tokens.saturating_add(need.total_slice()).min(all).max(output_tokens);
        let wanted = self.rate().bound(self.input_tokens, target);
        Picos(wanted.0.saturating_sub(self.held.amount().0).max(0))
    }

    /// The least that is worth holding in addition: a token of each choice.
    fn least(&self) -> Picos {
        let rate = self.rate();
        let tokens = rate.bound(self.input_tokens, self.request.need.choices);
        Picos(tokens.0.saturating_sub(rate.bound(self.input_tokens, 0).0).max(1))
    }

    /// The output that is covered, over all choices.
    fn covered(&self) -> Option<u64> {
        self.rate().output(self.input_tokens, self.held.amount())
    }

    fn rate(&self) -> Rate<'_> {
        self.request.rate()
    }

    /// From now on another model answers, one of those whose prices were known: it is billed at its own. Call before it is sent.
    pub fn serve_as(&mut self, model: &ModelName, price: &Arc<ModelPrice>) {
        self.request.model = model.clone();
        self.request.price = Arc::clone(price);
    }

    /// The answer has begun: no other model answers any more, and nothing more is held for a dearer one.
    pub fn answered(&mut self) {
        self.request.stand_ins.clear();
    }

    /// Notes in the journal that the next byte goes to this provider. Call before it goes.
    pub fn sent(&mut self, provider: &ProviderName, upstream_model: &str) {
        let request = &self.request;
        let rates = request.price.rates(self.input_tokens, request.service_tier.as_deref());
        self.inner.journal.sent(
            &self.room,
            &Sent {
                request_id: request.request_id.0.into_bytes(),
                account: request.account.0.into_bytes(),
                key: request.key.0.into_bytes(),
                created_at: request.created_at.0,
                client_request_id: request.client_request_id.clone(),
                model: request.model.as_str().to_owned(),
                provider: provider.as_str().to_owned(),
                upstream_model: upstream_model.to_owned(),
                service_tier: request.service_tier.clone(),
                stream: request.stream,
                price_version: request.price.version(),
                input_tokens: self.input_tokens,
                input_price: rates.input.0,
                output_price: rates.output.0,
            },
        );
        self.sent = Some(Attempt {
            provider: provider.clone(),
            upstream_model: upstream_model.to_owned(),
            is_open: true,
        });
    }

    /// Notes that the attempt ended and its provider bills nothing for it.
    pub fn attempt_failed(&mut self) {
        if let Some(attempt) = self.sent.as_mut().filter(|attempt| attempt.is_open) {
            attempt.is_open = false;
            self.inner.journal.failed(&self.room, self.request.request_id.0.into_bytes());
        }
    }

    /// The input, counted.
    pub fn set_input(&mut self, input_tokens: u64) {
        self.input_tokens = input_tokens;
    }

    /// Notes how much of the answer has passed. In the journal, too, where there is room for it.
    pub fn progress(&mut self, output_tokens: u64) {
        self.output_tokens = output_tokens;
        self.inner.journal.progress(Progress {
            request_id: self.request.request_id.0.into_bytes(),
            input_tokens: self.input_tokens,
            output_tokens,
        });
    }

    /// Settles: the journal has it when this returns, the database soon after. Where the operator wants it on the disk before anyone is
    /// told, what to wait for comes with it.
    pub fn settle(mut self, end: &End) -> (Settled, Option<Synced>) {
        let settled = self.end(end);
        let journal = &self.inner.journal;
        let synced = match journal.durability() {
            Durability::Os | Durability::Group => None,
            Durability::Strict => {
                let (mut durable, seq) = (journal.durable(), settled.seq);
                // The journal's end ends the wait: nobody is left to be told.
                Some(Box::pin(
                    async move { durable.wait_for(|durable| *durable >= seq).await.map_or((), |_| ()) },
                ) as Synced)
            }
        };
        (settled, synced)
    }

    fn end(&mut self, end: &End) -> Settled {
        self.is_ended = true;
        let (inner, request) = (&self.inner, &self.request);
        let tier = end.service_tier.as_deref().or(request.service_tier.as_deref());
        let cost = request.price.cost(&end.usage, tier);
        let covered = self.purse.settle(self.held.end(), cost.cost, request.created_at);
        let over = Picos(cost.cost.0 - covered.0);
        self.purse.lease.spent(cost.cost);
        if let Some(claim) = self.claim.take() {
            claim.keep();
        }
        let (provider, upstream_model) = match self.sent.take() {
            Some(attempt) => (attempt.provider, attempt.upstream_model),
            None => (ProviderName::from(""), String::new()),
        };
        let mut row = RequestRow {
            seq: 0,
            request_id: request.request_id,
            account: request.account,
            key: request.key,
            created_at: request.created_at,
            client_request_id: request.client_request_id.clone(),
            model: request.model.clone(),
            provider,
            upstream_model,
            service_tier: tier.map(str::to_owned),
            status: end.status,
            outcome: end.outcome,
            stream: request.stream,
            usage: end.usage,
            source: end.source,
            price_version: request.price.version(),
            cost: cost.cost,
            over,
            latency_ms: end.latency_ms,
            ttft_ms: end.ttft_ms,
        };
        if cost.fallback {
            inner.counts.price_fallbacks.fetch_add(1, Ordering::Relaxed);
        }
        inner.counts.over_pico.fetch_add(over.0, Ordering::Relaxed);
        let settle = rows::settle(&row);
        let now = inner.clock.now();
        let seq = inner.journal.settle(&self.room, &settle, |seq| {
            row.seq = seq;
            inner.queue.push(row, now);
        });
        inner.counts.open_holds.fetch_sub(1, Ordering::AcqRel);
        inner.queue.wake();
        Settled { cost: cost.cost, over, fallback: cost.fallback, seq }
    }

    fn release(&mut self) {
        self.is_ended = true;
        self.purse.release(self.held.end());
        self.inner.counts.open_holds.fetch_sub(1, Ordering::AcqRel);
        self.inner.counts.backlog.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.is_ended {
            return;
        }
        if !self.sent.as_ref().is_some_and(|attempt| attempt.is_open) {
            return self.release();
        }
        let usage = Usage { input: self.input_tokens, output: self.output_tokens, ..Usage::default() };
        let _settled = self.end(&End {
            usage,
            source: UsageSource::Counted,
            outcome: Outcome::Shutdown,
            status: 500,
            latency_ms: 0,
            ttft_ms: None,
            service_tier: None,
        });
    }
}

#[cfg(test)]
mod tests;
