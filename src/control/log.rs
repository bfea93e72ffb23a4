//! The log: one JSON object a line on standard error, with its priority before it where that leads to the journal of systemd.
//!
//! Promises: a log that cannot be written to stops nothing; what libraries log is let through from warnings upwards, whatever the level,
//! so that no client can fill the log through one of them; the level can be changed while it runs. Refuses to know: what is logged, and
//! where else standard error leads.

use super::json::Json;
use super::lines::Lines;
use arc_swap::ArcSwap;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::{env, io};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_log::AsLog;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, registry};

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The least important level of our own that is logged.
    pub level: LevelFilter,
}

/// Writes what is left of the log when it is dropped.
#[must_use]
#[derive(Debug)]
pub struct Flush(Lines);

impl Drop for Flush {
    fn drop(&mut self) {
        self.0.flush_now();
    }
}

/// How much is logged at the moment. Cheap to clone; clones are one.
#[derive(Clone, Debug)]
pub struct Verbosity(Arc<ArcSwap<Targets>>);

/// What begins the targets of our own lines.
const OWN: &str = "weir";
/// A library that logs each request that went wrong, in words which clients choose. The request's own line has it all.
const SILENT: &str = "pingora_proxy";

/// Starts the log of the process, that of libraries which use the `log` crate included. Where one has been started, that goes on. What
/// is logged reaches standard error within a twentieth of a second, and when the first of the returned values is dropped.
pub fn init(settings: &Settings) -> (Flush, Verbosity) {
    let lines = Lines::to(Box::new(io::stderr()));
    let flush = Flush(lines.clone());
    let verbosity = Verbosity::new(settings);
    let has_priority = is_journal(env::var_os("JOURNAL_STREAM").as_deref(), io::stderr());
    let writing = fmt::layer().event_format(Json { has_priority }).with_writer(move || lines.clone());
    if registry().with(writing).with(verbosity.clone()).try_init().is_err() {
        tracing::debug!("the log had been started before");
    }
    (flush, verbosity)
}

/// Whether a file is the journal's stream, as systemd names that to what it starts (systemd.exec(5), `$JOURNAL_STREAM`).
fn is_journal(stream: Option<&OsStr>, file: impl AsFd) -> bool {
    let named = stream.and_then(OsStr::to_str).and_then(|named| named.split_once(':'));
    let Some((device, inode)) = named else { return false };
    rustix::fs::fstat(file)
        .is_ok_and(|stat| device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino))
}

impl Verbosity {
    fn new(settings: &Settings) -> Self {
        Verbosity(Arc::new(ArcSwap::from_pointee(targets(settings))))
    }

    /// From now on so much is logged.
    pub fn set(&self, settings: &Settings) {
        self.0.store(Arc::new(targets(settings)));
        tracing::callsite::rebuild_interest_cache();
        tracing_log::log::set_max_level(LevelFilter::current().as_log());
    }
}

impl<S: Subscriber> Layer<S> for Verbosity {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        Layer::<S>::register_callsite(&**self.0.load(), metadata)
    }

    fn enabled(&self, metadata: &Metadata<'_>, context: Context<'_, S>) -> bool {
        Layer::<S>::enabled(&**self.0.load(), metadata, context)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Layer::<S>::max_level_hint(&**self.0.load())
    }
}

fn targets(settings: &Settings) -> Targets {
    Targets::new()
        .with_default(settings.level.min(LevelFilter::WARN))
        .with_target(OWN, settings.level)
        .with_target(SILENT, LevelFilter::OFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing::subscriber::with_default;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn libraries_are_heard_from_warnings_upwards_and_we_from_the_level() {
        let kept = Kept::default();
        let writer = kept.clone();
        let settings = Settings { level: LevelFilter::INFO };
        let verbosity = Verbosity::new(&settings);
        let writing = fmt::layer().event_format(Json::default()).with_writer(move || writer.clone());
        let log = registry().with(writing).with(verbosity.clone());
        with_default(log, || {
            tracing::info!(target: "pingora_core::server", "noise");
            tracing::warn!(target: "pingora_core::server", "telling");
            tracing::error!(target: "pingora_proxy", "noise");
            tracing::info!(target: "weir::request", "request");
            let detail = |said: &str| tracing::debug!(target: "weir::ledger", "{said}");
            detail("detail");
            verbosity.set(&Settings { level: LevelFilter::DEBUG });
            detail("deeper");
            verbosity.set(&settings);
            detail("detail");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("telling") && text.contains("request") && text.contains("deeper"), "{text}");
        assert!(!text.contains("noise") && !text.contains("detail"), "{text}");
    }

    #[test]
    fn the_journal_is_known_by_the_file_that_systemd_names() {
        use std::os::unix::fs::MetadataExt as _;
        let (ours, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let metadata = ours.metadata().unwrap();
        let named = format!("{}:{}", metadata.dev(), metadata.ino());
        assert!(is_journal(Some(OsStr::new(&named)), &ours));
        assert!(!is_journal(Some(OsStr::new(&named)), &other));
        assert!(!is_journal(Some(OsStr::new("8:")), &ours));
        assert!(!is_journal(None, &ours));
    }
}
