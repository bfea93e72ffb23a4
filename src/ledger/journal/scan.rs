//! Reading a journal back.
//!
//! Promises: what was written whole is read, in order; a torn tail is cut off and counted; damage before the tail is an error that names
//! file and offset. Refuses to know: what is done with the records.

use super::disk::Disk;
use super::record::{BODY_MAX_BYTES, FRAME_HEAD_BYTES, Frame, Record, read_frame};
use super::records::Records;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

/// The head of a segment: magic, format, salt, and the CRC32C of those. On the disk before the segment is used.
pub(super) const HEAD_BYTES: usize = 32;
const MAGIC: &[u8; 8] = b"weirjrnl";
const FORMAT: u64 = 1;

/// A journal, read.
#[derive(Debug, Default)]
pub struct Scanned {
    records: Records,
    /// Bytes behind the last whole record that are no record.
    pub torn_bytes: u64,
    /// Bytes of all segments.
    pub bytes: u64,
}

impl Scanned {
    /// Every record with its sequence number, in order and without a gap; taken apart as they are asked for.
    pub fn records(&self) -> impl Iterator<Item = (u64, Record)> {
        self.records.iter()
    }

    /// The number of the first record.
    pub fn first_seq(&self) -> Option<u64> {
        self.records.first_seq()
    }

    /// The number of the last record.
    pub fn last_seq(&self) -> Option<u64> {
        self.records.last_seq()
    }
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
    format!("{number:016}.{SEGMENT_EXTENSION}")
}

/// Ends the name of a segment.
pub(in crate::ledger) const SEGMENT_EXTENSION: &str = "journal";

/// The number of the first record of a segment's file; `None` where that cannot be read.
pub(in crate::ledger) fn first_seq(file: &Path) -> io::Result<Option<u64>> {
    let mut bytes = Vec::new();
    File::open(file)?
        .take((HEAD_BYTES + FRAME_HEAD_BYTES + BODY_MAX_BYTES) as u64)
        .read_to_end(&mut bytes)?;
    let part = Part::open(file.display().to_string(), bytes).ok().flatten();
    Ok(part.and_then(|part| part.first_seq()))
}

/// Cuts off what nothing was written to, and tells whether anything is left: `false` for a segment that was made ahead of need and never
/// used.
pub(in crate::ledger) fn trim(file: &Path) -> io::Result<bool> {
    let bytes = std::fs::read(file)?;
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if written <= HEAD_BYTES {
        return Ok(false);
    }
    // A record may end in zeros.
    let end = (written + FRAME_HEAD_BYTES + BODY_MAX_BYTES).min(bytes.len());
    File::options().write(true).open(file)?.set_len(end as u64)?;
    Ok(true)
}

/// Reads every segment of a journal.
///
/// A number is given to one record, once: a record that is whole and has the next number is the next one, in whatever segment it stands.
/// Where a file failed, what was not known to be on the disk was written again to a later one, which so overlaps it.
pub fn scan(disk: &dyn Disk) -> Result<Scanned, ScanError> {
    let mut names: Vec<String> =
        disk.list()?.into_iter().filter(|name| name.ends_with(SEGMENT_EXTENSION)).collect();
    names.sort();
    let mut reading = Reading { is_whole: names.first() == Some(&name(1)), ..Reading::default() };
    for file in names {
        let bytes = disk.read(&file)?;
        reading.scanned.bytes += bytes.len() as u64;
        if let Some(part) = Part::open(file, bytes)? {
            reading.take(part)?;
        }
    }
    reading.end()
}

/// What has been read.
#[derive(Default)]
struct Reading {
    scanned: Scanned,
    /// No segment has been removed.
    is_whole: bool,
    breaks: Vec<Break>,
}

/// A place behind which a segment has something that cannot be read on from there.
struct Break {
    file: String,
    offset: usize,
    /// The number that was to come.
    expected: u64,
    /// Up to the last byte that is not zero.
    bytes: u64,
    /// What the records behind it say to be on the disk.
    synced_seq: Option<u64>,
    /// The lowest number behind it; looked for only where nothing at all has been read.
    lowest_seq: Option<u64>,
    /// A later segment goes on from here.
    is_replaced: bool,
}

impl Reading {
    /// The number of the next record; `None` where none has been read, and any may be the first: earlier segments were removed.
    fn expected(&self) -> Option<u64> {
        self.scanned.last_seq().map(|seq| seq + 1).or(self.is_whole.then_some(1))
    }

    fn take(&mut self, part: Part) -> Result<(), ScanError> {
        let first_seq = part.first_seq().filter(|first_seq| match self.expected() {
            Some(expected) => *first_seq <= expected,
            // A first segment that cannot be read is replaced only by one that has all that it has.
            None => self.breaks.iter().all(|broken| broken.lowest_seq.is_none_or(|seq| *first_seq < seq)),
        });
        let Some(first_seq) = first_seq else {
            self.stop_at(&part, HEAD_BYTES, self.expected());
            return Ok(());
        };
        self.breaks.iter_mut().for_each(|broken| broken.is_replaced = true);
        let (bodies, end) = self.read(&part, first_seq)?;
        let next_seq = self.scanned.last_seq().map_or(first_seq, |last| last + 1) + bodies.len() as u64;
        if let Some(offset) = end {
            self.stop_at(&part, offset, Some(next_seq));
        }
        self.scanned.records.extend(first_seq, part.bytes, &bodies);
        Ok(())
    }

