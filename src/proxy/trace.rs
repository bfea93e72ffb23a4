//! What is told of a request: its log line, its metrics, and the headers that name it to the client.
//!
//! Facts for people only: no stage decides by what stands here.

use crate::admit::RateStanding;
use crate::authenticate::Caller;
use crate::clock::{Clock, UnixMicros};
use crate::ids::{AccountId, KeyId, ModelName, ProviderName, RequestId};
use crate::meter::Ending;
use crate::metrics::{Attempt, Billed, Metrics, RequestEnd};
use crate::openai::{Ask, Endpoint};
use crate::refusal::{Kind, Limit, Refused};
use crate::relay::headers::value;
use crate::route::{Model, Why};
use crate::settle::{STATUS_CLIENT_GONE, Settlement};
use crate::telemetry::{Finished, Remote, Traces};
use http::header::{CONTENT_LENGTH, HeaderName};
use http::response::Parts;
use pingora::proxy::Session;
use pingora::{ErrorType, Result};
use std::net::IpAddr;
use std::time::{Duration, Instant};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MODEL: HeaderName = HeaderName::from_static("x-weir-model");
const MAX_OUTPUT_TOKENS: HeaderName = HeaderName::from_static("x-weir-max-output-tokens");
const RATELIMIT_LIMIT_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const RATELIMIT_REMAINING_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const RATELIMIT_RESET_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");
const RATELIMIT_LIMIT_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-limit-tokens");
const RATELIMIT_REMAINING_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-tokens");
const RATELIMIT_RESET_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-reset-tokens");

/// The longest name of a request that is taken over from a client, in bytes.
const CLIENT_REQUEST_ID_MAX_BYTES: usize = 128;

/// The facts of one request.
pub(super) struct Trace {
    request_id: RequestId,
    arrived_at: Instant,
    created_at: UnixMicros,
    client_request_id: Option<String>,
    /// The client's span, where spans are made.
    remote: Option<Remote>,
    address: Option<IpAddr>,
    endpoint: Option<Endpoint>,
    account: Option<AccountId>,
    key: Option<KeyId>,
    limits: Option<RateStanding>,
    output_limit: Option<u64>,
    model: Option<ModelName>,
    stream: bool,
    attempts: Vec<Attempt>,
    retry_denied: Option<&'static str>,
    provider_status: Option<u16>,
    status: u16,
    kind: Option<Kind>,
    limit: Option<Limit>,
    internal: Option<String>,
    ttft_ms: Option<u64>,
    settlement: Option<Settlement>,
    body: BodyState,
}

/// What has become of the client's body.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BodyState {
    None,
    Unread,
    Read,
}

impl Trace {
    pub(super) fn begin(clock: &Clock) -> Self {
        Trace {
            request_id: RequestId::new(),
            arrived_at: clock.now(),
            created_at: clock.wall(),
            client_request_id: None,
            remote: None,
            address: None,
            endpoint: None,
            account: None,
            key: None,
            limits: None,
            output_limit: None,
            model: None,
            stream: false,
            attempts: Vec::new(),
            retry_denied: None,
            provider_status: None,
            status: 0,
            kind: None,
            limit: None,
            internal: None,
            ttft_ms: None,
            settlement: None,
            body: BodyState::None,
        }
    }

    pub(super) fn request_id(&self) -> RequestId {
        self.request_id
    }

    pub(super) fn arrived_at(&self) -> Instant {
        self.arrived_at
    }

    pub(super) fn created_at(&self) -> UnixMicros {
        self.created_at
    }

    pub(super) fn client_request_id(&self) -> Option<String> {
        self.client_request_id.clone()
    }

    /// Takes down what the head says.
    pub(super) fn arrived(&mut self, session: &Session, traces: Option<&Traces>) {
        let headers = &session.req_header().headers;
        self.remote =
            traces.and_then(|traces| traces.remote(headers.get("traceparent").map(|v| v.as_bytes())));
        let declared = headers.get(CONTENT_LENGTH).is_some_and(|value| value.as_bytes() != b"0");
        if declared
            || headers.contains_key(http::header::TRANSFER_ENCODING)
            || session.as_downstream().as_http1().is_none()
        {
            self.body = BodyState::Unread;
        }
        self.client_request_id = headers
            .get("x-request-id")
            .and_then(|value| value.to_str().ok())
            .filter(|text| !text.is_empty() && text.len() <= CLIENT_REQUEST_ID_MAX_BYTES)
            .map(str::to_owned);
    }

    /// Takes down from where the client came.
    pub(super) fn came_from(&mut self, address: Option<IpAddr>) {
        self.address = address;
    }

    pub(super) fn endpoint(&mut self, endpoint: Endpoint) {
        self.endpoint = Some(endpoint);
    }

    pub(super) fn caller(&mut self, caller: &Caller, limits: RateStanding) {
        self.account = Some(caller.policy().account);
        self.key = Some(caller.policy().key);
        self.limits = Some(limits);
    }

