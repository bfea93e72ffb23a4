//! Accounts: who pays.

use super::batch::over_due_in;
use super::changes::{self, Subject};
use super::open::transact;
use super::{Store, StoreError};
use crate::clock::UnixMicros;
use crate::ids::AccountId;
use crate::money::{Micros, PICOS_PER_MICRO, Picos};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

/// Whether an account may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountStatus {
    /// It may.
    Active,
    /// New requests are refused; what is under way goes on, and what it costs is charged.
    Suspended,
}

impl AccountStatus {
    /// The name in the store and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            AccountStatus::Active => "active",
            AccountStatus::Suspended => "suspended",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, StoreError> {
        [AccountStatus::Active, AccountStatus::Suspended]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| StoreError::damaged(format!("the account status {text:?}")))
    }
}

/// An account as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its identity.
    pub account_id: AccountId,
    /// The address of its holder.
    pub email: String,
    /// Whether it may ask.
    pub status: AccountStatus,
    /// Its tier of limits; `None` is the default one.
    pub tier: Option<String>,
    /// What it can still spend, what is held included; whole micro-dollars, rounded down, never below zero.
    pub balance: Micros,
    /// What open requests hold, as the processes last wrote it.
    pub held: Micros,
    /// What it has spent, rounded down.
    pub consumed: Micros,
    /// What it has spent beyond its credit.
    pub owed: Micros,
}

/// What in the books waits for a person.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Open {
    /// Accounts that owe something.
    pub owing_accounts: u64,
    /// What they owe together.
    pub owed: Micros,
    /// Settled requests that were set aside.
    pub quarantined: u64,
}

impl Store {
    /// What in the books waits for a person. It reads every account.
    ///
    /// # Errors
    ///
    /// The database.
    pub async fn open_items(&self) -> Result<Open, StoreError> {
        transact!(self.reading(), |tx| {
            let row = sqlx::query(
                "SELECT count(*), coalesce(sum(owed_micro), 0), (SELECT count(*) FROM quarantine) \
                 FROM account WHERE owed_micro > 0",
            )
            .fetch_one(&mut **tx)
            .await?;
            Ok(Open {
                owing_accounts: row.get::<i64, _>(0).unsigned_abs(),
                owed: Micros(row.get(1)),
                quarantined: row.get::<i64, _>(2).unsigned_abs(),
            })
        })
    }

    /// Makes an account.
    ///
    /// # Errors
    ///
    /// `Conflict` where the address has one.
    pub async fn create_account(
        &self,
        email: &str,
        tier: Option<&str>,
        at: UnixMicros,
    ) -> Result<AccountId, StoreError> {
        let account = AccountId::new();
        transact!(self.writing(), |tx| {
            let made = sqlx::query(
                "INSERT INTO account (id, email, tier, created_at) VALUES (?, ?, ?, ?) ON CONFLICT (email) DO NOTHING",
            )
            .bind(account.as_bytes())
            .bind(email)
            .bind(tier)
            .bind(at.0)
            .execute(&mut **tx)
            .await?;
            if made.rows_affected() == 0 {
                return Err(StoreError::Conflict(format!("there is an account for {email} already")));
            }
            Ok(account)
        })
    }

