//! The credit of one lease in memory: what is free and what is held, in pico-dollars.
//!
//! Promises: nothing is held that was not free, and nothing is consumed that was neither; whatever threads do at once. One word each,
//! changed by compare-and-swap: no lock on the way of a request.

use crate::money::Picos;
use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};

/// What is left of a lease.
///
/// Invariant: free and held are never below zero, and free + held + what settlements covered = what was put in less what was taken out.
#[derive(Debug, Default)]
pub struct Cell<W = AtomicI64> {
    free_pico: W,
    held_pico: W,
}

/// A number that several threads change at once. The seam at which a test decides whose turn it is.
pub trait Word: fmt::Debug + Default {
    /// The number.
    fn load(&self) -> i64;
    /// Adds to it.
    fn add(&self, amount: i64);
    /// Makes it what `next` gives, and tells what it was; `Err` tells what it is where `next` gives nothing.
    fn update(&self, next: impl FnMut(i64) -> Option<i64>) -> Result<i64, i64>;
}

impl Word for AtomicI64 {
    fn load(&self) -> i64 {
        AtomicI64::load(self, Ordering::Acquire)
    }

    fn add(&self, amount: i64) {
        self.fetch_add(amount, Ordering::AcqRel);
    }

    fn update(&self, next: impl FnMut(i64) -> Option<i64>) -> Result<i64, i64> {
        self.fetch_update(Ordering::AcqRel, Ordering::Acquire, next)
    }
}

impl Cell {
    /// An empty lease.
    pub const fn new() -> Self {
        Cell { free_pico: AtomicI64::new(0), held_pico: AtomicI64::new(0) }
    }
}

impl<W: Word> Cell<W> {
    /// Holds an amount, if so much is free.
    ///
    /// While it moves it counts as held and as free: who adds both up never finds less than there is.
    pub fn hold(&self, amount: Picos) -> bool {
        if self.free().0 < amount.0 {
            return false;
        }
        self.held_pico.add(amount.0);
        let held = self.free_pico.update(|free| free.checked_sub(amount.0).filter(|left| *left >= 0)).is_ok();
        if !held {
            self.held_pico.add(-amount.0);
        }
        held
    }

    /// Ends a hold with what it cost, and tells how much of that the lease covered: the hold first, then what is free.
    pub fn settle(&self, held: Picos, cost: Picos) -> Picos {
        let from_hold = cost.0.min(held.0);
        let covered = from_hold + self.take(cost.0 - from_hold);
        self.free_pico.add(held.0 - from_hold);
        self.held_pico.add(-held.0);
        Picos(covered)
    }

    /// Ends a hold that cost nothing.
    pub fn release(&self, held: Picos) {
        self.settle(held, Picos(0));
    }

    /// Puts credit in.
    pub fn put(&self, amount: Picos) {
        self.free_pico.add(amount.0);
    }

    /// Takes free credit out, in whole multiples of `unit`, at most `most`.
    pub fn take_units(&self, most: Picos, unit: Picos) -> Picos {
        let part = |free: i64| free.min(most.0) / unit.0 * unit.0;
        let before = self.free_pico.update(|free| Some(free - part(free)).filter(|_| part(free) > 0));
        Picos(before.map_or(0, part))
    }

    /// What is neither held nor consumed.
    pub fn free(&self) -> Picos {
        Picos(self.free_pico.load())
    }

    /// What open requests hold.
    pub fn held(&self) -> Picos {
        Picos(self.held_pico.load())
    }

    /// Takes up to `wanted` out of what is free.
    fn take(&self, wanted: i64) -> i64 {
        if wanted <= 0 {
            return 0;
        }
        let before = self.free_pico.update(|free| Some(free - free.min(wanted)));
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

    /// A number of which every order of access can be tried, and which is never below zero.
    #[derive(Debug, Default)]
    struct Scheduled(shuttle::sync::atomic::AtomicI64);

    impl Word for Scheduled {
        fn load(&self) -> i64 {
            self.0.load(Ordering::SeqCst)
        }

        fn add(&self, amount: i64) {
            let before = self.0.fetch_add(amount, Ordering::SeqCst);
            assert!(before + amount >= 0, "below zero: {before} and {amount}");
        }

        fn update(&self, mut next: impl FnMut(i64) -> Option<i64>) -> Result<i64, i64> {
            self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |before| {
                let after = next(before);
                assert!(after.unwrap_or(0) >= 0, "below zero: {before} became {after:?}");
                after
            })
        }
    }

    /// One that forgets that others may change it between the look and the write.
    #[derive(Debug, Default)]
    struct Careless(Scheduled);

