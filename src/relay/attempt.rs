//! What happens after an attempt at a provider failed: the one table of retries.
//!
//! The rule: nothing is sent twice that may have been executed and paid for. Its one exception is a reused connection that turns
//! out closed before any byte of an answer, which is tried once more on a fresh one. An operator can ask for more, or for nothing.

use super::adapter::{FIRST_BYTE_TIMEOUT, IDLE_TIMEOUT};
use crate::clock::UnixMicros;
use crate::route::Retry;
use http::header::RETRY_AFTER;
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorType, RetryType};
use std::fmt;
use std::time::Duration;

/// The answer took longer than the provider may take for all of it.
pub const TOTAL_TIMEOUT: ErrorType = ErrorType::Custom("TotalTimeout");

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
            ErrorType::WriteError if reused => Failure::IdleRace,
            ErrorType::ReadError | ErrorType::ConnectionClosed if reused && is_untouched(error) => {
                Failure::IdleRace
            }
            ErrorType::InvalidHTTPHeader | ErrorType::InvalidH2 => Failure::Garbage,
            _ => Failure::Reset,
        }
    }

    /// The table. `raced_before` tells that this request had its one fresh connection already.
    pub fn next(self, retry: Retry, raced_before: bool) -> Next {
        match (self, retry) {
            (_, Retry::Never) => Next::Stop,
            (
                Failure::NotConnected | Failure::NotProcessed | Failure::Answered(_),
                Retry::Safe | Retry::Any,
            ) => Next::NextCandidate,
            (Failure::IdleRace, Retry::Safe | Retry::Any) if !raced_before => Next::FreshConnection,
            (Failure::IdleRace | Failure::NoFirstByte | Failure::Reset | Failure::Garbage, Retry::Any) => {
                Next::NextCandidate
            }
            (Failure::IdleRace | Failure::NoFirstByte | Failure::Reset | Failure::Garbage, Retry::Safe) => {
                Next::Stop
            }
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

/// When a provider that is limited or overloaded says to come back; `None` where it does not say, or says nothing of use.
pub fn come_back(head: &ResponseHeader, now: UnixMicros) -> Option<Duration> {
    if !matches!(head.status.as_u16(), 429 | 503 | 529) {
        return None;
    }
    let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let millis = text("retry-after-ms").and_then(|text| text.parse::<u64>().ok()).map(Duration::from_millis);
    millis.or_else(|| {
        let told = text(RETRY_AFTER.as_str())?;
        let seconds = told.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        seconds.or_else(|| {
            let at = jiff::fmt::rfc2822::parse(told).ok()?.timestamp().as_microsecond();
            u64::try_from(at.saturating_sub(now.0)).ok().map(Duration::from_micros)
        })
    })
}

/// Whether the connection ended with not a byte of this answer, which the engine tells in its error's words alone; on HTTP/1 by the
/// system's word, too: a TLS error can come from the middle of a connection's life.
fn is_untouched(error: &Error) -> bool {
    let words = error.context.as_ref().map_or("", |context| context.as_str());
    let is_idle_end = error.retry == RetryType::ReusedOnly && words.ends_with("bytes already read: 0");
    is_idle_end || words == "while reading h2 header"
}

/// Whether the provider took too long.
pub fn is_timeout(etype: &ErrorType) -> bool {
    [FIRST_BYTE_TIMEOUT, IDLE_TIMEOUT, TOTAL_TIMEOUT].contains(etype)
        || matches!(
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

    const POLICIES: [Retry; 3] = [Retry::Safe, Retry::Any, Retry::Never];

    #[test]
    fn nothing_that_may_have_been_executed_is_sent_again_unless_that_is_asked_for() {
        for failure in [Failure::NoFirstByte, Failure::Reset, Failure::Garbage] {
            let next = POLICIES.map(|retry| failure.next(retry, false));
            assert_eq!(next, [Next::Stop, Next::NextCandidate, Next::Stop], "{failure}");
        }
        let next = |raced| POLICIES.map(|retry| Failure::IdleRace.next(retry, raced));
        assert_eq!(next(false), [Next::FreshConnection, Next::FreshConnection, Next::Stop]);
        assert_eq!(next(true), [Next::Stop, Next::NextCandidate, Next::Stop]);
    }

    #[test]
    fn what_providers_do_not_bill_goes_to_the_next_candidate() {
        let statuses = [408, 429, 500, 502, 503, 504, 529].map(|status| Failure::of_status(status).unwrap());
        for failure in [Failure::NotConnected, Failure::NotProcessed].into_iter().chain(statuses) {
            let next = POLICIES.map(|retry| failure.next(retry, false));
            assert_eq!(next, [Next::NextCandidate, Next::NextCandidate, Next::Stop], "{failure}");
        }
        for status in [200, 301, 400, 401, 403, 404, 413, 422, 501] {
            assert_eq!(Failure::of_status(status), None);
        }
    }

    #[test]
    fn a_provider_is_believed_when_it_says_when_to_come_back() {
        let told = |status: u16, name: &'static str, value: &'static str| {
            let mut head = ResponseHeader::build(status, None).unwrap();
            head.insert_header(name, value).unwrap();
            come_back(&head, UnixMicros(784_111_777_000_000)).map(|wait| wait.as_millis())
        };
        assert_eq!(told(429, "retry-after-ms", "250"), Some(250));
        assert_eq!(told(503, "retry-after", "7"), Some(7_000));
        assert_eq!(told(529, "retry-after", "0.5"), Some(500));
        assert_eq!(told(429, "retry-after", "Sun, 06 Nov 1994 08:49:47 GMT"), Some(10_000));
        for nonsense in ["", "soon", "-1", "inf", "NaN", "Sun, 06 Nov 1994 08:49:27 GMT"] {
            assert_eq!(told(429, "retry-after", nonsense), None, "{nonsense}");
        }
        assert_eq!(told(500, "retry-after", "7"), None);
    }
}
