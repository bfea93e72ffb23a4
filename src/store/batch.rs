//! What the batched writer writes: request rows, the session's own lease rows and the watermark, in one transaction.
//!
//! Accounts are not touched by it, so that a slow batch blocks no grant; what a lease did not cover is collected in a transaction of
//! its own, account first.

use super::entries::{self, Book, Entry};
use super::open::transact;
use super::sessions::{SessionState, seq as column, unsigned};
use super::{Store, StoreError, key_spend};
use crate::clock::UnixMicros;
use crate::ids::{AccountId, KeyId, ModelName, ProviderName, RequestId, SessionId};
use crate::money::{Micros, Picos};
use crate::usage::{Outcome, Usage, UsageSource};
use sqlx::{AssertSqlSafe, QueryBuilder, Row, Sqlite, Transaction};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// One settled request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the columns of the table `request`, described in its migration")]
pub struct RequestRow {
    pub seq: u64,
    pub request_id: RequestId,
    pub account: AccountId,
    pub key: KeyId,
    pub created_at: UnixMicros,
    pub client_request_id: Option<String>,
    pub model: ModelName,
    pub provider: ProviderName,
    pub upstream_model: String,
    pub service_tier: Option<String>,
    pub status: u16,
    pub outcome: Outcome,
    pub stream: bool,
    pub usage: Usage,
    pub source: UsageSource,
    pub price_version: u64,
    pub cost: Picos,
    pub over: Picos,
    pub latency_ms: u64,
    pub ttft_ms: Option<u64>,
}

/// Rows in the order of their sequence numbers.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Whose they are.
    pub session: SessionId,
    /// Where the tables are before.
    pub applied_seq: u64,
    /// Where they are after; the last row's number, or higher.
    pub seq_to: u64,
    /// At least one.
    pub rows: &'a [RequestRow],
}

/// Why a batch was not applied.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The watermark is not where the batch begins: an earlier answer was lost, or the database was set back.
    #[error("the watermark is at {0}")]
    Moved(u64),
    /// The database refuses a row, whatever else is in the batch.
    #[error("a row is refused: {0}")]
    Row(String),
    /// Anything else. Whether the batch was applied is not known.
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// Rows in one statement: so many, or one of the smaller numbers, so that a statement is prepared once and not for each batch.
/// 21 columns each; SQLite takes 32,766 parameters (<https://sqlite.org/limits.html>).
const ROWS_AT_ONCE: [usize; 4] = [200, 32, 8, 1];

/// `INSERT INTO request` for each number of [`ROWS_AT_ONCE`].
static INSERTS: LazyLock<Vec<(usize, String)>> = LazyLock::new(|| {
    let columns = "id, account_id, key_id, session_id, seq, created_at, client_request_id, model, provider, upstream_model, \
                   service_tier, status, outcome, is_stream, usage, usage_source, price_version, cost_pico, over_pico, latency_ms, \
                   ttft_ms";
    let row = format!("({})", vec!["?"; columns.split(',').count()].join(", "));
    let statement = |rows: usize| {
        format!("INSERT INTO request ({columns}) VALUES {}", vec![row.as_str(); rows].join(", "))
    };
    ROWS_AT_ONCE.iter().map(|rows| (*rows, statement(*rows))).collect()
});

/// Accounts in one statement.
const ACCOUNTS_MAX: usize = 200;

