//! The books: credit that leaves an account before it can be spent, and settlements that reach the database once.
//!
//! Promises: a hold is made from a lease, and a lease is credit that has left the account in the database; a hold that was sent is settled
//! exactly once; a settlement is in the journal before anyone is told, and in the database exactly once, under `kill -9`, a database
//! that is away, or a lost answer to a commit. Refuses to know: sockets, providers, who may ask.

mod audit;
mod backup;
mod database;
mod cell;
mod claim;
mod grants;
mod hold;
mod host;
pub mod journal;
mod kept;
mod leases;
mod need;
mod purse;
mod recover;
mod refund;
mod restore;
mod rows;
mod spending;
mod tasks;
mod tend;
mod writer;

pub use audit::{AuditReport, Finding, audit, examine};
pub use backup::{Backup, BackupError, Manifest, ManifestSession, backup};
pub use cell::{Cell, Word};
pub use claim::{Claim, Unclaimed};
pub use database::Database;
pub use hold::{End, Extending, Hold, HoldRequest, Settled, Synced};
pub use journal::Durability;
pub use kept::{KeepSettings, KeptStats};
pub use need::Need;
pub use recover::{Recovered, replay};
pub use refund::{Refunded, refund};
pub use restore::{Restore, Restored, restore};
pub use writer::{WriteError, Written, write};

use crate::clock::{Clock, UnixMicros};
use crate::feed::Feed;
use crate::ids::{AccountId, RequestId, SessionId};
use crate::money::{Micros, Picos};
use crate::store::{NewSession, SessionState, Store, StoreError};
use host::{JournalHome, SessionDirectory};
use journal::{Journal, JournalStats};
use leases::Leases;
use purse::Purse;
use spending::Spending;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tasks::Tasks;
use tokio::runtime::Handle;
use writer::Queue;

/// Where the journal is and what it may take.
#[derive(Clone, Debug)]
pub struct JournalSettings {
    /// The directory of all sessions' journals on this machine.
    pub dir: PathBuf,
    /// How much a power cut may lose.
    pub durability: Durability,
    /// The size of a segment.
    pub segment_bytes: u64,
    /// All segments of a session together.
    pub max_bytes: u64,
    /// What is kept of all sessions, once it is in the database.
    pub keep: KeepSettings,
}

/// Bounds of the books.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The journal.
    pub journal: JournalSettings,
    /// Requests that are open or not yet in the database, all together.
    pub backlog_max: usize,
    /// How long requests are admitted on what is in memory while the database does not answer.
    pub max_stale: Duration,
    /// How long a stream may last. A session of a lost host is given up only after this and `max_stale`.
    pub max_stream_time: Duration,
    /// How long a request waits for a grant.
    pub grant_timeout: Duration,
    /// After how long without a request an account's unused credit goes back.
    pub idle_return: Duration,
}

impl Settings {
    /// These, and defaults for the rest.
    pub fn new(dir: PathBuf, durability: Durability) -> Self {
        let keep = KeepSettings { time: Duration::from_secs(48 * 3_600), bytes: 4 << 30 };
        let journal = JournalSettings { dir, durability, segment_bytes: 8 << 20, max_bytes: 1 << 30, keep };
        Settings {
            journal,
            backlog_max: 200_000,
            max_stale: Duration::from_secs(900),
            max_stream_time: Duration::from_secs(900),
            grant_timeout: Duration::from_secs(1),
            idle_return: Duration::from_secs(600),
        }
    }
}

/// Why a hold is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// The account's credit does not cover it.
    Exhausted,
    /// It would, were some of it not held by requests under way.
    InFlight,
    /// The key has spent what it may.
    KeyLimit,
    /// The account is suspended.
    Suspended,
    /// The database did not grant in time.
    Unavailable,
    /// The process admits nothing at the moment: the backlog or the journal is full, or what it knows is too old.
    Backlog,
}

/// What is known of an account's credit without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing.
    Unknown,
    /// There is some.
    Funded,
    /// There was none when last asked, and nothing has been added since.
    Empty,
}

