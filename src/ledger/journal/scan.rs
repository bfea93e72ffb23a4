//! Reading a journal back.
//!
//! Promises: what was written whole is read, in order; a torn tail is cut off and counted; damage before the tail is an error that names
//! file and offset. Refuses to know: what is done with the records.

use super::disk::Disk;
use super::record::{FRAME_HEAD_BYTES, Frame, Record, read_frame};
use std::io;

/// The head of a segment: magic, format, salt, and the CRC32C of those. On the disk before the segment is used.
pub(super) const HEAD_BYTES: usize = 32;
const MAGIC: &[u8; 8] = b"weirjrnl";
const FORMAT: u64 = 1;

/// A journal, read.
#[derive(Debug, Default)]
pub struct Scanned {
    /// Every record with its sequence number, in order.
    pub records: Vec<(u64, Record)>,
    /// Bytes behind the last whole record that are no record.
    pub torn_bytes: u64,
    /// Bytes of all segments.
    pub bytes: u64,
}

/// Why a journal cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The disk.
    #[error("the journal cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Something in the middle is not what was written: nothing is skipped in silence.
    #[error("the journal is damaged in {file} at byte {offset}: {what}")]
    Damaged {
        /// The segment.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// The head of a segment, as bytes.
pub(super) fn head(salt: u64) -> [u8; HEAD_BYTES] {
    let mut bytes = [0; HEAD_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[16..24].copy_from_slice(&salt.to_le_bytes());
    let check = crc32c::crc32c(&bytes[..24]);
    bytes[24..28].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// The name of a segment. Names sort in the order of use.
pub(super) fn name(number: u64) -> String {
    format!("{number:016}.journal")
}

/// Reads every segment of a journal.
///
/// A segment that begins at a number which an earlier one has, too, replaces the earlier one's records from there on: they were
/// written again because the earlier file could not be trusted.
pub fn scan(disk: &dyn Disk) -> Result<Scanned, ScanError> {
    let mut names: Vec<String> = disk.list()?.into_iter().filter(|name| name.ends_with(".journal")).collect();
    names.sort();
    let mut scanned = Scanned::default();
    let mut parts = Vec::new();
    for file in names {
        let bytes = disk.read(&file)?;
        scanned.bytes += bytes.len() as u64;
        parts.extend(Part::open(file, bytes)?);
    }
    for (at, part) in parts.iter().enumerate() {
        let next = scanned.records.last().map(|(seq, _)| seq + 1);
        let first_seq = part.first_seq();
        let broken_at = match (first_seq, next) {
            (None, _) => Some(HEAD_BYTES),
            (Some(first_seq), Some(next)) if first_seq > next => Some(HEAD_BYTES),
            (Some(first_seq), _) => part.read_from(first_seq, &mut scanned)?,
        };
        let expected = scanned.records.last().map_or(1, |(seq, _)| seq + 1);
        let is_replaced =
            parts.get(at + 1).and_then(Part::first_seq).is_some_and(|first_seq| first_seq <= expected);
        if let Some(offset) = broken_at.filter(|_| !is_replaced) {
            cut(&parts[at..], offset, expected, &mut scanned)?;
            break;
        }
    }
    Ok(scanned)
}

/// A segment that was used.
struct Part {
    file: String,
    bytes: Vec<u8>,
    salt: u64,
}

impl Part {
    /// The segment, if anything was written to it.
    fn open(file: String, bytes: Vec<u8>) -> Result<Option<Part>, ScanError> {
        let is_unwritten = bytes.iter().skip(HEAD_BYTES).all(|byte| *byte == 0);
        let salt = bytes.get(16..24).and_then(|salt| salt.try_into().ok()).map(u64::from_le_bytes);
        match salt {
            _ if is_unwritten => Ok(None),
            Some(salt) if bytes.starts_with(&head(salt)) => Ok(Some(Part { file, bytes, salt })),
            Some(_) | None => Err(ScanError::Damaged { file, offset: 0, what: "not the head of a segment" }),
        }
    }

    /// The number of its first record; `None` where that is broken.
    fn first_seq(&self) -> Option<u64> {
        match read_frame(&self.bytes[HEAD_BYTES..], self.salt) {
            Frame::Whole { seq, .. } => Some(seq),
            Frame::Unwritten | Frame::Broken => None,
        }
    }

    /// Reads the records up to the first place that is none. That place, where something else than zeros is there.
    fn read_from(&self, first_seq: u64, scanned: &mut Scanned) -> Result<Option<usize>, ScanError> {
        while scanned.records.last().is_some_and(|(seq, _)| *seq >= first_seq) {
            scanned.records.pop();
        }
        let mut expected = first_seq;
        let mut offset = HEAD_BYTES;
        loop {
            match read_frame(&self.bytes[offset..], self.salt) {
                Frame::Whole { seq, body, bytes } if seq == expected => {
                    let record =
                        Record::from_body(body).ok_or_else(|| self.damaged(offset, "an unknown record"))?;
                    scanned.records.push((seq, record));
                    expected += 1;
                    offset += bytes;
                }
                Frame::Whole { .. } => {
                    return Err(self.damaged(offset, "the sequence number is not the next one"));
                }
                Frame::Unwritten => {
                    let is_clean = self.bytes[offset..].iter().all(|byte| *byte == 0);
                    return Ok((!is_clean).then_some(offset));
                }
                Frame::Broken => return Ok(Some(offset)),
            }
        }
    }

    fn damaged(&self, offset: usize, what: &'static str) -> ScanError {
        ScanError::Damaged { file: self.file.clone(), offset: offset as u64, what }
    }
}

/// Cuts the journal off at this place of the first of these segments: nothing behind it was known to be on the disk.
fn cut(parts: &[Part], offset: usize, expected: u64, scanned: &mut Scanned) -> Result<(), ScanError> {
    for (at, part) in parts.iter().enumerate() {
        let from = if at == 0 { offset } else { HEAD_BYTES };
        let rest = part.bytes.get(from..).unwrap_or_default();
        if let Some(synced_seq) = last_synced(rest, part.salt).filter(|synced_seq| *synced_seq >= expected) {
            tracing::error!(expected, synced_seq, "the journal is damaged before its tail");
            return Err(parts[0].damaged(offset, "a record fails its check that was on the disk"));
        }
        let written = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        scanned.torn_bytes += written as u64;
    }
    Ok(())
}

/// The highest number that a record anywhere in these bytes says to be on the disk.
fn last_synced(bytes: &[u8], salt: u64) -> Option<u64> {
    let candidates = 0..bytes.len().saturating_sub(FRAME_HEAD_BYTES);
    candidates
        .filter(|at| {
            let length =
                bytes[*at..].first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize);
            // A mark of what is synced is a short record: no other needs its check computed.
            (1..=SYNCED_BODY_MAX_BYTES).contains(&length)
        })
        .filter_map(|at| match read_frame(&bytes[at..], salt) {
            Frame::Whole { body, .. } => Record::from_body(body),
            Frame::Unwritten | Frame::Broken => None,
        })
        .filter_map(|record| match record {
            Record::Synced(seq) => Some(seq),
            Record::Sent(_) | Record::Failed(_) | Record::Progress(_) | Record::Settle(_) => None,
        })
        .max()
}

/// The variant and a number of 64 bits in the format's variable length.
const SYNCED_BODY_MAX_BYTES: usize = 12;
