//! The dialect of the OpenAI API and of the many servers that speak it.
//!
//! Promises: a provider's error reaches the client only as an allow-listed code and, for a 400, its message; credentials that a
//! provider echoes never do. Refuses to know: which vendor it is.

use super::Dialect;
use crate::openai::{Ask, Edit, Endpoint, UpstreamFault};
use crate::refusal::{Kind, Refused};
use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};
use std::time::Duration;

pub(super) struct OpenAi;

/// The longest message of a provider that is passed on, in bytes.
const MESSAGE_MAX_BYTES: usize = 1_000;

impl Dialect for OpenAi {
    fn name(&self) -> &'static str {
        "openai"
    }

    fn serves(&self, endpoint: Endpoint) -> bool {
        match endpoint {
            Endpoint::ChatCompletions | Endpoint::Completions | Endpoint::Embeddings => true,
        }
    }

    fn path(&self, endpoint: Endpoint) -> &'static str {
        endpoint.path()
    }

    fn authorization(&self, api_key: &str) -> Option<(HeaderName, HeaderValue)> {
        let mut value = HeaderValue::try_from(format!("Bearer {api_key}")).ok()?;
        value.set_sensitive(true);
        Some((AUTHORIZATION, value))
    }

    fn edits(&self, ask: &Ask, upstream_model: &str) -> Vec<Edit> {
        ask.edits(upstream_model)
    }

    fn refusal(&self, status: u16, body: &[u8]) -> Refused {
        let internal = format!("the provider answered {status}");
        match status {
            400 | 404 | 409 | 413 | 422 => rejected(status, body).internal(internal),
            429 | 503 | 529 => {
                Refused::new(Kind::NoCapacity, "The model is overloaded at the moment; try again shortly.")
                    .retry_after(Duration::from_secs(2))
                    .internal(internal)
            }
            408 | 504 => Refused::new(Kind::UpstreamTimeout, "The model did not answer in time; try again.")
                .internal(internal),
            _ => Refused::new(
                Kind::UpstreamError,
                "The model's provider failed on this request; it was not billed.",
            )
            .internal(internal),
        }
    }
}

/// The provider says that the request is at fault. Its words pass for a 400 with a code that clients know, and for no other: they may
/// name the operator's account.
fn rejected(status: u16, body: &[u8]) -> Refused {
    let fault = UpstreamFault::parse(body);
    let kind = fault.code.as_deref().or(fault.r#type.as_deref()).and_then(known);
    let message =
        fault.message.filter(|message| status == 400 && kind.is_some() && !names_a_credential(message));
    let message = message.map_or_else(
        || "The model's provider refused this request as invalid.".to_owned(),
        |message| shorten(&message),
    );
    let refused = Refused::new(kind.unwrap_or(Kind::UpstreamRejected), message);
    match fault.param {
        Some(param) if status == 400 && kind.is_some() && param.len() <= 128 => refused.param(param),
        Some(_) | None => refused,
    }
}

/// The codes of the OpenAI API and of the servers that speak it which tell a client what to change.
fn known(code: &str) -> Option<Kind> {
    match code {
        "context_length_exceeded" | "exceed_context_size_error" => Some(Kind::ContextLengthExceeded),
        "unsupported_parameter" | "unsupported_value" | "unknown_parameter" => {
            Some(Kind::UnsupportedParameter)
        }
        "invalid_value"
        | "invalid_type"
        | "missing_required_parameter"
        | "string_above_max_length"
        | "string_below_min_length"
        | "array_above_max_length"
        | "array_below_min_length"
        | "integer_above_max_value"
        | "integer_below_min_value"
        | "decimal_above_max_value"
        | "decimal_below_min_value" => Some(Kind::InvalidValue),
        _ => None,
    }
}

fn names_a_credential(message: &str) -> bool {
    let lower = message.to_ascii_lowercase();
    ["sk-", "api key", "api_key", "apikey", "organization", "bearer"].iter().any(|word| lower.contains(word))
}

fn shorten(message: &str) -> String {
    let mut end = message.len().min(MESSAGE_MAX_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_the_operator_never_reach_the_client() {
        for status in [401, 402, 403] {
            let body = br#"{"error":{"message":"Incorrect API key provided: sk-proj-abc","code":"invalid_api_key"}}"#;
            let refused = OpenAi.refusal(status, body);
            assert_eq!(refused.kind, Kind::UpstreamError);
            assert!(!refused.public.contains("sk-"));
        }
        let refused = OpenAi.refusal(400, br#"{"error":{"message":"key sk-proj-abc may not do this"}}"#);
        assert_eq!(refused.kind, Kind::UpstreamRejected);
        assert!(!refused.public.contains("sk-"));
    }

    #[test]
    fn a_context_error_keeps_its_code_and_message() {
        let body = br#"{"error":{"message":"too long","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#;
        let refused = OpenAi.refusal(400, body);
        assert_eq!(refused.kind, Kind::ContextLengthExceeded);
        assert_eq!(refused.public, "too long");
        assert_eq!(refused.param.as_deref(), Some("messages"));
    }

    #[test]
    fn overload_and_limits_of_the_provider_are_no_capacity() {
        for status in [429, 503, 529] {
            assert_eq!(OpenAi.refusal(status, b"").kind, Kind::NoCapacity);
        }
        for status in [500, 501, 502, 418, 301] {
            assert_eq!(OpenAi.refusal(status, b"<html>").kind, Kind::UpstreamError);
        }
    }
}
