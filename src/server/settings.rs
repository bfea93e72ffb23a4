//! What the configuration means to each part: one function a part.

use super::ServeError;
use super::demonstration::Demonstration;
use super::{accept, listen};
use crate::admit::{self, GuardSettings, Tier};
use crate::clock::Clock;
use crate::config::{self, Config, LogLevel, Routing};
use crate::control::log;
use crate::feed;
use crate::ids::ProviderName;
use crate::ledger::{self, Durability};
use crate::price;
use crate::proxy;
use crate::relay::head::MAX_HEAD_BYTES;
use crate::relay::{
    BodySettings, DrainSettings, Drains, HeadLimits, Linger, Patience, Resolver, Silence, Upstreams,
};
use crate::route::{
    Candidate, Catalogue, Health, HealthSettings, Model, Provider, RetryBudget, RetryBudgetSettings,
};
use crate::secret::Pepper;
use crate::store::Store;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::level_filters::LevelFilter;

/// How long a client may take to get its body going.
const BODY_GRACE: Duration = Duration::from_secs(10);
/// The output that a hold covers when neither the request nor the model says how long an answer can be, in tokens: the usual limit.
const OUTPUT_TOKENS_ASSUMED: u64 = 16_384;
/// A journal has room for so many segments at least, so that it can go on in one while others are written to the database.
const SEGMENTS: u64 = 8;
/// A head that never ends is cut off here; one that ends is told what it may have.
const HEAD_MAX_BYTES: usize = 8 * MAX_HEAD_BYTES;
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
    settings.journal.segment_bytes =
        (config.journal.max_bytes / SEGMENTS).min(settings.journal.segment_bytes);
    settings
}

pub(super) fn pepper(config: &Config) -> Result<Pepper, ServeError> {
    config::pepper(config).map_err(|error| ServeError::Secret(format!("[auth] pepper: {error}")))
}

/// The models of the configuration, and that of the demonstration, which stands where both have one of its name.
pub(super) fn catalogue(
    config: &Config,
    demo: Option<&Demonstration>,
    now: Instant,
) -> Result<Catalogue, ServeError> {
    let providers =
        config.providers.iter().map(|provider| Ok((provider.name.clone(), Arc::new(resolved(provider)?))));
    let providers: HashMap<ProviderName, Arc<Provider>> = providers.collect::<Result<_, ServeError>>()?;
    // Routes of several models to one model of one provider see the same.
    let mut seen: HashMap<(&ProviderName, &str), Arc<Health>> = HashMap::new();
    let models = config.models.iter().map(|model| {
        let candidates = model.routes.iter().filter_map(|route| {
            let provider = Arc::clone(providers.get(&route.provider)?);
            let health = seen.entry((&route.provider, &route.model));
            Some(Candidate {
                provider,
                upstream_model: route.model.clone(),
                priority: route.priority,
                weight: route.weight,
                cost: route.cost.unwrap_or_default(),
                health: Arc::clone(
                    health.or_insert_with(|| Arc::new(Health::new(self::health(&config.routing)))),
                ),
            })
        });
        Model {
            name: model.name.clone(),
            context_tokens: model.context_tokens,
            max_output_tokens: model.max_output_tokens,
            hidden_reasoning: model.hidden_reasoning,
            candidates: candidates.collect(),
            order: model.order,
            is_sticky: model.is_sticky,
            retry: model.retry,
            attempts_max: config.routing.attempts_max,
            fallback: model.fallback.clone(),
            budget: RetryBudget::new(retry_budget(&config.routing), now),
        }
    });
    Ok(Catalogue::new(models.chain(demo.map(|demo| demo.model(&config.routing, now)))))
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

fn resolved(provider: &config::Provider) -> Result<Provider, ServeError> {
    let api_key = provider.api_key.as_ref().map(config::SecretRef::resolve).transpose();
    Ok(Provider {
        name: provider.name.clone(),
        dialect: provider.dialect,
        is_drained: provider.is_drained,
        api_key: api_key
            .map_err(|error| ServeError::Secret(format!("provider {}: api_key: {error}", provider.name)))?,
    })
}

pub(super) fn upstreams(
    config: &Config,
    demo: Option<&Demonstration>,
    resolver: &Resolver,
    drains: Drains,
) -> Upstreams {
    let configured = config.providers.iter().map(|provider| {
        let patience = Patience {
            connect: provider.connect_timeout,
            tls: provider.tls_timeout,
            total: provider.total_timeout.min(config.server.max_stream_time),
            silence: Silence {
                first_byte_timeout: provider.first_byte_timeout,
                idle_timeout: provider.idle_timeout,
            },
            on_client_gone: provider.on_client_gone,
        };
        (provider.name.clone(), provider.origin.clone(), patience)
    });
    Upstreams::new(configured.chain(demo.map(Demonstration::place)), resolver, drains)
}

pub(super) fn admit(config: &Config) -> admit::Settings {
    let tier = |tier: &config::Tier| Tier {
        requests_per_minute: tier.requests_per_minute,
        tokens_per_minute: tier.tokens_per_minute,
        concurrent_requests: tier.concurrent_requests,
    };
    let tiers: HashMap<_, _> = config.tiers.iter().map(|named| (named.name.clone(), tier(named))).collect();
    // The configuration always has the default tier; nobody is let through by one that it does not have.
    let nothing = Tier { requests_per_minute: 1, tokens_per_minute: 1, concurrent_requests: 1 };
    let default_tier = tiers.get(config::DEFAULT_TIER).copied().unwrap_or(nothing);
    admit::Settings {
        tiers,
        default_tier,
        output_tokens_assumed: OUTPUT_TOKENS_ASSUMED,
        service_tiers: config.auth.service_tiers.clone(),
        requests_max: config.server.max_requests,
    }
}

pub(super) fn guard(config: &Config) -> GuardSettings {
    GuardSettings {
        requests: config.server.max_requests_per_s,
        requests_per_address: config.server.max_requests_per_s_per_address,
        failures: config.auth.max_failures_per_s,
        failures_per_address: config.auth.max_failures_per_s_per_address,
    }
}

pub(super) fn proxy(config: &Config) -> proxy::Settings {
    let server = &config.server;
    proxy::Settings {
        body: BodySettings {
            max_bytes: server.max_body_bytes,
            deadline: server.body_timeout,
            min_bytes_per_s: server.body_min_bytes_per_s,
            grace: BODY_GRACE,
        },
        linger: Linger::default(),
        keepalive_timeout: server.keepalive_timeout,
        write_timeout: server.write_timeout,
        answer_max_bytes: server.max_answer_bytes,
        event_max_bytes: server.max_event_bytes,
        comment_every: server.stream_comment_every,
    }
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
        // One more: the fresh connection after an idle race.
        attempts_max: usize::try_from(config.routing.attempts_max).unwrap_or(usize::MAX - 1) + 1,
        keepalive: config.server.keepalive_timeout,
        accept: accept::Settings {
            connections_max: config.server.max_connections,
            connections_per_address_max: config.server.max_connections_per_address,
            head: HeadLimits { timeout: config.server.head_timeout, max_bytes: HEAD_MAX_BYTES },
        },
    }
}
