//! What keys with a limit have spent: written with the settlements, read by every process that serves them.

use super::batch::RequestRow;
use super::open::transact;
use super::{Store, StoreError};
use crate::clock::UnixMicros;
use crate::ids::{KeyId, SessionId};
use crate::money::Picos;
use crate::spend::SpendWindow;
use sqlx::{QueryBuilder, Row, Sqlite, Transaction};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Keys in one statement.
const KEYS_MAX: usize = 500;
/// After this no window is open any more whose sum is of use.
const KEPT: Duration = Duration::from_secs(62 * 86_400);

impl Store {
    /// What the key spent in the window that began then, as far as it is written here.
    pub async fn key_spent(&self, key: KeyId, window_start: UnixMicros) -> Result<Picos, StoreError> {
        // No session has this name.
        let nobody = SessionId(uuid::Uuid::nil());
        self.key_spent_by(key, window_start, nobody).await.map(|(_, all)| all)
    }

    /// The same: by the session, and by all others.
    pub async fn key_spent_by(
        &self,
        key: KeyId,
        window_start: UnixMicros,
        session: SessionId,
    ) -> Result<(Picos, Picos), StoreError> {
        transact!(self.reading(), |tx| {
            let row = sqlx::query(
                "SELECT coalesce(sum(CASE WHEN session_id = ?3 THEN spent_pico END), 0), \
                 coalesce(sum(CASE WHEN session_id <> ?3 THEN spent_pico END), 0) \
                 FROM key_spend WHERE key_id = ?1 AND window_start = ?2",
            )
            .bind(key.as_bytes())
            .bind(window_start.0)
            .bind(session.as_bytes())
            .fetch_one(&mut **tx)
            .await?;
            Ok((Picos(row.get(0)), Picos(row.get(1))))
        })
    }

    /// What others than the session spent by these keys, each in the window that began then. Keys of which nothing is known are left out.
    /// 500 at most are looked at.
    pub async fn spent_by_others(
        &self,
        windows: &[(KeyId, UnixMicros)],
        session: SessionId,
    ) -> Result<HashMap<KeyId, Picos>, StoreError> {
        let windows = &windows[..windows.len().min(KEYS_MAX)];
        if windows.is_empty() {
            return Ok(HashMap::new());
        }
        transact!(self.reading(), |tx| {
            let mut query =
                QueryBuilder::new("SELECT key_id, sum(spent_pico) FROM key_spend WHERE session_id <> ");
            query.push_bind(session.as_bytes().to_vec()).push(" AND (key_id, window_start) IN (");
            query.push_values(windows, |mut row, (key, start)| {
                row.push_bind(key.as_bytes().to_vec()).push_bind(start.0);
            });
            query.push(") GROUP BY key_id");
            let rows = query.build().fetch_all(&mut **tx).await?;
            rows.iter()
                .map(|row| {
                    let key = KeyId::from_slice(row.get(0))
                        .ok_or_else(|| StoreError::damaged("a key's identity"))?;
                    Ok((key, Picos(row.get(1))))
                })
                .collect()
        })
    }

    /// Removes sums of windows that ended long ago.
    pub async fn sweep_key_spend(&self, at: UnixMicros) -> Result<(), StoreError> {
        transact!(self.writing(), |tx| {
            let before = at.0.saturating_sub(i64::try_from(KEPT.as_micros()).unwrap_or(i64::MAX));
            sqlx::query("DELETE FROM key_spend WHERE window_start > 0 AND window_start < ?")
                .bind(before)
                .execute(&mut **tx)
                .await?;
            Ok(())
        })
    }
}

/// Adds what these rows cost to what their keys spent, for keys with a limit.
pub(super) async fn note(
    tx: &mut Transaction<'static, Sqlite>,
    session: SessionId,
    rows: &[RequestRow],
) -> Result<(), StoreError> {
    let mut costs: BTreeMap<KeyId, Vec<(UnixMicros, i64)>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.cost.0 > 0) {
        costs.entry(row.key).or_default().push((row.created_at, row.cost.0));
    }
    let keys: Vec<KeyId> = costs.keys().copied().collect();
    let mut spent: BTreeMap<(KeyId, UnixMicros), i64> = BTreeMap::new();
    for keys in keys.chunks(KEYS_MAX) {
        for (key, window) in limited(tx, keys).await? {
            for (at, cost) in costs.remove(&key).unwrap_or_default() {
                let sum = spent.entry((key, window.start(at))).or_default();
                *sum = sum.saturating_add(cost);
            }
        }
    }
    let spent: Vec<((KeyId, UnixMicros), i64)> = spent.into_iter().collect();
    for spent in spent.chunks(KEYS_MAX) {
        let mut query =
            QueryBuilder::new("INSERT INTO key_spend (key_id, window_start, session_id, spent_pico) ");
        query.push_values(spent, |mut row, ((key, start), pico)| {
            row.push_bind(key.as_bytes().to_vec())
                .push_bind(start.0)
                .push_bind(session.as_bytes().to_vec())
                .push_bind(*pico);
        });
        query.push(
            " ON CONFLICT (key_id, window_start, session_id) DO UPDATE SET spent_pico = spent_pico + excluded.spent_pico",
        );
        query.build().execute(&mut **tx).await?;
    }
    Ok(())
}

/// Those of the keys that have a limit, with its window.
async fn limited(
    tx: &mut Transaction<'static, Sqlite>,
    keys: &[KeyId],
) -> Result<Vec<(KeyId, SpendWindow)>, StoreError> {
    let mut query = QueryBuilder::new(
        "SELECT id, spend_window FROM api_key WHERE spend_limit_micro IS NOT NULL AND id IN (",
    );
    let mut separated = query.separated(", ");
    for key in keys {
        separated.push_bind(key.as_bytes().to_vec());
    }
    query.push(")");
    let rows = query.build().fetch_all(&mut **tx).await?;
    rows.iter()
        .map(|row| {
            let key = KeyId::from_slice(row.get(0)).ok_or_else(|| StoreError::damaged("a key's identity"))?;
            Ok((key, super::keys::window(row.get(1))?))
        })
        .collect()
}
