//! What a request goes by, made of a configuration, upon what does not change with it.
//!
//! Promises: what was seen of a provider's model is known to the next rules, too, where the provider is the same one; so are its kept
//! connections, and what was retried of a model.

use super::demonstration::Demonstration;
use super::settings;
use crate::admit::{Countries, GuardSettings, OriginSettings, Terms, Tier};
use crate::clock::Clock;
use crate::config::{self, Config, Loaded};
use crate::ids::ProviderName;
use crate::proxy::{self, Rules};
use crate::relay::{BodySettings, Drains, Linger, Patience, Resolver, Silence, Upstreams};
use crate::route::{
    Candidate, Catalogue, Health, HealthSettings, Model, Provider, RetryBudget, RetryBudgetSettings,
};
use crate::secret::ExposeSecret;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What rules are made upon. Cheap to clone.
#[derive(Clone)]
pub(super) struct Grounds {
    pub(super) clock: Clock,
    pub(super) resolver: Resolver,
    pub(super) drains: Drains,
    pub(super) demonstration: Option<Arc<Demonstration>>,
}

/// A configuration and the rules that were made of it.
pub(super) struct InForce {
    pub(super) loaded: Loaded,
    pub(super) rules: Arc<Rules>,
}

/// What was seen so far of what stays.
pub(super) struct Memory<'a> {
    health: HashMap<(&'a ProviderName, &'a str), &'a Health>,
    budgets: HashMap<&'a str, &'a RetryBudget>,
    now: Instant,
}

/// How long a client may take to get its body going.
const BODY_GRACE: Duration = Duration::from_secs(10);
/// The output that a hold covers when neither the request nor the model says how long an answer can be, in tokens: the usual limit.
const OUTPUT_TOKENS_ASSUMED: u64 = 16_384;

impl Grounds {
    /// The rules of this configuration, which know what is known to those `before` them.
    pub(super) fn rules(&self, loaded: &Loaded, before: Option<&InForce>) -> Rules {
        let config = &loaded.config;
        let memory = Memory::of(loaded, before, self.clock.now());
        Rules {
            settings: times_and_sizes(config),
            origins: origins(loaded),
            guard: guard(config),
            terms: terms(config),
            catalogue: self.catalogue(loaded, &memory),
            upstreams: self.upstreams(config, before.map(|before| &before.rules.upstreams)),
        }
    }

