//! The books under `kill -9`, a full disk, a database that is away, sessions beside each other, and a machine that stands still: whatever
//! happens to the process, what a client was told to the end is billed once, and exactly.
//!
//! `make soak` runs the same for longer: `WEIR_KILLS` is how often the loop kills, `WEIR_AWAY_SECONDS` how long the database is away,
//! `WEIR_SEED` repeats a run.

mod away;
mod clients;
mod disk;
mod kills;
mod pairs;
mod refunds;
mod restored;
mod sibling;
mod witness;

use crate::support::cli::shown;
use crate::support::{Gateway, number, signal};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

/// How long the database is away.
fn away_time() -> Duration {
    Duration::from_secs(number("WEIR_AWAY_SECONDS", 3))
}

/// `weir ledger audit`, which must find nothing, whatever has just happened.
#[track_caller]
fn audited(gateway: &Gateway) -> Value {
    let output = gateway.cli.run(&["ledger", "audit", "--json"]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let right = output.status.success() && said["ok"] == true && said["drift_pico_usd"] == 0;
    assert!(right, "the audit: {}\n{}", shown(&output), tail(gateway));
    said
}

/// The last lines of the log.
fn tail(gateway: &Gateway) -> String {
    let log = gateway.log();
    let lines: Vec<&str> = log.lines().filter(|line| !line.contains("\"request_id\"")).collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Another process that has the write lock of the database until this is dropped.
#[derive(Debug)]
pub(crate) struct WriteLock {
    process: Child,
    /// Its end is what the process waits for.
    _until: ChildStdin,
}

impl WriteLock {
    pub(crate) fn take(gateway: &Gateway) -> WriteLock {
        let program = "import sqlite3, sys\n\
            db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)\n\
            db.execute('BEGIN IMMEDIATE')\n\
            print('held', flush=True)\n\
            sys.stdin.read()\n\
            db.execute('ROLLBACK')\n";
        let mut process = Command::new("python3")
            .args(["-c", program])
            .arg(gateway.database())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 with sqlite3 holds the lock: `make test` installs it");
        let until = process.stdin.take().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "held");
        WriteLock { process, _until: until }
    }

    /// Lets go of it.
    pub(crate) fn release(mut self) {
        assert!(self.process.try_wait().unwrap().is_none(), "the lock was held all the time");
    }
}

impl Drop for WriteLock {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
