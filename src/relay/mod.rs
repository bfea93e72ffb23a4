//! The relay: carries one request to a provider and its answer back.
//!
//! Promises: the body is read once, whole and bounded; every attempt sends it again; nothing of an answer has reached
//! the client while another attempt, or an error in our words, is still possible.
//! Refuses to know: who pays, which provider is tried next, what an answer means.

mod adapter;
mod attempt;
mod body;
mod certificate;
mod connection;
mod control;
mod curfew;
mod drain;
mod engine;
pub mod forwarded;
pub mod head;
pub mod headers;
mod joined;
mod peer;
mod probe;
pub mod proxy_protocol;
mod resolve;
mod upstreams;

pub use adapter::{
    CREDIT_EXHAUSTED, CURFEW, DRAIN_OVER, EMPTY_ANSWER, FIRST_BYTE_TIMEOUT, IDLE_TIMEOUT, NOT_CLOSED, wrap,
};
pub use attempt::{Failure, Next, TOTAL_TIMEOUT, come_back, is_timeout};
pub use body::{Body, Budget, Linger, Settings as BodySettings, Unread, linger, read_body};
pub use certificate::{CERTIFICATE_ENDS_SOON_DAYS, CertificateChain, CertificateError, ServerCertificate};
pub use connection::{Connection, ConnectionLimits, Secured, Socket, await_head, head_read};
pub use control::{Consent, Control, Pause, Settings as Silence};
pub use curfew::Curfew;
pub use drain::{Drains, Settings as DrainSettings};
pub use engine::{Engine, engine};
pub use joined::JoiningConnector;
pub use peer::{Origin, OriginError, Timeouts, build as build_peer};
pub use probe::{Reached, Unreached, probe};
pub use resolve::{ResolveError, Resolver, Settings as ResolverSettings, Target};
pub use upstreams::{OnClientGone, Patience, Upstream, Upstreams};
