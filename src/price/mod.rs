//! What models cost: a versioned book, and the arithmetic of one request.
//!
//! Promises: a cost is a plain sum of disjoint classes, exact in pico-dollars; a used class is never free for want of a price;
//! a lookup on the way of a request allocates nothing. Refuses to know: where rows are kept, what time it is, who pays.
//!
//! Invariant: an import of a model replaces that model's whole set of prices. All rows of a set carry the import's version and
//! date; the set in force at a time is the latest that has begun, and of two that begin together the one with the higher version.

mod book;
pub mod file;
mod model;
mod rises;

pub use book::Book;
pub use model::{Cost, ModelPrice, Rates};
pub use rises::{NOTICE, Rise, rises};

/// The price file that an empty book begins with: `conf/prices.toml`.
pub const SEED: &str = include_str!("../../conf/prices.toml");
/// What messages call [`SEED`].
pub const SEED_NAME: &str = "conf/prices.toml";
