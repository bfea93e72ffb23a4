//! API keys: hashes, never the keys themselves.

use super::accounts::{AccountStatus, account_id, no_account};
use super::changes::{self, Subject};
use super::open::transact;
use super::{Store, StoreError};
use crate::clock::UnixMicros;
use crate::ids::{AccountId, KeyId};
use crate::money::Micros;
use crate::secret::KeyHash;
use crate::spend::{SpendLimit, SpendWindow};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

/// A key to be stored.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its identity.
    pub key_id: KeyId,
    /// Whose it is.
    pub account_id: AccountId,
    /// Its hash under the pepper.
    pub hash: KeyHash,
    /// What its holder calls it.
    pub name: Option<String>,
    /// Its first characters.
    pub prefix: String,
    /// Its last four characters.
    pub last_four: String,
    /// The models that it may use; `None` is all.
    pub models: Option<Vec<String>>,
    /// When it ends.
    pub expires_at: Option<UnixMicros>,
    /// What else it may do.
    pub policy: KeyPolicy,
}

/// What a key may do, besides its models and its end. `None` sets no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPolicy {
    /// The most that it may spend.
    pub spend_limit: Option<SpendLimit>,
    /// Addresses and networks from which it may be used.
    pub addresses: Option<Vec<String>>,
    /// The tier whose limits apply to it, besides those of its account.
    pub tier: Option<String>,
    /// Values of `service_tier` that it may ask for; `None` is what the configuration allows.
    pub service_tiers: Option<Vec<String>>,
}

/// A stored key, with what of its account matters to it.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "as in NewKey and Account")]
pub struct KeyRecord {
    pub key_id: KeyId,
    pub account_id: AccountId,
    pub name: Option<String>,
    pub prefix: String,
    pub last_four: String,
    pub revoked: bool,
    pub created_at: UnixMicros,
    pub expires_at: Option<UnixMicros>,
    pub last_used_at: Option<UnixMicros>,
    pub models: Option<Vec<String>>,
    pub policy: KeyPolicy,
    pub account_status: AccountStatus,
    pub account_tier: Option<String>,
}

impl Store {
    /// Stores a key.
    ///
    /// # Errors
    ///
    /// `NotFound` where its account is not there.
    pub async fn create_key(&self, new: &NewKey, at: UnixMicros) -> Result<(), StoreError> {
        let models = list_text(new.models.as_ref())?;
        let KeyPolicy { spend_limit, addresses, tier, service_tiers } = &new.policy;
        let (addresses, service_tiers) = (list_text(addresses.as_ref())?, list_text(service_tiers.as_ref())?);
        transact!(self.writing(), |tx| {
            let made = sqlx::query(
                "INSERT INTO api_key (id, account_id, hash, name, prefix, last_four, models, expires_at, created_at, \
                 spend_limit_micro, spend_window, addresses, tier, service_tiers) \
                 SELECT ?, id, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM account WHERE id = ?",
            )
            .bind(new.key_id.as_bytes())
            .bind(&new.hash.0[..])
            .bind(&new.name)
            .bind(&new.prefix)
            .bind(&new.last_four)
            .bind(&models)
            .bind(new.expires_at.map(|at| at.0))
            .bind(at.0)
            .bind(spend_limit.map(|limit| limit.amount.0))
            .bind(spend_limit.map(|limit| limit.window.as_str()))
            .bind(&addresses)
            .bind(tier)
            .bind(&service_tiers)
            .bind(new.account_id.as_bytes())
            .execute(&mut **tx)
            .await?;
            if made.rows_affected() == 0 {
                return Err(no_account(new.account_id));
            }
            changes::note(tx, Subject::Key(new.key_id)).await
        })
    }

    /// The keys of an account, newest first.
    pub async fn keys(&self, account: AccountId) -> Result<Vec<KeyRecord>, StoreError> {
        transact!(self.reading(), |tx| {
            let rows = sqlx::query(
                "SELECT k.*, a.status, a.tier AS account_tier FROM api_key k JOIN account a ON a.id = k.account_id \
                 WHERE k.account_id = ? ORDER BY k.id DESC",
            )
            .bind(account.as_bytes())
            .fetch_all(&mut **tx)
            .await?;
            rows.iter().map(record).collect()
        })
    }

