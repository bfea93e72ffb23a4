//! What the spans of a request say.

use super::Finished;
use crate::metrics::{Attempt, Billed};
use crate::openai::Endpoint;
use crate::refusal::Kind;
use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a client's `traceparent` is to the spans of its request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parent {
    /// Nothing: it is not read.
    #[default]
    Ignore,
    /// Another trace, to which the request's own has a link.
    Link,
    /// The span above, in one trace; where the client does not sample it, there are no spans.
    Parent,
}

/// A client's span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    trace: TraceId,
    span: SpanId,
    flags: TraceFlags,
    is_parent: bool,
}

impl Remote {
    /// Reads version 00 of `traceparent`, and later versions by the same fields (W3C Trace Context, 3.2). Anything else is no span.
    pub(super) fn parse(traceparent: &[u8], parent: Parent) -> Option<Self> {
        if parent == Parent::Ignore {
            return None;
        }
        let text = std::str::from_utf8(traceparent).ok()?;
        let is_hex = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let mut parts = text.splitn(5, '-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let lengths = (version.len(), trace.len(), span.len(), flags.len());
        let is_known = version != "ff" && (version != "00" || parts.next().is_none());
        if lengths != (2, 32, 16, 2) || !is_known || ![version, trace, span, flags].into_iter().all(is_hex) {
            return None;
        }
        let remote = Remote {
            trace: TraceId::from_hex(trace).ok()?,
            span: SpanId::from_hex(span).ok()?,
            flags: TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
            is_parent: parent == Parent::Parent,
        };
        (remote.trace != TraceId::INVALID && remote.span != SpanId::INVALID).then_some(remote)
    }

    /// The client wants no spans of this trace.
    pub(super) fn is_unsampled(&self) -> bool {
        self.is_parent && !self.flags.is_sampled()
    }

    fn context(&self) -> SpanContext {
        SpanContext::new(self.trace, self.span, self.flags, true, TraceState::NONE)
    }
}

impl Finished {
    /// The request's span, then one for each attempt.
    pub(super) fn to_spans(&self, scope: &InstrumentationScope) -> Vec<SpanData> {
        let parent = self.remote.as_ref().filter(|remote| remote.is_parent);
        let trace = parent.map_or_else(|| trace_id(self.request_id.as_bytes()), |remote| remote.trace);
        let context = |index: u64| {
            let span = SpanId::from_bytes(span_id(self.request_id.low_bits(), index));
            SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::NONE)
        };
        let begun = UNIX_EPOCH + Duration::from_micros(u64::try_from(self.created_at.0).unwrap_or(0));
        let mut links = SpanLinks::default();
        links.links.extend(
            self.remote
                .as_ref()
                .filter(|remote| !remote.is_parent)
                .map(|remote| Link::new(remote.context(), Vec::new(), 0)),
        );
        let mut spans = vec![SpanData {
            span_context: context(0),
            parent_span_id: parent.map_or(SpanId::INVALID, |remote| remote.span),
            parent_span_is_remote: parent.is_some(),
            span_kind: SpanKind::Server,
            links,
            status: status(self.kind.map(Kind::as_str)),
            ..self.span(scope, begun, Duration::ZERO, self.latency, self.model.as_deref(), self.attributes())
        }];
        let above = context(0).span_id();
        for (index, attempt) in (1..).zip(&self.attempts) {
            let failure = (attempt.outcome != "answered").then_some(attempt.outcome);
            let ended = attempt.ended.unwrap_or(self.latency).max(attempt.begun);
            let model = Some(attempt.model.as_str());
            spans.push(SpanData {
                span_context: context(index),
                parent_span_id: above,
                status: status(failure),
                ..self.span(scope, begun, attempt.begun, ended, model, self.attributes_of(attempt))
            });
        }
        spans
    }

    fn span(
        &self,
        scope: &InstrumentationScope,
        begun: SystemTime,
        from: Duration,
        to: Duration,
        model: Option<&str>,
        attributes: Vec<KeyValue>,
    ) -> SpanData {
        SpanData {
            span_context: SpanContext::NONE,
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Client,
            name: [self.operation(), model].into_iter().flatten().collect::<Vec<_>>().join(" ").into(),
            start_time: begun + from,
            end_time: begun + to,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: scope.clone(),
        }
    }

