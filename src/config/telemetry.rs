//! `[telemetry]`: where traces go.

use super::file::one_of;
use crate::document::{Table, Value};
use crate::telemetry::Parent;

/// Where traces go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Telemetry {
    /// The base URL of an OpenTelemetry collector; `None` makes no spans.
    pub otlp_endpoint: Option<String>,
    /// What a client's `traceparent` is.
    pub traceparent: Parent,
}

pub(super) fn telemetry(table: &mut Table<'_>) -> Telemetry {
    let parents = [("ignore", Parent::Ignore), ("link", Parent::Link), ("parent", Parent::Parent)];
    Telemetry {
        otlp_endpoint: table.optional("otlp_endpoint", collector).flatten(),
        traceparent: table.optional("traceparent", |value| one_of(value, &parents)).unwrap_or_default(),
    }
}

/// `http://`, a host and a port; nothing where it is empty.
fn collector(value: Value<'_>) -> Result<Option<String>, String> {
    let url = value.text()?;
    if url.is_empty() {
        return Ok(None);
    }
    if url.starts_with("https:") {
        return Err(
            "a collector is spoken to without TLS; one on this machine can send on with it".to_owned()
        );
    }
    let uri: http::Uri = url.parse().map_err(|_| "http://HOST:PORT is expected".to_owned())?;
    let is_bare = uri.path_and_query().is_none_or(|path| path == "/");
    let is_plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    if uri.scheme_str() != Some("http") || !is_plain || !is_bare {
        return Err("http://HOST:PORT is expected; /v1/traces is appended".to_owned());
    }
    Ok(Some(url.to_owned()))
}
