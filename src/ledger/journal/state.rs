//! What the journal's lock guards: the segment that is written to, those before it, and what is not on the disk yet.

use super::disk::Segment;
use super::record::{FRAME_HEAD_BYTES, Record, write_frame};
use super::scan::HEAD_BYTES;
use super::unsynced::Unsynced;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
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
    full: Vec<Full>,
    /// Requests that were sent and are not settled. In order, so that a simulation of it repeats.
    requests: BTreeMap<[u8; 16], Request>,
    /// Requests that ended: where, and what was needed to bill them until then. Until the end is on the disk, that is needed still.
    ended: VecDeque<Ended>,
    unsynced: Unsynced,
    /// Everything up to here was waited for.
    synced_seq: u64,
    /// Everything up to here counts as on the disk: the same, or what the system has, where that is enough.
    told_seq: u64,
    /// What the disk has, to be written down with the next record.
    synced_mark: Option<u64>,
    frame: Vec<u8>,
    failure: Option<io::Error>,
    /// How many files have failed: what was waited for before the last one says nothing about what came after it.
    failures: u64,
    is_syncer_asleep: bool,
    is_keeper_asleep: bool,
    is_keeper_wanted: bool,
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

struct Full {
    last_seq: u64,
    file: Arc<dyn Segment>,
}

struct Request {
    /// The first record that is needed to bill it: what comes before says nothing of it that is not said again.
    seq: u64,
    sent: Vec<u8>,
    progress: Option<Vec<u8>>,
}

struct Ended {
    seq: u64,
    first_seq: u64,
}

/// What is to be waited for.
pub(super) struct ToSync {
    pub(super) files: Vec<Arc<dyn Segment>>,
    pub(super) seq: u64,
    failures: u64,
}

/// What was written once more of requests, and what is to be waited for before that may be relied on.
pub(super) struct Carried {
    requests: Vec<([u8; 16], u64)>,
    pub(super) to_sync: ToSync,
}

/// Left free at the end of a segment when room is counted: the record that did not fit.
const TAIL_BYTES: u64 = 4 * 1024;
/// What is kept in memory while the disk is waited for; beyond that nothing is admitted.
const UNSYNCED_MAX_BYTES: usize = 64 << 20;
/// The same, where nobody waits for the disk: beyond that it is waited for.
const UNSYNCED_MUCH_BYTES: usize = 4 << 20;

impl State {
    pub(super) fn new(segment_bytes: u64) -> State {
        State {
            segment_bytes,
            next_seq: 1,
            current: None,
            spares: VecDeque::new(),
            old: BTreeMap::new(),
            full: Vec::new(),
            requests: BTreeMap::new(),
            ended: VecDeque::new(),
            unsynced: Unsynced::default(),
            synced_seq: 0,
            told_seq: 0,
            synced_mark: None,
            frame: Vec::new(),
            failure: None,
            failures: 0,
            is_syncer_asleep: false,
            is_keeper_asleep: false,
            is_keeper_wanted: false,
            next_number: 1,
            reserved_bytes: 0,
            applied_seq: 0,
            is_stopping: false,
        }
    }

