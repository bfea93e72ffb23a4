//! What the journal holds of a request, and how it is laid out in a segment.
//!
//! A frame is: length of the body (u32), CRC32C (u32) over the segment's salt, the sequence number and the body, the sequence number
//! (u64), the body; all little endian. The salt makes what an earlier use of the same blocks left behind fail the check. A body is a
//! [`Record`] in the postcard format (<https://postcard.jamesmunns.com/wire-format>); variants and fields are only ever added at the end.

use serde::{Deserialize, Serialize};

/// A request as it stood when the next byte was to go to a provider: enough to bill it without anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the columns of the table `request`, described in its migration")]
pub struct Sent {
    pub request_id: [u8; 16],
    pub account: [u8; 16],
    pub key: [u8; 16],
    pub created_at: i64,
    pub client_request_id: Option<String>,
    pub model: String,
    pub provider: String,
    pub upstream_model: String,
    pub service_tier: Option<String>,
    pub stream: bool,
    pub price_version: u64,
    pub input_tokens: u64,
    /// Pico-dollars for an input token.
    pub input_price: i64,
    /// Pico-dollars for an output token.
    pub output_price: i64,
}

/// How far a streamed answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in Sent")]
pub struct Progress {
    pub request_id: [u8; 16],
    pub input_tokens: u64,
    pub output_tokens: u64,
}

/// A settled request, whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the columns of the table `request`, described in its migration")]
pub struct Settle {
    pub request_id: [u8; 16],
    pub account: [u8; 16],
    pub key: [u8; 16],
    pub created_at: i64,
    pub client_request_id: Option<String>,
    pub model: String,
    pub provider: String,
    pub upstream_model: String,
    pub service_tier: Option<String>,
    pub status: u16,
    pub outcome: u8,
    pub stream: bool,
    /// Units by class, in the order of [`crate::usage::Class::ALL`], zeros left out.
    pub usage: Vec<(u8, u64)>,
    pub is_reported: bool,
    pub price_version: u64,
    pub cost_pico: i64,
    pub over_pico: i64,
    pub latency_ms: u64,
    pub ttft_ms: Option<u64>,
}

/// One entry of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The request goes to a provider next. Replaces an earlier one of the same request.
    Sent(Sent),
    /// The attempt ended and its provider bills nothing: the request is as if it had never been sent.
    Failed([u8; 16]),
    /// The answer passes.
    Progress(Progress),
    /// The request ended.
    Settle(Settle),
    /// Everything up to this sequence number is on the disk.
    Synced(u64),
}

/// Length, checksum and sequence number.
pub(super) const FRAME_HEAD_BYTES: usize = 16;
/// The largest body: a dozen numbers and five texts.
pub(super) const BODY_MAX_BYTES: usize = 64 * 1024;
/// The longest text in a record; the rest of a longer one is left out. What a provider calls its tier must not make a record that no
/// segment takes.
const TEXT_MAX_BYTES: usize = 512;

/// Room for the body of most records, which then is not moved as it grows.
const BODY_BYTES: usize = 256;

impl Record {
    /// The body of its frame. Empty only where the format cannot hold it, which its types rule out.
    pub(super) fn into_body(mut self) -> Vec<u8> {
        match &mut self {
            Record::Sent(sent) => {
                bound([&mut sent.model, &mut sent.provider, &mut sent.upstream_model]);
                bound([&mut sent.client_request_id, &mut sent.service_tier].into_iter().flatten());
            }
            Record::Settle(settle) => {
                bound([&mut settle.model, &mut settle.provider, &mut settle.upstream_model]);
                bound([&mut settle.client_request_id, &mut settle.service_tier].into_iter().flatten());
            }
            Record::Failed(_) | Record::Progress(_) | Record::Synced(_) => {}
        }
        postcard::to_extend(&self, Vec::with_capacity(BODY_BYTES)).unwrap_or_default()
    }

    /// The record in a frame's body.
    pub(super) fn from_body(body: &[u8]) -> Option<Record> {
        postcard::from_bytes(body).ok()
    }
}

fn bound<'a>(texts: impl IntoIterator<Item = &'a mut String>) {
    for text in texts {
        text.truncate(text.floor_char_boundary(TEXT_MAX_BYTES));
    }
}

/// Appends a frame to `out`.
pub(super) fn write_frame(out: &mut Vec<u8>, salt: u64, seq: u64, body: &[u8]) {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&checksum(salt, seq, body).to_le_bytes());
    out.extend_from_slice(&seq.to_le_bytes());
    out.extend_from_slice(body);
}