    /// The models of the configuration, and that of the demonstration, which stands where both have one of its name.
    fn catalogue(&self, loaded: &Loaded, memory: &Memory<'_>) -> Catalogue {
        let config = &loaded.config;
        let provider = |provider: &config::Provider| Provider {
            name: provider.name.clone(),
            dialect: provider.dialect,
            is_drained: provider.is_drained,
            api_key: loaded.key(&provider.name).cloned(),
        };
        let providers: HashMap<&ProviderName, Arc<Provider>> =
            config.providers.iter().map(|it| (&it.name, Arc::new(provider(it)))).collect();
        // Routes of several models to one model of one provider see the same.
        let mut seen: HashMap<(&ProviderName, &str), Arc<Health>> = HashMap::new();
        let models = config.models.iter().map(|model| {
            let candidates = model.routes.iter().filter_map(|route| {
                let provider = Arc::clone(providers.get(&route.provider)?);
                let health = seen.entry((&route.provider, &route.model)).or_insert_with(|| {
                    memory.health(&route.provider, &route.model, settings::health(&config.routing))
                });
                Some(Candidate {
                    provider,
                    upstream_model: route.model.clone(),
                    priority: route.priority,
                    weight: route.weight,
                    cost: route.cost.unwrap_or_default(),
                    health: Arc::clone(health),
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
                budget: memory.budget(model.name.as_str(), settings::retry_budget(&config.routing)),
            }
        });
        Catalogue::new(
            models.chain(self.demonstration.iter().map(|demo| demo.model(&config.routing, memory))),
        )
    }

    fn upstreams(&self, config: &Config, before: Option<&Upstreams>) -> Upstreams {
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
        let demonstration = self.demonstration.iter().map(|demo| demo.place());
        let drains = self.drains.under(settings::drains(config));
        Upstreams::new(configured.chain(demonstration), &self.resolver, drains, before)
    }
}

impl<'a> Memory<'a> {
    /// Of a provider that is somewhere else, speaks another way, or has another key, nothing is known.
    fn of(loaded: &Loaded, before: Option<&'a InForce>, now: Instant) -> Self {
        let Some(before) = before else {
            return Memory { health: HashMap::new(), budgets: HashMap::new(), now };
        };
        let changed: HashSet<&ProviderName> = before
            .loaded
            .config
            .providers
            .iter()
            .filter(|old| {
                !loaded.config.providers.iter().any(|new| is_same(&before.loaded, old, loaded, new))
            })
            .map(|old| &old.name)
            .collect();
        let candidates = before.rules.catalogue.models().flat_map(|model| &model.candidates);
        let known = candidates.filter(|it| !changed.contains(&it.provider.name));
        let budgets = before.rules.catalogue.models().map(|model| (model.name.as_str(), &model.budget));
        Memory {
            health: known
                .map(|it| ((&it.provider.name, it.upstream_model.as_str()), it.health.as_ref()))
                .collect(),
            budgets: budgets.collect(),
            now,
        }
    }

    /// Of a provider's model.
    pub(super) fn health(
        &self,
        provider: &ProviderName,
        model: &str,
        settings: HealthSettings,
    ) -> Arc<Health> {
        let known = self.health.get(&(provider, model));
        Arc::new(known.map_or_else(|| Health::new(settings), |known| known.under(settings)))
    }

    /// Of what was retried of a model of ours.
    pub(super) fn budget(&self, model: &str, settings: RetryBudgetSettings) -> RetryBudget {
        let known = self.budgets.get(model);
        known.map_or_else(|| RetryBudget::new(settings, self.now), |known| known.under(settings))
    }
}

fn is_same(before: &Loaded, old: &config::Provider, now: &Loaded, new: &config::Provider) -> bool {
    let key = |loaded: &Loaded| loaded.key(&old.name).map(|key| key.expose_secret().to_owned());
    old.name == new.name
        && old.origin == new.origin
        && old.dialect.name() == new.dialect.name()
        && key(before) == key(now)
}

fn terms(config: &Config) -> Terms {
    let tier = |tier: &config::Tier| Tier {
        requests_per_minute: tier.requests_per_minute,
        tokens_per_minute: tier.tokens_per_minute,
        concurrent_requests: tier.concurrent_requests,
    };
    let tiers: HashMap<_, _> = config.tiers.iter().map(|named| (named.name.clone(), tier(named))).collect();
    // The configuration always has the default tier; nobody is let through by one that it does not have.
    let nothing = Tier { requests_per_minute: 1, tokens_per_minute: 1, concurrent_requests: 1 };
    let default_tier = tiers.get(config::DEFAULT_TIER).copied().unwrap_or(nothing);
    Terms {
        tiers,
        default_tier,
        output_tokens_assumed: OUTPUT_TOKENS_ASSUMED,
        service_tiers: config.auth.service_tiers.clone(),
    }
}

/// Where requests may come from.
fn origins(loaded: &Loaded) -> OriginSettings {
    let networks = &loaded.config.networks;
    let countries = networks.countries.as_ref().zip(loaded.countries()).map(|(countries, map)| Countries {
        map: Arc::clone(map),
        allow: countries.allow.clone(),
        deny: countries.deny.clone(),
        is_unknown_allowed: countries.is_unknown_allowed,
    });
    OriginSettings { allow: networks.allow.clone(), deny: networks.deny.clone(), countries }
}

fn guard(config: &Config) -> GuardSettings {
    GuardSettings {
        requests: config.server.max_requests_per_s,
        requests_per_address: config.server.max_requests_per_s_per_address,
        failures: config.auth.max_failures_per_s,
        failures_per_address: config.auth.max_failures_per_s_per_address,
    }
}

fn times_and_sizes(config: &Config) -> proxy::Settings {
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
        forwarders: config.networks.forwarders.clone(),
        forwarder_header: config.networks.forwarder_header,
    }
}
