//! Waiting for the disk, and tidying: what the journal's threads do, one step at a time.

use super::scan::{head, name};
use super::state::Spare;
use super::{Durability, Journal};
use std::io;

impl Journal {
    /// Waits until what has been appended is on the disk, unless nobody wants that. Tells whether there was anything.
    pub fn sync_once(&self) -> bool {
        let Some(to_sync) = self.state().to_sync() else { return false };
        let synced = match self.0.settings.durability {
            Durability::Os => Ok(()),
            Durability::Group | Durability::Strict => to_sync.files.iter().try_for_each(|file| file.sync()),
        };
        match synced {
            Ok(()) => {
                self.state().synced(&to_sync, self.0.settings.durability != Durability::Os);
                self.0.durable.send_replace(to_sync.seq);
            }
            // After a failed wait the system may have dropped what was written: the file cannot be trusted again.
            Err(error) => self.state().fail(error),
        }
        true
    }

    /// Makes segments ahead of need, repairs after a failure, and removes what is no longer needed.
    ///
    /// # Errors
    ///
    /// No room for a segment that is needed.
    pub fn keep_once(&self) -> io::Result<()> {
        self.remove_old()?;
        while let Some(number) = self.wanted_number() {
            let mut salt = [0; 8];
            getrandom::fill(&mut salt).map_err(io::Error::other)?;
            let salt = u64::from_le_bytes(salt);
            let file = self.0.disk.create(&name(number), self.0.settings.segment_bytes, &head(salt))?;
            let mut state = self.state();
            state.add_spare(Spare { number, salt, file });
            if state.has_failed()
                && let Err(error) = state.repair()
            {
                state.fail(error);
            }
        }
        Ok(())
    }

    fn wanted_number(&self) -> Option<u64> {
        let settings = &self.0.settings;
        let mut state = self.state();
        let has_room = (state.segments() + 1).saturating_mul(settings.segment_bytes) <= settings.max_bytes;
        let is_wanted = state.has_failed() || state.is_low();
        (is_wanted && has_room).then(|| {
            state.next_number += 1;
            state.next_number - 1
        })
    }

    /// In order of age, each removal on the disk before the next: what settles a request never goes before what says it was sent.
    fn remove_old(&self) -> io::Result<()> {
        loop {
            let number = {
                let mut state = self.state();
                if state.is_crowded() {
                    state.carry_forward();
                }
                state.removable()
            };
            let Some(number) = number else { return Ok(()) };
            self.0.disk.remove(&name(number))?;
            self.state().removed(number);
        }
    }
}
