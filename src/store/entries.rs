//! Double entry, where money moves: each entry's postings sum to zero. A positive amount is a debit.

use super::StoreError;
use crate::clock::UnixMicros;
use crate::ids::{AccountId, SessionId};
use crate::money::Micros;
use sqlx::{Sqlite, Transaction};

/// A book that amounts are posted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Book {
    /// Money received from customers, and given back to them.
    Cash,
    /// Credit given without money.
    Given,
    /// What a customer has not been granted to a session yet: a liability.
    Customer,
    /// What a session holds of a customer's credit: zero once its lease is closed.
    Escrow,
    /// What was spent.
    Revenue,
    /// What customers spent beyond their credit.
    Receivable,
    /// What of that was given up.
    WrittenOff,
}

impl Book {
    const fn as_str(self) -> &'static str {
        match self {
            Book::Cash => "cash",
            Book::Given => "given",
            Book::Customer => "customer",
            Book::Escrow => "escrow",
            Book::Revenue => "revenue",
            Book::Receivable => "receivable",
            Book::WrittenOff => "written_off",
        }
    }
}

/// What an entry is about.
pub(super) struct Entry {
    pub(super) kind: &'static str,
    pub(super) account: AccountId,
    pub(super) session: Option<SessionId>,
    pub(super) at: UnixMicros,
}

/// Writes an entry; nothing where every amount is zero.
pub(super) async fn post(
    tx: &mut Transaction<'static, Sqlite>,
    entry: Entry,
    postings: &[(Book, i64)],
) -> Result<(), StoreError> {
    let sum: i128 = postings.iter().map(|(_, amount)| i128::from(*amount)).sum();
    if sum != 0 {
        return Err(StoreError::damaged(format!(
            "the postings of a {} sum to {}",
            entry.kind,
            Micros(i64::try_from(sum).unwrap_or(i64::MAX))
        )));
    }
    if postings.iter().all(|(_, amount)| *amount == 0) {
        return Ok(());
    }
    let Entry { kind, account, session, at } = entry;
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO entry (kind, account_id, session_id, created_at) VALUES (?, ?, ?, ?) RETURNING id",
    )
    .bind(kind)
    .bind(account.as_bytes())
    .bind(session.as_ref().map(SessionId::as_bytes))
    .bind(at.0)
    .fetch_one(&mut **tx)
    .await?;
    for (book, amount) in postings.iter().filter(|(_, amount)| *amount != 0) {
        sqlx::query("INSERT INTO posting (entry_id, book, amount_micro) VALUES (?, ?, ?)")
            .bind(id)
            .bind(book.as_str())
            .bind(amount)
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}
