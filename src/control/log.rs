//! The log: one JSON object a line on standard error.
//!
//! Promises: a log that cannot be written to stops nothing; what libraries log is let through from warnings upwards, whatever the level,
//! so that no client can fill the log through one of them. Refuses to know: what is logged, and where standard error leads.

use super::json::Json;
use super::lines::Lines;
use std::io;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::util::SubscriberInitExt;

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

/// What begins the targets of our own lines.
const OWN: &str = "weir";
/// A library that logs each request that went wrong, in words which clients choose. The request's own line has it all.
const SILENT: &str = "pingora_proxy";

/// Starts the log of the process, that of libraries which use the `log` crate included. Where one has been started, that goes on. What
/// is logged reaches standard error within a twentieth of a second, and when the returned value is dropped.
pub fn init(settings: &Settings) -> Flush {
    let lines = Lines::to(Box::new(io::stderr()));
    let flush = Flush(lines.clone());
    let started = fmt()
        .event_format(Json)
        .with_env_filter(filter(settings))
        .with_writer(move || lines.clone())
        .finish()
        .try_init();
    if started.is_err() {
        tracing::debug!("the log had been started before");
    }
    flush
}

fn filter(settings: &Settings) -> EnvFilter {
    let others = settings.level.min(LevelFilter::WARN);
    EnvFilter::builder().parse_lossy(format!("{others},{OWN}={},{SILENT}=off", settings.level))
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
        let log = fmt()
            .event_format(Json)
            .with_env_filter(filter(&settings))
            .with_writer(move || writer.clone())
            .finish();
        with_default(log, || {
            tracing::info!(target: "pingora_core::server", "noise");
            tracing::warn!(target: "pingora_core::server", "telling");
            tracing::error!(target: "pingora_proxy", "noise");
            tracing::info!(target: "weir::request", "request");
            tracing::debug!(target: "weir::ledger", "detail");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("telling") && text.contains("request"), "{text}");
        assert!(!text.contains("noise") && !text.contains("detail"), "{text}");
    }
}
