//! SIGHUP: the configuration is read again, and takes the place of the one in force.
//!
//! Promises: a file with anything wrong changes nothing; what it says is in force at once and whole, for every request that comes after;
//! requests under way end by what they began with; what cannot change while the process runs is named. A signal that comes before the
//! process is ready is heard when it is, any number that come while a file is read are one more, and none is heard during a stop. Refuses
//! to know: what the keys mean.

use super::accept::Connections;
use super::notify::Notifier;
use super::rules::{Grounds, InForce};
use super::settings;
use super::tls::{Certificates, Set};
use crate::admit::Admitter;
use crate::clock::Clock;
use crate::config::{Config, Loaded, SecretRef};
use crate::control::log;
use crate::metrics::{Level, Metrics};
use crate::price::Book;
use crate::proxy::Rules;
use crate::relay::Budget;
use arc_swap::ArcSwap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGHUP, heard from now on.
pub(super) struct HangUps(Signal);

/// The configuration in force, and how the next one comes into force.
pub(super) struct Reload {
    /// The file, where there is one.
    pub(super) path: Option<PathBuf>,
    /// What cannot change is as it was when the process began.
    pub(super) started: Config,
    pub(super) in_force: InForce,
    pub(super) parts: Parts,
    /// Hears of each reload.
    pub(super) notifier: Notifier,
}

/// Who is told of a new configuration, besides the rules that are made of it.
pub(super) struct Parts {
    pub(super) grounds: Grounds,
    pub(super) rules: Arc<ArcSwap<Rules>>,
    pub(super) admitter: Arc<Admitter>,
    pub(super) budget: Budget,
    pub(super) connections: Connections,
    pub(super) certificates: Arc<Certificates>,
    pub(super) verbosity: log::Verbosity,
    pub(super) book: Arc<ArcSwap<Book>>,
    pub(super) metrics: Metrics,
    pub(super) clock: Clock,
    pub(super) stopping: Stopping,
}

/// What a stop and a reload know of one another. Cheap to clone.
#[derive(Clone)]
pub(super) struct Stopping(Arc<Said>);

struct Said {
    has_begun: AtomicBool,
    drain_timeout: ArcSwap<Duration>,
}

/// What a service manager shows: all that the configuration says is in force.
pub(super) const SERVING: &str = "serving";
const SERVING_IN_PART: &str = "serving; changed keys wait for a restart, the log names them";
const SERVING_AS_BEFORE: &str =
    "serving by the configuration before; the last reload was refused, the log and `weir check` tell why";
/// How long files may take to be read: they may be on a disk of the network.
const READ_MAX: Duration = Duration::from_secs(30);

impl HangUps {
    /// Call on a runtime.
    pub(super) fn install() -> io::Result<Self> {
        Ok(HangUps(signal(SignalKind::hangup())?))
    }
}

impl Stopping {
    pub(super) fn new(config: &Config) -> Self {
        let drain_timeout = ArcSwap::from_pointee(config.server.drain_timeout);
        Stopping(Arc::new(Said { has_begun: AtomicBool::new(false), drain_timeout }))
    }

    /// From now on nothing is read any more. How long requests under way may go on.
    pub(super) fn begin(&self) -> Duration {
        self.0.has_begun.store(true, Ordering::Release);
        **self.0.drain_timeout.load()
    }
}

/// What is not as an operator would want it, in the log.
pub(super) fn warn(loaded: &Loaded, book: &Book, clock: &Clock) {
    for warning in loaded.warnings(clock.wall()) {
        tracing::warn!("{warning}");
    }
    for warning in loaded.config.unpriced(|model| book.model(model, clock.wall()).is_some()) {
        tracing::warn!("{warning}");
    }
}

impl Reload {
    /// Reads the file at each signal, for as long as the process runs.
    pub(super) async fn run(mut self, mut signals: HangUps) {
        self.note_success();
        while signals.0.recv().await.is_some() {
            if self.parts.stopping.0.has_begun.load(Ordering::Acquire) {
                tracing::info!("SIGHUP: the process is stopping, the configuration is not read again");
            } else {
                self.notifier.reloading();
                let status = self.once().await;
                self.notifier.ready(status);
            }
        }
    }

