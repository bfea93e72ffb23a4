//! The composition root of `weir serve`: builds the parts from the bottom up, runs them, and stops them in order.
//!
//! Promises: ready only when every listener accepts; on SIGTERM listeners close, requests under way finish within the drain time,
//! then the books are closed. Refuses to know: what the parts do.

mod demonstration;
mod listen;
mod settings;

use crate::admit::{Admitter, Guard};
use crate::authenticate::Authenticator;
use crate::clock::Clock;
use crate::config::Config;
use crate::control::{admin, log};
use crate::feed::Feed;
use crate::ledger::{Ledger, LedgerError};
use crate::metrics::Metrics;
use crate::price::Book;
use crate::proxy::Proxy;
use crate::relay::{Budget, Resolver, ResolverSettings};
use crate::store::{Opened, Store, StoreError};
use arc_swap::ArcSwap;
use listen::{Listening, Stop};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;

/// Why the server did not start, or did not stop well.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// As configured.
        address: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The database.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The books.
    #[error("{0}")]
    Ledger(#[from] LedgerError),
    /// A secret that the configuration names.
    #[error("{0}")]
    Secret(String),
    /// The system refused a thread, a runtime or a signal handler.
    #[error("{0}")]
    System(#[from] std::io::Error),
    /// The listeners were not there in time.
    #[error("the listeners did not accept within {0:?}")]
    NotReady(Duration),
}

/// How long the listeners may take to accept.
const READY_MAX: Duration = Duration::from_secs(10);
/// How often key uses are written down.
const KEY_USE_EVERY: Duration = Duration::from_secs(5);
/// How long tasks that are dropped when the drain time is over may take to settle their bills.
const DROP_MAX: Duration = Duration::from_secs(2);

/// Runs until SIGTERM, SIGINT, or a failure to start.
pub fn run(config: &Config, demo: bool) -> Result<(), ServeError> {
    log::init(&settings::log(config));
    let books = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("books")
        .enable_all()
        .build()?;
    let clock = Clock::system();
    let listeners = Listening::claim(&config.server.listen)?;
    let admin_listener = books.block_on(listen::bind(&config.admin.listen))?;
    let store = books.block_on(Store::open(&config.store.url, Opened::ByServer))?;
    books.block_on(settings::seed_prices(&store, &clock))?;
    let demonstration = demo.then(|| books.block_on(demonstration::start(config, &store, &clock))).transpose()?;

    let metrics = Metrics::new();
    let feed = Feed::new(store.clone(), clock.clone(), settings::feed());
    let ledger = books.block_on(Ledger::open(
        settings::ledger(config),
        store.clone(),
        feed.clone(),
        clock.clone(),
        books.handle().clone(),
    ))?;
    let resolver = Resolver::new(ResolverSettings::default());
    let book = Arc::new(ArcSwap::from_pointee(Book::build(books.block_on(store.price_rows())?)));
    let in_flight = Arc::new(AtomicU64::new(0));
    let budget = Budget::new(config.server.max_buffered_bytes);
    let catalogue = Arc::new(settings::catalogue(config, demonstration.as_ref())?);
    let proxy = Proxy {
        settings: settings::proxy(config),
        authenticator: Authenticator::new(
            &crate::authenticate::Settings::default(),
            settings::pepper(config)?,
            store.clone(),
            feed.clone(),
            clock.clone(),
        ),
        guard: Guard::new(settings::FAILED_KEYS_PER_SECOND),
        admitter: Admitter::new(settings::admit(config), ledger.clone(), clock.clone()),
        catalogue,
        book: Arc::clone(&book),
        upstreams: settings::upstreams(config, demonstration.as_ref(), &resolver)?,
        budget,
        metrics: metrics.clone(),
        clock,
        in_flight: Arc::clone(&in_flight),
    };
    Err(ServeError::NotReady(READY_MAX))
}
