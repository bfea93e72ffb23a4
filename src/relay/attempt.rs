//! What happens after an attempt at a provider failed: the one table of retries.
//!
//! The rule: nothing is sent twice that may have been executed and paid for. Its one exception is a reused connection that turns
//! out closed before any byte of an answer, which is tried once more on a fresh one.

use super::adapter::FIRST_BYTE_TIMEOUT;
use pingora::{Error, ErrorType, RetryType};
use std::fmt;

/// What became of an attempt, before the first byte of an answer went to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No address, connection refused, TLS failed, or connecting took too long.
    NotConnected,
    /// The provider refused the HTTP/2 stream, or went away before it processed it (RFC 9113 section 8.7).
    NotProcessed,
    /// A reused connection was closed before any byte of an answer: the race of idle connections.
    IdleRace,
    /// Answered 408, 429, 500, 502, 503, 504 or 529, which providers do not bill.
    Answered(u16),
    /// No first byte in time.
    NoFirstByte,
    /// Reset or closed after the request was sent.
    Reset,
    /// What came is not HTTP.
    Garbage,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next candidate, if there is one.
    NextCandidate,
    /// The same candidate, on a connection of its own.
    FreshConnection,
    /// Tell the client.
    Stop,
}

impl Failure {
    /// Whether an answer with this status is one that providers do not bill.
    pub fn of_status(status: u16) -> Option<Failure> {
        matches!(status, 408 | 429 | 500 | 502 | 503 | 504 | 529).then_some(Failure::Answered(status))
    }

    /// What an error of the engine means, when no head of an answer had come. `reused` tells that the connection had served a
    /// request before.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a foreign enum of three dozen: what is not named may have been executed"
    )]
    pub fn of_error(error: &Error, reused: bool) -> Failure {
        let etype = error.etype();
        if *etype == FIRST_BYTE_TIMEOUT || is_timeout(etype) {
            return Failure::NoFirstByte;
        }
        match etype {
            // The engine marks these as safe only for REFUSED_STREAM, HTTP_1_1_REQUIRED and a GOAWAY that left this stream out.
            ErrorType::H2Error | ErrorType::H2Downgrade
                if matches!(error.retry, RetryType::Decided(true)) =>
            {
                Failure::NotProcessed
            }
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed if reused => {
                Failure::IdleRace
            }
            ErrorType::InvalidHTTPHeader | ErrorType::InvalidH2 => Failure::Garbage,
            _ => Failure::Reset,
        }
    }

    /// The table, for `retry = "safe"`. `raced_before` tells that this request had its one fresh connection already.
    pub fn next(self, raced_before: bool) -> Next {
        match self {
            Failure::NotConnected | Failure::NotProcessed | Failure::Answered(_) => Next::NextCandidate,
            Failure::IdleRace if !raced_before => Next::FreshConnection,
            Failure::IdleRace | Failure::NoFirstByte | Failure::Reset | Failure::Garbage => Next::Stop,
        }
    }

    /// The name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Failure::NotConnected => "not_connected",
            Failure::NotProcessed => "not_processed",
            Failure::IdleRace => "idle_race",
            Failure::Answered(_) => "answered_error",
            Failure::NoFirstByte => "no_first_byte",
            Failure::Reset => "reset",
            Failure::Garbage => "garbage",
        }
    }
}

/// Whether the provider took too long.
pub fn is_timeout(etype: &ErrorType) -> bool {
    matches!(
        etype,
        ErrorType::ReadTimedout
            | ErrorType::WriteTimedout
            | ErrorType::ConnectTimedout
            | ErrorType::TLSHandshakeTimedout
    )
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Answered(status) => write!(f, "answered {status}"),
            Failure::NotConnected
            | Failure::NotProcessed
            | Failure::IdleRace
            | Failure::NoFirstByte
            | Failure::Reset
            | Failure::Garbage => f.write_str(self.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_may_have_been_executed_is_sent_again() {
        for failure in [Failure::NoFirstByte, Failure::Reset, Failure::Garbage] {
            assert_eq!(failure.next(false), Next::Stop);
        }
        assert_eq!(Failure::IdleRace.next(false), Next::FreshConnection);
        assert_eq!(Failure::IdleRace.next(true), Next::Stop);
    }

    #[test]
    fn what_providers_do_not_bill_goes_to_the_next_candidate() {
        for status in [408, 429, 500, 502, 503, 504, 529] {
            assert_eq!(Failure::of_status(status).unwrap().next(false), Next::NextCandidate);
        }
        for status in [200, 301, 400, 401, 403, 404, 413, 422, 501] {
            assert_eq!(Failure::of_status(status), None);
        }
    }
}
