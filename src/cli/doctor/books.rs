//! Clock and database, prices and journals.

use super::finding::Finding;
use crate::cli::check;
use crate::clock::{Clock, UnixMicros};
use crate::config::Config;
use crate::ledger;
use crate::store::{Inspected, Opened, Store};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// No machine of today has an earlier time: 2026-01-01T00:00:00Z.
const NOT_BEFORE: UnixMicros = UnixMicros(1_767_225_600_000_000);
/// What clocks of processes may differ by.
const CLOCK_SLACK: Duration = Duration::from_secs(5);
/// A commit that takes longer delays grants.
const COMMIT_SLOW: Duration = Duration::from_millis(100);
const COMMITS: usize = 5;
/// How long the answer about the clock is waited for.
const ASKS_MAX: usize = 100;
const ASK_EVERY: Duration = Duration::from_millis(20);
/// There while systemd-timesyncd has set the clock.
const SYNCHRONIZED: &str = "/run/systemd/timesync/synchronized";

pub(super) async fn look(config: &Config, clock: &Clock) -> Vec<Finding> {
    let url = &config.store.url;
    let is_there = match Store::path(url).map(|path| path.try_exists()) {
        Ok(Err(error)) => {
            let fails =
                Finding::fails("database", format!("{url}: {error}"), "run this as the user that serves");
            return vec![time(clock.wall(), None), fails];
        }
        Ok(Ok(is_there)) => is_there,
        Err(_) => false,
    };
    if !is_there {
        let none = Finding::warns(
            "database",
            format!("{url} is not there yet"),
            "`weir serve` and every other command make it",
        );
        return vec![time(clock.wall(), None), none];
    }
    let inspected = match Store::inspect(url, clock.wall()).await {
        Ok(inspected) => inspected,
        Err(error) => {
            let todo = "look at the file, its owner, and the room on its disk; `weir restore` puts a backup in its place";
            return vec![time(clock.wall(), None), Finding::fails("database", error.to_string(), todo)];
        }
    };
    let mut findings = vec![time(clock.wall(), Some(inspected.newest_at))];
    findings.extend(versions(&inspected));
    let known = Store::schema_version();
    if inspected.schema_version > known {
        let says = format!("its schema is {}, this weir knows up to {known}", inspected.schema_version);
        findings.push(Finding::fails("database", says, "use a newer weir"));
    } else if inspected.schema_version < known {
        let says = format!("its schema is {}, this weir's is {known}", inspected.schema_version);
        findings.push(Finding::warns("database", says, "`weir migrate`, or the next start, brings it up"));
    } else {
        findings.extend(open(config, clock).await);
    }
    findings
}

fn time(now: UnixMicros, newest_at: Option<UnixMicros>) -> Finding {
    let todo = "set the clock, and let NTP keep it";
    if now < NOT_BEFORE {
        return Finding::fails("clock", "it is before this version was made", todo);
    }
    if let Some(newest_at) = newest_at.filter(|at| *at > now.saturating_add(CLOCK_SLACK)) {
        let seconds = (newest_at.0 - now.0) / 1_000_000;
        return Finding::fails(
            "clock",
            format!("it is {seconds} s behind the newest row of the database"),
            todo,
        );
    }
    let is_kept = Path::new(SYNCHRONIZED).exists().then_some(true).or_else(is_synchronized);
    match is_kept {
        Some(true) => Finding::good("clock", "plausible, and kept right by NTP"),
        Some(false) => Finding::warns(
            "clock",
            "plausible; the system says that nothing keeps it right",
            "install and start chrony, or enable systemd-timesyncd",
        ),
        None => {
            Finding::good("clock", "plausible; whether something keeps it right cannot be seen from here")
        }
    }
}

/// Whether the kernel knows of somebody who keeps the clock right: systemd-timesyncd, chrony and ntpd all tell it, and systemd asks it.
fn is_synchronized() -> Option<bool> {
    let mut child = Command::new("timedatectl")
        .args(["show", "--property=NTPSynchronized", "--value"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    for _ in 0..ASKS_MAX {
        if child.try_wait().ok()?.is_some() {
            let said = child.wait_with_output().ok()?.stdout;
            return match said.trim_ascii() {
                b"yes" => Some(true),
                b"no" => Some(false),
                _ => None,
            };
        }
        std::thread::sleep(ASK_EVERY);
    }
    child.kill().and_then(|()| child.wait()).ok()?;
    None
}

/// Another version beside this one is an upgrade under way, or one that was forgotten.
fn versions(inspected: &Inspected) -> Vec<Finding> {
    let own = env!("CARGO_PKG_VERSION");
    let others = inspected.live_versions.iter().filter(|version| *version != own);
    others
        .map(|version| {
            Finding::warns(
                "processes",
                format!("one of version {version} is live, this is {own}"),
                "end the upgrade: stop the other one",
            )
        })
        .collect()
}

async fn open(config: &Config, clock: &Clock) -> Vec<Finding> {
    let store = match Store::open(&config.store.url, Opened::ByCommand).await {
        Ok(store) => store,
        Err(error) => {
            return vec![Finding::fails("database", error.to_string(), "run this as the user that serves")];
        }
    };
    let mut findings = vec![commits(&store, clock).await];
    match check::unpriced(config, &store, clock.wall()).await {
        Ok(unpriced) if unpriced.is_empty() => {
            findings.push(Finding::good("prices", format!("all of {} models have one", config.models.len())));
        }
        Ok(unpriced) => findings.extend(
            unpriced.into_iter().map(|model| Finding::warns("prices", model, "weir price import FILE")),
        ),
        Err(error) => findings.push(Finding::fails("prices", error.to_string(), "look at the database")),
    }
    if config.journal.dir.is_dir() {
        findings.push(audit(config, &store, clock).await);
    }
    store.close().await;
    findings
}

async fn commits(store: &Store, clock: &Clock) -> Finding {
    let mut longest = Duration::ZERO;
    for _ in 0..COMMITS {
        match store.commit_time(clock).await {
            Ok(time) => longest = longest.max(time),
            Err(error) => {
                let todo = "look for a process that holds the write lock, and at the disk";
                return Finding::fails("database", format!("it takes no commit: {error}"), todo);
            }
        }
    }
    let says = format!(
        "schema {}, the slowest of {COMMITS} commits took {:.1} ms",
        Store::schema_version(),
        longest.as_secs_f64() * 1e3
    );
    if longest > COMMIT_SLOW {
        return Finding::warns(
            "database",
            says,
            "put it on a faster disk: grants of credit wait for commits",
        );
    }
    Finding::good("database", says)
}

async fn audit(config: &Config, store: &Store, clock: &Clock) -> Finding {
    match ledger::audit(store, &config.journal.dir, clock).await {
        Ok(report) if !report.ok => Finding::fails(
            "books",
            format!("{} findings", report.off.len()),
            "`weir ledger audit` names them",
        ),
        Ok(report) if report.unrecovered_sessions > 0 => Finding::warns(
            "books",
            format!("they balance; {} dead sessions are not recovered", report.unrecovered_sessions),
            "the next start of a server recovers them",
        ),
        Ok(report) => Finding::good("books", format!("{} accounts, all balance", report.accounts)),
        Err(error) => {
            Finding::fails("books", error.to_string(), "look at the journal's directory and its owner")
        }
    }
}