/// Why the books cannot be opened or closed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The journal's directory.
    #[error("the journal directory {dir}: {cause}")]
    Journal {
        /// Which.
        dir: String,
        /// What the system said.
        cause: io::Error,
    },
    /// A journal of a dead session cannot be replayed.
    #[error("{path}: {cause}")]
    Replay {
        /// Which.
        path: String,
        /// Why.
        cause: journal::ScanError,
    },
    /// What is settled could not be written to the database in time.
    #[error(
        "{0} settlements are not in the database; they are in the journal, and the next start brings them there"
    )]
    NotWritten(usize),
    /// The database has this process's session as ended: another process took it for lost.
    #[error("the database has the session of this process as ended; a new start begins another one")]
    Fenced,
    /// A task that the books cannot do without is gone.
    #[error(
        "a task of the books ({0}) has ended by itself; what is settled is in the journal, and a new start goes on from there"
    )]
    TaskEnded(&'static str),
    /// The refund cannot be paid now.
    #[error("{0}")]
    InUse(String),
}

/// The books in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct LedgerStats {
    /// Holds that are open.
    pub open_holds: u64,
    /// What they hold.
    pub held: Picos,
    /// Accounts with a lease in this process.
    pub leases: u64,
    /// What the leases have free.
    pub free: Picos,
    /// Settlements on their way to the database.
    pub backlog: u64,
    /// How long the oldest of them has waited.
    pub writer_lag: Duration,
    /// Batches written.
    pub batches: u64,
    /// Rows written.
    pub rows: u64,
    /// Batches that the database did not take at once.
    pub batch_failures: u64,
    /// Rows that the database refused.
    pub quarantined: u64,
    /// Grants that were made.
    pub grants: u64,
    /// Grants that the database did not make in time.
    pub grant_failures: u64,
    /// Settlements with a class that has no price of its own.
    pub price_fallbacks: u64,
    /// What settlements cost above their leases.
    pub over: Picos,
    /// Dead sessions that were recovered.
    pub sessions_recovered: u64,
    /// Bytes of torn journal tails.
    pub torn_bytes: u64,
    /// What the last audit in this process found to be off, in pico-dollars; `None` before the first.
    pub audit_drift: Option<i64>,
    /// The database says that this session has ended.
    pub is_fenced: bool,
    /// The journal.
    pub journal: JournalStats,
    /// What is kept of journals that are in the database.
    pub kept: KeptStats,
}

/// The books of this process. Cheap to clone.
#[derive(Clone)]
pub struct Ledger(Arc<Inner>);

struct Inner {
    session: SessionId,
    settings: Settings,
    store: Store,
    feed: Feed,
    clock: Clock,
    books: Handle,
    journal: Journal,
    home: JournalHome,
    directory: SessionDirectory,
    leases: Leases,
    spending: Spending,
    queue: Queue,
    counts: Counts,
    heart: Heart,
    tasks: Tasks,
}

#[derive(Default)]
struct Counts {
    open_holds: AtomicU64,
    /// Holds that are open and settlements that are not in the database.
    backlog: AtomicU64,
    batches: AtomicU64,
    rows: AtomicU64,
    batch_failures: AtomicU64,
    quarantined: AtomicU64,
    grants: AtomicU64,
    grant_failures: AtomicU64,
    price_fallbacks: AtomicU64,
    over_pico: AtomicI64,
    sessions_recovered: AtomicU64,
    torn_bytes: AtomicU64,
    audit_drift: Mutex<Option<i64>>,
    kept: Mutex<KeptStats>,
}

/// When the database last said that this session lives. Two clocks, since one of them stands still while the machine sleeps.
struct Heart {
    beat: Mutex<(Instant, UnixMicros)>,
    is_fenced: AtomicBool,
}

