//! What changed in the database since something was read from it.
//!
//! Promises: a change that is committed anywhere is known here within one poll, a fraction of a second, while the database answers; who
//! asks is never told that something is current which this process knows to have changed. Refuses to know: what is kept, and by whom.

use crate::clock::Clock;
use crate::ids::{AccountId, KeyId};
use crate::store::{Change, Store, StoreError, Subject};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::broadcast;

/// How the database is watched.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Between two polls.
    pub poll_every: Duration,
    /// For one poll.
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { poll_every: Duration::from_millis(150), timeout: Duration::from_secs(2) }
    }
}

/// The feed. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Feed(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    clock: Clock,
    settings: Settings,
    /// The last version that is known here.
    version: AtomicU64,
    /// Everything read before this version is taken for changed.
    floor: AtomicU64,
    keys: RwLock<Last<KeyId>>,
    accounts: RwLock<Last<AccountId>>,
    polled_at: Mutex<Instant>,
    changes: broadcast::Sender<Change>,
}

/// The version of the last change of each.
#[derive(Debug)]
struct Last<Id>(HashMap<Id, u64>);

/// Changed keys or accounts that are remembered one by one; beyond that everything read before now is taken for changed.
const REMEMBERED_MAX: usize = 100_000;
/// Changes that a subscriber may be behind.
const BEHIND_MAX: usize = 4_096;

impl Feed {
    /// A feed that has not read anything yet.
    pub fn new(store: Store, clock: Clock, settings: Settings) -> Self {
        let polled_at = Mutex::new(clock.now());
        Feed(Arc::new(Inner {
            store,
            clock,
            settings,
            version: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            keys: RwLock::new(Last(HashMap::new())),
            accounts: RwLock::new(Last(HashMap::new())),
            polled_at,
            changes: broadcast::channel(BEHIND_MAX).0,
        }))
    }

    /// Reads where the database stands. Call before anything is read that is to be kept.
    pub async fn start(&self) -> Result<(), StoreError> {
        let version = self.0.store.version().await?;
        self.reset(version);
        self.polled();
        Ok(())
    }

    /// Polls until the database is closed.
    pub async fn run(&self) {
        let mut was_silent = false;
        loop {
            tokio::time::sleep(self.0.settings.poll_every).await;
            match tokio::time::timeout(self.0.settings.timeout, self.poll()).await {
                Ok(Ok(())) => {
                    self.polled();
                    was_silent = false;
                }
                Ok(Err(error)) if error.is_closed() => return,
                Ok(Err(error)) if !was_silent => {
                    tracing::warn!(%error, "the database does not tell what changed");
                    was_silent = true;
                }
                Err(_) if !was_silent => {
                    tracing::warn!("the database does not tell what changed in time");
                    was_silent = true;
                }
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }

    /// The version of the last change that is known here.
    pub fn version(&self) -> u64 {
        self.0.version.load(Ordering::Acquire)
    }

    /// Whether nothing about the key or its account is known to have changed since that version.
    pub fn is_current(&self, read_at_version: u64, key: KeyId, account: AccountId) -> bool {
        self.is_account_current(read_at_version, account) && is_current(&self.0.keys, read_at_version, &key)
    }

    /// Whether nothing about the account is known to have changed since that version.
    pub fn is_account_current(&self, read_at_version: u64, account: AccountId) -> bool {
        read_at_version >= self.0.floor.load(Ordering::Acquire)
            && is_current(&self.0.accounts, read_at_version, &account)
    }

    /// Whether what was not there at that version can be taken for not there now: nothing at all has changed since.
    pub fn negative_valid(&self, read_at_version: u64) -> bool {
        read_at_version >= self.version()
    }

    /// How long the database has not answered.
    pub fn stale_for(&self) -> Duration {
        let polled_at = *self.0.polled_at.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.clock.now().saturating_duration_since(polled_at)
    }

    /// Changes from now on. A subscriber that falls behind is told so, and must take everything for changed.
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.0.changes.subscribe()
    }

    async fn poll(&self) -> Result<(), StoreError> {
        loop {
            let known = self.version();
            if self.0.store.version().await? == known {
                return Ok(());
            }
            match self.0.store.changes_since(known).await? {
                Some(changes) if changes.is_empty() => return Ok(()),
                Some(changes) => changes.into_iter().for_each(|change| self.apply(change)),
                None => self.reset(self.0.store.version().await?),
            }
        }
    }

    /// What the change is about goes first, the version last: who reads the new version finds the change.
    fn apply(&self, change: Change) {
        match change.subject {
            Subject::Account(account) => self.changed(&self.0.accounts, account, change.version),
            Subject::Key(key) => self.changed(&self.0.keys, key, change.version),
            Subject::Prices | Subject::Recall(_) => {}
        }
        self.0.version.store(change.version, Ordering::Release);
        // Nobody listening is no fault.
        let _listeners = self.0.changes.send(change);
    }

    fn changed<Id: Eq + Hash>(&self, last: &RwLock<Last<Id>>, id: Id, version: u64) {
        let mut last = last.write().unwrap_or_else(PoisonError::into_inner);
        if last.0.len() >= REMEMBERED_MAX {
            last.0.clear();
            self.0.floor.fetch_max(version, Ordering::AcqRel);
        }
        last.0.insert(id, version);
    }

    /// Takes everything that was read before for changed.
    fn reset(&self, version: u64) {
        self.0.floor.fetch_max(version, Ordering::AcqRel);
        self.0.version.store(version, Ordering::Release);
        let _listeners = self.0.changes.send(Change { version, subject: Subject::Prices });
    }

    fn polled(&self) {
        *self.0.polled_at.lock().unwrap_or_else(PoisonError::into_inner) = self.0.clock.now();
    }
}

fn is_current<Id: Eq + Hash>(last: &RwLock<Last<Id>>, read_at_version: u64, id: &Id) -> bool {
    let last = last.read().unwrap_or_else(PoisonError::into_inner);
    last.0.get(id).is_none_or(|changed_at| *changed_at <= read_at_version)
}
