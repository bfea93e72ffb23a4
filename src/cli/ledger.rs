//! `weir ledger`: the proof that the books balance.

use super::Books;
use super::failure::Failure;
use super::output::Report;
use super::table::{Table, dollars, facts};
use crate::ledger::{self, AuditReport};
use crate::money::{Micros, Picos};

/// Audit the books
#[derive(Debug, clap::Subcommand)]
pub(super) enum Ledger {
    Audit(Audit),
}

/// Prove that the books balance, or show where they do not
///
/// It holds one snapshot of the database and the journal against each other, on a live server too: what open requests hold is open, not
/// drift. Exit status 1 where anything is off.
#[derive(Debug, clap::Args)]
pub(super) struct Audit {}

impl Ledger {
    pub(super) async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        match self {
            Ledger::Audit(audit) => audit.run(books).await,
        }
    }
}

impl Audit {
    async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        let Audit {} = self;
        let report = ledger::audit(&books.store, &books.config.journal.dir, &books.clock).await?;
        Ok(Report::new(&report, people(&report))?.good(report.ok))
    }
}

fn people(report: &AuditReport) -> String {
    let AuditReport {
        ok,
        drift_pico_usd,
        accounts,
        requests,
        live_sessions,
        leased_micro_usd,
        unrecovered_sessions,
        off,
    } = report;
    let verdict = if *ok { "The books balance." } else { "THE BOOKS ARE OFF." };
    let facts = facts(&[
        ("drift", format!("{} USD", dollars(Picos(*drift_pico_usd)))),
        ("accounts", accounts.to_string()),
        ("requests", requests.to_string()),
        ("live sessions", live_sessions.to_string()),
        ("leased to them", format!("{} USD", Micros(*leased_micro_usd))),
        ("dead sessions", format!("{unrecovered_sessions} that the next start of a server recovers")),
    ]);
    if off.is_empty() {
        return format!("{verdict}\n\n{facts}");
    }
    let mut table = Table::new(&["what does not hold", "where", ">off by USD"]);
    for finding in off {
        table.row([finding.what.to_owned(), finding.place.clone(), dollars(Picos(finding.pico_usd))]);
    }
    format!("{verdict}\n\n{facts}\n{table}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Finding;

    #[test]
    fn what_is_off_is_named_with_its_place_and_amount() {
        let mut report = AuditReport {
            ok: true,
            drift_pico_usd: 0,
            accounts: 1,
            requests: 2,
            live_sessions: 0,
            leased_micro_usd: 0,
            unrecovered_sessions: 0,
            off: Vec::new(),
        };
        assert!(people(&report).starts_with("The books balance."));
        report.ok = false;
        report.off.push(Finding { what: "in = out", place: "account x".into(), pico_usd: -1_500_000 });
        let text = people(&report);
        assert!(text.starts_with("THE BOOKS ARE OFF."), "{text}");
        assert!(
            text.contains("in = out") && text.contains("account x") && text.contains("-0.000001500000"),
            "{text}"
        );
    }
}