    pub(super) fn limits(&mut self, limits: RateStanding) {
        self.limits = Some(limits);
    }

    /// The output of one choice to which the request was lowered, in tokens.
    pub(super) fn output_limit(&mut self, tokens: u64) {
        self.output_limit = Some(tokens);
    }

    pub(super) fn body_read(&mut self) {
        self.body = BodyState::Read;
    }

    pub(super) fn is_body_unread(&self) -> bool {
        self.body == BodyState::Unread
    }

    pub(super) fn model(&mut self, model: &Model, ask: &Ask) {
        self.model = Some(model.name.clone());
        self.stream = ask.stream;
    }

    pub(super) fn attempt(&mut self, provider: &ProviderName, model: &ModelName, why: Why, now: Instant) {
        self.attempts.push(Attempt {
            model: model.clone(),
            provider: provider.clone(),
            why: why.as_str(),
            outcome: ABANDONED,
            reused: None,
            begun: now.saturating_duration_since(self.arrived_at),
            ended: None,
            opened_circuit: false,
        });
    }

    /// The attempt under way has a connection.
    pub(super) fn connected(&mut self, reused: bool) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.reused = Some(reused);
        }
    }

    /// What came of the attempt under way, and whether its provider is left alone from now on.
    pub(super) fn attempt_ended(&mut self, outcome: &'static str, opened_circuit: bool, now: Instant) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.outcome = outcome;
            attempt.ended = (outcome != ANSWERED).then(|| now.saturating_duration_since(self.arrived_at));
            attempt.opened_circuit = opened_circuit;
        }
    }

    /// The limit by which no other provider was tried.
    pub(super) fn retry_denied(&mut self, limit: &'static str) {
        self.retry_denied = Some(limit);
    }

    pub(super) fn provider_answered(&mut self, status: u16) {
        self.provider_status = Some(status);
    }

    /// The status that the client has been sent.
    pub(super) fn answered(&mut self, status: u16) {
        self.status = status;
    }

    pub(super) fn refused(&mut self, refused: &Refused) {
        self.kind = Some(refused.kind);
        self.limit = refused.limit;
        self.status = refused.kind.wire().status;
        self.internal = refused.internal.clone();
    }

    pub(super) fn stream_ended(&mut self, ending: &Ending) {
        match ending {
            Ending::Done => {}
            Ending::ErrorEvent(_) | Ending::Truncated | Ending::TooLong => {
                self.kind = Some(Kind::UpstreamError)
            }
            Ending::CreditExhausted(_) => self.kind = Some(Kind::CreditBalanceExhausted),
        }
    }

    pub(super) fn settled(&mut self, settlement: Option<Settlement>, ttft_ms: Option<u64>) {
        if settlement.is_some() {
            self.settlement = settlement;
            self.ttft_ms = ttft_ms;
        }
    }

    /// The client left while nothing was under way; the status for Pingora.
    pub(super) fn client_gone(&mut self) -> u16 {
        self.client_left(STATUS_CLIENT_GONE);
        0
    }

    pub(super) fn client_left(&mut self, status: u16) {
        self.status = status;
    }

    pub(super) fn internal(&mut self, error: &pingora::Error) {
        // The engine's own words may quote what a provider sent.
        let is_ours = matches!(error.etype(), ErrorType::Custom(_) | ErrorType::InternalError);
        let words = error.context.as_ref().filter(|_| is_ours).map_or("", |context| context.as_str());
        self.internal = Some(
            format!("{} {} {words}", error.esource().as_str(), error.etype().as_str()).trim_end().to_owned(),
        );
    }

    /// Names the request and the caller's limits in the head of its answer.
    pub(super) fn decorate(&mut self, head: &mut Parts) -> Result<()> {
        self.status = head.status.as_u16();
        let headers = &mut head.headers;
        headers.insert(REQUEST_ID, value(self.request_id.to_string())?);
        if let Some(attempt) = self.attempts.last().filter(|_| self.is_stood_in()) {
            headers.insert(MODEL, value(attempt.model.as_str())?);
        }
        if let Some(tokens) = self.output_limit {
            headers.insert(MAX_OUTPUT_TOKENS, tokens.into());
        }
        if let Some(RateStanding { requests, tokens }) = self.limits {
            headers.insert(RATELIMIT_LIMIT_REQUESTS, requests.limit.into());
            headers.insert(RATELIMIT_REMAINING_REQUESTS, requests.remaining.into());
            headers.insert(RATELIMIT_RESET_REQUESTS, value(reset(requests.reset))?);
            headers.insert(RATELIMIT_LIMIT_TOKENS, tokens.limit.into());
            headers.insert(RATELIMIT_REMAINING_TOKENS, tokens.remaining.into());
            headers.insert(RATELIMIT_RESET_TOKENS, value(reset(tokens.reset))?);
        }
        Ok(())
    }

    /// One line in the log, one request in the metrics, and the spans where they are made.
    pub(super) fn record(&self, metrics: &Metrics, traces: Option<&Traces>, clock: &Clock) {
        let latency = clock.now().saturating_duration_since(self.arrived_at);
        let last = self.attempts.last();
        metrics.request_ended(&RequestEnd {
            endpoint: self.endpoint,
            model: last.map(|attempt| &attempt.model).or(self.model.as_ref()),
            provider: last.map(|attempt| &attempt.provider),
            attempts: &self.attempts,
            retry_denied: self.retry_denied,
            status: self.status,
            kind: self.kind,
            limit: self.limit,
            stream: self.stream,
            latency,
            ttft: self.ttft_ms.map(Duration::from_millis),
            bill: self.billed(),
        });
        if let Some(traces) = traces {
            traces.request_ended(self.finished(latency));
        }
        self.log(latency);
    }

    fn billed(&self) -> Option<Billed> {
        self.settlement.as_ref().map(|s| Billed {
            outcome: s.outcome,
            source: s.source,
            usage: s.usage,
            cost: s.settled.cost,
            over: s.settled.over,
            fallback: s.settled.fallback,
        })
    }

    fn finished(&self, latency: Duration) -> Finished {
        Finished {
            request_id: self.request_id,
            remote: self.remote.clone(),
            created_at: self.created_at,
            latency,
            endpoint: self.endpoint,
            model: self.model.as_ref().map(|model| model.as_str().to_owned()),
            account: self.account,
            stream: self.stream,
            status: self.status,
            kind: self.kind,
            ttft: self.ttft_ms.map(Duration::from_millis),
            bill: self.billed(),
            attempts: self.attempts.clone(),
        }
    }

    /// Whether another model answers than the one that was asked for.
    fn is_stood_in(&self) -> bool {
        self.attempts.last().is_some_and(|attempt| self.model.as_ref() != Some(&attempt.model))
    }

    /// Every attempt in one line: provider, why it was chosen, what came of it.
    fn route(&self) -> String {
        let told = |attempt: &Attempt| format!("{}:{}:{}", attempt.provider, attempt.why, attempt.outcome);
        self.attempts.iter().map(told).collect::<Vec<_>>().join(" ")
    }

    fn log(&self, latency: Duration) {
        let settlement = self.settlement.as_ref();
        let last = self.attempts.last();
        tracing::info!(
            target: "weir::request",
            request_id = %self.request_id,
            client_request_id = self.client_request_id.as_deref(),
            client = self.address.map(tracing::field::display),
            account_id = self.account.map(tracing::field::display),
            key_id = self.key.map(tracing::field::display),
            endpoint = self.endpoint.map(Endpoint::path),
            model = self.model.as_ref().map(ModelName::as_str),
            served_model = last.map(|attempt| attempt.model.as_str()).filter(|_| self.is_stood_in()),
            provider = last.map(|attempt| attempt.provider.as_str()),
            why = last.map(|attempt| attempt.why),
            attempts = self.attempts.len(),
            route = (self.attempts.len() > 1).then(|| self.route()),
            retry_denied = self.retry_denied,
            provider_status = self.provider_status,
            status = self.status,
            kind = self.kind.map(Kind::as_str),
            limit = self.limit.map(Limit::as_str),
            detail = self.internal.as_deref(),
            stream = self.stream,
            output_limit = self.output_limit,
            outcome = settlement.map(|s| s.outcome.as_str()),
            usage_source = settlement.map(|s| s.source.as_str()),
            input_tokens = settlement.map(|s| s.usage.input_total()),
            output_tokens = settlement.map(|s| s.usage.output_total()),
            cost_pico_usd = settlement.map(|s| s.settled.cost.0),
            latency_ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX),
            ttft_ms = self.ttft_ms,
            "request"
        );
    }
}

/// The outcome of an attempt of which an answer began: it goes on for as long as the request does.
pub(super) const ANSWERED: &str = "answered";
/// The outcome of an attempt of which no answer began before its client left or the gateway stopped.
const ABANDONED: &str = "abandoned";

/// A duration as the OpenAI API writes it in headers: `12ms`, `1s`, `6m0s`, `1h0m0s`. Rounded up to a millisecond below a
/// second, else to a second.
fn reset(wait: Duration) -> String {
    let millis = wait.as_micros().div_ceil(1_000);
    if millis < 1_000 {
        return format!("{millis}ms");
    }
    let seconds = millis.div_ceil(1_000);
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        (_, _) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_are_written_as_the_openai_api_writes_them() {
        for (wait, text) in [
            (Duration::ZERO, "0ms"),
            (Duration::from_micros(11_001), "12ms"),
            (Duration::from_secs(1), "1s"),
            (Duration::from_millis(1_001), "2s"),
            (Duration::from_secs(360), "6m0s"),
            (Duration::from_secs(3_723), "1h2m3s"),
        ] {
            assert_eq!(reset(wait), text);
        }
    }
}
