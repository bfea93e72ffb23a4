//! What the configuration means to each part: one function a part.

use super::ServeError;
use super::{accept, listen};
use crate::clock::Clock;
use crate::config::{self, Config, LogLevel, Routing};
use crate::control::log;
use crate::feed;
use crate::ledger::{self, Durability, KeepSettings};
use crate::price;
use crate::relay::head::MAX_HEAD_BYTES;
use crate::relay::{ConnectionLimits, DrainSettings};
use crate::route::{HealthSettings, RetryBudgetSettings};
use crate::secret::Pepper;
use crate::store::Store;
use crate::telemetry;
use std::time::Duration;
use tracing::level_filters::LevelFilter;

/// A journal has room for so many segments at least, so that it can go on in one while others are written to the database.
const SEGMENTS: u64 = 8;
/// A head that never ends is cut off here; one that ends is told what it may have.
const HEAD_MAX_BYTES: usize = 8 * MAX_HEAD_BYTES;
/// What is not a body has so much longer to be taken.
const WRITE_GRACE: Duration = Duration::from_secs(5);
/// Connections to providers that are kept for reuse.
const POOL_SIZE: usize = 1_024;

pub(super) fn log(config: &Config) -> log::Settings {
    let level = match config.log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    log::Settings { level }
}

/// Where traces go, if anywhere.
pub(super) fn telemetry(config: &Config) -> Option<telemetry::Settings> {
    let endpoint = config.telemetry.otlp_endpoint.clone()?;
    Some(telemetry::Settings { endpoint, parent: config.telemetry.traceparent })
}

/// Fills an empty book from the prices that come with the program.
pub(super) async fn seed_prices(store: &Store, clock: &Clock) -> Result<(), ServeError> {
    let prices = price::file::parse(price::SEED, price::SEED_NAME).map_err(std::io::Error::other)?;
    if store.seed_prices(&prices, clock.wall()).await? {
        tracing::info!(file = price::SEED_NAME, "the price book was empty and has been filled");
    }
    Ok(())
}

pub(super) fn feed() -> feed::Settings {
    feed::Settings::default()
}

pub(super) fn ledger(config: &Config) -> ledger::Settings {
    let durability = match config.journal.durability {
        config::Durability::Os => Durability::Os,
        config::Durability::Group => Durability::Group,
        config::Durability::Strict => Durability::Strict,
    };
    let mut settings = ledger::Settings::new(config.journal.dir.clone(), durability);
    settings.max_stale = config.server.max_stale;
    settings.max_stream_time = config.server.max_stream_time;
    settings.journal.max_bytes = config.journal.max_bytes;
    settings.journal.keep = KeepSettings { time: config.journal.keep_time, bytes: config.journal.keep_bytes };
    settings.journal.segment_bytes =
        (config.journal.max_bytes / SEGMENTS).min(settings.journal.segment_bytes);
    settings
}

pub(super) fn pepper(config: &Config) -> Result<Pepper, ServeError> {
    config::pepper(config).map_err(|error| ServeError::Secret(format!("[auth] pepper: {error}")))
}

pub(super) fn health(routing: &Routing) -> HealthSettings {
    HealthSettings {
        failures_max: routing.circuit_failures,
        error_percent: routing.circuit_error_percent,
        error_window: routing.circuit_error_window,
        error_requests_min: routing.circuit_error_requests,
        backoff: routing.circuit_open,
        backoff_max: routing.circuit_open_max,
        cool_down_max: routing.cool_down_max,
    }
}

pub(super) fn retry_budget(routing: &Routing) -> RetryBudgetSettings {
    RetryBudgetSettings { percent: routing.retry_percent, min_per_second: routing.retry_min_per_second }
}

pub(super) fn drains(config: &Config) -> DrainSettings {
    DrainSettings {
        max_time: config.server.client_gone_timeout,
        max_bytes: config.server.client_gone_max_bytes,
        max_requests: config.server.client_gone_max_requests,
    }
}

pub(super) fn listening(config: &Config) -> listen::Settings {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    listen::Settings {
        threads: if config.server.threads == 0 { cores } else { config.server.threads },
        pool_size: POOL_SIZE,
        // The most that can be configured, since it can change; and one more, the fresh connection after an idle race.
        attempts_max: usize::try_from(config::ATTEMPTS_MAX).unwrap_or(usize::MAX - 1) + 1,
        keepalive: config.server.keepalive_timeout,
        balancers: config.networks.proxy_protocol.clone(),
        accept: accept(config),
    }
}

pub(super) fn accept(config: &Config) -> accept::Settings {
    accept::Settings {
        connections_max: config.server.max_connections,
        connections_per_address_max: config.server.max_connections_per_address,
        between: config.networks.proxy_protocol.iter().chain(&config.networks.forwarders).copied().collect(),
        begin_timeout: config.server.begin_timeout,
        connection: ConnectionLimits {
            head_timeout: config.server.head_timeout,
            head_max_bytes: HEAD_MAX_BYTES,
            // Pingora's own deadline for bodies, which knows what is billed then, comes first.
            write_timeout: config.server.write_timeout + WRITE_GRACE,
        },
    }
}
