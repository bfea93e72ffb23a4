//! The audit: every number of the books against the sums that it must agree with.
//!
//! Promises: one snapshot of the database; a live server is no finding: what its requests hold is open, not off. Says what is off, where,
//! and by how much. Refuses to know: how it came about.

use super::LedgerError;
use super::host::JournalHome;
use super::journal::{Directory, Record, scan};
use crate::clock::Clock;
use crate::money::{PICOS_PER_MICRO, Picos};
use crate::store::{AccountBooks, LeaseBooks, SessionBooks, SessionState, Snapshot, Store};
use serde::Serialize;
use std::path::Path;

/// What an audit found.
#[derive(Clone, Debug, Serialize)]
pub struct AuditReport {
    /// Nothing is off.
    pub ok: bool,
    /// The sum of what is off, without signs.
    pub drift_pico_usd: i64,
    /// Accounts looked at.
    pub accounts: u64,
    /// Requests looked at.
    pub requests: u64,
    /// Sessions that have not ended.
    pub live_sessions: u64,
    /// What open requests and leases still hold, in micro-dollars.
    pub leased_micro_usd: i64,
    /// Sessions that have died, with settlements in their journals that the next start brings to the database.
    pub unrecovered_sessions: u64,
    /// What is off.
    pub off: Vec<Finding>,
}

/// One thing that is off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The rule that is broken.
    pub what: &'static str,
    /// Where.
    pub place: String,
    /// By how much; 0 for what is no amount.
    pub pico_usd: i64,
}

/// Audits the books, and the journals of sessions that have died as far as the database does not have them.
pub async fn audit(store: &Store, journal_dir: &Path, clock: &Clock) -> Result<AuditReport, LedgerError> {
    let snapshot = store.snapshot().await?;
    let mut report = examine(&snapshot);
    if journal_dir.is_dir() {
        journals(journal_dir, clock, &snapshot, &mut report)?;
    }
    report.ok = report.off.is_empty();
    Ok(report)
}

/// What one snapshot of the database says.
pub fn examine(snapshot: &Snapshot) -> AuditReport {
    let mut off = Vec::new();
    for account in &snapshot.accounts {
        off.extend(account_findings(account, &snapshot.leases));
    }
    snapshot.leases.iter().for_each(|lease| off.extend(lease_findings(lease)));
    snapshot.sessions.iter().for_each(|session| off.extend(session_findings(session, &snapshot.leases)));
    if snapshot.unbalanced_entries > 0 {
        off.push(finding(
            "postings of an entry sum to zero",
            format!("{} entries", snapshot.unbalanced_entries),
            0,
        ));
    }
    let drift = off.iter().fold(0_i64, |sum, finding| sum.saturating_add(finding.pico_usd.saturating_abs()));
    AuditReport {
        ok: off.is_empty(),
        drift_pico_usd: drift,
        accounts: snapshot.accounts.len() as u64,
        requests: snapshot.sessions.iter().map(|session| session.rows).sum(),
        live_sessions: snapshot.sessions.iter().filter(|session| session.state == SessionState::Live).count()
            as u64,
        leased_micro_usd: snapshot
            .accounts
            .iter()
            .map(|account| account.leased.0)
            .fold(0, i64::saturating_add),
        unrecovered_sessions: 0,
        off,
    }
}

fn account_findings(books: &AccountBooks, leases: &[LeaseBooks]) -> Vec<Finding> {
    let micro = i128::from(PICOS_PER_MICRO);
    let place = format!("account {}", books.account);
    let own = || leases.iter().filter(|lease| lease.account == books.account && !lease.is_closed);
    let open_leased: i64 = own().map(|lease| lease.granted.0 - lease.returned.0).sum();
    let open_consumed: i128 = own().map(|lease| i128::from(lease.consumed.0)).sum();
    let put_in = i128::from(books.credited.0 + books.written_off.0 - books.refunded.0);
    let is_in = i128::from(books.available.0 + books.leased.0 + books.consumed.0 - books.owed.0);
    let charged =
        i128::from(books.consumed.0) * micro + i128::from(books.carry.0) + open_consumed + books.over_due;
    let checks = [
        (
            "credited + written off - refunded = available + leased + consumed - owed",
            (put_in - is_in) * micro,
        ),
        ("leased = granted - returned of the open leases", i128::from(books.leased.0 - open_leased) * micro),
        (
            "the requests' costs = consumed + carried + consumed of open leases + not collected",
            books.cost - charged,
        ),
        (
            "available = the postings to the customer's book",
            i128::from(books.available.0 - books.posted_available.0) * micro,
        ),
        ("available is not below zero", i128::from(books.available.0.min(0)) * micro),
    ];
    broken(&checks, &place)
}

