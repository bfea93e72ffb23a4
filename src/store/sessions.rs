//! Sessions: one incarnation of a process each, its heartbeat, and its end.

use super::batch::collect_over_in;
use super::changes::{self, Subject, signed};
use super::credit;
use super::entries::{self, Book, Entry};
use super::open::transact;
use super::{Store, StoreError};
use crate::clock::UnixMicros;
use crate::ids::{AccountId, SessionId};
use crate::money::{Micros, Picos};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

/// A session to be opened.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// Its identity.
    pub session_id: SessionId,
    /// The machine that it runs on.
    pub host: String,
    /// The version of the program.
    pub version: String,
}

/// How a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// It may be granted credit.
    Live,
    /// All that it settled is in the tables, and its leases are returned.
    Closed,
    /// Its host is taken for gone; its leases are returned. What it settles late is charged to the accounts all the same.
    Lost,
}

/// A session that has not ended.
#[derive(Clone, Debug)]
pub struct LiveSession {
    /// Its identity.
    pub session_id: SessionId,
    /// The machine that it runs on.
    pub host: String,
    /// When its heart last beat, by its own clock.
    pub heartbeat_at: UnixMicros,
    /// Everything up to this sequence number is in the tables.
    pub applied_seq: u64,
}

impl SessionState {
    /// The name in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            SessionState::Live => "live",
            SessionState::Closed => "closed",
            SessionState::Lost => "lost",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, StoreError> {
        [SessionState::Live, SessionState::Closed, SessionState::Lost]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| StoreError::damaged(format!("the session state {text:?}")))
    }
}

impl Store {
    /// Opens a session.
    pub async fn open_session(&self, new: &NewSession, at: UnixMicros) -> Result<(), StoreError> {
        transact!(self.writing(), |tx| {
            sqlx::query(
                "INSERT INTO session (id, host, version, opened_at, heartbeat_at) VALUES (?, ?, ?, ?, ?)",
            )
            .bind(new.session_id.as_bytes())
            .bind(&new.host)
            .bind(&new.version)
            .bind(at.0)
            .bind(at.0)
            .execute(&mut **tx)
            .await?;
            Ok(())
        })
    }

    /// Notes that the session lives, and tells how the database has it: one that is not live must stop admitting.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub async fn heartbeat(&self, session: SessionId, at: UnixMicros) -> Result<SessionState, StoreError> {
        transact!(self.writing(), |tx| {
            sqlx::query(
                "UPDATE session SET heartbeat_at = max(heartbeat_at, ?) WHERE id = ? AND state = 'live'",
            )
            .bind(at.0)
            .bind(session.as_bytes())
            .execute(&mut **tx)
            .await?;
            state_in(tx, session).await.map(|(state, _)| state)
        })
    }

    /// How a session is, and up to which sequence number it is in the tables; `None` where it is not known here.
    pub async fn session(&self, session: SessionId) -> Result<Option<(SessionState, u64)>, StoreError> {
        transact!(self.reading(), |tx| {
            match state_in(tx, session).await {
                Ok(found) => Ok(Some(found)),
                Err(StoreError::NotFound(_)) => Ok(None),
                Err(other) => Err(other),
            }
        })
    }

    /// Sessions that have not ended.
    pub async fn live_sessions(&self) -> Result<Vec<LiveSession>, StoreError> {
        transact!(self.reading(), |tx| {
            let rows = sqlx::query(
                "SELECT id, host, heartbeat_at, applied_seq FROM session WHERE state = 'live' ORDER BY id",
            )
            .fetch_all(&mut **tx)
            .await?;
            rows.iter().map(live_session).collect()
        })
    }

    /// Ends a session: its leases are charged with what was consumed, and the rest goes back to the accounts. For `Closed` everything
    /// up to `applied_seq` must be in the tables and nothing after it may exist.
    ///
    /// Ending an ended session changes nothing, but for a lost one whose journal has been replayed after all: it becomes closed.
    ///
    /// # Errors
    ///
    /// `Refused` where the tables are not at `applied_seq`.
    pub async fn end_session(
        &self,
        session: SessionId,
        end: SessionState,
        applied_seq: u64,
        at: UnixMicros,
    ) -> Result<(), StoreError> {
        transact!(self.writing(), |tx| {
            let (state, applied) = state_in(tx, session).await?;
            if state == SessionState::Closed || state == end {
                return Ok(());
            }
            if end == SessionState::Closed && applied != applied_seq {
                return Err(StoreError::Refused(format!(
                    "session {session} is in the tables up to {applied}, not {applied_seq}"
                )));
            }
            collect_over_in(tx, session, at).await?;
            for lease in open_leases(tx, session).await? {
                close_lease(tx, session, lease, at).await?;
            }
            sqlx::query("UPDATE session SET state = ?, closed_at = ? WHERE id = ?")
                .bind(end.as_str())
                .bind(at.0)
                .bind(session.as_bytes())
                .execute(&mut **tx)
                .await?;
            Ok(())
        })
    }
}

