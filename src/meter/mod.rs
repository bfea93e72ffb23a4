//! Answers as they pass: framed anew, their usage read, their text kept for counting.
//!
//! Promises: a chunk's JSON reaches the client byte for byte; every stream ends in one of the ways of [`Ending`], and only a proper
//! end ends in `[DONE]`; what passed can be counted at any time, in bounded memory. Refuses to know: prices, holds, sockets.

mod output;
mod stream;
mod whole;

pub use stream::{StreamMeter, StreamSettings};
pub use whole::{NotWhole, Whole};

use crate::openai::UpstreamFault;
use crate::usage::Usage;

/// What became of a stream with the last piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fed {
    /// It goes on.
    Open,
    /// It is over; nothing that follows counts.
    Ended(Ending),
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Properly.
    Done,
    /// With an error of the provider in place of an answer, or with something that is no part of an answer.
    ErrorEvent(UpstreamFault),
    /// Before every choice was finished.
    Truncated,
    /// With an event that is larger than the bound.
    TooLong,
    /// By the gateway, since no credit covers more of it. This is what is billed.
    CreditExhausted(Usage),
}
