//! What is kept in memory until it is on the disk.

use super::record::FRAME_HEAD_BYTES;
use std::collections::VecDeque;

/// Records that are not known to be on the disk: their numbers and bodies, to be written again should the file fail.
#[derive(Default)]
pub(super) struct Unsynced {
    bytes: Vec<u8>,
    first_seq: u64,
    lengths: VecDeque<u32>,
}

impl Unsynced {
    /// The next record.
    pub(super) fn push(&mut self, seq: u64, body: &[u8]) {
        if self.lengths.is_empty() {
            self.first_seq = seq;
            self.bytes.clear();
        }
        self.lengths.push_back(u32::try_from(body.len()).unwrap_or(u32::MAX));
        self.bytes.extend_from_slice(body);
    }

    /// What is on the disk.
    pub(super) fn forget_to(&mut self, seq: u64) {
        let mut gone = 0;
        while self.first_seq <= seq
            && let Some(length) = self.lengths.pop_front()
        {
            gone += length as usize;
            self.first_seq += 1;
        }
        self.bytes.drain(..gone.min(self.bytes.len()));
    }

    /// What the bodies take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// What they take in a segment.
    pub(super) fn frames_bytes(&self) -> u64 {
        (self.bytes.len() + self.lengths.len() * FRAME_HEAD_BYTES) as u64
    }

    /// All of them, in order.
    pub(super) fn records(&self) -> impl Iterator<Item = (u64, Vec<u8>)> {
        let mut at = 0;
        (self.first_seq..).zip(&self.lengths).map(move |(seq, length)| {
            let body = self.bytes[at..at + *length as usize].to_vec();
            at += *length as usize;
            (seq, body)
        })
    }
}
