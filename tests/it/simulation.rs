//! The journal, the writer and the recovery over a simulated disk and database: a crash between any two steps, writes that are torn,
//! waits that fail, a disk that is full, answers that are lost. A seed repeats what happened: `WEIR_SIMULATION_SEED=17` runs that one,
//! `WEIR_SIMULATION_SEEDS=1000000` as many from the first on.

mod bill;
mod database;
mod disk;
mod journal;
mod rng;
mod world;

use database::SimDatabase;
use rng::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use weir::ids::AccountId;
use world::World;

/// Seeds in a run, if they fit into its time.
const SEEDS: u64 = 4_000;
const SEEDS_MIN: u64 = 1_000;
const TIME_MAX: Duration = Duration::from_secs(20);
const THREADS: usize = 2;

#[test]
fn nothing_is_lost_and_nothing_doubled_whenever_the_process_dies() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("WEIR_SIMULATION_SEED") {
        return life(seed);
    }
    let soak = number("WEIR_SIMULATION_SEEDS");
    let (next, begun) = (AtomicU64::new(0), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let is_enough = soak.is_none() && seed >= SEEDS_MIN && begun.elapsed() > TIME_MAX;
                    if is_enough || seed >= soak.unwrap_or(SEEDS) {
                        return;
                    }
                    life(seed);
                }
            });
        }
    });
    eprintln!("{} seeds in {:?}", next.load(Ordering::Relaxed), begun.elapsed());
}

/// Tells which seed it was.
struct Telling(u64);

impl Drop for Telling {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the simulation fails with WEIR_SIMULATION_SEED={}", self.0);
        }
    }
}

/// Some processes, one after another, on one database.
fn life(seed: u64) {
    let _telling = Telling(seed);
    let mut rng = Rng::new(seed);
    let database = Arc::new(SimDatabase::new(rng.fork()));
    let accounts: Vec<AccountId> =
        (0..3).map(|_| AccountId::from_slice(&rng.bytes16()).expect("16 bytes")).collect();
    for account in &accounts {
        database.tables().top_up(*account, 20_000 + i64::try_from(rng.below(400_000)).unwrap());
    }
    for _ in 0..1 + rng.below(3) {
        let steps = 20 + rng.below(500);
        let world = World::new(rng.fork(), Arc::clone(&database), accounts.clone());
        let mut done = 0;
        while done < steps && world.step() {
            done += 1;
        }
        world.recover();
    }
}
