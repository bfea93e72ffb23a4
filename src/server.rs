//! The composition root of `weir serve`: builds the parts from the bottom up, runs them, and stops them in order.
//!
//! Promises: ready only when every listener accepts; on SIGTERM listeners close, requests under way finish within the drain time,
//! then the books are closed. Refuses to know: what the parts do.

mod accept;
mod demonstration;
mod gauges;
mod greeting;
mod listen;
mod settings;
mod stop;
mod tasks;

use crate::admit::{Admitter, Guard};
use crate::authenticate::Authenticator;
use crate::clock::Clock;
use crate::config::Config;
use crate::control::admin::{Admin, Readiness};
use crate::control::log;
use crate::feed::Feed;
use crate::ledger::{Ledger, LedgerError};
use crate::metrics::Metrics;
use crate::price::Book;
use crate::proxy::Proxy;
use crate::relay::{Budget, Curfew, Drains, Resolver, ResolverSettings};
use crate::store::{Opened, Store, StoreError};
use accept::Connections;
use arc_swap::ArcSwap;
use demonstration::Demonstration;
use gauges::{Gauges, Sources};
use listen::{Listening, Running};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use stop::{Signals, Stop};
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};

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
}

/// How long answers that the curfew ends may take to tell their clients.
const CURFEW_MAX: Duration = Duration::from_secs(1);
/// How long tasks that are dropped after that may take to settle their bills.
const DROP_MAX: Duration = Duration::from_secs(2);
/// How long work of the books that nobody waits for any more may take to be dropped.
const BOOKS_STOP_MAX: Duration = Duration::from_secs(1);

/// Runs until SIGTERM, SIGINT, or a failure to start.
pub fn run(config: &Config, demo: bool) -> Result<(), ServeError> {
    let _flushed_at_the_end = log::init(&settings::log(config));
    let books = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("books")
        .enable_all()
        .build()?;
    let served = serve(config, demo, &books);
    books.shutdown_timeout(BOOKS_STOP_MAX);
    served
}

/// Takes the addresses, opens the books, serves, and closes the books whatever came of it.
fn serve(config: &Config, demo: bool, books: &Runtime) -> Result<(), ServeError> {
    let mut signals = {
        let _on_books = books.enter();
        Signals::install()?
    };
    let listening = Listening::claim(&config.server.listen)?;
    let admin_listener = {
        let _on_books = books.enter();
        TcpListener::from_std(listen::bind(&config.admin.listen)?)?
    };
    let readiness = Readiness::default();
    let metrics = Metrics::new().map_err(std::io::Error::other)?;
    let gauges = Gauges::new(metrics.clone(), readiness.clone());
    show(books, admin_listener, readiness.clone(), gauges.clone());

    let parts = books.block_on(Box::pin(Parts::open(config, demo, books.handle())))?;
    gauges.ask(parts.sources(config));
    books.spawn(tasks::watch_open_items(parts.store.clone(), metrics.clone()));
    let served = parts
        .proxy(config, metrics)
        .inspect(|proxy| gauges.show_routes(Arc::clone(&proxy.catalogue)))
        .and_then(|proxy| listening.start(proxy, &parts.connections, &settings::listening(config)))
        .and_then(|running| parts.serve(config, books, running, &readiness, &mut signals));
    let closed = books.block_on(parts.close());
    served.and(closed)
}

/// Answers operators from now on, until the runtime goes.
fn show(books: &Runtime, listener: TcpListener, readiness: Readiness, gauges: Gauges) {
    let admin = Admin::new(readiness, move || gauges.render());
    books.spawn(async move {
        if let Err(fault) = admin.serve(listener).await {
            tracing::error!(%fault, "the admin listener ended");
        }
    });
}

/// What outlives the requests.
struct Parts {
    clock: Clock,
    store: Store,
    feed: Feed,
    ledger: Ledger,
    authenticator: Arc<Authenticator>,
    resolver: Resolver,
    book: Arc<ArcSwap<Book>>,
    budget: Budget,
    connections: Connections,
    in_flight: Arc<AtomicU64>,
    curfew: Curfew,
    drains: Drains,
    demonstration: Option<Demonstration>,
}

