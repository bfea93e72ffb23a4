//! The database, and the only place that speaks SQL.
//!
//! Promises: each verb is one transaction or one snapshot; every wait is bounded; a transaction that moves money checks the account's
//! numbers in the database itself. Refuses to know: when to grant, what a request costs, who may ask.
//!
//! Amounts are integers: micro-dollars in columns that end in `_micro`, pico-dollars in `_pico`. Times are microseconds since 1970 UTC.

mod account_list;
mod accounts;
mod audit;
mod batch;
mod changes;
mod claims;
mod copy;
mod credit;
mod entries;
mod error;
mod inspect;
mod key_spend;
mod keys;
mod leases;
mod open;
mod prices;
mod refunds;
mod replace;
mod requests;
mod sessions;

pub use account_list::{AccountPage, ListedAccount};
pub use accounts::{Account, AccountStatus, Open};
pub use audit::{AccountBooks, LeaseBooks, SessionBooks, Snapshot};
pub use batch::{Batch, BatchError, RequestRow};
pub use changes::{Change, Subject};
pub use claims::{Claimed, NewClaim};
pub use copy::{CopiedSession, CopyFacts};
pub use credit::{Credited, LotKind, NewCredit};
pub use error::StoreError;
pub use inspect::Inspected;
pub use keys::{KeyPolicy, KeyRecord, NewKey};
pub use leases::{Grant, GrantRefused, Granted, LeaseTotals};
pub use open::{Opened, Store};
pub use prices::{NewPrice, PriceRow};
pub use refunds::{Lot, Refund, RefundStep};
pub use replace::{Difference, Replaceable};
pub use requests::UsageRow;
pub use sessions::{LiveSession, NewSession, SessionState};
