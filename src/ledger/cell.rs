//! The credit of one lease in memory: what is free and what is held, in pico-dollars.
//!
//! Promises: nothing is held that was not free, and nothing is consumed that was neither; whatever threads do at once. One word each,
//! changed by compare-and-swap: no lock on the way of a request.

use crate::money::Picos;
use std::sync::atomic::{AtomicI64, Ordering};

/// What is left of a lease.
///
/// Invariant: free and held are never below zero, and free + held + what settlements covered = what was put in less what was taken out.
#[derive(Debug, Default)]
pub struct Cell {
    free_pico: AtomicI64,
    held_pico: AtomicI64,
}

impl Cell {
    /// An empty lease.
    pub const fn new() -> Self {
        Cell { free_pico: AtomicI64::new(0), held_pico: AtomicI64::new(0) }
    }

    /// Holds an amount, if so much is free.
    ///
    /// While it moves it counts as held and as free: who adds both up never finds less than there is.
    pub fn hold(&self, amount: Picos) -> bool {
        if self.free().0 < amount.0 {
            return false;
        }
        self.held_pico.fetch_add(amount.0, Ordering::AcqRel);
        let held = self.free_pico.fetch_update(Ordering::AcqRel, Ordering::Acquire, |free| {
            free.checked_sub(amount.0).filter(|left| *left >= 0)
        });
        if held.is_err() {
            self.held_pico.fetch_sub(amount.0, Ordering::AcqRel);
        }
        held.is_ok()
    }

    /// Ends a hold with what it cost, and tells how much of that the lease covered: the hold first, then what is free.
    pub fn settle(&self, held: Picos, cost: Picos) -> Picos {
        let from_hold = cost.0.min(held.0);
        let covered = from_hold + self.take(cost.0 - from_hold);
        self.free_pico.fetch_add(held.0 - from_hold, Ordering::AcqRel);
        self.held_pico.fetch_sub(held.0, Ordering::AcqRel);
        Picos(covered)
    }

    /// Ends a hold that cost nothing.
    pub fn release(&self, held: Picos) {
        self.settle(held, Picos(0));
    }

    /// Puts credit in.
    pub fn put(&self, amount: Picos) {
        self.free_pico.fetch_add(amount.0, Ordering::AcqRel);
    }

    /// Takes free credit out, in whole multiples of `unit`, at most `most`.
    pub fn take_units(&self, most: Picos, unit: Picos) -> Picos {
        let part = |free: i64| free.min(most.0) / unit.0 * unit.0;
        let before = self.free_pico.fetch_update(Ordering::AcqRel, Ordering::Acquire, |free| {
            Some(free - part(free)).filter(|_| part(free) > 0)
        });
        Picos(before.map_or(0, part))
    }

    /// What is neither held nor consumed.
    pub fn free(&self) -> Picos {
        Picos(self.free_pico.load(Ordering::Acquire))
    }

    /// What open requests hold.
    pub fn held(&self) -> Picos {
        Picos(self.held_pico.load(Ordering::Acquire))
    }

    /// Takes up to `wanted` out of what is free.
    fn take(&self, wanted: i64) -> i64 {
        if wanted <= 0 {
            return 0;
        }
        let before = self
            .free_pico
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |free| Some(free - free.min(wanted)));
        before.map_or(0, |free| free.min(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_above_its_hold_is_covered_as_far_as_credit_is_free() {
        let cell = Cell::new();
        cell.put(Picos(100));
        assert!(cell.hold(Picos(60)));
        assert!(!cell.hold(Picos(41)));
        assert_eq!(cell.settle(Picos(60), Picos(75)), Picos(75));
        assert_eq!((cell.free(), cell.held()), (Picos(25), Picos(0)));
        assert!(cell.hold(Picos(10)));
        assert_eq!(cell.settle(Picos(10), Picos(100)), Picos(25), "the rest is above the lease");
        assert_eq!((cell.free(), cell.held()), (Picos(0), Picos(0)));
    }

    #[test]
    fn what_is_taken_out_is_whole_units_of_what_is_free() {
        let cell = Cell::new();
        cell.put(Picos(2_500_000));
        assert!(cell.hold(Picos(400_000)));
        assert_eq!(cell.take_units(Picos(i64::MAX), Picos(1_000_000)), Picos(2_000_000));
        assert_eq!(cell.take_units(Picos(i64::MAX), Picos(1_000_000)), Picos(0));
        cell.release(Picos(400_000));
        assert_eq!(cell.free(), Picos(500_000));
    }
}
