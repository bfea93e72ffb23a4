//! The composition root of `weir serve`: builds the parts from the bottom up, runs them, and stops them in order.
//!
//! Promises: ready only when every listener accepts; on SIGTERM listeners close, requests under way finish within the drain time,
//! then the books are closed. Refuses to know: what the parts do.

mod accept;
mod admin;
mod commands;
mod demonstration;
mod gauges;
mod greeting;
mod handover;
mod listen;
mod notify;
mod reload;
mod rules;
mod serving;
mod settings;
mod sockets;
mod starter;
mod stop;
mod tasks;
mod tls;
mod upgrade;

pub use commands::{CommandError, upgrade};
pub use starter::start_successor;
pub use upgrade::{Launch, TAKE_OVER};

use crate::admit::{Admitter, Guard};
use crate::authenticate::Authenticator;
use crate::clock::Clock;
use crate::config::{Config, Loaded};
use crate::control::admin::Readiness;
use crate::control::log;
use crate::feed::Feed;
use crate::ledger::{Ledger, LedgerError};
use crate::metrics::Metrics;
use crate::price::Book;
use crate::proxy::{Proxy, Rules};
use crate::relay::{Budget, Curfew, Drains, Resolver, ResolverSettings};
use crate::store::{Opened, Store, StoreError};
use crate::telemetry::{BadEndpoint, Traces};
use accept::Connections;
use arc_swap::ArcSwap;
use demonstration::Demonstration;
use gauges::{Gauges, Sources};
use handover::{Channel, Word};
use listen::Listening;
use notify::Notifier;
use reload::{HangUps, Reload, Stopping};
use rules::{Grounds, InForce};
use serving::Serving;
use sockets::Sockets;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use stop::Signals;
use tls::{Certificates, Set};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use upgrade::Requests;

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
/// How long a process that is ready to take over waits for the word: the other one gives it at once, or is gone.
const GO_MAX: Duration = Duration::from_secs(10);
/// How long work of the books that nobody waits for any more may take to be dropped.
const BOOKS_STOP_MAX: Duration = Duration::from_secs(1);

/// Runs until SIGTERM, SIGINT, or a failure to start.
///
/// `path` is where the configuration was read, to be read again on SIGHUP.
pub fn run(loaded: Loaded, path: Option<PathBuf>, demo: bool, launch: &Launch) -> Result<(), ServeError> {
    let (_flushed_at_the_end, verbosity) = log::init(&settings::log(&loaded.config));
    let books = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("books")
        .enable_all()
        .build()?;
    let served = serve(loaded, path, demo, launch, verbosity, &books);
    books.shutdown_timeout(BOOKS_STOP_MAX);
    served
}

/// Takes the addresses, opens the books, serves, and closes the books whatever came of it.
fn serve(
    loaded: Loaded,
    path: Option<PathBuf>,
    demo: bool,
    launch: &Launch,
    verbosity: log::Verbosity,
    books: &Runtime,
) -> Result<(), ServeError> {
    let (mut signals, hang_ups, mut requests) = {
        let _on_books = books.enter();
        (Signals::install()?, HangUps::install()?, Requests::new()?)
    };
    let config = &loaded.config.clone();
    let certificates = Arc::new(Certificates::new(Set::new(loaded.certificates())));
    let (before, mut sockets) = take_over(launch, config)?;
    let listening = Listening::claim(config, &mut sockets)?;
    let admin_listener = admin::take(books, sockets.tcp(config.admin.listen)?)?;
    let control = sockets.unix(&commands::path(config), commands::MODE);
    sockets.close_unclaimed();
    let (readiness, notifier) = (Readiness::default(), Notifier::default());
    let metrics = Metrics::new().map_err(std::io::Error::other)?;
    let gauges = Gauges::new(metrics.clone(), readiness.clone());
    let (closing, is_closing) = watch::channel(false);
    let show = |listener| admin::show(books, listener, readiness.clone(), gauges.clone(), is_closing.clone());
    // While another process serves, it answers for the service.
    let late = match &before {
        None => {
            show(admin_listener);
            None
        }
        Some(_) => Some(admin_listener),
    };

    let parts = books.block_on(Box::pin(Parts::open(config, certificates, demo, books.handle())))?;
    gauges.ask(parts.sources(config));
    let ledger = parts.ledger.clone();
    readiness.ask(move || ledger.obstacle());
    books.spawn(tasks::watch_open_items(parts.store.clone(), metrics.clone()));
    let rules = Arc::new(parts.grounds().rules(&loaded, None));
    reload::warn(&loaded, &parts.book.load(), &parts.clock);
    let in_force = InForce { loaded, rules: Arc::clone(&rules) };
    let rules = Arc::new(ArcSwap::new(rules));
    gauges.show_routes(Arc::clone(&rules));
    let proxy = parts.proxy(Arc::clone(&rules), metrics.clone());
    let reloaded = parts.reloaded(rules, verbosity, metrics);
    let notifier_of_reload = notifier.clone();
    let reload =
        Reload { path, started: config.clone(), in_force, parts: reloaded, notifier: notifier_of_reload };
    let started = await_go(before.as_ref())
        .and_then(|()| {
            listening.start(proxy, &parts.connections, &parts.certificates, &settings::listening(config))
        })
        // From here on requests are accepted, and nothing fails any more.
        .inspect(|_| late.into_iter().for_each(show));
    let served = started.and_then(|running| {
        listen_for_commands(control, &requests, books, is_closing.clone());
        books.spawn(reload.run(hang_ups));
        let (parts, sockets) = (&parts, Arc::new(sockets));
        Serving {
            config,
            parts,
            launch,
            books,
            running,
            sockets,
            closing,
            before,
            readiness: readiness.clone(),
            notifier,
        }
        .run(&mut signals, &mut requests)
    });
    let closed = books.block_on(parts.close());
    served.and(closed)
}