impl Ledger {
    /// Recovers dead sessions of this machine, opens a new one, and starts the tasks of the books on `books`.
    pub async fn open(
        settings: Settings,
        store: Store,
        feed: Feed,
        clock: Clock,
        books: Handle,
    ) -> Result<Ledger, LedgerError> {
        let home = JournalHome::open(&settings.journal.dir, clock.clone())?;
        // Before anything is written here: on a small disk, what is kept of the past is what is in the way.
        if let Err(error) = home.prune(settings.journal.keep) {
            tracing::warn!(%error, "what is kept of journals is not tidied yet");
        }
        let recovered = recover::orphans(&home, &store, &clock).await?;
        let session = SessionId::new();
        let directory = home.begin(session)?;
        let failed = |cause| LedgerError::Journal { dir: settings.journal.dir.display().to_string(), cause };
        let journal = Journal::start(
            directory.disk(),
            journal::Settings {
                durability: settings.journal.durability,
                segment_bytes: settings.journal.segment_bytes,
                max_bytes: settings.journal.max_bytes,
            },
        )
        .map_err(failed)?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        store
            .open_session(&NewSession { session_id: session, host: host::name(), version }, clock.wall())
            .await?;
        let heart =
            Heart { beat: Mutex::new((clock.now(), clock.wall())), is_fenced: AtomicBool::new(false) };
        let ledger = Ledger(Arc::new(Inner {
            session,
            settings,
            store,
            feed,
            clock,
            books,
            journal,
            home,
            directory,
            leases: Leases::default(),
            spending: Spending::default(),
            queue: Queue::default(),
            counts: Counts::default(),
            heart,
            tasks: Tasks::default(),
        }));
        ledger.0.note_recovered(&recovered);
        ledger.0.start_tasks();
        tracing::info!(session_id = %session, recovered = recovered.sessions, "the books are open");
        Ok(ledger)
    }

    /// Whether requests are admitted at all.
    pub fn admitting(&self) -> Result<(), Shortage> {
        let inner = &self.0;
        let is_full = inner.counts.backlog.load(Ordering::Relaxed) >= inner.settings.backlog_max as u64;
        let is_blind = inner.feed.stale_for() > inner.settings.max_stale
            || inner.heart.silent_for(&inner.clock) > inner.settings.max_stale;
        let is_broken = inner.heart.is_fenced.load(Ordering::Relaxed) || inner.tasks.ended().is_some();
        if is_full || is_blind || is_broken {
            return Err(Shortage::Backlog);
        }
        Ok(())
    }

    /// What is known of the account's credit without asking.
    pub fn standing(&self, account: AccountId) -> Standing {
        self.0.leases.get(account).map_or(Standing::Unknown, |lease| lease.standing(account, &self.0.feed))
    }

    /// Holds credit for a request: from the account's lease in memory, else with one grant from the database. What it is lowered to is in
    /// the hold. A claim goes with it, and back should there be no hold.
    pub async fn hold(&self, request: HoldRequest, claim: Option<Claim>) -> Result<Hold, Shortage> {
        self.admitting()?;
        let inner = &self.0;
        let room = inner.journal.reserve().ok_or(Shortage::Backlog)?;
        let key = match request.spend_limit {
            Some(limit) => Some(spending::meter(inner, request.key, limit, request.created_at).await?),
            None => None,
        };
        let purse = Purse { account: request.account, lease: inner.leases.of(request.account), key };
        let rate = request.rate();
        let warm = purse.plan(&request.need, rate).filter(|plan| {
            // What is decided because there is little has to be known, and not remembered from before a top-up.
            (!plan.is_tight || purse.is_seen(&inner.feed)) && purse.hold(plan.amount)
        });
        let plan = match warm {
            Some(plan) => plan,
            None => grants::secure(inner, &purse, &request).await?,
        };
        grants::refill(inner, &purse.lease, request.account, plan.amount);
        Ok(Hold::new(Arc::clone(inner), purse, room, request, plan, claim))
    }

    /// Claims an account's idempotency key for a request.
    pub async fn claim(
        &self,
        account: AccountId,
        key: String,
        request: RequestId,
    ) -> Result<Claim, Unclaimed> {
        claim::claim(&self.0, account, key, request).await
    }

    /// Waits until the books cannot go on: the database has this session as ended, or one of their tasks is gone. Nothing is admitted
    /// from then on, and never again in this process.
    pub async fn broken(&self) -> LedgerError {
        loop {
            if self.0.heart.is_fenced.load(Ordering::Relaxed) {
                return LedgerError::Fenced;
            }
            if let Some(task) = self.0.tasks.ended() {
                return LedgerError::TaskEnded(task);
            }
            tokio::time::sleep(BROKEN_LOOK_EVERY).await;
        }
    }

