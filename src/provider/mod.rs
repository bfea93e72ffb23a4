//! What providers speak: a dialect is one file here, and one row in [`DIALECTS`].
//!
//! Promises: everything that depends on a provider's wire format is behind [`Dialect`]; vendors that speak an existing
//! dialect are configuration, not code. Refuses to know: sockets, prices, accounts.

mod openai_compatible;

use crate::openai::{Ask, Edit, Endpoint};
use crate::refusal::Refused;
use http::{HeaderName, HeaderValue};

/// A wire format of providers, as pure functions.
pub trait Dialect: Send + Sync + 'static {
    /// The name in the configuration.
    fn name(&self) -> &'static str;

    /// Whether a model behind this dialect can answer that endpoint.
    fn serves(&self, endpoint: Endpoint) -> bool;

    /// The path that follows the provider's base URL.
    fn path(&self, endpoint: Endpoint) -> &'static str;

    /// The header that carries the provider's key; `None` when the key cannot stand in a header.
    fn authorization(&self, api_key: &str) -> Option<(HeaderName, HeaderValue)>;

    /// What has to change in the client's body before it goes to the provider.
    fn edits(&self, ask: &Ask, upstream_model: &str) -> Vec<Edit>;

    /// What the client is told of an answer that is not a success. The body is at most what the relay kept of it.
    fn refusal(&self, status: u16, body: &[u8]) -> Refused;
}

/// Every dialect that is built.
pub static DIALECTS: &[&dyn Dialect] = &[&openai_compatible::OpenAi];

/// The dialect of that name.
pub fn dialect(name: &str) -> Option<&'static dyn Dialect> {
    DIALECTS.iter().copied().find(|dialect| dialect.name() == name)
}
