//! What `--demo` adds: a provider in the process with its model, and a funded account with a key that is new at each start.

use super::rules::Memory;
use super::{ServeError, settings};
use crate::clock::Clock;
use crate::config::{Config, Routing};
use crate::demo;
use crate::ids::{AccountId, KeyId, ModelName, ProviderName};
use crate::money::Micros;
use crate::price::{self, Book};
use crate::provider::{DIALECTS, Dialect};
use crate::relay::{Origin, Patience, Silence};
use crate::route::{Candidate, Cost, Model, Order, Provider, Retry};
use crate::secret::ApiKey;
use crate::store::{KeyPolicy, LotKind, NewCredit, NewKey, Store, StoreError};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// The account that is funded.
pub(super) const EMAIL: &str = "demo@weir.invalid";

/// The provider in the process and the key to it.
pub(super) struct Demonstration {
    /// Shown once.
    pub(super) key: ApiKey,
    address: SocketAddr,
    dialect: &'static dyn Dialect,
}

/// The provider's name: one that a configuration cannot give, so that neither stands in the other's way.
const PROVIDER: &str = "demo (built in)";
/// The name of the account's keys that this module makes and revokes.
const KEY_NAME: &str = "demo";
/// The dialect that [`demo`] speaks.
const DIALECT: &str = "openai";
/// An account with less than this is given [`CREDIT`].
const CREDIT_MIN: Micros = Micros(5_000_000);
const CREDIT: Micros = Micros(10_000_000);
/// Nothing of it waits on a network.
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(5),
    tls: Duration::from_secs(5),
    total: Duration::from_secs(900),
    silence: Silence { first_byte_timeout: Duration::from_secs(60), idle_timeout: Duration::from_secs(60) },
    on_client_gone: None,
};

/// Starts the provider, prices its model, funds the account, makes its key and revokes the one before. Runs on the runtime that is to
/// carry the provider.
pub(super) async fn start(
    config: &Config,
    store: &Store,
    clock: &Clock,
) -> Result<Demonstration, ServeError> {
    let dialect = DIALECTS.iter().copied().find(|dialect| dialect.name() == DIALECT);
    let dialect =
        dialect.ok_or_else(|| std::io::Error::other("the dialect of the demo provider is not built"))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    serve(listener, clock.clone());
    price_model(store, clock).await?;
    let account = funded_account(store, clock).await?;
    let key = new_key(config, store, account, clock).await?;
    Ok(Demonstration { key, address, dialect })
}

impl Demonstration {
    /// Its model.
    pub(super) fn model(&self, routing: &Routing, memory: &Memory<'_>) -> Model {
        let name = ProviderName::from(PROVIDER);
        let health = memory.health(&name, demo::MODEL, settings::health(routing));
        let provider = Provider { name, dialect: self.dialect, api_key: None, is_drained: false };
        Model {
            name: ModelName::from(demo::MODEL),
            context_tokens: demo::CONTEXT_TOKENS,
            max_output_tokens: Some(demo::MAX_OUTPUT_TOKENS),
            hidden_reasoning: false,
            candidates: vec![Candidate {
                provider: Arc::new(provider),
                upstream_model: demo::MODEL.to_owned(),
                priority: 0,
                weight: 1,
                cost: Cost::default(),
                health,
            }],
            order: Order::default(),
            is_sticky: false,
            retry: Retry::default(),
            attempts_max: 1,
            fallback: Vec::new(),
            budget: memory.budget(demo::MODEL, settings::retry_budget(routing)),
        }
    }

    /// Where its provider is.
    pub(super) fn place(&self) -> (ProviderName, Origin, Patience) {
        let origin = Origin {
            tls: false,
            host: self.address.ip().to_string(),
            port: self.address.port(),
            authority: self.address.to_string(),
            base_path: "/v1".to_owned(),
        };
        (ProviderName::from(PROVIDER), origin, PATIENCE)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "on the books runtime, which is dropped when all requests have ended"
)]
fn serve(listener: TcpListener, clock: Clock) {
    tokio::spawn(async move {
        if let Err(fault) = demo::serve(listener, clock).await {
            tracing::error!(%fault, "the demo provider ended");
        }
    });
}

/// A book that was there before the demonstration may not have its model.
async fn price_model(store: &Store, clock: &Clock) -> Result<(), ServeError> {
    let now = clock.wall();
    if Book::build(store.price_rows().await?).model(demo::MODEL, now).is_some() {
        return Ok(());
    }
    let seed = price::file::parse(price::SEED, price::SEED_NAME).map_err(std::io::Error::other)?;
    let own: Vec<_> = seed.into_iter().filter(|price| price.model == demo::MODEL).collect();
    store.import_prices(&own, now, now).await?;
    Ok(())
}

async fn funded_account(store: &Store, clock: &Clock) -> Result<AccountId, StoreError> {
    let account_id = match store.find_account(EMAIL).await {
        Err(StoreError::NotFound(_)) => store.create_account(EMAIL, None, clock.wall()).await?,
        found => found?,
    };
    if store.account(account_id).await?.balance < CREDIT_MIN {
        let credit = NewCredit {
            account_id,
            amount: CREDIT,
            kind: LotKind::Promotional,
            reason: "weir serve --demo".to_owned(),
            idempotency_key: None,
        };
        store.add_credit(&credit, clock.wall()).await?;
    }
    Ok(account_id)
}

async fn new_key(
    config: &Config,
    store: &Store,
    account_id: AccountId,
    clock: &Clock,
) -> Result<ApiKey, ServeError> {
    let last = store.keys(account_id).await?;
    for key in last.iter().filter(|key| !key.revoked && key.name.as_deref() == Some(KEY_NAME)) {
        store.revoke_key(key.key_id, clock.wall()).await?;
    }
    let key = ApiKey::generate().map_err(std::io::Error::other)?;
    let new = NewKey {
        key_id: KeyId::new(),
        account_id,
        hash: settings::pepper(config)?.hash(&key),
        name: Some(KEY_NAME.to_owned()),
        prefix: key.prefix().to_owned(),
        last_four: key.last_four().to_owned(),
        models: None,
        expires_at: None,
        policy: KeyPolicy::default(),
    };
    store.create_key(&new, clock.wall()).await?;
    Ok(key)
}
