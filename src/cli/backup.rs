//! `weir backup` and `weir restore`: a copy of the books, and the way back.

use super::Books;
use super::failure::Failure;
use super::output::Report;
use super::table::{Table, facts, or_dash};
use super::values::{rfc3339, to_the_second};
use crate::clock::{Clock, UnixMicros};
use crate::config::Config;
use crate::ledger::{self, Restored};
use crate::store::Difference;
use serde::Serialize;
use std::path::PathBuf;

/// Back the database up while servers run
///
/// Makes a new directory below DIR, with a copy of the database at one instant and a manifest with its checksum. Nothing is stopped. A
/// directory whose name begins with a dot is no backup. What is billed after it is in the journals, which are kept for a while (`[journal]`
/// keep_ms and keep_bytes): `weir restore` needs them.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Example, for a timer that runs daily:
  weir --config weir.toml backup /var/backups/weir")]
pub(super) struct Backup {
    /// Where backups are; made where it is missing, for its owner alone
    dir: PathBuf,
}

/// Put a backup of the database in place
///
/// Nothing may run on the database. The replaced one stays beside it. The next `weir serve` bills what the journals have beyond the
/// backup, each request once. What was entered after the backup, such as credit, is not in it: what is known of that is printed, to be
/// entered again.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Example:
  weir --config weir.toml restore /var/backups/weir/weir-20300131T120000.000000Z
  weir --config weir.toml serve
  weir --config weir.toml ledger audit")]
pub(super) struct Restore {
    /// The directory of the backup
    backup: PathBuf,
    /// Also where what was billed after the backup is not kept any more, and is lost
    #[arg(long)]
    accept_loss: bool,
}

#[derive(Serialize)]
struct RestoredAnswer<'a> {
    backup_at: String,
    replaced: Option<PathBuf>,
    sessions: u64,
    segments: u64,
    losses: &'a [String],
    to_be_entered_again: Option<Vec<DifferenceAnswer<'a>>>,
}

#[derive(Serialize)]
struct DifferenceAnswer<'a> {
    what: &'a str,
    at: Option<String>,
    account: &'a str,
    detail: &'a str,
    amount_micro_usd: Option<i64>,
}

impl Backup {
    pub(super) async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        let made = ledger::backup(&books.store, &self.dir, &books.clock).await?;
        let manifest = &made.manifest;
        let people = facts(&[
            ("backup", made.path.display().to_string()),
            ("of", to_the_second(UnixMicros(manifest.started_at_us))),
            ("size", format!("{} bytes", manifest.bytes)),
            ("accounts", manifest.accounts.to_string()),
            ("requests", manifest.requests.to_string()),
        ]);
        Report::new(&made, people)
    }
}

impl Restore {
    pub(super) fn run(self, config: &Config) -> Result<Report, Failure> {
        let wanted = ledger::Restore {
            backup: &self.backup,
            url: &config.store.url,
            journal_dir: &config.journal.dir,
            accept_loss: self.accept_loss,
        };
        let restored = super::block_on(ledger::restore(wanted, &Clock::system()))??;
        let Restored { manifest, replaced, sessions, segments, losses, differences, unknown } = &restored;
        let known = unknown.is_none().then(|| differences.iter().map(answer).collect());
        let value = RestoredAnswer {
            backup_at: rfc3339(UnixMicros(manifest.started_at_us)),
            replaced: replaced.clone(),
            sessions: *sessions,
            segments: *segments,
            losses,
            to_be_entered_again: known,
        };
        let report = Report::new(&value, people(&restored))?;
        Ok(report.with_warnings(losses.clone()))
    }
}

fn answer(difference: &Difference) -> DifferenceAnswer<'_> {
    DifferenceAnswer {
        what: difference.what,
        at: difference.at.map(rfc3339),
        account: &difference.account,
        detail: &difference.detail,
        amount_micro_usd: difference.amount.map(|amount| amount.0),
    }
}

fn people(restored: &Restored) -> String {
    let Restored { manifest, replaced, sessions, segments, differences, unknown, .. } = restored;
    let done = facts(&[
        ("database of", to_the_second(UnixMicros(manifest.started_at_us))),
        ("the one before", or_dash(replaced.as_ref().map(|path| path.display()))),
        ("journals", format!("of {sessions} sessions for the next start, {segments} segments brought back")),
    ]);
    let entered = match unknown {
        Some(why) => format!(
            "What was entered after that cannot be told ({why}): credit, refunds, accounts, keys and their revocations, prices. Look it \
             up where it came from, and enter it again."
        ),
        None if differences.is_empty() => "Nothing was entered after that.".to_owned(),
        None => format!("Entered after that, and to be entered again:\n\n{}", table(differences)),
    };
    format!("{done}\n{entered}\n\nNow start the server, then prove the books: weir ledger audit")
}

fn table(differences: &[Difference]) -> Table {
    let mut table = Table::new(&["what", "when", "account", ">usd", "detail"]);
    for difference in differences {
        table.row([
            difference.what.to_owned(),
            or_dash(difference.at.map(to_the_second)),
            difference.account.clone(),
            or_dash(difference.amount),
            difference.detail.clone(),
        ]);
    }
    table
}