    impl Word for Careless {
        fn load(&self) -> i64 {
            self.0.load()
        }

        fn add(&self, amount: i64) {
            self.0.add(amount);
        }

        fn update(&self, mut next: impl FnMut(i64) -> Option<i64>) -> Result<i64, i64> {
            let before = self.0.load();
            let after = next(before).ok_or(before)?;
            self.0.0.store(after, Ordering::SeqCst);
            Ok(before)
        }
    }

    const UNIT: i64 = 10;

    /// What a thread did to the credit as a whole.
    #[derive(Clone, Copy, Debug, Default)]
    struct Moved {
        put: i64,
        taken: i64,
        covered: i64,
    }

    /// What one thread does to the cell.
    #[derive(Clone, Copy, Debug)]
    enum Work {
        /// Holds the first, and settles at the second if it could.
        Request(i64, i64),
        Put(i64),
        TakeUnits,
    }

    impl Work {
        fn run<W: Word>(self, cell: &Cell<W>) -> Moved {
            let mut moved = Moved::default();
            match self {
                Work::Request(amount, cost) => {
                    if cell.hold(Picos(amount)) {
                        moved.covered = cell.settle(Picos(amount), Picos(cost)).0;
                        assert!(moved.covered >= cost.min(amount), "a hold covers its cost");
                        assert!(moved.covered <= cost, "no more is consumed than it cost");
                    }
                }
                Work::Put(amount) => {
                    cell.put(Picos(amount));
                    moved.put = amount;
                }
                Work::TakeUnits => {
                    moved.taken = cell.take_units(Picos(2 * UNIT), Picos(UNIT)).0;
                    assert!(moved.taken % UNIT == 0 && moved.taken <= 2 * UNIT);
                }
            }
            moved
        }
    }

    /// All of this at once, on a cell with so much in it.
    fn at_once<W: Word + Send + Sync + 'static>(put: i64, threads: &[&'static [Work]]) {
        let cell = shuttle::sync::Arc::new(Cell::<W>::default());
        cell.put(Picos(put));
        let running: Vec<_> = threads
            .iter()
            .map(|works| {
                let (cell, works) = (shuttle::sync::Arc::clone(&cell), *works);
                shuttle::thread::spawn(move || works.iter().map(|work| work.run(&cell)).collect::<Vec<_>>())
            })
            .collect();
        let moved: Vec<Moved> = running.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        let sum = |of: fn(&Moved) -> i64| moved.iter().map(of).sum::<i64>();
        assert_eq!(cell.held(), Picos(0), "every hold has ended");
        assert_eq!(
            cell.free().0,
            put + sum(|moved| moved.put) - sum(|moved| moved.taken) - sum(|moved| moved.covered),
            "credit was made or lost: {moved:?}"
        );
    }

    const ABOVE_ITS_HOLD: &[Work] = &[Work::Request(20, 45)];
    const BELOW_ITS_HOLD: &[Work] = &[Work::Request(30, 5)];
    const TAKES: &[Work] = &[Work::TakeUnits];

    #[test]
    fn in_every_order_two_threads_neither_make_nor_lose_credit() {
        for pair in [
            [ABOVE_ITS_HOLD, BELOW_ITS_HOLD],
            [ABOVE_ITS_HOLD, ABOVE_ITS_HOLD],
            [ABOVE_ITS_HOLD, TAKES],
            [BELOW_ITS_HOLD, TAKES],
            [TAKES, &[Work::Put(25)]],
        ] {
            shuttle::check_dfs(move || at_once::<Scheduled>(47, &pair), None);
        }
    }

    #[test]
    fn four_busy_threads_neither_make_nor_lose_credit() {
        const THREADS: &[&[Work]] = &[
            &[Work::Request(20, 45), Work::Request(5, 5), Work::Put(10)],
            &[Work::Request(30, 5), Work::TakeUnits, Work::Request(10, 60)],
            &[Work::TakeUnits, Work::Request(40, 40), Work::TakeUnits],
            &[Work::Put(25), Work::Request(60, 61), Work::Request(1, 0)],
        ];
        shuttle::check_random(|| at_once::<Scheduled>(70, THREADS), 2_000);
        shuttle::check_pct(|| at_once::<Scheduled>(70, THREADS), 2_000, 3);
    }

    #[test]
    #[should_panic(expected = "credit was made or lost")]
    fn a_cell_that_looks_before_it_writes_is_found_out() {
        shuttle::check_random(|| at_once::<Careless>(47, &[ABOVE_ITS_HOLD, TAKES]), 2_000);
    }
}