impl Store {
    /// Applies a batch, if the watermark is where it begins.
    pub async fn apply_batch(&self, batch: &Batch<'_>, at: UnixMicros) -> Result<(), BatchError> {
        let applied = transact!(self.batching(), |tx| {
            let state = match advance(tx, batch, at).await? {
                Ok(state) => state,
                Err(applied_seq) => return Ok(Err(applied_seq)),
            };
            let rows = late(batch.rows, state);
            know_accounts(tx, &rows, state, at).await?;
            insert(tx, batch.session, &rows).await?;
            charge_leases(tx, batch.session, &rows).await?;
            key_spend::note(tx, batch.session, &rows).await?;
            note_totals(tx, batch, &rows).await?;
            Ok(Ok(()))
        });
        match applied {
            Ok(Ok(())) => Ok(()),
            Ok(Err(applied_seq)) => Err(BatchError::Moved(applied_seq)),
            Err(StoreError::Database(error)) if error.as_database_error().is_some_and(is_about_data) => {
                Err(BatchError::Row(error.to_string()))
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Charges one row that the database refused, and keeps it whole beside the tables.
    pub async fn quarantine(
        &self,
        batch: &Batch<'_>,
        record: &[u8],
        error: &str,
        at: UnixMicros,
    ) -> Result<(), BatchError> {
        let done = transact!(self.batching(), |tx| {
            let state = match advance(tx, batch, at).await? {
                Ok(state) => state,
                Err(applied_seq) => return Ok(Err(applied_seq)),
            };
            let rows = late(batch.rows, state);
            know_accounts(tx, &rows, state, at).await?;
            for row in &rows {
                sqlx::query(
                        "INSERT INTO quarantine (session_id, seq, request_id, account_id, cost_pico, over_pico, record, error, \
                         created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    )
                    .bind(batch.session.as_bytes())
                    .bind(column(row.seq))
                    .bind(row.request_id.as_bytes())
                    .bind(row.account.as_bytes())
                    .bind(row.cost.0)
                    .bind(row.over.0)
                    .bind(record)
                    .bind(error)
                    .bind(at.0)
                    .execute(&mut **tx)
                    .await?;
            }
            charge_leases(tx, batch.session, &rows).await?;
            key_spend::note(tx, batch.session, &rows).await?;
            note_totals(tx, batch, &rows).await?;
            Ok(Ok(()))
        })?;
        done.map_err(BatchError::Moved)
    }

    /// Writes down what each lease holds for open requests.
    pub async fn note_holds(
        &self,
        session: SessionId,
        holds: &[(AccountId, Micros)],
    ) -> Result<(), StoreError> {
        transact!(self.batching(), |tx| {
            for holds in holds.chunks(ACCOUNTS_MAX) {
                let mut query =
                    QueryBuilder::new("INSERT INTO lease_use (session_id, account_id, held_micro) ");
                query.push_values(holds, |mut row, (account, held)| {
                    row.push_bind(session.as_bytes().to_vec())
                        .push_bind(account.as_bytes().to_vec())
                        .push_bind(held.0);
                });
                query.push(
                    " ON CONFLICT (session_id, account_id) DO UPDATE SET held_micro = excluded.held_micro",
                );
                query.build().execute(&mut **tx).await?;
            }
            Ok(())
        })
    }

    /// Collects what leases of the session did not cover: from the account's credit, else it is owed.
    pub async fn collect_over(&self, session: SessionId, at: UnixMicros) -> Result<(), StoreError> {
        transact!(self.writing(), |tx| { collect_over_in(tx, session, at).await })
    }
}

/// SQLITE_CONSTRAINT, SQLITE_MISMATCH, SQLITE_TOOBIG and SQLITE_RANGE are about what was written, not about the database.
fn is_about_data(error: &dyn sqlx::error::DatabaseError) -> bool {
    let code = error.code().and_then(|code| code.parse::<i64>().ok());
    matches!(code.map(|code| code & 0xff), Some(18 | 19 | 20 | 25))
}

/// Moves the watermark. `Err` tells where it is when that is not where the batch begins.
async fn advance(
    tx: &mut Transaction<'static, Sqlite>,
    batch: &Batch<'_>,
    at: UnixMicros,
) -> Result<Result<SessionState, u64>, StoreError> {
    let row = sqlx::query(
        "UPDATE session SET applied_seq = ?, heartbeat_at = max(heartbeat_at, ?) WHERE id = ? AND applied_seq = ? RETURNING state",
    )
    .bind(column(batch.seq_to))
    .bind(at.0)
    .bind(batch.session.as_bytes())
    .bind(column(batch.applied_seq))
    .fetch_optional(&mut **tx)
    .await?;
    if let Some(row) = row {
        return SessionState::parse(row.get(0)).map(Ok);
    }
    let row = sqlx::query("SELECT applied_seq FROM session WHERE id = ?")
        .bind(batch.session.as_bytes())
        .fetch_optional(&mut **tx)
        .await?
        .ok_or_else(|| StoreError::not_found(format!("there is no session {}", batch.session)))?;
    Ok(Err(unsigned(&row, "applied_seq")?))
}

/// What an ended session settles late is charged to the account, since its leases are returned: never refused, never lost.
fn late(rows: &[RequestRow], state: SessionState) -> Vec<RequestRow> {
    let over = |row: &RequestRow| match state {
        SessionState::Live => row.over,
        SessionState::Closed | SessionState::Lost => row.cost,
    };
    rows.iter().map(|row| RequestRow { over: over(row), ..row.clone() }).collect()
}

/// An account that was made after the backup from which this database was put back is not known here. What its requests cost is owed by one
/// of its identity, which may not ask for more until a person has looked at it.
async fn know_accounts(
    tx: &mut Transaction<'static, Sqlite>,
    rows: &[RequestRow],
    state: SessionState,
    at: UnixMicros,
) -> Result<(), StoreError> {
    if state == SessionState::Live {
        return Ok(());
    }
    let accounts: BTreeSet<AccountId> = rows.iter().map(|row| row.account).collect();
    for account in accounts {
        let made = sqlx::query(
            "INSERT INTO account (id, email, status, status_reason, created_at) VALUES (?, ?, 'suspended', ?, ?) \
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(account.as_bytes())
        .bind(format!("restored-{account}@weir.invalid"))
        .bind("made after the backup that was restored; known from the journal alone")
        .bind(at.0)
        .execute(&mut **tx)
        .await?;
        if made.rows_affected() > 0 {
            tracing::warn!(account_id = %account, "an account is known from the journal alone; it is suspended");
        }
    }
    Ok(())
}

async fn insert(
    tx: &mut Transaction<'static, Sqlite>,
    session: SessionId,
    rows: &[RequestRow],
) -> Result<(), StoreError> {
    let mut rest = rows;
    for (at_once, statement) in INSERTS.iter() {
        while rest.len() >= *at_once {
            let (rows, after) = rest.split_at(*at_once);
            // Made of constants above: nothing of a row is in its text.
            let mut query = sqlx::query(AssertSqlSafe(statement.as_str()));
            for row in rows {
                query = bind(query, session, row);
            }
            query.execute(&mut **tx).await?;
            rest = after;
        }
    }
    Ok(())
}

fn bind<'q>(query: Insert<'q>, session: SessionId, row: &RequestRow) -> Insert<'q> {
    let usage = serde_json::to_string(&row.usage).unwrap_or_default();
    query
        .bind(row.request_id.as_bytes().to_vec())
        .bind(row.account.as_bytes().to_vec())
        .bind(row.key.as_bytes().to_vec())
        .bind(session.as_bytes().to_vec())
        .bind(column(row.seq))
        .bind(row.created_at.0)
        .bind(row.client_request_id.clone())
        .bind(row.model.as_str().to_owned())
        .bind(row.provider.as_str().to_owned())
        .bind(row.upstream_model.clone())
        .bind(row.service_tier.clone())
        .bind(i64::from(row.status))
        .bind(row.outcome.as_str())
        .bind(row.stream)
        .bind(usage)
        .bind(row.source.as_str())
        .bind(column(row.price_version))
        .bind(row.cost.0)
        .bind(row.over.0)
        .bind(column(row.latency_ms))
        .bind(row.ttft_ms.map(column))
}

type Insert<'q> = sqlx::query::Query<'q, Sqlite, sqlx::sqlite::SqliteArguments>;

/// Adds what the leases covered to their consumption, an account once.
async fn charge_leases(
    tx: &mut Transaction<'static, Sqlite>,
    session: SessionId,
    rows: &[RequestRow],
) -> Result<(), StoreError> {
    let mut consumed: BTreeMap<AccountId, i64> = BTreeMap::new();
    for row in rows {
        let sum = consumed.entry(row.account).or_default();
        *sum = sum.saturating_add(row.cost.0.saturating_sub(row.over.0));
    }
    let consumed: Vec<(AccountId, i64)> = consumed.into_iter().filter(|(_, pico)| *pico > 0).collect();
    for consumed in consumed.chunks(ACCOUNTS_MAX) {
        let mut query = QueryBuilder::new("INSERT INTO lease_use (session_id, account_id, consumed_pico) ");
        query.push_values(consumed, |mut row, (account, pico)| {
            row.push_bind(session.as_bytes().to_vec())
                .push_bind(account.as_bytes().to_vec())
                .push_bind(*pico);
        });
        query.push(
            " ON CONFLICT (session_id, account_id) DO UPDATE SET consumed_pico = consumed_pico + excluded.consumed_pico",
        );
        query.build().execute(&mut **tx).await?;
    }
    Ok(())
}

async fn note_totals(
    tx: &mut Transaction<'static, Sqlite>,
    batch: &Batch<'_>,
    rows: &[RequestRow],
) -> Result<(), StoreError> {
    let sum = |of: fn(&RequestRow) -> i64| rows.iter().map(of).fold(0_i64, i64::saturating_add);
    sqlx::query("INSERT INTO batch (session_id, seq_to, seq_from, row_count, cost_pico, over_pico) VALUES (?, ?, ?, ?, ?, ?)")
        .bind(batch.session.as_bytes())
        .bind(column(batch.seq_to))
        .bind(column(batch.applied_seq + 1))
        .bind(i64::try_from(rows.len()).unwrap_or(i64::MAX))
        .bind(sum(|row| row.cost.0))
        .bind(sum(|row| row.over.0))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// What of the account's costs no lease covered and nobody has collected yet: it is spent, quarantined or not.
///
/// Of all requests only those above their lease are looked at: SQLite would rather read every request of the account.
pub(super) async fn over_due_in(
    tx: &mut Transaction<'static, Sqlite>,
    account: AccountId,
) -> Result<Picos, StoreError> {
    let due: i64 = sqlx::query_scalar(
        "SELECT coalesce(sum(over_pico), 0) FROM ( \
         SELECT r.over_pico FROM session s JOIN request r INDEXED BY request_over \
         ON r.session_id = s.id AND r.seq > s.over_seq WHERE r.over_pico > 0 AND r.account_id = ?1 UNION ALL \
         SELECT q.over_pico FROM session s JOIN quarantine q ON q.session_id = s.id AND q.seq > s.over_seq \
         WHERE q.over_pico > 0 AND q.account_id = ?1)",
    )
    .bind(account.as_bytes())
    .fetch_one(&mut **tx)
    .await?;
    Ok(Picos(due))
}

pub(super) async fn collect_over_in(
    tx: &mut Transaction<'static, Sqlite>,
    session: SessionId,
    at: UnixMicros,
) -> Result<(), StoreError> {
    let due = sqlx::query(
        "SELECT account_id, sum(over_pico) FROM ( \
         SELECT r.account_id, r.over_pico FROM session s JOIN request r ON r.session_id = s.id AND r.seq > s.over_seq \
         WHERE s.id = ?1 AND r.over_pico > 0 UNION ALL \
         SELECT q.account_id, q.over_pico FROM session s JOIN quarantine q ON q.session_id = s.id AND q.seq > s.over_seq \
         WHERE s.id = ?1 AND q.over_pico > 0) GROUP BY account_id ORDER BY account_id",
    )
    .bind(session.as_bytes())
    .fetch_all(&mut **tx)
    .await?;
    for row in &due {
        let account = super::accounts::account_id(row.get(0))?;
        charge_account(tx, session, account, Picos(row.get(1)), at).await?;
    }
    sqlx::query("UPDATE session SET over_seq = applied_seq WHERE id = ?")
        .bind(session.as_bytes())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn charge_account(
    tx: &mut Transaction<'static, Sqlite>,
    session: SessionId,
    account: AccountId,
    over: Picos,
    at: UnixMicros,
) -> Result<(), StoreError> {
    let row = sqlx::query("SELECT carry_pico, available_micro FROM account WHERE id = ?")
        .bind(account.as_bytes())
        .fetch_one(&mut **tx)
        .await?;
    let (carry, available): (i64, i64) = (row.get(0), row.get(1));
    let (charged, carry) = over.saturating_add(Picos(carry)).split();
    let paid = charged.0.min(available);
    let owed = charged.0 - paid;
    if owed > 0 {
        tracing::warn!(account_id = %account, owed_micro = owed, "a cost beyond all of an account's credit is owed");
    }
    sqlx::query(
        "UPDATE account SET carry_pico = ?, available_micro = available_micro - ?, consumed_micro = consumed_micro + ?, \
         owed_micro = owed_micro + ? WHERE id = ?",
    )
    .bind(carry.0)
    .bind(paid)
    .bind(charged.0)
    .bind(owed)
    .bind(account.as_bytes())
    .execute(&mut **tx)
    .await?;
    let entry = Entry { kind: "over", account, session: Some(session), at };
    let postings = [(Book::Customer, paid), (Book::Receivable, owed), (Book::Revenue, -charged.0)];
    entries::post(tx, entry, &postings).await
}