    /// Reads the records up to the first place that is none: the bodies of those that were not known, and that place, where something
    /// else than zeros is there.
    fn read(&self, part: &Part, first_seq: u64) -> Result<(Vec<Range<usize>>, Option<usize>), ScanError> {
        let (mut next, mut offset) = (first_seq, HEAD_BYTES);
        let mut bodies = Vec::new();
        loop {
            let rest = &part.bytes[offset..];
            match read_frame(rest, part.salt) {
                Frame::Whole { seq, body, bytes } if seq == next => {
                    if Record::from_body(body).is_none() {
                        return Err(part.damaged(offset, "an unknown record"));
                    }
                    if self.scanned.last_seq().is_none_or(|last| seq > last) {
                        bodies.push(offset + bytes - body.len()..offset + bytes);
                    } else if self.scanned.records.body(seq).is_some_and(|known| known != body) {
                        // What comes before the first record of the oldest segment was removed, since nobody needs it.
                        return Err(part.damaged(offset, "another record has the same sequence number"));
                    }
                    next += 1;
                    offset += bytes;
                }
                Frame::Whole { .. } => {
                    return Err(part.damaged(offset, "the sequence number is not the next one"));
                }
                Frame::Unwritten if is_zero(rest) => return Ok((bodies, None)),
                Frame::Unwritten | Frame::Broken => return Ok((bodies, Some(offset))),
            }
        }
    }

    fn stop_at(&mut self, part: &Part, offset: usize, expected: Option<u64>) {
        let rest = part.bytes.get(offset..).unwrap_or_default();
        let written = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let rest = &rest[..written];
        let nothing_read = self.scanned.records.is_empty() && offset == HEAD_BYTES;
        self.breaks.push(Break {
            file: part.file.clone(),
            offset,
            expected: expected.unwrap_or(0),
            bytes: written as u64,
            synced_seq: last_synced(rest, part.salt),
            lowest_seq: if nothing_read { lowest_seq(rest, part.salt) } else { None },
            is_replaced: false,
        });
    }

    /// Cuts the journal off behind the last record that was read, if nothing behind it was known to be on the disk.
    fn end(mut self) -> Result<Scanned, ScanError> {
        // A segment is removed when the next record is on the disk: it cannot be missing.
        let expected = self.expected().unwrap_or(0);
        let synced_seq = self.breaks.iter().filter_map(|broken| broken.synced_seq).max().unwrap_or(0);
        let at = self.breaks.iter().find(|broken| broken.expected == expected).or(self.breaks.first());
        if let Some(at) = at.filter(|_| synced_seq >= expected) {
            tracing::error!(expected, synced_seq, "the journal is damaged before its tail");
            return Err(ScanError::Damaged {
                file: at.file.clone(),
                offset: at.offset as u64,
                what: "a record fails its check that was on the disk",
            });
        }
        self.scanned.torn_bytes =
            self.breaks.iter().filter(|broken| !broken.is_replaced).map(|broken| broken.bytes).sum();
        Ok(self.scanned)
    }
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
        let is_unwritten = is_zero(bytes.get(HEAD_BYTES..).unwrap_or_default());
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

    fn damaged(&self, offset: usize, what: &'static str) -> ScanError {
        ScanError::Damaged { file: self.file.clone(), offset: offset as u64, what }
    }
}

/// The highest number that a record anywhere in these bytes says to be on the disk.
fn last_synced(bytes: &[u8], salt: u64) -> Option<u64> {
    // A mark of what is synced is a short record: no other needs its check computed.
    whole_frames(bytes, salt, SYNCED_BODY_MAX_BYTES)
        .filter_map(|(_, body)| match Record::from_body(body)? {
            Record::Synced(seq) => Some(seq),
            Record::Sent(_) | Record::Failed(_) | Record::Progress(_) | Record::Settle(_) => None,
        })
        .max()
}

/// The lowest number of a whole record anywhere in these bytes.
fn lowest_seq(bytes: &[u8], salt: u64) -> Option<u64> {
    whole_frames(bytes, salt, SEARCHED_BODY_MAX_BYTES).map(|(seq, _)| seq).min()
}

/// Every frame that begins anywhere in these bytes, with a body up to this size.
fn whole_frames(bytes: &[u8], salt: u64, body_max_bytes: usize) -> impl Iterator<Item = (u64, &[u8])> {
    let candidates = 0..bytes.len().saturating_sub(FRAME_HEAD_BYTES);
    candidates.filter_map(move |at| {
        let length = u32::from_le_bytes(*bytes[at..].first_chunk::<4>()?) as usize;
        if !(1..=body_max_bytes).contains(&length) {
            return None;
        }
        match read_frame(&bytes[at..], salt) {
            Frame::Whole { seq, body, .. } => Some((seq, body)),
            Frame::Unwritten | Frame::Broken => None,
        }
    })
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

const ZEROS: [u8; 4096] = [0; 4096];
/// The variant and a number of 64 bits in the format's variable length.
const SYNCED_BODY_MAX_BYTES: usize = 12;
/// Above every record that is written.
const SEARCHED_BODY_MAX_BYTES: usize = 4 * 1024;
