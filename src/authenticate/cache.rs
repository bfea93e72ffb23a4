//! The cache of key policies, and its one loader.

use super::{Caller, Policy, bearer, unknown_key};
use crate::clock::{Clock, UnixMicros};
use crate::feed::Feed;
use crate::ids::KeyId;
use crate::refusal::{Kind, Limit, Refused};
use crate::secret::{KeyHash, Pepper};
use crate::store::Store;
use moka::future::Cache;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Bounds of the cache.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Keys kept.
    pub entries_max: u64,
    /// Unknown keys remembered as such.
    pub unknown_entries_max: u64,
    /// Look-ups in the database under way at once, over all keys.
    pub lookups_max: usize,
    /// How long an entry may serve without being read again.
    pub entry_ttl: Duration,
}

/// Turns keys into callers.
pub struct Authenticator {
    pepper: Pepper,
    store: Store,
    feed: Feed,
    clock: Clock,
    known: Cache<KeyHash, Entry>,
    unknown: Cache<KeyHash, u64>,
    lookups: Semaphore,
    stats: CacheStats,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct CacheStats {
    /// Requests answered from memory.
    pub hits: AtomicU64,
    /// Requests that asked the database.
    pub misses: AtomicU64,
    /// Requests refused because too many look-ups were under way or the database did not answer.
    pub refused: AtomicU64,
}

#[derive(Clone)]
struct Entry {
    read_at_version: u64,
    policy: Arc<Policy>,
}

enum Loaded {
    Known(Entry),
    Unknown(u64),
}

/// How often an entry that went stale while it was being read is read again.
const LOADS_MAX: usize = 3;

impl Default for Settings {
    fn default() -> Self {
        Settings {
            entries_max: 200_000,
            unknown_entries_max: 50_000,
            lookups_max: 64,
            entry_ttl: Duration::from_secs(900),
        }
    }
}

impl Authenticator {
    /// An empty cache before this store.
    pub fn new(settings: &Settings, pepper: Pepper, store: Store, feed: Feed, clock: Clock) -> Self {
        Authenticator {
            pepper,
            store,
            feed,
            clock,
            known: Cache::builder()
                .max_capacity(settings.entries_max)
                .time_to_live(settings.entry_ttl)
                .build(),
            unknown: Cache::builder()
                .max_capacity(settings.unknown_entries_max)
                .time_to_live(settings.entry_ttl)
                .build(),
            lookups: Semaphore::new(settings.lookups_max),
            stats: CacheStats::default(),
        }
    }

    /// The caller behind an `Authorization` header. Refuses with `invalid_api_key`, `account_suspended`, or `no_capacity` when
    /// the key is not in memory and the database does not answer in time.
    pub async fn authenticate(&self, authorization: Option<&[u8]>) -> Result<Caller, Refused> {
        let key = bearer(authorization)?;
        let policy = self.policy(self.pepper.hash(&key)).await?;
        policy.check(self.clock.wall())?;
        Ok(Caller { policy })
    }

    /// Counts for metrics.
    pub fn stats(&self) -> &CacheStats {
        &self.stats
    }

    /// Keys in memory, as of the cache's last look at itself.
    pub fn entries(&self) -> u64 {
        self.known.entry_count()
    }

    /// When each key in memory was last used; keys that were not used at all are left out.
    pub fn last_used(&self) -> Vec<(KeyId, UnixMicros)> {
        let used = |policy: &Policy| policy.last_used_at.swap(0, Ordering::Relaxed);
        self.known
            .iter()
            .map(|(_, entry)| (entry.policy.key, UnixMicros(used(&entry.policy))))
            .filter(|(_, at)| at.0 > 0)
            .collect()
    }

    async fn policy(&self, hash: KeyHash) -> Result<Arc<Policy>, Refused> {
        if let Some(policy) = self.remembered(&hash).await? {
            self.stats.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(policy);
        }
        self.stats.misses.fetch_add(1, Ordering::Relaxed);
        for _ in 0..LOADS_MAX {
            let entry = self.known.try_get_with(hash, self.load(hash)).await;
            match entry {
                Ok(entry) if self.is_current(&entry) => return Ok(entry.policy),
                // Changed while it was being read, or read by a loader that began before this request.
                Ok(_) => self.known.invalidate(&hash).await,
                Err(refused) => return Err(Refused::clone(&refused)),
            }
        }
        self.stats.refused.fetch_add(1, Ordering::Relaxed);
        Err(busy("the key changed during each of its look-ups"))
    }

    /// What memory says of the key, as far as it still holds: the policy, a refusal, or nothing.
    async fn remembered(&self, hash: &KeyHash) -> Result<Option<Arc<Policy>>, Refused> {
        if let Some(entry) = self.known.get(hash).await {
            if self.is_current(&entry) {
                return Ok(Some(entry.policy));
            }
            self.known.invalidate(hash).await;
        } else if let Some(read_at_version) = self.unknown.get(hash).await {
            if self.feed.negative_valid(read_at_version) {
                return Err(unknown_key());
            }
            self.unknown.invalidate(hash).await;
        }
        Ok(None)
    }

    fn is_current(&self, entry: &Entry) -> bool {
        self.feed.is_current(entry.read_at_version, entry.policy.key, entry.policy.account)
    }

    async fn load(&self, hash: KeyHash) -> Result<Entry, Refused> {
        let Ok(_place) = self.lookups.try_acquire() else {
            self.stats.refused.fetch_add(1, Ordering::Relaxed);
            return Err(busy("too many key look-ups under way"));
        };
        match self.read(&hash).await? {
            Loaded::Known(entry) => Ok(entry),
            Loaded::Unknown(version) => {
                self.unknown.insert(hash, version).await;
                Err(unknown_key())
            }
        }
    }

    async fn read(&self, hash: &KeyHash) -> Result<Loaded, Refused> {
        let (version, record) = self.store.load_key(hash).await.map_err(|error| {
            self.stats.refused.fetch_add(1, Ordering::Relaxed);
            busy(error)
        })?;
        Ok(match record {
            Some(record) => {
                Loaded::Known(Entry { read_at_version: version, policy: Arc::new(Policy::new(record)) })
            }
            None => Loaded::Unknown(version),
        })
    }
}

fn busy(internal: impl std::fmt::Display) -> Refused {
    Refused::new(Kind::NoCapacity, "The service cannot check this API key at the moment; try again shortly.")
        .retry_after(Duration::from_secs(1))
        .limit(Limit::KeyLookups)
        .internal(internal)
}
