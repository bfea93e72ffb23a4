//! A refund: no credit can be spent while it is given back.
//!
//! The account is frozen, sessions return what they do not use, and then the unused part of the lot is paid, all of it idempotent by key.

use super::LedgerError;
use crate::clock::{Clock, UnixMicros};
use crate::ids::{AccountId, LotId};
use crate::money::Micros;
use crate::store::{Refund, RefundStep, Store};
use std::time::Duration;

/// A refund that was paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refunded {
    /// What was given back.
    pub refunded: Micros,
    /// The balance after it.
    pub balance: Micros,
}

/// How long requests under way are waited for.
const WAIT_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Looks between two recalls: what a request held is free when it ends, and has to be asked for once more.
const LOOKS_PER_RECALL: u32 = 5;
/// How long the freeze lasts should this process die before it ends it: longer than it can take.
const FROZEN_MAX_US: i64 = 60_000_000;

/// Gives the unused part of a lot back, as far as the account's credit covers it.
///
/// # Errors
///
/// `InUse` when requests under way still hold credit of the account after ten seconds: nothing was paid, and the account works as before.
pub async fn refund(
    store: &Store,
    account: AccountId,
    lot: LotId,
    idempotency_key: Option<String>,
    clock: &Clock,
) -> Result<Refunded, LedgerError> {
    let refund = Refund { account_id: account, lot_id: lot, idempotency_key };
    let until = UnixMicros(clock.wall().0.saturating_add(FROZEN_MAX_US));
    store.freeze_for_refund(&refund, until).await?;
    let paid = pay(store, &refund, clock).await;
    if paid.is_err() {
        store.unfreeze(account).await?;
    }
    paid
}

async fn pay(store: &Store, refund: &Refund, clock: &Clock) -> Result<Refunded, LedgerError> {
    let until = clock.now() + WAIT_MAX;
    let mut looks = 0_u32;
    loop {
        match store.pay_refund(refund, clock.wall()).await? {
            RefundStep::Paid { refunded, balance } => return Ok(Refunded { refunded, balance }),
            RefundStep::Waiting { unreturned } if clock.now() >= until => {
                return Err(LedgerError::InUse(format!(
                    "{unreturned} USD of the account are in use by requests under way, or by a session that has ended without \
                     having been recovered (starting weir does that); nothing was paid, try again later"
                )));
            }
            RefundStep::Waiting { .. } => {
                tokio::time::sleep(LOOK_EVERY).await;
                looks += 1;
                if looks.is_multiple_of(LOOKS_PER_RECALL) {
                    store.recall(refund.account_id).await?;
                }
            }
        }
    }
}
