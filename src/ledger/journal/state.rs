//! What the journal's lock guards: the segment that is written to, those before it, and what is not on the disk yet.

use super::disk::Segment;
use super::record::{FRAME_HEAD_BYTES, Record, write_frame};
use super::scan::HEAD_BYTES;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::Arc;

pub(super) struct State {
    segment_bytes: u64,
    next_seq: u64,
    current: Option<Open>,
    /// Made ahead of need.
    spares: VecDeque<Spare>,
    /// Full or failed, not removed yet.
    old: BTreeMap<u64, Old>,
    /// Full, and not known to be on the disk.
    full_files: Vec<Arc<dyn Segment>>,
    /// Requests that were sent and are not settled, by the segment that holds what is needed to bill them.
    requests: HashMap<[u8; 16], Request>,
    unsynced: Unsynced,
    /// What the disk has, to be written down with the next record.
    synced_mark: Option<u64>,
    frame: Vec<u8>,
    failure: Option<io::Error>,
    is_syncer_asleep: bool,
    is_keeper_asleep: bool,
    pub(super) next_number: u64,
    pub(super) reserved_bytes: u64,
    pub(super) applied_seq: u64,
    pub(super) is_stopping: bool,
}

/// The segment that is written to.
struct Open {
    number: u64,
    salt: u64,
    file: Arc<dyn Segment>,
    offset: u64,
}

/// A segment that was made ahead of need.
pub(super) struct Spare {
    pub(super) number: u64,
    pub(super) salt: u64,
    pub(super) file: Arc<dyn Segment>,
}

struct Old {
    last_seq: u64,
}

struct Request {
    segment: u64,
    sent: Vec<u8>,
    progress: Option<Vec<u8>>,
}

/// Records that are not known to be on the disk: their numbers and bodies, to be written again should the file fail.
#[derive(Default)]
struct Unsynced {
    bytes: Vec<u8>,
    first_seq: u64,
    lengths: VecDeque<u32>,
}

/// What is to be waited for.
pub(super) struct ToSync {
    pub(super) files: Vec<Arc<dyn Segment>>,
    pub(super) seq: u64,
}

/// Left free at the end of a segment when room is counted: the record that did not fit.
const TAIL_BYTES: u64 = 4 * 1024;

impl State {
    pub(super) fn new(segment_bytes: u64) -> State {
        State {
            segment_bytes,
            next_seq: 1,
            current: None,
            spares: VecDeque::new(),
            old: BTreeMap::new(),
            full_files: Vec::new(),
            requests: HashMap::new(),
            unsynced: Unsynced::default(),
            synced_mark: None,
            frame: Vec::new(),
            failure: None,
            is_syncer_asleep: false,
            is_keeper_asleep: false,
            next_number: 1,
            reserved_bytes: 0,
            applied_seq: 0,
            is_stopping: false,
        }
    }

    /// Appends a record, and before it the mark of what is synced, if there is a new one, in one write.
    pub(super) fn append(&mut self, body: &[u8]) -> u64 {
        let mark = self.synced_mark.take().map(|seq| Record::Synced(seq).to_body());
        let first = self.next_seq;
        let records: Vec<(u64, &[u8])> = (first..).zip(mark.as_deref().into_iter().chain([body])).collect();
        self.next_seq += records.len() as u64;
        if self.failure.is_none()
            && let Err(error) = self.write(&records)
        {
            self.fail(error);
        }
        records.iter().for_each(|(seq, body)| self.unsynced.push(*seq, body));
        self.last_seq()
    }

    fn write(&mut self, records: &[(u64, &[u8])]) -> io::Result<()> {
        let needed: usize = records.iter().map(|(_, body)| FRAME_HEAD_BYTES + body.len()).sum();
        if self.current.as_ref().is_none_or(|open| open.offset + needed as u64 > self.segment_bytes) {
            self.roll(records.first().map_or(self.next_seq, |(seq, _)| *seq))?;
        }
        let Some(open) = &mut self.current else { return Err(no_segment()) };
        self.frame.clear();
        for (seq, body) in records {
            write_frame(&mut self.frame, open.salt, *seq, body);
        }
        open.file.write_at(&self.frame, open.offset)?;
        open.offset += self.frame.len() as u64;
        Ok(())
    }

    /// Turns to the next segment.
    fn roll(&mut self, seq: u64) -> io::Result<()> {
        if let Some(full) = self.current.take() {
            self.old.insert(full.number, Old { last_seq: seq.saturating_sub(1) });
            self.full_files.push(full.file);
        }
        let Spare { number, salt, file } = self.spares.pop_front().ok_or_else(no_segment)?;
        self.current = Some(Open { number, salt, file, offset: HEAD_BYTES as u64 });
        Ok(())
    }

    /// The file is not written to again.
    pub(super) fn fail(&mut self, error: io::Error) {
        if let Some(open) = self.current.take() {
            self.old.insert(open.number, Old { last_seq: self.last_seq() });
        }
        self.full_files.clear();
        tracing::error!(%error, "the journal's file failed; nothing is admitted until another takes its place");
        self.failure = Some(error);
    }

    /// Writes everything again that is not known to be on the disk, to a segment that was made for it.
    pub(super) fn repair(&mut self) -> io::Result<()> {
        let records: Vec<(u64, Vec<u8>)> = self.unsynced.records().collect();
        for (seq, body) in &records {
            self.write(&[(*seq, body)])?;
        }
        self.failure = None;
        tracing::info!(records = records.len(), "the journal goes on in another file");
        Ok(())
    }

    pub(super) fn opened(&mut self, request_id: [u8; 16], sent: Vec<u8>) {
        let segment = self.current_number();
        self.requests.insert(request_id, Request { segment, sent, progress: None });
    }