/// The listeners of the process before, if there is one, and the way to speak to it.
fn take_over(launch: &Launch, config: &Config) -> Result<(Option<Channel>, Sockets), ServeError> {
    if !launch.takes_over {
        return Ok((None, Sockets::default()));
    }
    let before = Channel::from_stdin()?;
    let sockets = Sockets::inherited(before.receive(&upgrade::books(config)?)?);
    Ok((Some(before), sockets))
}

/// Everything is open: from the word of the process before, if there is one, this one accepts.
fn await_go(before: Option<&Channel>) -> Result<(), ServeError> {
    let Some(before) = before else { return Ok(()) };
    before.say(Word::Ready)?;
    Ok(before.hear(Word::Go, GO_MAX)?)
}

/// A process that cannot be told by commands serves all the same.
fn listen_for_commands(
    control: Result<UnixListener, ServeError>,
    requests: &Requests,
    books: &Runtime,
    closing: watch::Receiver<bool>,
) {
    let listener = control.and_then(|control| {
        let _on_books = books.enter();
        Ok(tokio::net::UnixListener::from_std(control)?)
    });
    match listener {
        Ok(listener) => drop(books.spawn(commands::answer(listener, requests.asking(), closing))),
        Err(error) => tracing::warn!(%error, "commands do not reach this process; SIGUSR2 still upgrades it"),
    }
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
    certificates: Arc<Certificates>,
    in_flight: Arc<AtomicU64>,
    curfew: Curfew,
    drains: Drains,
    admitter: Arc<Admitter>,
    stopping: Stopping,
    demonstration: Option<Arc<Demonstration>>,
    traces: Option<Traces>,
    upgrade_failures: Arc<AtomicU64>,
}

impl Parts {
    /// Opens the books and starts what runs beside the requests.
    async fn open(
        config: &Config,
        certificates: Arc<Certificates>,
        demo: bool,
        books: &Handle,
    ) -> Result<Self, ServeError> {
        let clock = Clock::system();
        let store = Store::open(&config.store.url, Opened::ByServer).await?;
        settings::seed_prices(&store, &clock).await?;
        let demonstration = match demo {
            true => Some(Arc::new(demonstration::start(config, &store, &clock).await?)),
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
        let traces = settings::telemetry(config)
            .map(|settings| {
                let (traces, exporting) = Traces::new(&settings)?;
                books.spawn(exporting);
                Ok::<_, BadEndpoint>(traces)
            })
            .transpose()
            .map_err(std::io::Error::other)?;
        let admitter = Admitter::new(config.server.max_requests, ledger.clone(), clock.clone());
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
            certificates,
            in_flight: Arc::default(),
            curfew: Curfew::default(),
            drains: Drains::new(settings::drains(config)),
            admitter: Arc::new(admitter),
            stopping: Stopping::new(config),
            demonstration,
            traces,
            upgrade_failures: Arc::default(),
        })
    }

    fn sources(&self, config: &Config) -> Sources {
        Sources {
            authenticator: Arc::clone(&self.authenticator),
            feed: self.feed.clone(),
            ledger: self.ledger.clone(),
            budget: self.budget.clone(),
            connections: self.connections.clone(),
            certificates: Arc::clone(&self.certificates),
            in_flight: Arc::clone(&self.in_flight),
            drains: self.drains.clone(),
            upgrade_failures: Arc::clone(&self.upgrade_failures),
            clock: self.clock.clone(),
            traces: self.traces.clone(),
            backlog_max: settings::ledger(config).backlog_max,
            journal_max: config.journal.max_bytes,
        }
    }

    /// What rules are made upon.
    fn grounds(&self) -> Grounds {
        Grounds {
            clock: self.clock.clone(),
            resolver: self.resolver.clone(),
            drains: self.drains.clone(),
            demonstration: self.demonstration.clone(),
        }
    }

    /// The way of a request, built from the bottom up.
    fn proxy(&self, rules: Arc<ArcSwap<Rules>>, metrics: Metrics) -> Proxy {
        Proxy {
            rules,
            authenticator: Arc::clone(&self.authenticator),
            guard: Guard::default(),
            admitter: Arc::clone(&self.admitter),
            book: Arc::clone(&self.book),
            budget: self.budget.clone(),
            metrics,
            traces: self.traces.clone(),
            clock: self.clock.clone(),
            in_flight: Arc::clone(&self.in_flight),
            curfew: self.curfew.clone(),
        }
    }

    /// What a reload changes.
    fn reloaded(
        &self,
        rules: Arc<ArcSwap<Rules>>,
        verbosity: log::Verbosity,
        metrics: Metrics,
    ) -> reload::Parts {
        reload::Parts {
            grounds: self.grounds(),
            rules,
            admitter: Arc::clone(&self.admitter),
            budget: self.budget.clone(),
            connections: self.connections.clone(),
            certificates: Arc::clone(&self.certificates),
            verbosity,
            book: Arc::clone(&self.book),
            metrics,
            clock: self.clock.clone(),
            stopping: self.stopping.clone(),
        }
    }

    /// Writes down all that is owed to the books, and closes them. No request may be under way.
    async fn close(&self) -> Result<(), ServeError> {
        tasks::note_key_uses(&self.authenticator, &self.store).await;
        let closed = self.ledger.close().await;
        self.store.close().await;
        if let Some(traces) = &self.traces {
            traces.close().await;
        }
        tracing::info!(ok = closed.is_ok(), "stopped");
        Ok(closed?)
    }
}