fn lease_findings(books: &LeaseBooks) -> Vec<Finding> {
    let micro = i128::from(PICOS_PER_MICRO);
    let place = format!("lease of account {} in session {}", books.account, books.session);
    let consumed = i128::from(books.consumed.0);
    let beyond = (consumed - i128::from(books.granted.0 - books.returned.0) * micro).max(0);
    let checks = [
        ("consumed = the costs that it covered", consumed - books.covered),
        // A closed lease is charged in whole micro-dollars: the rest is carried on the account.
        ("consumed <= granted - returned", if books.is_closed { 0 } else { beyond }),
        (
            "a closed lease has nothing in escrow",
            if books.is_closed { i128::from(books.posted_escrow.0) * micro } else { 0 },
        ),
    ];
    broken(&checks, &place)
}

fn session_findings(books: &SessionBooks, leases: &[LeaseBooks]) -> Vec<Finding> {
    let place = format!("session {}", books.session);
    let open = leases.iter().any(|lease| lease.session == books.session && !lease.is_closed);
    let mut off =
        broken(&[("the batches' control totals = the rows' costs", books.batch_cost - books.cost)], &place);
    let facts = [
        ("as many rows as the batches count", books.batch_rows == books.rows),
        ("no row beyond the watermark", books.rows_beyond == 0),
        ("each batch begins where the one before ended", books.gaps == 0),
        ("an ended session has no open lease", books.state == SessionState::Live || !open),
    ];
    off.extend(facts.iter().filter(|(_, holds)| !holds).map(|(what, _)| finding(what, place.clone(), 0)));
    off
}

/// Sessions that have died and are not recovered: their journals must be readable, and what they hold is told.
fn journals(
    dir: &Path,
    clock: &Clock,
    snapshot: &Snapshot,
    report: &mut AuditReport,
) -> Result<(), LedgerError> {
    for orphan in JournalHome::open(dir, clock.clone())?.orphans()? {
        let known = snapshot.sessions.iter().find(|books| books.session == orphan.session());
        let applied_seq = match known {
            Some(books) if books.state == SessionState::Closed => continue,
            Some(books) => books.applied_seq,
            // It died before the database knew of it, or the database is one that was put back.
            None => 0,
        };
        match scan(&Directory::new(orphan.path())) {
            Ok(scanned) => {
                let is_waiting = |(seq, record): (u64, Record)| {
                    seq > applied_seq && matches!(record, Record::Settle(_) | Record::Sent(_))
                };
                report.unrecovered_sessions += u64::from(scanned.records().any(is_waiting));
            }
            Err(error) => report.off.push(finding(
                "a journal can be read",
                format!("{}: {error}", orphan.path().display()),
                0,
            )),
        }
    }
    Ok(())
}

fn broken(checks: &[(&'static str, i128)], place: &str) -> Vec<Finding> {
    let off = checks.iter().filter(|(_, difference)| *difference != 0);
    off.map(|(what, difference)| {
        let pico = i64::try_from(*difference).unwrap_or(if *difference > 0 { i64::MAX } else { i64::MIN });
        finding(what, place.to_owned(), pico)
    })
    .collect()
}

fn finding(what: &'static str, place: String, pico_usd: i64) -> Finding {
    Finding { what, place, pico_usd: Picos(pico_usd).0 }
}
