//! Lots as people see them, and the steps of a refund.
//!
//! What is left of a lot is a formula: lots are used first in, first out, so the account's consumption tells it without a write to
//! any lot.

use super::accounts::{self, no_account};
use super::batch::over_due_in;
use super::changes::{self, Subject};
use super::credit::{self, Done, LotKind};
use super::entries::{self, Book, Entry};
use super::open::transact;
use super::{Store, StoreError};
use crate::clock::UnixMicros;
use crate::ids::{AccountId, LotId};
use crate::money::{Micros, Picos};
use sqlx::{Row, Sqlite, Transaction};

/// A lot of credit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lot {
    /// Its identity.
    pub lot_id: LotId,
    /// What it is.
    pub kind: LotKind,
    /// What was credited.
    pub amount: Micros,
    /// What of it was given back.
    pub refunded: Micros,
    /// What of it is neither consumed nor given back.
    pub unused: Micros,
    /// Why it was credited.
    pub reason: String,
    /// When.
    pub created_at: UnixMicros,
}

/// A refund that is asked for.
#[derive(Clone, Debug)]
pub struct Refund {
    /// Whose.
    pub account_id: AccountId,
    /// Which lot.
    pub lot_id: LotId,
    /// A repeat under the same key pays nothing and gets the first one's answer.
    pub idempotency_key: Option<String>,
}

/// What became of one step of a refund.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefundStep {
    /// Sessions still have credit of the account that is not consumed: ask again.
    Waiting {
        /// How much.
        unreturned: Micros,
    },
    /// Paid, now or before.
    Paid {
        /// What was given back.
        refunded: Micros,
        /// The balance after it.
        balance: Micros,
    },
}

impl Store {
    /// The account's lots, in the order in which they are used.
    pub async fn lots(&self, account: AccountId) -> Result<Vec<Lot>, StoreError> {
        transact!(self.reading(), |tx| { lots_in(tx, account).await })
    }

    /// Stops grants to the account, until that time at most, and recalls what sessions have of its credit.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Refused` for a lot that cannot be given back.
    pub async fn freeze_for_refund(&self, refund: &Refund, until: UnixMicros) -> Result<(), StoreError> {
        transact!(self.writing(), |tx| {
            refundable(tx, refund).await?;
            set_frozen(tx, refund.account_id, Some(until)).await?;
            changes::note(tx, Subject::Recall(refund.account_id)).await
        })
    }

    /// Lets the account be granted credit again, whatever became of its refund.
    pub async fn unfreeze(&self, account: AccountId) -> Result<(), StoreError> {
        transact!(self.writing(), |tx| {
            set_frozen(tx, account, None).await?;
            changes::note(tx, Subject::Account(account)).await
        })
    }

    /// Pays the refund once no session has unconsumed credit of the account, and ends the freeze with it.
    pub async fn pay_refund(&self, refund: &Refund, at: UnixMicros) -> Result<RefundStep, StoreError> {
        let request = format!("refund {} {}", refund.account_id, refund.lot_id);
        transact!(self.writing(), |tx| {
            let done = credit::repeated(tx, refund.idempotency_key.as_deref(), &request).await?;
            let refunded = match done {
                Some(done) => done.amount,
                None => {
                    let unreturned = unreturned_in(tx, refund.account_id).await?;
                    if unreturned.0 > 0 {
                        return Ok(RefundStep::Waiting { unreturned });
                    }
                    let refunded = pay(tx, refund, at).await?;
                    let done = Done { lot_id: refund.lot_id, amount: refunded };
                    credit::remember(tx, refund.idempotency_key.as_deref(), &request, done, at).await?;
                    refunded
                }
            };
            set_frozen(tx, refund.account_id, None).await?;
            changes::note(tx, Subject::Account(refund.account_id)).await?;
            let balance = accounts::read(tx, refund.account_id).await?.balance;
            Ok(RefundStep::Paid { refunded, balance })
        })
    }

    /// Gives up what the account owes, and tells how much that was.
    pub async fn write_off(&self, account: AccountId, at: UnixMicros) -> Result<Micros, StoreError> {
        transact!(self.writing(), |tx| {
            let owed: i64 = sqlx::query_scalar("SELECT owed_micro FROM account WHERE id = ?")
                .bind(account.as_bytes())
                .fetch_optional(&mut **tx)
                .await?
                .ok_or_else(|| no_account(account))?;
            sqlx::query(
                "UPDATE account SET owed_micro = 0, written_off_micro = written_off_micro + ? WHERE id = ?",
            )
            .bind(owed)
            .bind(account.as_bytes())
            .execute(&mut **tx)
            .await?;
            let entry = Entry { kind: "write_off", account, session: None, at };
            entries::post(tx, entry, &[(Book::WrittenOff, owed), (Book::Receivable, -owed)]).await?;
            changes::note(tx, Subject::Account(account)).await?;
            Ok(Micros(owed))
        })
    }
}

