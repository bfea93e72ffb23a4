//! The records of a journal that was read, as the bytes that they were written in.
//!
//! Promises: each is taken apart when it is asked for, and only then, so that a full journal of millions takes little more memory than it
//! takes on the disk. Refuses to know: whether they are whole; they were when they came in.

use super::record::Record;
use std::ops::Range;

/// Records with their sequence numbers, in order and without a gap.
#[derive(Debug, Default)]
pub(super) struct Records {
    first_seq: u64,
    places: Vec<Place>,
    segments: Vec<Vec<u8>>,
}

/// Where the body of a record stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    segment: u32,
    offset: u32,
    bytes: u32,
}

impl Records {
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn first_seq(&self) -> Option<u64> {
        (!self.is_empty()).then_some(self.first_seq)
    }

    pub(super) fn last_seq(&self) -> Option<u64> {
        self.first_seq().map(|first_seq| first_seq + self.places.len() as u64 - 1)
    }

    /// The body of the record of this number.
    pub(super) fn body(&self, seq: u64) -> Option<&[u8]> {
        let at = usize::try_from(seq.checked_sub(self.first_seq()?)?).ok()?;
        self.at(self.places.get(at)?)
    }

    /// Takes a segment, and the places in it of the bodies of the records that follow the last one. The first of all has this number.
    pub(super) fn extend(&mut self, first_seq: u64, segment: Vec<u8>, bodies: &[Range<usize>]) {
        if bodies.is_empty() {
            return;
        }
        if self.is_empty() {
            self.first_seq = first_seq;
        }
        let number = narrow(self.segments.len());
        let place = |body: &Range<usize>| Place {
            segment: number,
            offset: narrow(body.start),
            bytes: narrow(body.len()),
        };
        self.places.extend(bodies.iter().map(place));
        self.segments.push(segment);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, Record)> {
        let places = (self.first_seq..).zip(&self.places);
        places.filter_map(|(seq, place)| Some((seq, Record::from_body(self.at(place)?)?)))
    }

    fn at(&self, place: &Place) -> Option<&[u8]> {
        let start = place.offset as usize;
        self.segments.get(place.segment as usize)?.get(start..start + place.bytes as usize)
    }
}

/// Segments are far below 4 GiB, and there are far fewer of them.
fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
