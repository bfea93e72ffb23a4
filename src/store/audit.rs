//! Everything that an audit looks at, from one snapshot.

use super::accounts::account_id;
use super::open::transact;
use super::sessions::{SessionState, unsigned};
use super::{Store, StoreError};
use crate::ids::{AccountId, SessionId};
use crate::money::{Micros, PICOS_PER_MICRO, Picos};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

/// The books at one instant.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Every account.
    pub accounts: Vec<AccountBooks>,
    /// Every lease that was ever granted, ended or not.
    pub leases: Vec<LeaseBooks>,
    /// Every session.
    pub sessions: Vec<SessionBooks>,
    /// Entries whose postings do not sum to zero.
    pub unbalanced_entries: u64,
}

/// An account's numbers, and the sums that they must agree with.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the columns of the migrations, and sums over tables named after them")]
pub struct AccountBooks {
    pub account: AccountId,
    pub available: Micros,
    pub leased: Micros,
    pub consumed: Micros,
    pub owed: Micros,
    pub written_off: Micros,
    pub carry: Picos,
    /// Sums over its lots.
    pub credited: Micros,
    pub refunded: Micros,
    /// Sum over its requests, quarantined ones included.
    pub cost: i128,
    /// Costs above leases that are not collected yet.
    pub over_due: i128,
    /// What its postings to the customer's book say is available.
    pub posted_available: Micros,
}

/// A lease's numbers, and the sums that they must agree with.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "as in AccountBooks")]
pub struct LeaseBooks {
    pub session: SessionId,
    pub account: AccountId,
    pub granted: Micros,
    pub returned: Micros,
    pub is_closed: bool,
    pub consumed: Picos,
    /// Sum over the session's requests of the account, less what was above the lease.
    pub covered: i128,
    /// What its postings to the escrow book leave: zero once it is closed.
    pub posted_escrow: Micros,
}

/// A session's numbers, and the sums that they must agree with.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "as in AccountBooks")]
pub struct SessionBooks {
    pub session: SessionId,
    pub state: SessionState,
    pub applied_seq: u64,
    /// Sums over its batches' control totals.
    pub batch_rows: u64,
    pub batch_cost: i128,
    /// Sums over its rows.
    pub rows: u64,
    pub cost: i128,
    /// Rows beyond the watermark: there must be none.
    pub rows_beyond: u64,
    /// Batches that do not begin where the one before ended.
    pub gaps: u64,
}

impl Store {
    /// Reads the books.
    pub async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        transact!(self.reading(), |tx| {
            Ok(Snapshot {
                accounts: accounts(tx).await?,
                leases: leases(tx).await?,
                sessions: sessions(tx).await?,
                unbalanced_entries: unbalanced(tx).await?,
            })
        })
    }
}

/// Sums of pico-dollars can pass 64 bits, in which SQLite's `sum` is an error: whole micro-dollars and remainders are summed apart.
macro_rules! pico_sum {
    ($column:literal) => {
        concat!("coalesce(sum(", $column, " / 1000000), 0), coalesce(sum(", $column, " % 1000000), 0)")
    };
}

fn picos(row: &SqliteRow, at: usize) -> i128 {
    i128::from(row.get::<i64, _>(at)) * 1_000_000 + i128::from(row.get::<i64, _>(at + 1))
}

type Tx = Transaction<'static, Sqlite>;

async fn accounts(tx: &mut Tx) -> Result<Vec<AccountBooks>, StoreError> {
    let ids = sqlx::query("SELECT * FROM account ORDER BY id").fetch_all(&mut **tx).await?;
    let mut books = Vec::with_capacity(ids.len());
    for row in &ids {
        books.push(account(tx, row).await?);
    }
    Ok(books)
}

async fn account(tx: &mut Tx, row: &SqliteRow) -> Result<AccountBooks, StoreError> {
    let account = account_id(row.get("id"))?;
    let lots = sqlx::query("SELECT coalesce(sum(amount_micro), 0), coalesce(sum(refunded_micro), 0) FROM lot WHERE account_id = ?")
        .bind(account.as_bytes())
        .fetch_one(&mut **tx)
        .await?;
    let costs = sqlx::query(concat!(
        "SELECT ",
        pico_sum!("cost_pico"),
        " FROM (SELECT cost_pico FROM request WHERE account_id = ?1 \
         UNION ALL SELECT cost_pico FROM quarantine WHERE account_id = ?1)"
    ))
    .bind(account.as_bytes())
    .fetch_one(&mut **tx)
    .await?;
    let due = sqlx::query(concat!(
        "SELECT ",
        pico_sum!("over_pico"),
        " FROM (SELECT r.over_pico FROM session s JOIN request r ON r.session_id = s.id AND r.seq > s.over_seq \
         WHERE r.over_pico > 0 AND r.account_id = ?1 \
         UNION ALL SELECT q.over_pico FROM session s JOIN quarantine q ON q.session_id = s.id AND q.seq > s.over_seq \
         WHERE q.over_pico > 0 AND q.account_id = ?1)"
    ))
    .bind(account.as_bytes())
    .fetch_one(&mut **tx)
    .await?;
    let posted: i64 = sqlx::query_scalar(
        "SELECT coalesce(-sum(p.amount_micro), 0) FROM entry e JOIN posting p ON p.entry_id = e.id \
         WHERE e.account_id = ? AND p.book = 'customer'",
    )
    .bind(account.as_bytes())
    .fetch_one(&mut **tx)
    .await?;
    Ok(AccountBooks {
        account,
        available: Micros(row.get("available_micro")),
        leased: Micros(row.get("leased_micro")),
        consumed: Micros(row.get("consumed_micro")),
        owed: Micros(row.get("owed_micro")),
        written_off: Micros(row.get("written_off_micro")),
        carry: Picos(row.get("carry_pico")),
        credited: Micros(lots.get(0)),
        refunded: Micros(lots.get(1)),
        cost: picos(&costs, 0),
        over_due: picos(&due, 0),
        posted_available: Micros(posted),
    })
}

