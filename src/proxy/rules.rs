//! What a request goes by.

use crate::admit::{GuardSettings, OriginSettings, Terms};
use crate::authenticate::Network;
use crate::relay::forwarded::ForwarderHeader;
use crate::relay::{self, Upstreams};
use crate::route::Catalogue;
use std::time::Duration;

/// What a request goes by from its head to its end: one reading of the configuration, never parts of two. The next request may go by
/// others.
pub struct Rules {
    /// Times and sizes.
    pub settings: Settings,
    /// Where requests may come from.
    pub origins: OriginSettings,
    /// What an address may fail.
    pub guard: GuardSettings,
    /// Limits of accounts.
    pub terms: Terms,
    /// Models and their candidates.
    pub catalogue: Catalogue,
    /// Addresses of providers; it has those of every candidate.
    pub upstreams: Upstreams,
}

/// Times and sizes on the client's side.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How a body is read.
    pub body: relay::BodySettings,
    /// How long an answer that was given before its body was read is kept readable.
    pub linger: relay::Linger,
    /// How long an idle connection, or a half-sent head on a reused one, is kept.
    pub keepalive_timeout: Duration,
    /// How long a client may take to read a piece of its answer.
    pub write_timeout: Duration,
    /// The largest answer that is not a stream, in bytes.
    pub answer_max_bytes: usize,
    /// The largest event of a stream, in bytes.
    pub event_max_bytes: usize,
    /// How long the client of a stream may hear nothing while its provider is silent.
    pub comment_every: Duration,
    /// Proxies whose word on the client's address is believed.
    pub forwarders: Vec<Network>,
    /// The header in which they give it.
    pub forwarder_header: ForwarderHeader,
}
