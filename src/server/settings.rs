//! What the configuration means to each part: one function a part.

use super::ServeError;
use super::demonstration::Demonstration;
use super::listen;
use crate::admit::{self, Tier};
use crate::clock::Clock;
use crate::config::{self, Config, LogLevel};
use crate::control::log;
use crate::feed;
use crate::ids::ProviderName;
use crate::ledger::{self, Durability};
use crate::price;
use crate::proxy;
use crate::relay::{BodySettings, Linger, Patience, Resolver, Silence, Upstreams};
use crate::route::{Candidate, Catalogue, Model, Provider};
use crate::secret::Pepper;
use crate::store::Store;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tracing::level_filters::LevelFilter;

/// How often one address may fail to authenticate in a second. A person with a wrong key in a loop stays below it.
pub(super) const FAILED_KEYS_PER_SECOND: u32 = 50;
/// How long a client may take to get its body going.
const BODY_GRACE: Duration = Duration::from_secs(10);
/// The output that a hold covers when neither the request nor the model says how long an answer can be, in tokens: the usual limit.
const OUTPUT_TOKENS_ASSUMED: u64 = 16_384;
/// A journal has room for so many segments at least, so that it can go on in one while others are written to the database.
const SEGMENTS: u64 = 8;
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
pub(super) fn catalogue(config: &Config, demo: Option<&Demonstration>) -> Result<Catalogue, ServeError> {
    let providers =
        config.providers.iter().map(|provider| Ok((provider.name.clone(), Arc::new(resolved(provider)?))));
    let providers: HashMap<ProviderName, Arc<Provider>> = providers.collect::<Result<_, ServeError>>()?;
    let models = config.models.iter().map(|model| {
        let candidates = model.routes.iter().filter_map(|route| {
            let provider = Arc::clone(providers.get(&route.provider)?);
            Some(Candidate { provider, upstream_model: route.model.clone(), weight: route.weight })
        });
        Model {
            name: model.name.clone(),
            context_tokens: model.context_tokens,
            max_output_tokens: model.max_output_tokens,
            candidates: candidates.collect(),
        }
    });
    Ok(Catalogue::new(models.chain(demo.map(Demonstration::model))))
}

fn resolved(provider: &config::Provider) -> Result<Provider, ServeError> {
    let api_key = provider.api_key.as_ref().map(config::SecretRef::resolve).transpose();
    Ok(Provider {
        name: provider.name.clone(),
        dialect: provider.dialect,
        api_key: api_key
            .map_err(|error| ServeError::Secret(format!("provider {}: api_key: {error}", provider.name)))?,
    })
}

pub(super) fn upstreams(config: &Config, demo: Option<&Demonstration>, resolver: &Resolver) -> Upstreams {
    let configured = config.providers.iter().map(|provider| {
        let patience = Patience {
            connect: provider.connect_timeout,
            silence: Silence {
                first_byte_timeout: provider.first_byte_timeout,
                idle_timeout: provider.idle_timeout,
                answer_max: config.server.max_stream_time,
            },
        };
        (provider.name.clone(), provider.origin.clone(), patience)
    });
    Upstreams::new(configured.chain(demo.map(Demonstration::place)), resolver)
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
    admit::Settings { tiers, default_tier, output_tokens_assumed: OUTPUT_TOKENS_ASSUMED }
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
    }
}

pub(super) fn listening(config: &Config) -> listen::Settings {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let candidates_max = config.models.iter().map(|model| model.routes.len()).max().unwrap_or(0).max(1);
    listen::Settings {
        threads: if config.server.threads == 0 { cores } else { config.server.threads },
        pool_size: POOL_SIZE,
        // One more than the candidates: the fresh connection after an idle race.
        attempts_max: candidates_max + 1,
        keepalive: config.server.keepalive_timeout,
    }
}