/// What stands at the beginning of `bytes`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// A frame that passes its check, and how many bytes it takes.
    Whole { seq: u64, body: &'a [u8], bytes: usize },
    /// Zeros: nothing was written here.
    Unwritten,
    /// Something that is no whole frame.
    Broken,
}

/// Reads the frame at the beginning of `bytes`.
pub(super) fn read_frame(bytes: &[u8], salt: u64) -> Frame<'_> {
    let Some(head) = bytes.first_chunk::<FRAME_HEAD_BYTES>() else {
        return if bytes.iter().all(|byte| *byte == 0) { Frame::Unwritten } else { Frame::Broken };
    };
    if head.iter().all(|byte| *byte == 0) {
        return Frame::Unwritten;
    }
    let [l0, l1, l2, l3, c0, c1, c2, c3, seq @ ..] = *head;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let seq = u64::from_le_bytes(seq);
    let body = bytes.get(FRAME_HEAD_BYTES..FRAME_HEAD_BYTES.saturating_add(length));
    match body {
        Some(body)
            if length > 0
                && length <= BODY_MAX_BYTES
                && checksum(salt, seq, body) == u32::from_le_bytes([c0, c1, c2, c3]) =>
        {
            Frame::Whole { seq, body, bytes: FRAME_HEAD_BYTES + length }
        }
        Some(_) | None => Frame::Broken,
    }
}

fn checksum(salt: u64, seq: u64, body: &[u8]) -> u32 {
    let mut head = [0_u8; 16];
    head[..8].copy_from_slice(&salt.to_le_bytes());
    head[8..].copy_from_slice(&seq.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&head), body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_makes_a_record_that_cannot_be_read_back() {
        let long = "\u{e9}".repeat(BODY_MAX_BYTES);
        let settle = Settle {
            request_id: [1; 16],
            account: [2; 16],
            key: [3; 16],
            created_at: i64::MAX,
            client_request_id: Some(long.clone()),
            model: long.clone(),
            provider: long.clone(),
            upstream_model: long.clone(),
            service_tier: Some(long),
            status: u16::MAX,
            outcome: u8::MAX,
            stream: true,
            usage: vec![(u8::MAX, u64::MAX); 14],
            is_reported: true,
            price_version: u64::MAX,
            cost_pico: i64::MIN,
            over_pico: i64::MIN,
            latency_ms: u64::MAX,
            ttft_ms: Some(u64::MAX),
        };
        let body = Record::Settle(settle).into_body();
        assert!(body.len() < 4 * 1024, "{} bytes", body.len());
        let Some(Record::Settle(read)) = Record::from_body(&body) else { panic!("not read back") };
        assert_eq!(read.service_tier.unwrap(), "\u{e9}".repeat(TEXT_MAX_BYTES / 2));
    }

    proptest::proptest! {
        #[test]
        fn whatever_stands_in_a_segment_it_is_read_or_refused(
            salt: u64,
            seq: u64,
            body in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            noise in proptest::collection::vec(proptest::num::u8::ANY, 0..64),
        ) {
            let _record_or_none = Record::from_body(&body);
            let _frame_or_none = read_frame(&body, salt);
            let mut bytes = Vec::new();
            write_frame(&mut bytes, salt, seq, &body);
            bytes.extend_from_slice(&noise);
            match read_frame(&bytes, salt) {
                Frame::Whole { seq: read, body: found, bytes } => {
                    proptest::prop_assert_eq!((read, found, bytes), (seq, &body[..], FRAME_HEAD_BYTES + body.len()));
                }
                Frame::Unwritten | Frame::Broken => proptest::prop_assert!(body.is_empty()),
            }
        }
    }

    #[test]
    fn a_frame_passes_its_check_only_as_it_was_written() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, 7, 42, b"body");
        assert_eq!(read_frame(&bytes, 7), Frame::Whole { seq: 42, body: b"body", bytes: 20 });
        assert_eq!(read_frame(&bytes, 8), Frame::Broken, "of another segment");
        for at in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[at] ^= 1;
            assert_eq!(read_frame(&bent, 7), Frame::Broken, "bit of byte {at}");
            assert_eq!(
                read_frame(&bytes[..at], 7),
                if at == 0 { Frame::Unwritten } else { Frame::Broken },
                "torn at {at}"
            );
        }
        assert_eq!(read_frame(&[0; 64], 7), Frame::Unwritten);
    }
}