    /// What the process does from then on, for the service manager.
    async fn once(&mut self) -> &'static str {
        let Some(path) = self.path.clone() else {
            tracing::warn!(
                "SIGHUP: there is no configuration to read again; `weir serve` was started without --config"
            );
            return SERVING;
        };
        let shown = path.display().to_string();
        let reading =
            tokio::task::spawn_blocking(move || Loaded::read(Some(&path)).map_err(|error| error.to_string()));
        let read = match tokio::time::timeout(READ_MAX, reading).await {
            Ok(Ok(read)) => read,
            Ok(Err(panicked)) => Err(panicked.to_string()),
            Err(_) => Err(format!("{shown} could not be read within {} s", READ_MAX.as_secs())),
        };
        let status = match read {
            Ok(loaded) => self.take(loaded, &shown),
            Err(problems) => {
                self.parts.metrics.set(Level::ConfigReloadSuccessful, 0.0);
                self.parts.metrics.add(Level::ConfigReloadFailures);
                tracing::error!(
                    file = shown,
                    problems,
                    "the configuration cannot be used; the one before stays in force"
                );
                SERVING_AS_BEFORE
            }
        };
        self.parts.metrics.add(Level::ConfigReloads);
        status
    }

    /// Puts it into force.
    fn take(&mut self, mut loaded: Loaded, file: &str) -> &'static str {
        let mut waiting = self.started.keep_started(&mut loaded.config);
        let parts = &self.parts;
        let rules = Arc::new(parts.grounds.rules(&loaded, Some(&self.in_force)));
        let config = &loaded.config;
        parts.budget.set_max_bytes(config.server.max_buffered_bytes);
        parts.admitter.set_requests_max(config.server.max_requests);
        parts.connections.replace(settings::accept(config));
        parts.stopping.0.drain_timeout.store(Arc::new(config.server.drain_timeout));
        if loaded.certificates().is_empty() && !config.tls.listen.is_empty() {
            // Those who still listen need one.
            waiting.push("[[certificate]]");
        } else {
            parts.certificates.replace(Set::new(loaded.certificates()));
        }
        parts.rules.store(Arc::clone(&rules));
        parts.verbosity.set(&settings::log(config));
        parts.metrics.set(Level::ConfigRestartNeeded, f64::from(u8::from(!waiting.is_empty())));
        warn(&loaded, &parts.book.load(), &parts.clock);
        tracing::info!(
            file,
            providers = config.providers.len(),
            models = config.models.len(),
            tiers = config.tiers.len(),
            keys_of_the_start = names_of_fixed_keys(config).as_str(),
            "the configuration has been read again and is in force"
        );
        if !waiting.is_empty() {
            tracing::warn!(
                keys = waiting.join(", ").as_str(),
                "these keys have changed and wait for a restart; the others are in force"
            );
        }
        self.in_force = InForce { loaded, rules };
        self.note_success();
        if waiting.is_empty() { SERVING } else { SERVING_IN_PART }
    }

    fn note_success(&self) {
        let now_s = self.parts.clock.wall().0 as f64 / 1e6;
        self.parts.metrics.set(Level::ConfigReloadSuccessful, 1.0);
        self.parts.metrics.set(Level::ConfigReloadTimestamp, now_s);
    }
}

/// The providers whose keys are of the environment or of systemd, which a process is given once.
fn names_of_fixed_keys(config: &Config) -> String {
    let is_fixed = |key: &SecretRef| match key {
        SecretRef::Env(_) | SecretRef::Credential(_) => true,
        SecretRef::File(_) => false,
    };
    let fixed = config.providers.iter().filter(|provider| provider.api_key.as_ref().is_some_and(is_fixed));
    fixed.map(|provider| provider.name.as_str()).collect::<Vec<_>>().join(", ")
}
