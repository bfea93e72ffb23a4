//! Credit that comes in: one lot each, and what is owed is paid from it at once.

use super::accounts::{self, no_account};
use super::changes::{self, Subject};
use super::entries::{self, Book, Entry};
use super::open::transact;
use super::{Store, StoreError};
use crate::clock::UnixMicros;
use crate::ids::{AccountId, LotId, SessionId};
use crate::money::Micros;
use sqlx::{Row, Sqlite, Transaction};

/// What a lot of credit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LotKind {
    /// Bought; what is unused can be given back.
    Paid,
    /// Given away.
    Promotional,
    /// Corrects something.
    Adjustment,
}

impl LotKind {
    /// The name in the store and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            LotKind::Paid => "paid",
            LotKind::Promotional => "promotional",
            LotKind::Adjustment => "adjustment",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, StoreError> {
        [LotKind::Paid, LotKind::Promotional, LotKind::Adjustment]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| StoreError::damaged(format!("the lot kind {text:?}")))
    }
}

/// Credit to be added.
#[derive(Clone, Debug)]
pub struct NewCredit {
    /// Whose it becomes.
    pub account_id: AccountId,
    /// More than zero.
    pub amount: Micros,
    /// What it is.
    pub kind: LotKind,
    /// Why, for people.
    pub reason: String,
    /// A repeat under the same key adds nothing and gets the first one's answer.
    pub idempotency_key: Option<String>,
}

/// Credit that was added.
#[derive(Clone, Copy, Debug)]
pub struct Credited {
    /// The account's balance after it.
    pub balance: Micros,
    /// The lot that was made.
    pub lot_id: LotId,
}

impl Store {
    /// Adds credit as a lot of its own.
    ///
    /// # Errors
    ///
    /// `NotFound` for the account, `Refused` for an amount that is not above zero or beyond what the books hold, `Conflict` where the
    /// idempotency key stands for something else.
    pub async fn add_credit(&self, new: &NewCredit, at: UnixMicros) -> Result<Credited, StoreError> {
        if new.amount.0 <= 0 {
            return Err(StoreError::Refused("the amount must be above zero".to_owned()));
        }
        let request = format!("credit {} {} {}", new.account_id, new.kind.as_str(), new.amount.0);
        transact!(self.writing(), |tx| {
            let lot_id = match repeated(tx, new.idempotency_key.as_deref(), &request).await? {
                Some(done) => done.lot_id,
                None => {
                    let lot_id = LotId::new();
                    add(tx, new, lot_id, at).await?;
                    let done = Done { lot_id, amount: new.amount };
                    remember(tx, new.idempotency_key.as_deref(), &request, done, at).await?;
                    lot_id
                }
            };
            let balance = accounts::read(tx, new.account_id).await?.balance;
            Ok(Credited { balance, lot_id })
        })
    }
}

async fn add(
    tx: &mut Transaction<'static, Sqlite>,
    new: &NewCredit,
    lot_id: LotId,
    at: UnixMicros,
) -> Result<(), StoreError> {
    let available: i64 = sqlx::query_scalar("SELECT available_micro FROM account WHERE id = ?")
        .bind(new.account_id.as_bytes())
        .fetch_optional(&mut **tx)
        .await?
        .ok_or_else(|| no_account(new.account_id))?;
    let total = available.checked_add(new.amount.0).filter(|total| *total <= BALANCE_MAX_MICRO);
    let total = total
        .ok_or_else(|| StoreError::Refused("the balance would be larger than the books hold".to_owned()))?;
    sqlx::query("UPDATE account SET available_micro = ? WHERE id = ?")
        .bind(total)
        .bind(new.account_id.as_bytes())
        .execute(&mut **tx)
        .await?;
    sqlx::query(
        "INSERT INTO lot (id, account_id, seq, kind, amount_micro, reason, created_at) \
         SELECT ?, ?, coalesce(max(seq), 0) + 1, ?, ?, ?, ? FROM lot WHERE account_id = ?",
    )
    .bind(lot_id.as_bytes())
    .bind(new.account_id.as_bytes())
    .bind(new.kind.as_str())
    .bind(new.amount.0)
    .bind(&new.reason)
    .bind(at.0)
    .bind(new.account_id.as_bytes())
    .execute(&mut **tx)
    .await?;
    let source = match new.kind {
        LotKind::Paid => Book::Cash,
        LotKind::Promotional | LotKind::Adjustment => Book::Given,
    };
    let entry = Entry { kind: "credit", account: new.account_id, session: None, at };
    entries::post(tx, entry, &[(source, new.amount.0), (Book::Customer, -new.amount.0)]).await?;
    pay_owed(tx, new.account_id, None, at).await?;
    changes::note(tx, Subject::Account(new.account_id)).await
}

