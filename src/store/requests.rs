//! What requests used and cost, as people ask for it.

use super::changes::signed;
use super::open::transact;
use super::sessions::unsigned;
use super::{Store, StoreError};
use crate::clock::UnixMicros;
use crate::ids::{AccountId, KeyId, RequestId};
use crate::money::Picos;
use crate::usage::Usage;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

/// A request, as its account's holder may see it.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the columns of the table `request`, described in its migration")]
pub struct UsageRow {
    pub request_id: RequestId,
    pub created_at: UnixMicros,
    pub key_id: KeyId,
    pub model: String,
    pub provider: String,
    pub status: u16,
    pub outcome: String,
    pub stream: bool,
    pub usage: Usage,
    pub cost: Picos,
    pub price_version: u64,
    pub usage_source: String,
    pub latency_ms: u64,
    pub ttft_ms: Option<u64>,
    pub client_request_id: Option<String>,
}

impl Store {
    /// The account's requests since then, newest first.
    pub async fn usage(
        &self,
        account: AccountId,
        since: Option<UnixMicros>,
        limit: u32,
    ) -> Result<Vec<UsageRow>, StoreError> {
        transact!(self.reading(), |tx| {
            let rows = sqlx::query(
                "SELECT * FROM request WHERE account_id = ? AND created_at >= ? ORDER BY id DESC LIMIT ?",
            )
            .bind(account.as_bytes())
            .bind(since.map_or(0, |since| since.0))
            .bind(signed(u64::from(limit)))
            .fetch_all(&mut **tx)
            .await?;
            rows.iter().map(usage_row).collect()
        })
    }

    /// Whether the request is in the tables, quarantined or not.
    pub async fn has_request(&self, request: RequestId) -> Result<bool, StoreError> {
        transact!(self.reading(), |tx| {
            let found: bool = sqlx::query_scalar(
                "SELECT EXISTS (SELECT 1 FROM request WHERE id = ?1) OR EXISTS (SELECT 1 FROM quarantine WHERE request_id = ?1)",
            )
            .bind(request.as_bytes())
            .fetch_one(&mut **tx)
            .await?;
            Ok(found)
        })
    }
}

fn usage_row(row: &SqliteRow) -> Result<UsageRow, StoreError> {
    let damaged = |what: &str| StoreError::damaged(format!("a request's {what}"));
    let ttft_ms: Option<i64> = row.get("ttft_ms");
    Ok(UsageRow {
        request_id: RequestId::from_slice(row.get("id")).ok_or_else(|| damaged("identity"))?,
        created_at: UnixMicros(row.get("created_at")),
        key_id: KeyId::from_slice(row.get("key_id")).ok_or_else(|| damaged("key"))?,
        model: row.get("model"),
        provider: row.get("provider"),
        status: u16::try_from(row.get::<i64, _>("status")).map_err(|_| damaged("status"))?,
        outcome: row.get("outcome"),
        stream: row.get("is_stream"),
        usage: serde_json::from_str(row.get("usage")).map_err(StoreError::damaged)?,
        cost: Picos(row.get("cost_pico")),
        price_version: unsigned(row, "price_version")?,
        usage_source: row.get("usage_source"),
        latency_ms: unsigned(row, "latency_ms")?,
        ttft_ms: ttft_ms
            .map(|ms| u64::try_from(ms).map_err(|_| damaged("time to first token")))
            .transpose()?,
        client_request_id: row.get("client_request_id"),
    })
}