    /// Appends a record, and before it the mark of what is synced, if there is a new one, in one write.
    pub(super) fn append(&mut self, body: &[u8]) -> u64 {
        let mark = self.synced_mark.take().map(|seq| Record::Synced(seq).into_body());
        let first = self.next_seq;
        let records: Vec<(u64, &[u8])> = (first..).zip(mark.as_deref().into_iter().chain([body])).collect();
        self.next_seq += records.len() as u64;
        let written = if self.failure.is_none() { self.write(&records) } else { Ok(()) };
        records.iter().for_each(|(seq, body)| self.unsynced.push(*seq, body));
        if let Err(error) = written {
            self.fail(error);
        }
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
            let last_seq = seq.saturating_sub(1);
            self.old.insert(full.number, Old { last_seq });
            self.full.push(Full { last_seq, file: full.file });
        }
        let Spare { number, salt, file } = self.spares.pop_front().ok_or_else(no_segment)?;
        self.current = Some(Open { number, salt, file, offset: HEAD_BYTES as u64 });
        Ok(())
    }

    /// The file is not written to again. Another takes its place at once, where one is ready.
    pub(super) fn fail(&mut self, error: io::Error) {
        tracing::error!(%error, "the journal's file failed");
        self.give_up(error);
        self.repair();
        if self.failure.is_some() {
            tracing::error!("nothing is admitted until the journal has another file");
        }
    }

    fn give_up(&mut self, error: io::Error) {
        if let Some(open) = self.current.take() {
            self.old.insert(open.number, Old { last_seq: self.last_seq() });
        }
        self.full.clear();
        self.failure = Some(error);
        self.failures += 1;
    }

    /// After a failure, writes everything again that is not known to be on the disk, to segments that were made ahead of need. Tries
    /// as often as there is room for all of it, and tells whether the journal goes on.
    pub(super) fn repair(&mut self) -> bool {
        while self.failure.is_some() && self.can_repair() {
            let records: Vec<(u64, Vec<u8>)> = self.unsynced.records().collect();
            match records.iter().try_for_each(|(seq, body)| self.write(&[(*seq, body)])) {
                Ok(()) => {
                    self.failure = None;
                    tracing::info!(records = records.len(), "the journal goes on in another file");
                }
                Err(error) => self.give_up(error),
            }
        }
        self.failure.is_none()
    }

    fn can_repair(&self) -> bool {
        !self.spares.is_empty() && self.room_bytes() >= self.unsynced.frames_bytes()
    }

    pub(super) fn opened(&mut self, request_id: [u8; 16], seq: u64, sent: Vec<u8>) {
        // Sent once more without having failed: until that is on the disk, the earlier record is needed.
        match self.requests.entry(request_id) {
            Entry::Vacant(request) => _ = request.insert(Request { seq, sent, progress: None }),
            Entry::Occupied(mut request) => request.get_mut().sent = sent,
        }
    }

    pub(super) fn progressed(&mut self, request_id: [u8; 16], body: &[u8]) {
        if let Some(request) = self.requests.get_mut(&request_id) {
            request.progress = Some(body.to_vec());
        }
    }

    pub(super) fn closed(&mut self, request_id: [u8; 16], seq: u64) {
        if let Some(request) = self.requests.remove(&request_id) {
            self.ended.push_back(Ended { seq, first_seq: request.seq });
        }
    }

    /// Writes what the oldest segment holds of open requests once more. When that is on the disk, and [`State::carried`] was told, the
    /// segment can go.
    pub(super) fn carry_forward(&mut self) -> Option<Carried> {
        let (_, &Old { last_seq }) = self.old.first_key_value()?;
        if last_seq > self.applied_seq || self.failure.is_some() {
            return None;
        }
        let held: Vec<([u8; 16], Vec<Vec<u8>>)> = self
            .requests
            .iter()
            .filter(|(_, request)| request.seq <= last_seq)
            .map(|(id, request)| (*id, [Some(request.sent.clone()), request.progress.clone()]))
            .map(|(id, bodies)| (id, bodies.into_iter().flatten().collect()))
            .collect();
        let mut requests = Vec::new();
        for (request_id, bodies) in held {
            // Each may come with a mark of what is synced.
            let bytes: usize = bodies.iter().map(|body| body.len() + 3 * FRAME_HEAD_BYTES).sum();
            if self.room_bytes().saturating_sub(self.reserved_bytes) < bytes as u64 + TAIL_BYTES {
                break;
            }
            let seqs: Vec<u64> = bodies.iter().map(|body| self.append(body)).collect();
            requests.extend(seqs.first().map(|seq| (request_id, *seq)));
        }
        (!requests.is_empty() && self.failure.is_none())
            .then(|| Carried { requests, to_sync: self.everything() })
    }

    /// What was carried forward is on the disk.
    pub(super) fn carried(&mut self, carried: &Carried) {
        if carried.to_sync.failures != self.failures {
            return;
        }
        for (request_id, seq) in &carried.requests {
            if let Some(request) = self.requests.get_mut(request_id) {
                request.seq = request.seq.max(*seq);
            }
        }
    }

    /// The oldest segment, if nothing in it is needed: all before it is gone, all in it is applied, no open request rests on it. What
    /// makes that so is on the disk, and so is what follows it: a power cut leaves no journal whose beginning is missing.
    pub(super) fn removable(&self) -> Option<u64> {
        self.oldest_applied()
            .filter(|(_, last_seq)| !self.waits_for_disk(*last_seq))
            .map(|(number, _)| number)
    }

    /// Whether the oldest segment could go, were all that was appended on the disk.
    pub(super) fn is_removal_waiting(&self) -> bool {
        self.failure.is_none()
            && self.oldest_applied().is_some_and(|(_, last_seq)| self.waits_for_disk(last_seq))
    }

    fn oldest_applied(&self) -> Option<(u64, u64)> {
        let (&number, &Old { last_seq }) = self.old.first_key_value()?;
        let is_needed = self.requests.values().any(|request| request.seq <= last_seq);
        (last_seq <= self.applied_seq && !is_needed).then_some((number, last_seq))
    }

    fn waits_for_disk(&self, last_seq: u64) -> bool {
        self.synced_seq <= last_seq || self.ended.iter().any(|ended| ended.first_seq <= last_seq)
    }

    pub(super) fn removed(&mut self, number: u64) {
        if let Some(old) = self.old.remove(&number) {
            self.full.retain(|full| full.last_seq > old.last_seq);
        }
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
        self.has_to_sync().then(|| self.everything())
    }

    pub(super) fn has_to_sync(&self) -> bool {
        self.last_seq() > self.told_seq && self.failure.is_none()
    }

    pub(super) fn everything(&self) -> ToSync {
        let mut files: Vec<Arc<dyn Segment>> = self.full.iter().map(|full| Arc::clone(&full.file)).collect();
        files.extend(self.current.as_ref().map(|open| Arc::clone(&open.file)));
        ToSync { files, seq: self.last_seq(), failures: self.failures }
    }

    /// These files were waited for. Tells whether everything up to that number is on the disk: not where a file failed meanwhile, since
    /// what was not known to be there then is written again.
    pub(super) fn synced(&mut self, done: &ToSync) -> bool {
        if done.failures != self.failures {
            return false;
        }
        // A file that went on being written to while it was waited for is waited for once more.
        self.full.retain(|full| full.last_seq > done.seq);
        self.unsynced.forget_to(done.seq);
        self.synced_mark = Some(done.seq);
        self.synced_seq = self.synced_seq.max(done.seq);
        self.told_seq = self.told_seq.max(done.seq);
        while self.ended.pop_front_if(|ended| ended.seq <= done.seq).is_some() {}
        true
    }

    /// What the system has is as good as on the disk. The number up to which that is news.
    pub(super) fn written(&mut self) -> Option<u64> {
        self.has_to_sync().then(|| {
            self.told_seq = self.last_seq();
            self.told_seq
        })
    }

    /// What is to be waited for all the same, so that memory does not fill up with what would be written again after a failure.
    pub(super) fn much_to_sync(&self) -> Option<ToSync> {
        (self.unsynced.bytes() > UNSYNCED_MUCH_BYTES && self.failure.is_none()).then(|| self.everything())
    }

    /// Waiting for these files failed.
    pub(super) fn unsynced(&mut self, failed: &ToSync, error: io::Error) {
        if failed.failures == self.failures {
            self.fail(error);
        }
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
            || (self.failure.is_some() && !self.can_repair())
    }

    /// What may be taken above the bound of all segments: a journal that cannot be repaired would keep what is settled in memory alone.
    pub(super) fn excess_bytes(&self) -> u64 {
        let segments =
            self.unsynced.frames_bytes() / self.segment_bytes.saturating_sub(TAIL_BYTES).max(1) + 2;
        if self.failure.is_some() { segments * self.segment_bytes } else { 0 }
    }

    /// More is waiting for the disk than is to be kept in memory.
    pub(super) fn is_behind(&self) -> bool {
        self.unsynced.bytes() > UNSYNCED_MAX_BYTES
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

    /// Notes that there is something to tidy. Whether the thread that does it must be woken.
    pub(super) fn want_keeper(&mut self) -> bool {
        self.is_keeper_wanted = true;
        std::mem::take(&mut self.is_keeper_asleep)
    }

    pub(super) fn is_keeper_wanted(&self) -> bool {
        self.is_keeper_wanted
    }

    pub(super) fn keeper_begins(&mut self) {
        (self.is_keeper_wanted, self.is_keeper_asleep) = (false, false);
    }

    pub(super) fn keeper_sleeps(&mut self) {
        self.is_keeper_asleep = true;
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures
    }
}

fn no_segment() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "no segment is ready")
}