/// Pays what the account owes from what it has: whatever comes in goes there first.
pub(super) async fn pay_owed(
    tx: &mut Transaction<'static, Sqlite>,
    account: AccountId,
    session: Option<SessionId>,
    at: UnixMicros,
) -> Result<(), StoreError> {
    let paid: i64 = sqlx::query_scalar("SELECT min(owed_micro, available_micro) FROM account WHERE id = ?")
        .bind(account.as_bytes())
        .fetch_one(&mut **tx)
        .await?;
    if paid == 0 {
        return Ok(());
    }
    sqlx::query(
        "UPDATE account SET available_micro = available_micro - ?1, owed_micro = owed_micro - ?1 WHERE id = ?2",
    )
    .bind(paid)
    .bind(account.as_bytes())
    .execute(&mut **tx)
    .await?;
    let entry = Entry { kind: "debt_paid", account, session, at };
    entries::post(tx, entry, &[(Book::Customer, paid), (Book::Receivable, -paid)]).await
}

/// The largest balance: a thousand million dollars. Sums of balances, too, stay within 64 bits.
const BALANCE_MAX_MICRO: i64 = 1_000_000_000 * 1_000_000;

/// What was done under an idempotency key.
#[derive(Clone, Copy)]
pub(super) struct Done {
    pub(super) lot_id: LotId,
    pub(super) amount: Micros,
}

/// What was done under this key before, if anything.
pub(super) async fn repeated(
    tx: &mut Transaction<'static, Sqlite>,
    idempotency_key: Option<&str>,
    request: &str,
) -> Result<Option<Done>, StoreError> {
    let Some(key) = idempotency_key else { return Ok(None) };
    let row = sqlx::query("SELECT request, lot_id, amount_micro FROM operation WHERE idempotency_key = ?")
        .bind(key)
        .fetch_optional(&mut **tx)
        .await?;
    let Some(row) = row else { return Ok(None) };
    if row.get::<&str, _>("request") != request {
        return Err(StoreError::Conflict(format!("the idempotency key {key:?} was used for something else")));
    }
    let lot_id =
        LotId::from_slice(row.get("lot_id")).ok_or_else(|| StoreError::damaged("a lot's identity"))?;
    Ok(Some(Done { lot_id, amount: Micros(row.get("amount_micro")) }))
}

pub(super) async fn remember(
    tx: &mut Transaction<'static, Sqlite>,
    idempotency_key: Option<&str>,
    request: &str,
    done: Done,
    at: UnixMicros,
) -> Result<(), StoreError> {
    let Some(key) = idempotency_key else { return Ok(()) };
    sqlx::query(
        "INSERT INTO operation (idempotency_key, request, lot_id, amount_micro, created_at) VALUES (?, ?, ?, ?, ?)",
    )
    .bind(key)
    .bind(request)
    .bind(done.lot_id.as_bytes())
    .bind(done.amount.0)
    .bind(at.0)
    .execute(&mut **tx)
    .await?;
    Ok(())
}
