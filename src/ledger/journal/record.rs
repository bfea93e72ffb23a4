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
/// The largest body: names and ids are bounded far below it.
pub(super) const BODY_MAX_BYTES: usize = 64 * 1024;

impl Record {
    /// The body of its frame. Empty only where the format cannot hold it, which its types rule out.
    pub(super) fn to_body(&self) -> Vec<u8> {
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// The record in a frame's body.
    pub(super) fn from_body(body: &[u8]) -> Option<Record> {
        postcard::from_bytes(body).ok()
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
