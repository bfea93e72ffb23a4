//! Waiting for the disk, and tidying: what the journal's threads do, one step at a time.

use super::scan::{head, name};
use super::state::{Spare, ToSync};
use super::{Durability, Journal};
use std::io;

impl Journal {
    /// Waits until what has been appended is on the disk, or, where nobody wants that, notes that the system has it. Tells whether there
    /// was anything.
    pub fn sync_once(&self) -> bool {
        if self.0.settings.durability == Durability::Os {
            let written = self.state().written();
            let to_sync = self.state().much_to_sync();
            to_sync.inspect(|to_sync| _ = self.wait_for(to_sync));
            written.inspect(|seq| self.tell_durable(*seq)).is_some()
        } else {
            let to_sync = self.state().to_sync();
            to_sync.inspect(|to_sync| _ = self.wait_for(to_sync)).is_some()
        }
    }

    /// Makes segments ahead of need, repairs after a failure, and removes what is no longer needed.
    ///
    /// # Errors
    ///
    /// No room for a segment that is needed, or one that is not needed cannot be removed.
    pub fn keep_once(&self) -> io::Result<()> {
        self.state().keeper_begins();
        // Neither keeps the other from being done.
        let removed = self.remove_old();
        self.make_spares().and(removed)
    }

    /// Tells whether what was to be waited for is on the disk.
    fn wait_for(&self, to_sync: &ToSync) -> bool {
        match to_sync.files.iter().try_for_each(|file| file.sync()) {
            Ok(()) => {
                let is_synced = self.state().synced(to_sync);
                if is_synced {
                    self.tell_durable(to_sync.seq);
                }
                is_synced
            }
            // After a failed wait the system may have dropped what was written: the file cannot be trusted again.
            Err(error) => {
                self.state().unsynced(to_sync, error);
                false
            }
        }
    }

    fn tell_durable(&self, seq: u64) {
        self.0.durable.send_if_modified(|durable| {
            let is_further = seq > *durable;
            *durable = seq.max(*durable);
            is_further
        });
    }

    fn make_spares(&self) -> io::Result<()> {
        while let Some(number) = self.wanted_number() {
            let mut salt = [0; 8];
            getrandom::fill(&mut salt).map_err(io::Error::other)?;
            let salt = u64::from_le_bytes(salt);
            let file = self.0.disk.create(&name(number), self.0.settings.segment_bytes, &head(salt))?;
            let mut state = self.state();
            state.add_spare(Spare { number, salt, file });
            if state.has_failed() && state.repair() && state.take_syncer() {
                self.0.to_sync.notify_one();
            }
        }
        Ok(())
    }

    fn wanted_number(&self) -> Option<u64> {
        let settings = &self.0.settings;
        let mut state = self.state();
        let most_bytes = settings.max_bytes.saturating_add(state.excess_bytes());
        let has_room = (state.segments() + 1).saturating_mul(settings.segment_bytes) <= most_bytes;
        (state.is_low() && has_room).then(|| {
            state.next_number += 1;
            state.next_number - 1
        })
    }

    /// In order of age, each removal on the disk before the next: what settles a request never goes before what says it was sent. What
    /// is still needed of a segment is on the disk in another one before it goes.
    fn remove_old(&self) -> io::Result<()> {
        loop {
            let carried = {
                let mut state = self.state();
                if state.is_crowded() { state.carry_forward() } else { None }
            };
            if let Some(carried) = carried
                && self.wait_for(&carried.to_sync)
            {
                self.state().carried(&carried);
            }
            // Where nobody else waits for the disk, this does, once for a segment.
            let to_sync = {
                let state = self.state();
                let is_waiting = self.0.settings.durability == Durability::Os && state.is_removal_waiting();
                is_waiting.then(|| state.everything())
            };
            if let Some(to_sync) = to_sync {
                self.wait_for(&to_sync);
            }
            let Some(number) = self.state().removable() else { return Ok(()) };
            self.0.disk.remove(&name(number))?;
            self.state().removed(number);
        }
    }
}