    /// Ends a key. Ending it twice changes nothing.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub async fn revoke_key(&self, key: KeyId, at: UnixMicros) -> Result<(), StoreError> {
        transact!(self.writing(), |tx| {
            let ended = sqlx::query("UPDATE api_key SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?")
                .bind(at.0)
                .bind(key.as_bytes())
                .execute(&mut **tx)
                .await?;
            if ended.rows_affected() == 0 {
                return Err(StoreError::not_found(format!("there is no key {key}")));
            }
            changes::note(tx, Subject::Key(key)).await
        })
    }

    /// The key of that hash, and the version of the changes at which it was read.
    pub async fn load_key(&self, hash: &KeyHash) -> Result<(u64, Option<KeyRecord>), StoreError> {
        transact!(self.reading(), |tx| {
            let version = changes::version(tx).await?;
            let row = sqlx::query(
                "SELECT k.*, a.status, a.tier AS account_tier FROM api_key k JOIN account a ON a.id = k.account_id WHERE k.hash = ?",
            )
            .bind(&hash.0[..])
            .fetch_optional(&mut **tx)
            .await?;
            Ok((version, row.as_ref().map(record).transpose()?))
        })
    }

    /// Writes down when keys were last used. Not a change: nothing is decided by it.
    pub async fn note_key_uses(&self, uses: &[(KeyId, UnixMicros)]) -> Result<(), StoreError> {
        if uses.is_empty() {
            return Ok(());
        }
        transact!(self.writing(), |tx| {
            for (key, at) in uses {
                sqlx::query(
                    "UPDATE api_key SET last_used_at = max(coalesce(last_used_at, 0), ?) WHERE id = ?",
                )
                .bind(at.0)
                .bind(key.as_bytes())
                .execute(&mut **tx)
                .await?;
            }
            Ok(())
        })
    }
}

fn record(row: &SqliteRow) -> Result<KeyRecord, StoreError> {
    let key_id = KeyId::from_slice(row.get("id")).ok_or_else(|| StoreError::damaged("a key's identity"))?;
    Ok(KeyRecord {
        key_id,
        account_id: account_id(row.get("account_id"))?,
        name: row.get("name"),
        prefix: row.get("prefix"),
        last_four: row.get("last_four"),
        revoked: row.get::<Option<i64>, _>("revoked_at").is_some(),
        created_at: UnixMicros(row.get("created_at")),
        expires_at: row.get::<Option<i64>, _>("expires_at").map(UnixMicros),
        last_used_at: row.get::<Option<i64>, _>("last_used_at").map(UnixMicros),
        models: list(row, "models")?,
        policy: KeyPolicy {
            spend_limit: spend_limit(row)?,
            addresses: list(row, "addresses")?,
            tier: row.get("tier"),
            service_tiers: list(row, "service_tiers")?,
        },
        account_status: AccountStatus::parse(row.get("status"))?,
        account_tier: row.get("account_tier"),
    })
}

fn spend_limit(row: &SqliteRow) -> Result<Option<SpendLimit>, StoreError> {
    let Some(amount) = row.get::<Option<i64>, _>("spend_limit_micro") else { return Ok(None) };
    let window = window(row.get::<Option<&str>, _>("spend_window").unwrap_or(SpendWindow::Total.as_str()))?;
    Ok(Some(SpendLimit { amount: Micros(amount), window }))
}

/// The window of a limit, as its column has it.
pub(super) fn window(name: &str) -> Result<SpendWindow, StoreError> {
    SpendWindow::parse(name)
        .ok_or_else(|| StoreError::damaged(format!("the window {name:?} of a key's limit")))
}

fn list(row: &SqliteRow, column: &str) -> Result<Option<Vec<String>>, StoreError> {
    let text: Option<&str> = row.get(column);
    text.map(serde_json::from_str).transpose().map_err(StoreError::damaged)
}

fn list_text(items: Option<&Vec<String>>) -> Result<Option<String>, StoreError> {
    items.map(serde_json::to_string).transpose().map_err(StoreError::damaged)
}