/// What is left of each lot, in order: `amounts` less what was refunded of them, used first in, first out.
pub(super) fn unused(left_of: &[Micros], consumed: Micros) -> Vec<Micros> {
    let mut before = 0_i64;
    left_of
        .iter()
        .map(|amount| {
            before = before.saturating_add(amount.0);
            Micros((before - consumed.0).clamp(0, amount.0))
        })
        .collect()
}

/// Whole micro-dollars: one that was begun is not given back.
fn begun(amount: Picos) -> i64 {
    let (whole, rest) = amount.split();
    whole.0 + i64::from(rest.0 > 0)
}

async fn lots_in(tx: &mut Transaction<'static, Sqlite>, account: AccountId) -> Result<Vec<Lot>, StoreError> {
    // What was written off was not paid by any lot. What open leases have consumed, and what is still to be collected, is on its
    // way to the account.
    let row = sqlx::query(
        "SELECT consumed_micro - written_off_micro, carry_pico + (SELECT coalesce(sum(u.consumed_pico), 0) \
         FROM lease l JOIN lease_use u ON u.session_id = l.session_id AND u.account_id = l.account_id \
         WHERE l.account_id = ?1 AND l.is_closed = 0) FROM account WHERE id = ?1",
    )
    .bind(account.as_bytes())
    .fetch_optional(&mut **tx)
    .await?
    .ok_or_else(|| no_account(account))?;
    let underway = Picos(row.get(1)).saturating_add(over_due_in(tx, account).await?);
    let consumed = row.get::<i64, _>(0) + begun(underway);
    let rows = sqlx::query("SELECT * FROM lot WHERE account_id = ? ORDER BY seq")
        .bind(account.as_bytes())
        .fetch_all(&mut **tx)
        .await?;
    let left_of: Vec<Micros> = rows
        .iter()
        .map(|row| Micros(row.get::<i64, _>("amount_micro") - row.get::<i64, _>("refunded_micro")))
        .collect();
    rows.iter()
        .zip(unused(&left_of, Micros(consumed)))
        .map(|(row, unused)| {
            Ok(Lot {
                lot_id: LotId::from_slice(row.get("id"))
                    .ok_or_else(|| StoreError::damaged("a lot's identity"))?,
                kind: LotKind::parse(row.get("kind"))?,
                amount: Micros(row.get("amount_micro")),
                refunded: Micros(row.get("refunded_micro")),
                unused,
                reason: row.get("reason"),
                created_at: UnixMicros(row.get("created_at")),
            })
        })
        .collect()
}

/// The lot of a refund, if it is one that can be given back.
async fn refundable(tx: &mut Transaction<'static, Sqlite>, refund: &Refund) -> Result<Lot, StoreError> {
    let lots = lots_in(tx, refund.account_id).await?;
    let lot = lots.into_iter().find(|lot| lot.lot_id == refund.lot_id);
    let lot =
        lot.ok_or_else(|| StoreError::not_found(format!("the account has no lot {}", refund.lot_id)))?;
    match lot.kind {
        LotKind::Paid => Ok(lot),
        LotKind::Promotional | LotKind::Adjustment => Err(StoreError::Refused(format!(
            "lot {} is {}: only what was paid for can be given back",
            lot.lot_id,
            lot.kind.as_str()
        ))),
    }
}

async fn pay(
    tx: &mut Transaction<'static, Sqlite>,
    refund: &Refund,
    at: UnixMicros,
) -> Result<Micros, StoreError> {
    let lot = refundable(tx, refund).await?;
    let row = sqlx::query("SELECT available_micro - owed_micro, carry_pico FROM account WHERE id = ?")
        .bind(refund.account_id.as_bytes())
        .fetch_one(&mut **tx)
        .await?;
    // What is spent and not collected yet is no longer there to be given back.
    let spent = Picos(row.get(1)).saturating_add(over_due_in(tx, refund.account_id).await?);
    let refunded = lot.unused.0.min(row.get::<i64, _>(0) - begun(spent)).max(0);
    sqlx::query("UPDATE lot SET refunded_micro = refunded_micro + ? WHERE id = ?")
        .bind(refunded)
        .bind(refund.lot_id.as_bytes())
        .execute(&mut **tx)
        .await?;
    sqlx::query("UPDATE account SET available_micro = available_micro - ? WHERE id = ?")
        .bind(refunded)
        .bind(refund.account_id.as_bytes())
        .execute(&mut **tx)
        .await?;
    let entry = Entry { kind: "refund", account: refund.account_id, session: None, at };
    entries::post(tx, entry, &[(Book::Customer, refunded), (Book::Cash, -refunded)]).await?;
    Ok(Micros(refunded))
}

