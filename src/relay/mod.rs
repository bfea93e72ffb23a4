//! The relay: carries one request to a provider and its answer back.
//!
//! Promises: the body is read once, whole and bounded; every attempt sends it again; nothing of an answer has reached
//! the client while another attempt, or an error in our words, is still possible.
//! Refuses to know: who pays, which provider is tried next, what an answer means.

mod adapter;
mod alarm;
mod attempt;
mod body;
mod control;
mod curfew;
pub mod head;
pub mod headers;
mod peer;
mod resolve;
mod upstreams;

pub use adapter::{CURFEW, EMPTY_ANSWER, FIRST_BYTE_TIMEOUT, IDLE_TIMEOUT, NOT_CLOSED, wrap};
pub use attempt::{Failure, Next, is_timeout};
pub use body::{Body, Budget, Linger, Settings as BodySettings, Unread, linger, read_body};
pub use control::{Control, Settings as Silence};
pub use curfew::Curfew;
pub use peer::{Origin, OriginError, Timeouts, build as build_peer};
pub use resolve::{ResolveError, Resolver, Settings as ResolverSettings, Target};
pub use upstreams::{Patience, Upstream, Upstreams};