async fn state_in(
    tx: &mut Transaction<'static, Sqlite>,
    session: SessionId,
) -> Result<(SessionState, u64), StoreError> {
    let row = sqlx::query("SELECT state, applied_seq FROM session WHERE id = ?")
        .bind(session.as_bytes())
        .fetch_optional(&mut **tx)
        .await?
        .ok_or_else(|| StoreError::not_found(format!("there is no session {session}")))?;
    Ok((SessionState::parse(row.get(0))?, unsigned(&row, "applied_seq")?))
}

fn live_session(row: &SqliteRow) -> Result<LiveSession, StoreError> {
    Ok(LiveSession {
        session_id: SessionId::from_slice(row.get("id"))
            .ok_or_else(|| StoreError::damaged("a session's identity"))?,
        host: row.get("host"),
        heartbeat_at: UnixMicros(row.get("heartbeat_at")),
        applied_seq: unsigned(row, "applied_seq")?,
    })
}

pub(super) fn unsigned(row: &SqliteRow, column: &str) -> Result<u64, StoreError> {
    u64::try_from(row.get::<i64, _>(column)).map_err(StoreError::damaged)
}

/// A lease that is to be closed.
struct OpenLease {
    account: AccountId,
    /// Granted and not returned.
    net: Micros,
    consumed: Picos,
}

async fn open_leases(
    tx: &mut Transaction<'static, Sqlite>,
    session: SessionId,
) -> Result<Vec<OpenLease>, StoreError> {
    let rows = sqlx::query(
        "SELECT l.account_id, l.granted_micro - l.returned_micro, coalesce(u.consumed_pico, 0) FROM lease l \
         LEFT JOIN lease_use u ON u.session_id = l.session_id AND u.account_id = l.account_id \
         WHERE l.session_id = ? AND l.is_closed = 0 ORDER BY l.account_id",
    )
    .bind(session.as_bytes())
    .fetch_all(&mut **tx)
    .await?;
    rows.iter()
        .map(|row| {
            let account = super::accounts::account_id(row.get(0))?;
            Ok(OpenLease { account, net: Micros(row.get(1)), consumed: Picos(row.get(2)) })
        })
        .collect()
}

/// Charges whole micro-dollars, carries the remainder, returns the rest, and pays what is owed from it.
async fn close_lease(
    tx: &mut Transaction<'static, Sqlite>,
    session: SessionId,
    lease: OpenLease,
    at: UnixMicros,
) -> Result<(), StoreError> {
    let OpenLease { account, net, consumed } = lease;
    let carry: i64 = sqlx::query_scalar("SELECT carry_pico FROM account WHERE id = ?")
        .bind(account.as_bytes())
        .fetch_one(&mut **tx)
        .await?;
    let (charged, carry) = consumed.saturating_add(Picos(carry)).split();
    let returned = net.0 - charged.0;
    if returned < 0 {
        return Err(StoreError::damaged(format!(
            "the lease of {account} in {session} consumed more than it was granted"
        )));
    }
    sqlx::query(
        "UPDATE account SET carry_pico = ?, consumed_micro = consumed_micro + ?, leased_micro = leased_micro - ?, \
         available_micro = available_micro + ? WHERE id = ?",
    )
    .bind(carry.0)
    .bind(charged.0)
    .bind(net.0)
    .bind(returned)
    .bind(account.as_bytes())
    .execute(&mut **tx)
    .await?;
    sqlx::query("UPDATE lease SET is_closed = 1, returned_micro = returned_micro + ? WHERE session_id = ? AND account_id = ?")
        .bind(returned)
        .bind(session.as_bytes())
        .bind(account.as_bytes())
        .execute(&mut **tx)
        .await?;
    sqlx::query("UPDATE lease_use SET held_micro = 0 WHERE session_id = ? AND account_id = ?")
        .bind(session.as_bytes())
        .bind(account.as_bytes())
        .execute(&mut **tx)
        .await?;
    let entry = |kind| Entry { kind, account, session: Some(session), at };
    entries::post(tx, entry("return"), &[(Book::Escrow, returned), (Book::Customer, -returned)]).await?;
    entries::post(tx, entry("revenue"), &[(Book::Escrow, charged.0), (Book::Revenue, -charged.0)]).await?;
    credit::pay_owed(tx, account, Some(session), at).await?;
    if returned > 0 {
        changes::note(tx, Subject::Account(account)).await?;
    }
    Ok(())
}

/// The watermark as a column value.
pub(super) fn seq(number: u64) -> i64 {
    signed(number)
}
