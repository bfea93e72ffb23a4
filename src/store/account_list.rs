//! All accounts, a page at a time.

use super::accounts::{Account, account, account_id, select_accounts};
use super::changes::signed;
use super::open::transact;
use super::sessions::unsigned;
use super::{Store, StoreError};
use crate::clock::UnixMicros;
use crate::ids::AccountId;
use crate::money::Picos;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};
use std::collections::HashMap;

/// Accounts that were made one after another.
#[derive(Clone, Debug)]
pub struct AccountPage {
    /// The oldest first.
    pub accounts: Vec<ListedAccount>,
    /// Whether there are accounts after the last of these.
    pub has_more: bool,
}

/// One account of many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedAccount {
    /// What is known of it alone.
    pub account: Account,
    /// When it was made.
    pub created_at: UnixMicros,
    /// Its keys that are neither revoked nor expired.
    pub active_keys: u64,
}

impl Store {
    /// At most so many accounts, the oldest first, from the one that follows the given one; with their money, from one snapshot.
    ///
    /// # Errors
    ///
    /// The database.
    pub async fn accounts(
        &self,
        after: Option<AccountId>,
        limit: u32,
        now: UnixMicros,
    ) -> Result<AccountPage, StoreError> {
        transact!(self.reading(), |tx| {
            let rows = sqlx::query(select_accounts!(
                ", (SELECT count(*) FROM api_key k WHERE k.account_id = a.id AND k.revoked_at IS NULL \
                 AND (k.expires_at IS NULL OR k.expires_at > ?1)) AS active_keys",
                "a.id > ?2 GROUP BY a.id ORDER BY a.id LIMIT ?3"
            ))
            .bind(now.0)
            // No bytes come before all.
            .bind(after.as_ref().map_or(&[][..], AccountId::as_bytes))
            .bind(signed(u64::from(limit) + 1))
            .fetch_all(&mut **tx)
            .await?;
            let over_due = over_due(tx).await?;
            let limit = usize::try_from(limit).map_err(StoreError::damaged)?;
            let accounts = rows.iter().take(limit).map(|row| listed(row, &over_due));
            Ok(AccountPage { accounts: accounts.collect::<Result<_, _>>()?, has_more: rows.len() > limit })
        })
    }
}

/// What was spent above leases and is not collected yet, of each account that has any; of one account `over_due_in` tells it.
async fn over_due(tx: &mut Transaction<'static, Sqlite>) -> Result<HashMap<AccountId, Picos>, StoreError> {
    let rows = sqlx::query(
        "SELECT account_id, sum(over_pico) FROM ( \
         SELECT r.account_id, r.over_pico FROM session s JOIN request r ON r.session_id = s.id AND r.seq > s.over_seq \
         WHERE r.over_pico > 0 UNION ALL \
         SELECT q.account_id, q.over_pico FROM session s JOIN quarantine q ON q.session_id = s.id AND q.seq > s.over_seq \
         WHERE q.over_pico > 0) GROUP BY account_id",
    )
    .fetch_all(&mut **tx)
    .await?;
    rows.iter().map(|row| Ok((account_id(row.get(0))?, Picos(row.get(1))))).collect()
}

fn listed(row: &SqliteRow, over_due: &HashMap<AccountId, Picos>) -> Result<ListedAccount, StoreError> {
    let id = account_id(row.get("id"))?;
    Ok(ListedAccount {
        account: account(id, row, over_due.get(&id).copied().unwrap_or(Picos(0)))?,
        created_at: UnixMicros(row.get("created_at")),
        active_keys: unsigned(row, "active_keys")?,
    })
}
