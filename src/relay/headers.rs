//! Which headers cross the gateway: two allow-lists.
//!
//! Promises: credentials, cookies and hop-by-hop headers of the client never reach a provider, and a provider's identity, cookies
//! and limits never reach a client, because only what is named here crosses.

use super::peer::Origin;
use crate::openai::Endpoint;
use crate::route::Provider;
use crate::secret::ExposeSecret;
use http::Method;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING, USER_AGENT,
};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{Error, ErrorType, Result};

/// What providers see as the client's name, in place of the client's own.
const AGENT: &str = concat!("weir/", env!("CARGO_PKG_VERSION"));

/// The head of a request to a provider: nothing of the client's head is in it.
pub fn upstream_request(
    provider: &Provider,
    origin: &Origin,
    endpoint: Endpoint,
    stream: bool,
    body_bytes: usize,
) -> Result<RequestHeader> {
    let path = origin.path(provider.dialect.path(endpoint));
    let mut head = RequestHeader::build_no_case(Method::POST, path.as_bytes(), Some(8))?;
    head.insert_header(HOST, origin.authority.as_str())?;
    head.insert_header(CONTENT_TYPE, "application/json")?;
    head.insert_header(CONTENT_LENGTH, body_bytes.to_string())?;
    head.insert_header(ACCEPT, if stream { "text/event-stream" } else { "application/json" })?;
    head.insert_header(USER_AGENT, AGENT)?;
    if let Some(api_key) = &provider.api_key {
        let authorization = provider.dialect.authorization(api_key.expose_secret());
        let (name, value) = authorization.ok_or_else(|| {
            Error::explain(ErrorType::InternalError, "the provider's key cannot stand in a header")
        })?;
        head.insert_header(name, value)?;
    }
    Ok(head)
}

/// The head of a streamed answer to the client.
pub fn stream_answer() -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build_no_case(200, Some(12))?;
    head.insert_header(CONTENT_TYPE, "text/event-stream; charset=utf-8")?;
    head.insert_header(CACHE_CONTROL, "no-cache")?;
    head.insert_header("x-accel-buffering", "no")?;
    head.insert_header(TRANSFER_ENCODING, "chunked")?;
    Ok(head)
}

/// The head of an answer that is JSON and known whole.
pub fn json_answer(status: u16, body_bytes: usize) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build_no_case(status, Some(12))?;
    head.insert_header(CONTENT_TYPE, "application/json")?;
    head.insert_header(CONTENT_LENGTH, body_bytes.to_string())?;
    Ok(head)
}

/// Whether an answer to a streamed request is a stream: providers that leave the type out are believed.
pub fn is_event_stream(head: &ResponseHeader) -> bool {
    head.headers
        .get(CONTENT_TYPE)
        .is_none_or(|value| value.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream"))
}
