//! Which headers cross the gateway: two allow-lists.
//!
//! Promises: credentials, cookies and hop-by-hop headers of the client never reach a provider, and a provider's identity, cookies
//! and limits never reach a client, because only what is named here crosses.

use super::peer::Origin;
use crate::openai::Endpoint;
use crate::route::Provider;
use crate::secret::ExposeSecret;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue, InvalidHeaderValue,
    TRANSFER_ENCODING, USER_AGENT,
};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, request, response};
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorType, OrErr as _, Result};

/// What providers see as the client's name, in place of the client's own.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("weir/", env!("CARGO_PKG_VERSION")));
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The head of a request to a provider: nothing of the client's head is in it.
///
/// Heads are put together as the parts of the `http` crate: Pingora's own head takes each name apart anew, and copies it.
pub fn upstream_request(
    provider: &Provider,
    origin: &Origin,
    endpoint: Endpoint,
    stream: bool,
    body_bytes: usize,
) -> Result<request::Parts> {
    let path = PathAndQuery::from_maybe_shared(origin.path(provider.dialect.path(endpoint)))
        .or_err(ErrorType::InternalError, "the provider's path cannot be asked for")?;
    let (mut head, ()) = Request::new(()).into_parts();
    head.method = Method::POST;
    head.uri = Uri::from(path);
    head.headers.reserve(8);
    head.headers.insert(HOST, value(origin.authority.as_str())?);
    head.headers.insert(CONTENT_TYPE, JSON);
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body_bytes));
    head.headers.insert(ACCEPT, if stream { EVENT_STREAM } else { JSON });
    head.headers.insert(USER_AGENT, AGENT);
    if let Some(api_key) = &provider.api_key {
        let authorization = provider.dialect.authorization(api_key.expose_secret());
        let (name, value) = authorization.ok_or_else(|| {
            Error::explain(ErrorType::InternalError, "the provider's key cannot stand in a header")
        })?;
        head.headers.insert(name, value);
    }
    Ok(head)
}

/// The head of a streamed answer to the client.
pub fn stream_answer() -> response::Parts {
    let mut head = answer(StatusCode::OK);
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    head.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    head.headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    head
}

/// The head of an answer that is JSON and known whole.
pub fn json_answer(status: u16, body_bytes: usize) -> Result<response::Parts> {
    let status = StatusCode::from_u16(status).or_err(ErrorType::InternalError, "not a status")?;
    let mut head = answer(status);
    head.headers.insert(CONTENT_TYPE, JSON);
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body_bytes));
    Ok(head)
}

/// Text as the value of a header.
pub fn value(text: impl TryInto<HeaderValue, Error = InvalidHeaderValue>) -> Result<HeaderValue> {
    text.try_into().or_err(ErrorType::InvalidHTTPHeader, "text that cannot stand in a header")
}

fn answer(status: StatusCode) -> response::Parts {
    let (mut head, ()) = Response::new(()).into_parts();
    head.status = status;
    head.headers.reserve(12);
    head
}

/// Whether an answer to a streamed request is a stream: providers that leave the type out are believed.
pub fn is_event_stream(head: &ResponseHeader) -> bool {
    head.headers
        .get(CONTENT_TYPE)
        .is_none_or(|value| value.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream"))
}
