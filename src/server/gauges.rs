//! What each part says of itself, brought together when the metrics are read.

use super::accept::Connections;
use super::tls::Certificates;
use crate::authenticate::Authenticator;
use crate::clock::Clock;
use crate::control::admin::Readiness;
use crate::feed::Feed;
use crate::ledger::Ledger;
use crate::metrics::{Level, Metrics, RouteLevel, RouteState};
use crate::money::Picos;
use crate::proxy::Rules;
use crate::relay::{Budget, Drains};
use crate::route::Standing;
use crate::telemetry::Traces;
use arc_swap::ArcSwap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// The metrics of the process and where their numbers are. Cheap to clone.
#[derive(Clone)]
pub(super) struct Gauges {
    metrics: Metrics,
    readiness: Readiness,
    /// Not there until the books are open.
    sources: Arc<OnceLock<Sources>>,
    /// Not there until a configuration is in force.
    rules: Arc<OnceLock<Arc<ArcSwap<Rules>>>>,
}

/// Who is asked.
pub(super) struct Sources {
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) feed: Feed,
    pub(super) ledger: Ledger,
    pub(super) budget: Budget,
    pub(super) connections: Connections,
    pub(super) certificates: Arc<Certificates>,
    pub(super) in_flight: Arc<AtomicU64>,
    pub(super) drains: Drains,
    pub(super) upgrade_failures: Arc<AtomicU64>,
    pub(super) clock: Clock,
    pub(super) traces: Option<Traces>,
    pub(super) backlog_max: usize,
    /// In bytes.
    pub(super) journal_max: u64,
}

impl Gauges {
    pub(super) fn new(metrics: Metrics, readiness: Readiness) -> Self {
        Gauges { metrics, readiness, sources: Arc::default(), rules: Arc::default() }
    }

    /// From now on these are asked. The first ones stay.
    pub(super) fn ask(&self, sources: Sources) {
        self.sources.get_or_init(|| sources);
    }

    /// From now on the routes that are in force here are shown. The first ones stay.
    pub(super) fn show_routes(&self, rules: Arc<ArcSwap<Rules>>) {
        self.rules.get_or_init(|| rules);
    }

    /// The metrics as text, with the numbers of this moment.
    pub(super) fn render(&self) -> Result<String, String> {
        self.metrics.set(Level::Ready, f64::from(u8::from(self.readiness.is_ready())));
        if let Some(sources) = self.sources.get() {
            for (level, value) in sources.read() {
                self.metrics.set(level, value);
            }
            let expiries = sources.certificates.expiries();
            self.metrics.set_certificates(expiries.iter().map(|it| (it.name.as_str(), it.at_s)));
        }
        if let (Some(sources), Some(rules)) = (self.sources.get(), self.rules.get()) {
            let (rules, now) = (rules.load(), sources.clock.now());
            self.metrics.set_routes(rules.catalogue.models().flat_map(|model| {
                model.candidates.iter().map(|candidate| RouteLevel {
                    model: &model.name,
                    provider: &candidate.provider.name,
                    state: match candidate.health.standing(now) {
                        Standing::Closed => RouteState::Closed,
                        Standing::HalfOpen => RouteState::HalfOpen,
                        Standing::Cooling(_) | Standing::CoolingTried(_) => RouteState::Cooling,
                        Standing::Open(_) => RouteState::Open,
                    },
                    outstanding: candidate.health.outstanding(),
                })
            }));
        }
        self.metrics.render().map_err(|fault| fault.to_string())
    }
}

impl Sources {
    fn read(&self) -> Vec<(Level, f64)> {
        let keys = self.authenticator.stats();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let (refused, refused_of_address) = self.connections.refused();
        let mut levels = vec![
            (Level::Connections, self.connections.open() as f64),
            (Level::ConnectionsRefusedAll, refused as f64),
            (Level::ConnectionsRefusedAddress, refused_of_address as f64),
            (Level::ConnectionsNotBegun, self.connections.not_begun() as f64),
            (Level::RequestsInFlight, count(&self.in_flight)),
            (Level::Drains, self.drains.open() as f64),
            (Level::DrainsTurnedAway, self.drains.turned_away() as f64),
            (Level::BufferedBodyBytes, self.budget.used_bytes() as f64),
            (Level::BufferedBodyLimitBytes, self.budget.max_bytes() as f64),
            (Level::KeyCacheHits, count(&keys.hits)),
            (Level::KeyCacheMisses, count(&keys.misses)),
            (Level::KeyCacheRefusals, count(&keys.refused)),
            (Level::KeyCacheEntries, self.authenticator.entries() as f64),
            (Level::UpgradeFailures, count(&self.upgrade_failures)),
            (Level::FeedStalenessSeconds, self.feed.stale_for().as_secs_f64()),
        ];
        if let Some((exported, dropped)) = self.traces.as_ref().map(Traces::counts) {
            levels.push((Level::TraceSpansExported, exported as f64));
            levels.push((Level::TraceSpansDropped, dropped as f64));
        }
        levels.extend(self.ledger());
        levels
    }

    fn ledger(&self) -> Vec<(Level, f64)> {
        let stats = self.ledger.stats();
        let flag = |is_set: bool| f64::from(u8::from(is_set));
        let usd = |amount: Picos| amount.0 as f64 / 1e12;
        let mut levels = vec![
            (Level::LedgerOpenHolds, stats.open_holds as f64),
            (Level::LedgerHeldUsd, usd(stats.held)),
            (Level::LedgerFreeUsd, usd(stats.free)),
            (Level::LedgerLeases, stats.leases as f64),
            (Level::LedgerBacklog, stats.backlog as f64),
            (Level::LedgerBacklogLimit, self.backlog_max as f64),
            (Level::LedgerJournalLimitBytes, self.journal_max as f64),
            (Level::LedgerWriterLagSeconds, stats.writer_lag.as_secs_f64()),
            (Level::LedgerJournalBytes, stats.journal.bytes as f64),
            (Level::LedgerJournalKeptBytes, stats.kept.bytes as f64),
            (Level::LedgerJournalFailed, flag(stats.journal.is_failed)),
            (Level::LedgerBatches, stats.batches as f64),
            (Level::LedgerBatchFailures, stats.batch_failures as f64),
            (Level::LedgerRows, stats.rows as f64),
            (Level::LedgerQuarantined, stats.quarantined as f64),
            (Level::LedgerGrants, stats.grants as f64),
            (Level::LedgerGrantFailures, stats.grant_failures as f64),
            (Level::LedgerSessionsRecovered, stats.sessions_recovered as f64),
            (Level::LedgerTornBytes, stats.torn_bytes as f64),
            (Level::LedgerFenced, flag(stats.is_fenced)),
        ];
        levels.extend(stats.audit_drift.map(|drift| (Level::LedgerAuditDriftUsd, usd(Picos(drift)))));
        levels
    }
}
