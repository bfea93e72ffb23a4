//! What the parts of the process say of themselves, as one number each.

use prometheus::{Counter, Gauge, GaugeVec, Opts, Registry};

/// A number that a part keeps itself and that is noted here when the metrics are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is described in the table below, which is also its help text")]
pub enum Level {
    Ready,
    ConfigReloads,
    ConfigReloadFailures,
    ConfigReloadSuccessful,
    ConfigReloadTimestamp,
    ConfigRestartNeeded,
    Connections,
    ConnectionsRefusedAll,
    ConnectionsRefusedAddress,
    ConnectionsNotBegun,
    RequestsInFlight,
    Drains,
    DrainsTurnedAway,
    BufferedBodyBytes,
    BufferedBodyLimitBytes,
    KeyCacheHits,
    KeyCacheMisses,
    KeyCacheRefusals,
    KeyCacheEntries,
    FeedStalenessSeconds,
    LedgerOpenHolds,
    LedgerHeldUsd,
    LedgerFreeUsd,
    LedgerLeases,
    LedgerBacklog,
    LedgerBacklogLimit,
    LedgerWriterLagSeconds,
    LedgerJournalBytes,
    LedgerJournalLimitBytes,
    LedgerJournalKeptBytes,
    LedgerJournalFailed,
    LedgerBatches,
    LedgerBatchFailures,
    LedgerRows,
    LedgerQuarantined,
    LedgerGrants,
    LedgerGrantFailures,
    LedgerSessionsRecovered,
    LedgerTornBytes,
    LedgerAuditDriftUsd,
    LedgerFenced,
    UpgradeFailures,
    OwedUsd,
    OwingAccounts,
    QuarantineRows,
    TraceSpansExported,
    TraceSpansDropped,
    ProcessResidentBytes,
    ProcessCpuSeconds,
    ProcessOpenFds,
    ProcessMaxFds,
    ProcessThreads,
    ProcessVirtualBytes,
    ProcessStartSeconds,
}

/// The declared levels, each at its index in the table.
pub(super) struct Levels(Vec<Slot>);

enum Slot {
    Gauge(Gauge),
    Total(Counter),
}