    /// The account of that identity or e-mail address.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub async fn find_account(&self, id_or_email: &str) -> Result<AccountId, StoreError> {
        let id = id_or_email.parse::<AccountId>().ok();
        transact!(self.reading(), |tx| {
            let found: Option<Vec<u8>> =
                sqlx::query_scalar("SELECT id FROM account WHERE id = ? OR email = ?")
                    .bind(id.as_ref().map(AccountId::as_bytes))
                    .bind(id_or_email)
                    .fetch_optional(&mut **tx)
                    .await?;
            let found =
                found.ok_or_else(|| StoreError::not_found(format!("there is no account {id_or_email}")))?;
            account_id(&found)
        })
    }

    /// An account with its money, from one snapshot.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub async fn account(&self, id: AccountId) -> Result<Account, StoreError> {
        transact!(self.reading(), |tx| { read(tx, id).await })
    }

    /// Refuses the account's new requests from now on.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub async fn suspend_account(
        &self,
        id: AccountId,
        reason: &str,
        at: UnixMicros,
    ) -> Result<(), StoreError> {
        tracing::info!(account_id = %id, reason, at = at.0, "account suspended");
        self.set_status(id, AccountStatus::Suspended, Some(reason)).await
    }

    /// Lets the account ask again.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub async fn resume_account(&self, id: AccountId, at: UnixMicros) -> Result<(), StoreError> {
        tracing::info!(account_id = %id, at = at.0, "account resumed");
        self.set_status(id, AccountStatus::Active, None).await
    }

    async fn set_status(
        &self,
        id: AccountId,
        status: AccountStatus,
        reason: Option<&str>,
    ) -> Result<(), StoreError> {
        transact!(self.writing(), |tx| {
            let set = sqlx::query("UPDATE account SET status = ?, status_reason = ? WHERE id = ?")
                .bind(status.as_str())
                .bind(reason)
                .bind(id.as_bytes())
                .execute(&mut **tx)
                .await?;
            if set.rows_affected() == 0 {
                return Err(no_account(id));
            }
            changes::note(tx, Subject::Account(id)).await
        })
    }
}

/// Selects accounts with what is open of their leases, and further columns, of those for which the last holds.
macro_rules! select_accounts {
    ($columns:literal, $which:literal) => {
        concat!(
            "SELECT a.id, a.email, a.status, a.tier, a.available_micro, a.consumed_micro, a.owed_micro, a.carry_pico, \
             a.created_at, coalesce(sum(l.granted_micro - l.returned_micro), 0) AS leased_micro, \
             coalesce(sum(u.consumed_pico), 0) AS used_pico, coalesce(sum(u.held_micro), 0) AS held_micro",
            $columns,
            " FROM account a LEFT JOIN lease l ON l.account_id = a.id AND l.is_closed = 0 \
             LEFT JOIN lease_use u ON u.session_id = l.session_id AND u.account_id = l.account_id \
             WHERE ",
            $which
        )
    };
}
pub(super) use select_accounts;

pub(super) async fn read(
    tx: &mut Transaction<'static, Sqlite>,
    id: AccountId,
) -> Result<Account, StoreError> {
    let row = sqlx::query(select_accounts!("", "a.id = ? GROUP BY a.id"))
        .bind(id.as_bytes())
        .fetch_optional(&mut **tx)
        .await?
        .ok_or_else(|| no_account(id))?;
    let over_due = over_due_in(tx, id).await?;
    account(id, &row, over_due)
}

/// The account of a row of `select_accounts`.
pub(super) fn account(id: AccountId, row: &SqliteRow, over_due: Picos) -> Result<Account, StoreError> {
    let number = |name: &str| i128::from(row.get::<i64, _>(name));
    let per_micro = i128::from(PICOS_PER_MICRO);
    let open_pico = number("used_pico") + number("carry_pico") + i128::from(over_due.0);
    let balance_pico = (number("available_micro") + number("leased_micro")) * per_micro - open_pico;
    let micros = |amount: i128| i64::try_from(amount).map(Micros).map_err(StoreError::damaged);
    Ok(Account {
        account_id: id,
        email: row.get("email"),
        status: AccountStatus::parse(row.get("status"))?,
        tier: row.get("tier"),
        balance: micros(balance_pico.div_euclid(per_micro).max(0))?,
        held: Micros(row.get("held_micro")),
        consumed: micros(number("consumed_micro") + open_pico.div_euclid(per_micro))?,
        owed: Micros(row.get("owed_micro")),
    })
}

pub(super) fn no_account(id: AccountId) -> StoreError {
    StoreError::not_found(format!("there is no account {id}"))
}

pub(super) fn account_id(bytes: &[u8]) -> Result<AccountId, StoreError> {
    AccountId::from_slice(bytes).ok_or_else(|| StoreError::damaged("an account's identity"))
}
