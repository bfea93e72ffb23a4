//! A hold: credit for one request, settled exactly once.

use super::journal::{Durability, Progress, Reservation, Sent};
use super::leases::Lease;
use super::{Inner, rows};
use crate::clock::UnixMicros;
use crate::ids::{AccountId, KeyId, ModelName, ProviderName, RequestId};
use crate::money::Picos;
use crate::price::ModelPrice;
use crate::store::RequestRow;
use crate::usage::{Outcome, Usage, UsageSource};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

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
    /// How much.
    pub amount: Picos,
    /// By which the request will be billed, whatever becomes of the book meanwhile.
    pub price: Arc<ModelPrice>,
    /// The service tier that was asked for.
    pub service_tier: Option<String>,
    /// Whether the answer is a stream.
    pub stream: bool,
    /// When the request came.
    pub created_at: UnixMicros,
    /// The client's own name for it.
    pub client_request_id: Option<String>,
    /// Our estimate of its input: it is billed by it should this process die before it is counted.
    pub input_tokens: u64,
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

/// Credit held for a request. Dropped without having been settled, it is released where nothing was sent, and else settled at the
/// progress that it carries.
#[must_use]
pub struct Hold {
    inner: Arc<Inner>,
    lease: Arc<Lease>,
    room: Reservation,
    request: HoldRequest,
    sent: Option<Attempt>,
    output_tokens: u64,
    is_ended: bool,
}

struct Attempt {
    provider: ProviderName,
    upstream_model: String,
    /// The journal says that it was sent, and not that it failed.
    is_open: bool,
}

impl Hold {
    pub(super) fn new(inner: Arc<Inner>, lease: Arc<Lease>, room: Reservation, request: HoldRequest) -> Self {
        inner.counts.open_holds.fetch_add(1, Ordering::AcqRel);
        inner.counts.backlog.fetch_add(1, Ordering::AcqRel);
        Hold { inner, lease, room, request, sent: None, output_tokens: 0, is_ended: false }
    }

    /// Notes in the journal that the next byte goes to this provider. Call before it goes.
    pub fn sent(&mut self, provider: &ProviderName, upstream_model: &str) {
        let request = &self.request;
        let rates = request.price.rates(request.input_tokens, request.service_tier.as_deref());
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
                input_tokens: request.input_tokens,
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
        self.request.input_tokens = input_tokens;
    }

    /// Notes how much of the answer has passed. In the journal, too, where there is room for it.
    pub fn progress(&mut self, output_tokens: u64) {
        self.output_tokens = output_tokens;
        self.inner.journal.progress(Progress {
            request_id: self.request.request_id.0.into_bytes(),
            input_tokens: self.request.input_tokens,
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
        let covered = self.lease.cell.settle(request.amount, cost.cost);
        let over = Picos(cost.cost.0 - covered.0);
        self.lease.spent(cost.cost);
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
        self.lease.cell.release(self.request.amount);
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
        let usage =
            Usage { input: self.request.input_tokens, output: self.output_tokens, ..Usage::default() };
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
