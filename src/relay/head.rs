//! The request head as it came over the wire: refused where gateway and provider could read it differently.
//!
//! Promises: no request with more than one way to find its end is served, and no head beyond the cap.
//! Refuses to know: what the headers mean to anyone else.
//!
//! Pingora repairs some of these before any hook (it drops Content-Length beside Transfer-Encoding), and refuses others
//! on its own with an empty 400 (different lengths, a last coding other than chunked, Transfer-Encoding on HTTP/1.0).
//! It keeps the raw head, so this looks there.

use http::header::CONTENT_LENGTH;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;

use crate::refusal::{Kind, Refused};

/// The largest request head, in bytes: request line, names, values and separators.
pub const MAX_HEAD_BYTES: usize = 32 * 1024;

/// Checks the head before anything acts on it. When it refuses, the connection closes after the answer.
///
/// # Errors
///
/// `InvalidValue` for ambiguous framing, `HeadersTooLarge` for a head beyond [`MAX_HEAD_BYTES`].
pub fn check(session: &mut Session) -> Result<(), Refused> {
    let checked = match &*session.downstream_session {
        ServerSession::H1(h1) => {
            let raw = h1.get_headers_raw_bytes();
            sized(raw.len()).and_then(|()| framing(&raw))
        }
        ServerSession::H2(_) | ServerSession::Subrequest(_) | ServerSession::Custom(_) => {
            let head = session.req_header();
            sized(head_bytes(head)).and_then(|()| one_length(head))
        }
    };
    if checked.is_err() {
        session.set_keepalive(None);
    }
    checked
}

fn sized(bytes: usize) -> Result<(), Refused> {
    if bytes <= MAX_HEAD_BYTES {
        return Ok(());
    }
    Err(Refused::new(
        Kind::HeadersTooLarge,
        format!("The request's headers are larger than {MAX_HEAD_BYTES} bytes, the most that is accepted."),
    ))
}

/// The rules of one framing, over the raw HTTP/1 head.
fn framing(raw: &[u8]) -> Result<(), Refused> {
    let mut lines = raw.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let http_10 = lines.next().is_some_and(|request_line| request_line.ends_with(b"HTTP/1.0"));
    let mut length: Option<&[u8]> = None;
    let mut coding: Option<&[u8]> = None;
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            for told in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if length.is_some_and(|before| before != told) {
                    return Err(ambiguous("two different Content-Length values"));
                }
                length = Some(told);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if coding.is_some() {
                return Err(ambiguous("more than one Transfer-Encoding"));
            }
            coding = Some(value);
        }
    }
    match (length, coding) {
        (_, None) => Ok(()),
        (Some(_), Some(_)) => Err(ambiguous("both Content-Length and Transfer-Encoding")),
        (None, Some(_)) if http_10 => Err(ambiguous("Transfer-Encoding on HTTP/1.0")),
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(()),
        (None, Some(_)) => Err(ambiguous("a Transfer-Encoding other than chunked")),
    }
}

/// HTTP/2 frames its body itself; a length told twice is refused all the same.
fn one_length(head: &RequestHeader) -> Result<(), Refused> {
    let mut told = head.headers.get_all(CONTENT_LENGTH).iter();
    let first = told.next();
    if told.all(|other| Some(other) == first) {
        Ok(())
    } else {
        Err(ambiguous("two different Content-Length values"))
    }
}

/// As RFC 9113 counts a header list: 32 bytes go with each field.
fn head_bytes(head: &RequestHeader) -> usize {
    let fields =
        head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum::<usize>();
    fields + head.raw_path().len()
}

fn ambiguous(what: &str) -> Refused {
    Refused::new(
        Kind::InvalidValue,
        format!("The request has {what}, so where its body ends is ambiguous; the connection is closed."),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(head: &str) -> Option<String> {
        let raw = head.replace('\n', "\r\n");
        framing(raw.as_bytes()).err().map(|refused| refused.public)
    }

    #[test]
    fn one_way_to_find_the_end_of_a_body_passes() {
        assert_eq!(refused("GET / HTTP/1.1\nHost: a\n\n"), None);
        assert_eq!(refused("POST / HTTP/1.1\nContent-Length: 5\nHost: a\n\n"), None);
        assert_eq!(refused("POST / HTTP/1.1\nContent-Length: 5\ncontent-length: 5, 5\n\n"), None);
        assert_eq!(refused("POST / HTTP/1.1\ntransfer-encoding: Chunked\n\n"), None);
        assert_eq!(
            refused("POST / HTTP/1.1\nX-Note: content-length: 5\nTransfer-Encoding: chunked\n\n"),
            None
        );
    }

    #[test]
    fn two_ways_to_find_the_end_of_a_body_are_refused() {
        for (head, what) in [
            ("POST / HTTP/1.1\nContent-Length: 5\nTransfer-Encoding: chunked\n\n", "both"),
            ("POST / HTTP/1.1\nTRANSFER-ENCODING:chunked\nCONTENT-LENGTH:5\n\n", "both"),
            ("POST / HTTP/1.1\nContent-Length: 5\nContent-Length: 6\n\n", "two different"),
            ("POST / HTTP/1.1\nContent-Length: 5, 6\n\n", "two different"),
            ("POST / HTTP/1.1\nContent-Length: 5\nContent-Length: 05\n\n", "two different"),
            ("POST / HTTP/1.1\nTransfer-Encoding: gzip, chunked\n\n", "other than chunked"),
            ("POST / HTTP/1.1\nTransfer-Encoding: \x0bchunked\n\n", "other than chunked"),
            ("POST / HTTP/1.1\nTransfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n", "more than one"),
            ("POST / HTTP/1.0\nTransfer-Encoding: chunked\n\n", "HTTP/1.0"),
        ] {
            assert!(refused(head).is_some_and(|text| text.contains(what)), "{head}");
        }
        // Line ends without a carriage return, which the parser accepts.
        assert!(framing(b"POST / HTTP/1.1\nContent-Length: 5\nTransfer-Encoding: chunked\n\n").is_err());
    }

    #[test]
    fn a_head_is_capped() {
        assert!(sized(MAX_HEAD_BYTES).is_ok());
        assert_eq!(sized(MAX_HEAD_BYTES + 1).unwrap_err().kind, Kind::HeadersTooLarge);
        let mut head = RequestHeader::build("POST", b"/v1", None).unwrap();
        head.insert_header("x-a", "bc").unwrap();
        assert_eq!(head_bytes(&head), 3 + 2 + 32 + 3);
    }
}