impl Parts {
    /// Opens the books and starts what runs beside the requests.
    async fn open(config: &Config, demo: bool, books: &Handle) -> Result<Self, ServeError> {
        let clock = Clock::system();
        let store = Store::open(&config.store.url, Opened::ByServer).await?;
        settings::seed_prices(&store, &clock).await?;
        let demonstration = match demo {
            true => Some(demonstration::start(config, &store, &clock).await?),
            false => None,
        };
        let feed = Feed::new(store.clone(), clock.clone(), settings::feed());
        feed.start().await?;
        books.spawn(tasks::watch_database(feed.clone()));
        let ledger =
            Ledger::open(settings::ledger(config), store.clone(), feed.clone(), clock.clone(), books.clone())
                .await?;
        // Subscribed before the book is read: a change in between is not missed.
        let changes = feed.subscribe();
        let book = Arc::new(ArcSwap::from_pointee(Book::build(store.price_rows().await?)));
        books.spawn(tasks::follow_prices(changes, store.clone(), Arc::clone(&book)));
        let authenticator = Arc::new(Authenticator::new(
            &crate::authenticate::Settings::default(),
            settings::pepper(config)?,
            store.clone(),
            feed.clone(),
            clock.clone(),
        ));
        books.spawn(tasks::keep_key_uses(Arc::clone(&authenticator), store.clone()));
        let resolver = Resolver::new(ResolverSettings::default());
        books.spawn(tasks::resolve(resolver.clone()));
        Ok(Parts {
            clock,
            store,
            feed,
            ledger,
            authenticator,
            resolver,
            book,
            budget: Budget::new(config.server.max_buffered_bytes),
            connections: Connections::new(settings::listening(config).accept),
            in_flight: Arc::default(),
            curfew: Curfew::default(),
            drains: Drains::new(settings::drains(config)),
            demonstration,
        })
    }

    fn sources(&self, config: &Config) -> Sources {
        Sources {
            authenticator: Arc::clone(&self.authenticator),
            feed: self.feed.clone(),
            ledger: self.ledger.clone(),
            budget: self.budget.clone(),
            budget_max: config.server.max_buffered_bytes,
            connections: self.connections.clone(),
            in_flight: Arc::clone(&self.in_flight),
            drains: self.drains.clone(),
            clock: self.clock.clone(),
            backlog_max: settings::ledger(config).backlog_max,
            journal_max: config.journal.max_bytes,
        }
    }

    /// The way of a request, built from the bottom up.
    fn proxy(&self, config: &Config, metrics: Metrics) -> Result<Proxy, ServeError> {
        let demonstration = self.demonstration.as_ref();
        Ok(Proxy {
            settings: settings::proxy(config),
            authenticator: Arc::clone(&self.authenticator),
            guard: Guard::new(settings::guard(config)),
            admitter: Admitter::new(settings::admit(config), self.ledger.clone(), self.clock.clone()),
            catalogue: Arc::new(settings::catalogue(config, demonstration, self.clock.now())?),
            book: Arc::clone(&self.book),
            upstreams: settings::upstreams(config, demonstration, &self.resolver, self.drains.clone()),
            budget: self.budget.clone(),
            metrics,
            clock: self.clock.clone(),
            in_flight: Arc::clone(&self.in_flight),
            curfew: self.curfew.clone(),
        })
    }

    /// From the first look whether the listeners accept to the drop of the last request.
    fn serve(
        &self,
        config: &Config,
        books: &Runtime,
        mut running: Running,
        readiness: &Readiness,
        signals: &mut Signals,
    ) -> Result<(), ServeError> {
        readiness.set(true);
        greeting::say(config, self.demonstration.as_ref());
        let told = books.block_on(async {
            tokio::select! {
                told = signals.next() => Ok(told),
                // Nothing more can be served. Whoever supervises the process starts a new one.
                () = self.ledger.fenced() => Err(ServeError::Ledger(LedgerError::Fenced)),
                () = running.ended() => Err(ServeError::System(std::io::Error::other("the listeners ended by themselves"))),
            }
        });
        readiness.set(false);
        running.close();
        let drain = match told {
            Ok(Stop::Drain) | Err(ServeError::Ledger(LedgerError::Fenced)) => config.server.drain_timeout,
            Ok(Stop::Now) | Err(_) => Duration::ZERO,
        };
        tracing::info!(
            under_way = self.under_way(),
            drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX),
            "stopping"
        );
        let have_ended = books.block_on(async {
            if signals.drain(&self.in_flight, drain).await {
                return true;
            }
            self.curfew.call();
            signals.drain(&self.in_flight, CURFEW_MAX).await
        });
        if !have_ended {
            tracing::warn!(
                under_way = self.under_way(),
                "requests are dropped; each is billed what has passed"
            );
        }
        running.stop(DROP_MAX);
        told.map(|_| ())
    }

    fn under_way(&self) -> u64 {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Writes down all that is owed to the books, and closes them. No request may be under way.
    async fn close(&self) -> Result<(), ServeError> {
        tasks::note_key_uses(&self.authenticator, &self.store).await;
        let closed = self.ledger.close().await;
        self.store.close().await;
        tracing::info!(ok = closed.is_ok(), "stopped");
        Ok(closed?)
    }
}