    fn operation(&self) -> Option<&'static str> {
        Some(match self.endpoint {
            Some(Endpoint::ChatCompletions) => "chat",
            Some(Endpoint::Completions) => "text_completion",
            Some(Endpoint::Embeddings) => "embeddings",
            None => "request",
        })
    }

    fn attributes(&self) -> Vec<KeyValue> {
        let mut attributes = vec![
            KeyValue::new("weir.request.id", self.request_id.to_string()),
            KeyValue::new("http.response.status_code", i64::from(self.status)),
            KeyValue::new("gen_ai.request.stream", self.stream),
        ];
        if self.endpoint.is_some() {
            attributes.extend(self.operation().map(|name| KeyValue::new("gen_ai.operation.name", name)));
        }
        attributes.extend(self.model.clone().map(|model| KeyValue::new("gen_ai.request.model", model)));
        if let Some(last) = self.attempts.last() {
            attributes.push(KeyValue::new("gen_ai.provider.name", last.provider.as_str().to_owned()));
            attributes.push(KeyValue::new("gen_ai.response.model", last.model.as_str().to_owned()));
        }
        attributes.extend(self.account.map(|account| KeyValue::new("weir.account.id", account.to_string())));
        attributes.extend(self.kind.map(|kind| KeyValue::new("error.type", kind.as_str())));
        attributes.extend(
            self.ttft.map(|ttft| KeyValue::new("gen_ai.response.time_to_first_chunk", ttft.as_secs_f64())),
        );
        attributes.extend(self.bill.iter().flat_map(billed));
        attributes
    }

    fn attributes_of(&self, attempt: &Attempt) -> Vec<KeyValue> {
        let mut attributes = vec![
            KeyValue::new("gen_ai.provider.name", attempt.provider.as_str().to_owned()),
            KeyValue::new("gen_ai.request.model", attempt.model.as_str().to_owned()),
            KeyValue::new("weir.attempt.why", attempt.why),
            KeyValue::new("weir.attempt.outcome", attempt.outcome),
        ];
        attributes.extend(self.operation().map(|name| KeyValue::new("gen_ai.operation.name", name)));
        attributes.extend(attempt.reused.map(|reused| KeyValue::new("weir.connection.reused", reused)));
        if attempt.outcome != "answered" {
            attributes.push(KeyValue::new("error.type", attempt.outcome));
        }
        attributes
    }
}

fn billed(bill: &Billed) -> Vec<KeyValue> {
    let tokens = |name, tokens| KeyValue::new(name, i64::try_from(tokens).unwrap_or(i64::MAX));
    let usage = &bill.usage;
    vec![
        tokens("gen_ai.usage.input_tokens", usage.input_total()),
        tokens("gen_ai.usage.output_tokens", usage.output_total()),
        tokens("gen_ai.usage.cache_read.input_tokens", usage.cache_read),
        tokens("gen_ai.usage.reasoning.output_tokens", usage.reasoning),
        KeyValue::new("weir.outcome", bill.outcome.as_str()),
        KeyValue::new("weir.usage.source", bill.source.as_str()),
        KeyValue::new("weir.cost.pico_usd", bill.cost.0),
    ]
}

fn status(failure: Option<&'static str>) -> Status {
    failure.map_or(Status::Unset, Status::error)
}

/// The request's own number: a trace is found by `x-request-id`.
fn trace_id(request: &[u8]) -> TraceId {
    request.try_into().map_or(TraceId::INVALID, TraceId::from_bytes)
}

/// Unlike any other of the request, and as random as its low bits are.
fn span_id(low_bits: u64, index: u64) -> [u8; 8] {
    let mixed = low_bits.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    mixed.max(1).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_traceparent_is_a_span() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let read = |text: &str| Remote::parse(text.as_bytes(), Parent::Parent);
        assert!(read(good).is_some_and(|remote| !remote.is_unsampled()));
        assert!(read(&good.replace("-01", "-00")).is_some_and(|remote| remote.is_unsampled()));
        assert!(read(&good.replacen("00-", "cc-", 1).replace("b7-01", "b7-01-later")).is_some());
        assert_eq!(Remote::parse(good.as_bytes(), Parent::Ignore), None);
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e47-00f067aa0ba902b7-0101",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