/// What open leases have and have not consumed, in whole micro-dollars.
async fn unreturned_in(
    tx: &mut Transaction<'static, Sqlite>,
    account: AccountId,
) -> Result<Micros, StoreError> {
    let unreturned: i64 = sqlx::query_scalar(
        "SELECT coalesce(sum(l.granted_micro - l.returned_micro - (coalesce(u.consumed_pico, 0) + 999999) / 1000000), 0) \
         FROM lease l LEFT JOIN lease_use u ON u.session_id = l.session_id AND u.account_id = l.account_id \
         WHERE l.account_id = ? AND l.is_closed = 0",
    )
    .bind(account.as_bytes())
    .fetch_one(&mut **tx)
    .await?;
    Ok(Micros(unreturned))
}

async fn set_frozen(
    tx: &mut Transaction<'static, Sqlite>,
    account: AccountId,
    until: Option<UnixMicros>,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE account SET is_frozen = ?, frozen_until = ? WHERE id = ?")
        .bind(until.is_some())
        .bind(until.map_or(0, |until| until.0))
        .bind(account.as_bytes())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Uses lots one micro-dollar at a time, as a naive ledger would.
    fn replay(lots: &[i64], consumed: i64) -> Vec<Micros> {
        let mut left = lots.to_vec();
        for _ in 0..consumed {
            if let Some(lot) = left.iter_mut().find(|lot| **lot > 0) {
                *lot -= 1;
            }
        }
        left.into_iter().map(Micros).collect()
    }

    /// What changes what is left of lots.
    #[derive(Clone, Debug)]
    enum Event {
        Credit(i64),
        Spend(i64),
        /// Of what is left of this lot, at most so much.
        Refund(usize, i64),
        /// Of what was spent, at most so much.
        WriteOff(i64),
    }

    /// A ledger that moves each micro-dollar by itself.
    #[derive(Default)]
    struct Replay {
        /// What is left of each lot, and what was used of it.
        lots: Vec<(i64, i64)>,
        unpaid: i64,
    }

    impl Replay {
        fn spend_one(&mut self) {
            match self.lots.iter_mut().find(|(left, _)| *left > 0) {
                Some((left, used)) => (*left, *used) = (*left - 1, *used + 1),
                None => self.unpaid += 1,
            }
        }

        fn write_off_one(&mut self) {
            if self.unpaid > 0 {
                self.unpaid -= 1;
            } else if let Some((left, used)) = self.lots.iter_mut().rev().find(|(_, used)| *used > 0) {
                (*left, *used) = (*left + 1, *used - 1);
            }
        }
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0_i64..60).prop_map(Event::Credit),
            (0_i64..80).prop_map(Event::Spend),
            (0_usize..6, 0_i64..60).prop_map(|(lot, most)| Event::Refund(lot, most)),
            (0_i64..60).prop_map(Event::WriteOff),
        ]
    }

    proptest! {
        #[test]
        fn the_lot_formula_is_what_a_replay_gives(lots in prop::collection::vec(0_i64..60, 0..6), consumed in 0_i64..300) {
            let micros: Vec<Micros> = lots.iter().copied().map(Micros).collect();
            prop_assert_eq!(unused(&micros, Micros(consumed)), replay(&lots, consumed));
        }

        #[test]
        fn refunds_in_the_middle_and_debts_given_up_leave_the_formula_true(events in prop::collection::vec(event(), 0..30)) {
            let (mut replay, mut left_of, mut consumed) = (Replay::default(), Vec::new(), 0);
            for event in events {
                match event {
                    Event::Credit(amount) => {
                        left_of.push(Micros(amount));
                        replay.lots.push((amount, 0));
                        (0..std::mem::take(&mut replay.unpaid)).for_each(|_| replay.spend_one());
                    }
                    Event::Spend(cost) => {
                        consumed += cost;
                        (0..cost).for_each(|_| replay.spend_one());
                    }
                    Event::Refund(lot, most) if lot < left_of.len() => {
                        let refunded = replay.lots[lot].0.min(most);
                        replay.lots[lot].0 -= refunded;
                        left_of[lot].0 -= refunded;
                    }
                    Event::Refund(..) => {}
                    Event::WriteOff(most) => {
                        // What is written off counts as not consumed.
                        let given_up = most.min(consumed);
                        consumed -= given_up;
                        (0..given_up).for_each(|_| replay.write_off_one());
                    }
                }
                let left: Vec<Micros> = replay.lots.iter().map(|(left, _)| Micros(*left)).collect();
                prop_assert_eq!(unused(&left_of, Micros(consumed)), left);
            }
        }
    }
}
