//! What has happened in all plays together: to check what never happens says nothing.

use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    Refund,
    PartialRefund,
    Wait,
    Repeat,
    Conflict,
    WriteOff,
    Owed,
    Late,
    Quarantine,
    Short,
}

const ALL: [Event; 10] = [
    Event::Refund,
    Event::PartialRefund,
    Event::Wait,
    Event::Repeat,
    Event::Conflict,
    Event::WriteOff,
    Event::Owed,
    Event::Late,
    Event::Quarantine,
    Event::Short,
];

#[derive(Debug, Default)]
pub(super) struct Seen(BTreeMap<Event, u32>);

impl Seen {
    pub(super) fn note(&mut self, event: Event, has_happened: bool) {
        *self.0.entry(event).or_default() += u32::from(has_happened);
    }

    pub(super) fn add(&mut self, other: &Seen) {
        other.0.iter().for_each(|(event, count)| *self.0.entry(*event).or_default() += count);
    }

    pub(super) fn assert_all(&self) {
        let never = ALL.iter().filter(|event| self.0.get(event).is_none_or(|count| *count == 0));
        assert_eq!(never.collect::<Vec<_>>(), Vec::<&Event>::new(), "never happened in {self:?}");
    }
}
