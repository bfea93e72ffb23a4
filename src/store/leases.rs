//! Leases: slices of an account's credit that leave it before they can be spent.

use super::accounts::{AccountStatus, no_account};
use super::changes::{self, Subject};
use super::credit;
use super::entries::{self, Book, Entry};
use super::open::transact;
use super::{Store, StoreError};
use crate::clock::UnixMicros;
use crate::ids::{AccountId, SessionId};
use crate::money::Micros;
use sqlx::{Row, Sqlite, Transaction};

/// What a session asks for.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    /// Who will consume it.
    pub session: SessionId,
    /// Whose credit it is.
    pub account: AccountId,
    /// Less than this is of no use.
    pub need: Micros,
    /// As much as this is welcome, but not more than a share of what is left, unless that is needed.
    pub want: Micros,
}

/// A lease as the database has it. The totals only grow, so that a lost answer is made good by reading them again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseTotals {
    /// Ever granted.
    pub granted: Micros,
    /// Ever given back.
    pub returned: Micros,
}

/// What was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The lease with it.
    pub totals: LeaseTotals,
    /// What is left in the account.
    pub available: Micros,
    /// What other sessions' leases hold, consumed or not.
    pub elsewhere: Micros,
}

/// Why nothing was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantRefused {
    /// The account's new requests are refused.
    Suspended,
    /// A refund is under way.
    Frozen,
    /// Too little is left. `elsewhere` is what other sessions have of it.
    Short {
        /// What is left.
        available: Micros,
        /// What other sessions' leases hold, consumed or not.
        elsewhere: Micros,
    },
    /// The session is no longer one that may be granted anything.
    NotLive,
}

/// A grant takes at most this part of what is left, divided among the live sessions, unless more is needed.
const SHARE: i64 = 2;

impl Store {
    /// Moves credit from the account to the session's lease.
    pub async fn grant(
        &self,
        grant: &Grant,
        at: UnixMicros,
    ) -> Result<Result<Granted, GrantRefused>, StoreError> {
        transact!(self.writing(), |tx| {
            let row = sqlx::query(
                "SELECT a.available_micro, a.status, a.is_frozen = 1 AND a.frozen_until > ?3 AS frozen, \
                 (SELECT count(*) FROM session WHERE state = 'live') AS live, \
                 (SELECT state FROM session WHERE id = ?1) AS own, \
                 (SELECT coalesce(sum(granted_micro - returned_micro), 0) FROM lease \
                  WHERE account_id = a.id AND is_closed = 0 AND session_id <> ?1) AS elsewhere \
                 FROM account a WHERE a.id = ?2",
            )
            .bind(grant.session.as_bytes())
            .bind(grant.account.as_bytes())
            .bind(at.0)
            .fetch_optional(&mut **tx)
            .await?
            .ok_or_else(|| no_account(grant.account))?;
            let available: i64 = row.get("available_micro");
            if row.get::<Option<&str>, _>("own") != Some("live") {
                return Ok(Err(GrantRefused::NotLive));
            }
            if AccountStatus::parse(row.get("status"))? == AccountStatus::Suspended {
                return Ok(Err(GrantRefused::Suspended));
            }
            if row.get::<i64, _>("frozen") != 0 {
                return Ok(Err(GrantRefused::Frozen));
            }
            let share = available / (SHARE * row.get::<i64, _>("live").max(1));
            let amount = grant.need.0.max(grant.want.0.min(share));
            let elsewhere = Micros(row.get("elsewhere"));
            if amount > available || amount == 0 {
                return Ok(Err(GrantRefused::Short { available: Micros(available), elsewhere }));
            }
            let totals = move_to_lease(tx, grant, amount, at).await?;
            Ok(Ok(Granted { totals, available: Micros(available - amount), elsewhere }))
        })
    }

    /// Gives unused credit of the session's lease back to the account.
    pub async fn give_back(
        &self,
        session: SessionId,
        account: AccountId,
        amount: Micros,
        at: UnixMicros,
    ) -> Result<LeaseTotals, StoreError> {
        transact!(self.writing(), |tx| {
            let row = sqlx::query(
                "UPDATE lease SET returned_micro = returned_micro + ? WHERE session_id = ? AND account_id = ? AND is_closed = 0 \
                 RETURNING granted_micro, returned_micro",
            )
            .bind(amount.0)
            .bind(session.as_bytes())
            .bind(account.as_bytes())
            .fetch_optional(&mut **tx)
            .await?
            .ok_or_else(|| StoreError::Refused(format!("the lease of {account} in {session} is closed")))?;
            let totals = LeaseTotals { granted: Micros(row.get(0)), returned: Micros(row.get(1)) };
            sqlx::query(
                "UPDATE account SET leased_micro = leased_micro - ?1, available_micro = available_micro + ?1 WHERE id = ?2",
            )
            .bind(amount.0)
            .bind(account.as_bytes())
            .execute(&mut **tx)
            .await?;
            let entry = Entry { kind: "return", account, session: Some(session), at };
            entries::post(tx, entry, &[(Book::Escrow, amount.0), (Book::Customer, -amount.0)]).await?;
            credit::pay_owed(tx, account, Some(session), at).await?;
            changes::note(tx, Subject::Account(account)).await?;
            Ok(totals)
        })
    }

    /// The session's lease as the database has it; zero where there is none, `None` where it is closed.
    pub async fn lease_totals(
        &self,
        session: SessionId,
        account: AccountId,
    ) -> Result<Option<LeaseTotals>, StoreError> {
        transact!(self.reading(), |tx| {
            let row = sqlx::query(
                "SELECT granted_micro, returned_micro, is_closed FROM lease WHERE session_id = ? AND account_id = ?",
            )
            .bind(session.as_bytes())
            .bind(account.as_bytes())
            .fetch_optional(&mut **tx)
            .await?;
            Ok(match row {
                None => Some(LeaseTotals::default()),
                Some(row) if row.get::<i64, _>(2) == 0 => {
                    Some(LeaseTotals { granted: Micros(row.get(0)), returned: Micros(row.get(1)) })
                }
                Some(_) => None,
            })
        })
    }

    /// Asks every session to return what it does not use of this account's credit.
    pub async fn recall(&self, account: AccountId) -> Result<(), StoreError> {
        transact!(self.writing(), |tx| { changes::note(tx, Subject::Recall(account)).await })
    }
}

async fn move_to_lease(
    tx: &mut Transaction<'static, Sqlite>,
    grant: &Grant,
    amount: i64,
    at: UnixMicros,
) -> Result<LeaseTotals, StoreError> {
    let Grant { session, account, .. } = *grant;
    sqlx::query("UPDATE account SET available_micro = available_micro - ?1, leased_micro = leased_micro + ?1 WHERE id = ?2")
        .bind(amount)
        .bind(account.as_bytes())
        .execute(&mut **tx)
        .await?;
    let row = sqlx::query(
        "INSERT INTO lease (session_id, account_id, granted_micro) VALUES (?, ?, ?) \
         ON CONFLICT (session_id, account_id) DO UPDATE SET granted_micro = granted_micro + excluded.granted_micro \
         RETURNING granted_micro, returned_micro",
    )
    .bind(session.as_bytes())
    .bind(account.as_bytes())
    .bind(amount)
    .fetch_one(&mut **tx)
    .await?;
    let entry = Entry { kind: "grant", account, session: Some(session), at };
    entries::post(tx, entry, &[(Book::Customer, amount), (Book::Escrow, -amount)]).await?;
    Ok(LeaseTotals { granted: Micros(row.get(0)), returned: Micros(row.get(1)) })
}