/// Name and help of each level. A name in `_total` is a counter, any other a gauge.
const DECLARED: [(Level, &str, &str); 54] = [
    (Level::Ready, "weir_ready", "1 while every listener accepts requests, else 0."),
    (Level::ConfigReloads, "weir_config_reloads_total", "Times that the configuration was read again."),
    (
        Level::ConfigReloadFailures,
        "weir_config_reload_failures_total",
        "Times that it could not be used, and the one before stayed in force.",
    ),
    (
        Level::ConfigReloadSuccessful,
        "weir_config_last_reload_successful",
        "1 if the configuration was good when it was read last, else 0.",
    ),
    (
        Level::ConfigReloadTimestamp,
        "weir_config_last_reload_success_timestamp_seconds",
        "When the configuration in force was read, in seconds since 1970.",
    ),
    (
        Level::ConfigRestartNeeded,
        "weir_config_restart_needed",
        "1 while the configuration has other values than are in force, which wait for a restart.",
    ),
    (Level::Connections, "weir_connections", "Connections of clients that are open."),
    (
        Level::ConnectionsRefusedAll,
        "weir_connections_refused_total",
        "Connections that were closed at once, since the process had as many as it takes.",
    ),
    (
        Level::ConnectionsRefusedAddress,
        "weir_connections_refused_of_address_total",
        "Connections that were closed at once, since their address had as many as one may have.",
    ),
    (
        Level::ConnectionsNotBegun,
        "weir_connections_not_begun_total",
        "Connections that ended before HTTP began: in a TLS handshake, or in a head of the PROXY protocol.",
    ),
    (Level::RequestsInFlight, "weir_requests_in_flight", "Requests that have arrived and not ended."),
    (Level::BufferedBodyBytes, "weir_buffered_body_bytes", "Bytes of request bodies in memory."),
    (Level::Drains, "weir_drains", "Providers that are read on although their clients have left."),
    (
        Level::DrainsTurnedAway,
        "weir_drains_turned_away_total",
        "Providers that were to be read on and were left, since too many others were.",
    ),
    (
        Level::BufferedBodyLimitBytes,
        "weir_buffered_body_limit_bytes",
        "Bytes that all request bodies together may take.",
    ),
    (Level::KeyCacheHits, "weir_key_cache_hits_total", "Keys that were found in memory and still hold."),
    (Level::KeyCacheMisses, "weir_key_cache_misses_total", "Keys that the database was asked for."),
    (
        Level::KeyCacheRefusals,
        "weir_key_cache_refusals_total",
        "Keys that could not be checked: database slow or too many look-ups.",
    ),
    (Level::KeyCacheEntries, "weir_key_cache_entries", "Keys in memory."),
    (
        Level::FeedStalenessSeconds,
        "weir_feed_staleness_seconds",
        "Since the database was last seen by the feed of changes.",
    ),
    (Level::LedgerOpenHolds, "weir_ledger_open_holds", "Requests that hold credit."),
    (Level::LedgerHeldUsd, "weir_ledger_held_usd", "Credit that is held by requests, in US dollars."),
    (
        Level::LedgerFreeUsd,
        "weir_ledger_free_usd",
        "Credit that leases hold and no request does, in US dollars.",
    ),
    (Level::LedgerLeases, "weir_ledger_leases", "Accounts from which this process has taken credit."),
    (
        Level::LedgerBacklog,
        "weir_ledger_backlog_settlements",
        "Settled requests that are not in the database yet.",
    ),
    (
        Level::LedgerBacklogLimit,
        "weir_ledger_backlog_limit_settlements",
        "Settled requests that may wait for the database; beyond it nothing new is admitted.",
    ),
    (
        Level::LedgerWriterLagSeconds,
        "weir_ledger_writer_lag_seconds",
        "Age of the oldest settled request that is not in the database yet.",
    ),
    (Level::LedgerJournalBytes, "weir_ledger_journal_bytes", "Bytes that the journal takes."),
    (
        Level::LedgerJournalLimitBytes,
        "weir_ledger_journal_limit_bytes",
        "Bytes that the journal may take; beyond it nothing new is admitted.",
    ),
    (
        Level::LedgerJournalKeptBytes,
        "weir_ledger_journal_kept_bytes",
        "Bytes of journals that are in the database and kept for a restore, of all processes of this machine.",
    ),
    (Level::LedgerJournalFailed, "weir_ledger_journal_failed", "1 once the journal could not be written."),
    (Level::LedgerBatches, "weir_ledger_batches_total", "Batches written to the database."),
    (
        Level::LedgerBatchFailures,
        "weir_ledger_batch_failures_total",
        "Batches that failed and were tried again.",
    ),
    (Level::LedgerRows, "weir_ledger_rows_total", "Request rows written to the database."),
    (
        Level::LedgerQuarantined,
        "weir_ledger_quarantined_total",
        "Settled requests that the database refused and that were set aside.",
    ),
    (Level::LedgerGrants, "weir_ledger_grants_total", "Grants of credit that the database made."),
    (
        Level::LedgerGrantFailures,
        "weir_ledger_grant_failures_total",
        "Grants of credit that the database did not make in time.",
    ),
    (
        Level::LedgerSessionsRecovered,
        "weir_ledger_sessions_recovered_total",
        "Dead sessions whose journals were replayed.",
    ),
    (
        Level::LedgerTornBytes,
        "weir_ledger_torn_bytes_total",
        "Bytes at the ends of journals that a dead session had not written whole.",
    ),
    (
        Level::LedgerAuditDriftUsd,
        "weir_ledger_audit_drift_usd",
        "What the last audit in this process found to be off, in US dollars.",
    ),
    (Level::LedgerFenced, "weir_ledger_fenced", "1 once the database has taken this session for ended."),
    (
        Level::OwedUsd,
        "weir_owed_usd",
        "What accounts owe, in US dollars, read from the database every half minute.",
    ),
    (Level::OwingAccounts, "weir_owing_accounts", "Accounts that owe something."),
    (
        Level::QuarantineRows,
        "weir_ledger_quarantine_rows",
        "Settled requests that were set aside by any process and wait for a person, read every half minute.",
    ),
    (
        Level::TraceSpansExported,
        "weir_trace_spans_exported_total",
        "Spans that the collector of traces took.",
    ),
    (
        Level::TraceSpansDropped,
        "weir_trace_spans_dropped_total",
        "Spans that the collector of traces did not get: the queue was full, or it did not take them.",
    ),
    (
        Level::UpgradeFailures,
        "weir_upgrade_failures_total",
        "Upgrades after which this process served on, since the new one did not take over.",
    ),
    (Level::ProcessResidentBytes, "process_resident_memory_bytes", "Resident memory of the process."),
    (Level::ProcessCpuSeconds, "process_cpu_seconds_total", "CPU time of the process, user and system."),
    (Level::ProcessOpenFds, "process_open_fds", "Open file descriptors of the process."),
    (Level::ProcessMaxFds, "process_max_fds", "File descriptors that the process may have open."),
    (Level::ProcessThreads, "process_threads", "Threads of the process."),
    (Level::ProcessVirtualBytes, "process_virtual_memory_bytes", "Virtual memory of the process."),
    (
        Level::ProcessStartSeconds,
        "process_start_time_seconds",
        "When the process was started, in seconds since 1970-01-01 UTC.",
    ),
];

impl Levels {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let build = GaugeVec::new(
            Opts::new("weir_build_info", "1, with the version that runs as a label."),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        registry.register(Box::new(build))?;
        let slots = DECLARED.into_iter().map(|(_, name, help)| {
            Ok(if name.ends_with("_total") {
                let total = Counter::new(name, help)?;
                registry.register(Box::new(total.clone()))?;
                Slot::Total(total)
            } else {
                let gauge = Gauge::new(name, help)?;
                registry.register(Box::new(gauge.clone()))?;
                Slot::Gauge(gauge)
            })
        });
        Ok(Levels(slots.collect::<Result<_, prometheus::Error>>()?))
    }

    pub(super) fn add(&self, level: Level) {
        if let Some(Slot::Total(total)) = self.slot(level) {
            total.inc();
        }
    }

    fn slot(&self, level: Level) -> Option<&Slot> {
        let index = DECLARED.iter().position(|(declared, ..)| *declared == level);
        index.and_then(|index| self.0.get(index))
    }

    pub(super) fn set(&self, level: Level, value: f64) {
        match self.slot(level) {
            Some(Slot::Gauge(gauge)) => gauge.set(value),
            Some(Slot::Total(total)) => total.inc_by((value - total.get()).max(0.0)),
            None => {}
        }
    }
}