    pub(super) fn progressed(&mut self, request_id: [u8; 16], body: &[u8]) {
        if let Some(request) = self.requests.get_mut(&request_id) {
            request.progress = Some(body.to_vec());
        }
    }

    pub(super) fn closed(&mut self, request_id: [u8; 16]) {
        self.requests.remove(&request_id);
    }

    /// Writes what the oldest segment holds of open requests once more, so that it can go.
    pub(super) fn carry_forward(&mut self) {
        let Some((&oldest, old)) = self.old.first_key_value() else { return };
        if old.last_seq > self.applied_seq || self.failure.is_some() {
            return;
        }
        let held: Vec<[u8; 16]> = self
            .requests
            .iter()
            .filter(|(_, request)| request.segment == oldest)
            .map(|(id, _)| *id)
            .collect();
        for request_id in held {
            let Some(request) = self.requests.get(&request_id) else { continue };
            let bodies = [Some(request.sent.clone()), request.progress.clone()];
            let bytes: usize = bodies.iter().flatten().map(|body| body.len() + FRAME_HEAD_BYTES).sum();
            if self.room_bytes().saturating_sub(self.reserved_bytes) < bytes as u64 + TAIL_BYTES {
                return;
            }
            bodies.iter().flatten().for_each(|body| {
                self.append(body);
            });
            let segment = self.current_number();
            if let Some(request) = self.requests.get_mut(&request_id) {
                request.segment = segment;
            }
        }
    }

    /// The oldest segment, if nothing in it is needed: all before it is gone, all in it is applied, no open request rests on it.
    pub(super) fn removable(&self) -> Option<u64> {
        let (&number, old) = self.old.first_key_value()?;
        let is_needed = self.requests.values().any(|request| request.segment <= number);
        (old.last_seq <= self.applied_seq && !is_needed).then_some(number)
    }

    pub(super) fn removed(&mut self, number: u64) {
        self.old.remove(&number);
    }

    /// Old segments beyond which open requests are carried forward.
    pub(super) fn is_crowded(&self) -> bool {
        self.old.len() > 2
    }

    pub(super) fn add_spare(&mut self, spare: Spare) {
        self.spares.push_back(spare);
    }

    /// What is to be waited for, if anything.
    pub(super) fn to_sync(&self) -> Option<ToSync> {
        if self.unsynced.lengths.is_empty() || self.failure.is_some() {
            return None;
        }
        let mut files = self.full_files.clone();
        files.extend(self.current.as_ref().map(|open| Arc::clone(&open.file)));
        Some(ToSync { files, seq: self.last_seq() })
    }

    /// Everything up to that number is on the disk.
    /// `is_marked` tells whether the disk was waited for, so that it may be written down.
    pub(super) fn synced(&mut self, done: &ToSync, is_marked: bool) {
        self.full_files.retain(|file| !done.files.iter().any(|synced| Arc::ptr_eq(file, synced)));
        self.unsynced.forget_to(done.seq);
        self.synced_mark = is_marked.then_some(done.seq);
    }

    /// Bytes that can be written without another segment.
    pub(super) fn room_bytes(&self) -> u64 {
        let usable = self.segment_bytes.saturating_sub(TAIL_BYTES);
        let here = self.current.as_ref().map_or(0, |open| usable.saturating_sub(open.offset));
        here + self.spares.len() as u64 * usable.saturating_sub(HEAD_BYTES as u64)
    }

    /// Whether another segment should be made.
    pub(super) fn is_low(&self) -> bool {
        self.room_bytes() < self.reserved_bytes.saturating_add(self.segment_bytes)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    pub(super) fn has_old(&self) -> bool {
        !self.old.is_empty()
    }

    pub(super) fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    pub(super) fn segments(&self) -> u64 {
        (self.old.len() + self.spares.len() + usize::from(self.current.is_some())) as u64
    }

    pub(super) fn open_requests(&self) -> u64 {
        self.requests.len() as u64
    }

    /// Whether the thread that waits for the disk must be woken; it is not woken twice.
    pub(super) fn take_syncer(&mut self) -> bool {
        std::mem::take(&mut self.is_syncer_asleep)
    }

    pub(super) fn syncer_sleeps(&mut self) {
        self.is_syncer_asleep = true;
    }

    pub(super) fn take_keeper(&mut self) -> bool {
        std::mem::take(&mut self.is_keeper_asleep)
    }

    pub(super) fn keeper_sleeps(&mut self) {
        self.is_keeper_asleep = true;
    }

    fn current_number(&self) -> u64 {
        self.current.as_ref().map_or(self.next_number, |open| open.number)
    }
}

fn no_segment() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "no segment is ready")
}

impl Unsynced {
    fn push(&mut self, seq: u64, body: &[u8]) {
        if self.lengths.is_empty() {
            self.first_seq = seq;
            self.bytes.clear();
        }
        self.lengths.push_back(u32::try_from(body.len()).unwrap_or(u32::MAX));
        self.bytes.extend_from_slice(body);
    }

    fn forget_to(&mut self, seq: u64) {
        let mut gone = 0;
        while self.first_seq <= seq
            && let Some(length) = self.lengths.pop_front()
        {
            gone += length as usize;
            self.first_seq += 1;
        }
        self.bytes.drain(..gone.min(self.bytes.len()));
    }

    fn records(&self) -> impl Iterator<Item = (u64, Vec<u8>)> {
        let mut at = 0;
        (self.first_seq..).zip(&self.lengths).map(move |(seq, length)| {
            let body = self.bytes[at..at + *length as usize].to_vec();
            at += *length as usize;
            (seq, body)
        })
    }
}