    /// Why this process should get no more requests, if it should not. That the database is away is no such reason.
    pub fn obstacle(&self) -> Option<&'static str> {
        let inner = &self.0;
        if inner.tasks.ended().is_some() {
            Some("a task of the books has ended")
        } else if inner.heart.is_fenced.load(Ordering::Relaxed) {
            Some("the database has the session of this process as ended")
        } else if inner.journal.stats().is_failed {
            Some("the journal cannot be written")
        } else if inner.counts.backlog.load(Ordering::Relaxed) >= inner.settings.backlog_max as u64 {
            Some("too many settlements wait for the database")
        } else {
            None
        }
    }

    /// How often the batched writer's loop has turned. It turns more than once in two seconds, also while the database is away.
    pub fn writer_turns(&self) -> u64 {
        self.0.tasks.writer_turns.load(Ordering::Relaxed)
    }

    /// Writes everything that is settled to the database, returns the leases, and ends the session. Holds that are open then stay in the
    /// journal, for the next start to bill.
    pub async fn close(&self) -> Result<(), LedgerError> {
        // What they were doing is taken up below.
        self.0.tasks.stop().await;
        let mut left = writer::drain(&self.0).await;
        self.0.journal.stop();
        let open = self.0.counts.open_holds.load(Ordering::Acquire);
        if open == 0 {
            // A hold leaves its settlement in the queue before it stops counting as open: what ended since the first drain is there now.
            left = writer::drain(&self.0).await;
        }
        if left > 0 {
            return Err(LedgerError::NotWritten(left));
        }
        if open > 0 {
            tracing::warn!(open, "requests are still open; the next start bills them");
            return Ok(());
        }
        let applied_seq = self.0.queue.applied_seq();
        self.0
            .store
            .end_session(self.0.session, SessionState::Closed, applied_seq, self.0.clock.wall())
            .await?;
        self.0.directory.remove().map_err(|cause| LedgerError::Journal {
            dir: self.0.directory.path().display().to_string(),
            cause,
        })?;
        tracing::info!(session_id = %self.0.session, "the books are closed");
        Ok(())
    }

    /// The books in numbers.
    pub fn stats(&self) -> LedgerStats {
        let (inner, counts) = (&self.0, &self.0.counts);
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let leases = inner.leases.totals();
        LedgerStats {
            open_holds: load(&counts.open_holds),
            held: leases.held,
            leases: leases.count,
            free: leases.free,
            backlog: load(&counts.backlog),
            writer_lag: inner.queue.lag(inner.clock.now()),
            batches: load(&counts.batches),
            rows: load(&counts.rows),
            batch_failures: load(&counts.batch_failures),
            quarantined: load(&counts.quarantined),
            grants: load(&counts.grants),
            grant_failures: load(&counts.grant_failures),
            price_fallbacks: load(&counts.price_fallbacks),
            over: Picos(counts.over_pico.load(Ordering::Relaxed)),
            sessions_recovered: load(&counts.sessions_recovered),
            torn_bytes: load(&counts.torn_bytes),
            kept: *counts.kept.lock().unwrap_or_else(PoisonError::into_inner),
            audit_drift: *counts.audit_drift.lock().unwrap_or_else(PoisonError::into_inner),
            is_fenced: inner.heart.is_fenced.load(Ordering::Relaxed),
            journal: inner.journal.stats(),
        }
    }
}

impl Heart {
    fn silent_for(&self, clock: &Clock) -> Duration {
        let (at, wall) = *self.beat.lock().unwrap_or_else(PoisonError::into_inner);
        let by_wall = u64::try_from(clock.wall().0.saturating_sub(wall.0))
            .map_or(Duration::ZERO, Duration::from_micros);
        clock.now().saturating_duration_since(at).max(by_wall)
    }

    fn beats(&self, clock: &Clock) {
        *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = (clock.now(), clock.wall());
    }
}

/// Between two looks whether the books can go on.
const BROKEN_LOOK_EVERY: Duration = Duration::from_millis(500);

/// Whole micro-dollars that cover this amount.
fn micros_for(amount: Picos) -> Micros {
    let (whole, rest) = amount.split();
    Micros(whole.0 + i64::from(rest.0 > 0))
}