async fn leases(tx: &mut Tx) -> Result<Vec<LeaseBooks>, StoreError> {
    let rows = sqlx::query(concat!(
        "SELECT l.session_id, l.account_id, l.granted_micro, l.returned_micro, l.is_closed, coalesce(u.consumed_pico, 0), \
         coalesce(escrow.amount_micro, 0), ",
        pico_sum!("c.covered_pico"),
        " FROM lease l LEFT JOIN lease_use u ON u.session_id = l.session_id AND u.account_id = l.account_id \
         LEFT JOIN (SELECT session_id, account_id, cost_pico - over_pico AS covered_pico FROM request UNION ALL \
          SELECT session_id, account_id, cost_pico - over_pico FROM quarantine) c \
         ON c.session_id = l.session_id AND c.account_id = l.account_id \
         LEFT JOIN (SELECT e.session_id, e.account_id, -sum(p.amount_micro) AS amount_micro FROM entry e \
          JOIN posting p ON p.entry_id = e.id AND p.book = 'escrow' GROUP BY e.session_id, e.account_id) escrow \
         ON escrow.session_id = l.session_id AND escrow.account_id = l.account_id \
         GROUP BY l.session_id, l.account_id"
    ))
    .fetch_all(&mut **tx)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(LeaseBooks {
                session: session_id(row.get(0))?,
                account: account_id(row.get(1))?,
                granted: Micros(row.get(2)),
                returned: Micros(row.get(3)),
                is_closed: row.get::<i64, _>(4) != 0,
                consumed: Picos(row.get(5)),
                posted_escrow: Micros(row.get(6)),
                covered: picos(row, 7),
            })
        })
        .collect()
}

async fn sessions(tx: &mut Tx) -> Result<Vec<SessionBooks>, StoreError> {
    // Every table is read once, however many sessions there have been.
    let rows = sqlx::query(concat!(
        "WITH sums AS (SELECT b.session_id, sum(row_count), ",
        pico_sum!("cost_pico"),
        ", sum(b.seq_from <> 1 AND NOT EXISTS \
         (SELECT 1 FROM batch a WHERE a.session_id = b.session_id AND a.seq_to = b.seq_from - 1)) FROM batch b GROUP BY b.session_id), \
         own AS (SELECT r.session_id, count(*), ",
        pico_sum!("r.cost_pico"),
        ", sum(r.seq > s.applied_seq) FROM (SELECT session_id, seq, cost_pico FROM request \
         UNION ALL SELECT session_id, seq, cost_pico FROM quarantine) r JOIN session s ON s.id = r.session_id GROUP BY r.session_id) \
         SELECT s.id, s.state, s.applied_seq, sums.*, own.* FROM session s \
         LEFT JOIN sums ON sums.session_id = s.id LEFT JOIN own ON own.session_id = s.id ORDER BY s.id"
    ))
    .fetch_all(&mut **tx)
    .await?;
    let number = |row: &SqliteRow, at: usize| row.get::<Option<i64>, _>(at).unwrap_or(0);
    let count = |row: &SqliteRow, at: usize| u64::try_from(number(row, at)).map_err(StoreError::damaged);
    let pico = |row: &SqliteRow, at: usize| {
        i128::from(number(row, at)) * i128::from(PICOS_PER_MICRO) + i128::from(number(row, at + 1))
    };
    rows.iter()
        .map(|row| {
            Ok(SessionBooks {
                session: session_id(row.get("id"))?,
                state: SessionState::parse(row.get("state"))?,
                applied_seq: unsigned(row, "applied_seq")?,
                batch_rows: count(row, 4)?,
                batch_cost: pico(row, 5),
                gaps: count(row, 7)?,
                rows: count(row, 9)?,
                cost: pico(row, 10),
                rows_beyond: count(row, 12)?,
            })
        })
        .collect()
}

async fn unbalanced(tx: &mut Tx) -> Result<u64, StoreError> {
    let count: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT entry_id FROM posting GROUP BY entry_id HAVING sum(amount_micro) <> 0)",
    )
    .fetch_one(&mut **tx)
    .await?;
    u64::try_from(count).map_err(StoreError::damaged)
}

fn session_id(bytes: &[u8]) -> Result<SessionId, StoreError> {
    SessionId::from_slice(bytes).ok_or_else(|| StoreError::damaged("a session's identity"))
}
