//! `weir doctor`: what would keep a server from its work, before it does.

mod books;
mod finding;
mod listeners;
mod machine;
mod providers;

use super::failure::Failure;
use super::output::Report;
use crate::clock::Clock;
use crate::config::{Config, ConfigError, Loaded};
use finding::{Finding, State};
use serde::Serialize;
use std::path::Path;

/// Look for what would keep a server from its work
///
/// Configuration, files, clock, database, disk, providers, prices, limits, addresses, sockets and certificates; each line that is not ok says what to do. Providers
/// are connected to, and asked for nothing. It changes nothing but for a commit without content and a file that it removes again. Exit
/// status 1 where something fails; warnings do not count. Run it as the user that serves.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Example:
  weir --config weir.toml doctor")]
pub(super) struct Doctor {}

#[derive(Serialize)]
struct Diagnosis<'a> {
    ok: bool,
    failures: usize,
    warnings: usize,
    findings: &'a [Finding],
}

impl Doctor {
    pub(super) fn run(self, path: Option<&Path>) -> Result<Report, Failure> {
        let Doctor {} = self;
        let findings = match (Loaded::read(path), Config::load(path)) {
            (Ok(loaded), _) => super::block_on(examine(&loaded.config, Ok(&loaded), path))?,
            // Only what it names is missing: the rest can be looked at.
            (Err(error), Ok(config)) => super::block_on(examine(&config, Err(&error), path))?,
            (Err(error), Err(_)) => vec![unusable(&error)],
        };
        let count = |state| findings.iter().filter(|finding| finding.state == state).count();
        let (failures, warnings) = (count(State::Fails), count(State::Warns));
        let diagnosis = Diagnosis { ok: failures == 0, failures, warnings, findings: &findings };
        let is_colored = finding::is_colored();
        let mut people: String = findings.iter().map(|finding| finding.shown(is_colored)).collect();
        people.push_str(&format!("\n{failures} failed, {warnings} warned, {} ok\n", count(State::Good)));
        Ok(Report::new(&diagnosis, people)?.good(failures == 0))
    }
}

fn unusable(error: &ConfigError) -> Finding {
    Finding::fails("configuration", error.to_string(), "correct it: without that no server starts")
}

async fn examine(
    config: &Config,
    loaded: Result<&Loaded, &ConfigError>,
    path: Option<&Path>,
) -> Vec<Finding> {
    let clock = &Clock::system();
    let mut findings = vec![loaded.map_or_else(unusable, |_| good(path))];
    findings.extend(config.warnings().into_iter().map(|warning| Finding {
        state: State::Warns,
        what: "configuration",
        says: warning,
        todo: None,
    }));
    findings.extend(machine::files(config, path));
    findings.extend(books::look(config, clock).await);
    findings.extend(machine::journal_disk(config, clock));
    findings.extend(machine::limits(config).await);
    findings.extend(listeners::look(config).await);
    findings.extend(loaded.map(|loaded| listeners::certificates(loaded, clock.wall())).unwrap_or_default());
    findings.extend(providers::probe(config, clock).await);
    findings
}

fn good(path: Option<&Path>) -> Finding {
    let says = path.map_or_else(
        || "no file: everything is in ./weir-data".to_owned(),
        |path| format!("{} is good", path.display()),
    );
    Finding::good("configuration", says)
}
