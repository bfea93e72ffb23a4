//! `weir credit`: money that comes in and goes back.

use super::failure::Failure;
use super::output::Report;
use super::{Books, values};
use crate::ids::LotId;
use crate::ledger::{self, Refunded};
use crate::money::Micros;
use crate::store::{LotKind, NewCredit};
use serde::Serialize;

/// Add credit to accounts and give it back
#[derive(Debug, clap::Subcommand)]
pub(super) enum Credit {
    Add(Add),
    Refund(Refund),
}

/// Add credit that was paid for
///
/// It becomes a lot of its own; lots are spent first in, first out. What the account owes is paid from it first. A running server
/// lets the account spend it within a second.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Example, safe to repeat:
  weir credit add --account ada@example.com --usd 10.00 --reason \"invoice 1\" --idempotency-key invoice-1")]
pub(super) struct Add {
    /// Whose it becomes: id or e-mail address
    #[arg(long, value_name = "ACCOUNT")]
    account: String,
    /// How much, in dollars with up to six decimals
    #[arg(long, value_name = "USD", value_parser = values::usd)]
    usd: Micros,
    /// What it is for, for the people who keep the books
    #[arg(long, value_name = "REASON", value_parser = values::line)]
    reason: String,
    /// A repeat under the same key adds nothing and gives the first one's answer
    #[arg(long, value_name = "KEY", value_parser = values::line)]
    idempotency_key: Option<String>,
}

/// Give back what is unused of a lot that was paid for
///
/// `weir account show` lists the lots of an account. Its credit is frozen meanwhile: new requests are refused, and those under way are
/// waited for, ten seconds at most. Credit that was given away is not refundable. How the money reaches its owner is not asked.
#[derive(Debug, clap::Args)]
pub(super) struct Refund {
    /// Whose it is: id or e-mail address
    #[arg(long, value_name = "ACCOUNT")]
    account: String,
    /// The lot
    #[arg(long, value_name = "LOT")]
    lot: LotId,
    /// Do not wait for requests under way; not in this release
    #[arg(long)]
    force: bool,
    /// A repeat under the same key gives nothing back and gives the first one's answer
    #[arg(long, value_name = "KEY", value_parser = values::line)]
    idempotency_key: Option<String>,
}

#[derive(Serialize)]
struct Added {
    balance_micro_usd: i64,
    lot_id: String,
}

#[derive(Serialize)]
struct Returned {
    refunded_micro_usd: i64,
    balance_micro_usd: i64,
}

impl Credit {
    pub(super) async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        match self {
            Credit::Add(add) => add.run(books).await,
            Credit::Refund(refund) => refund.run(books).await,
        }
    }
}

impl Add {
    async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        let Add { account, usd, reason, idempotency_key } = self;
        let account_id = books.store.find_account(&account).await?;
        let new = NewCredit { account_id, amount: usd, kind: LotKind::Paid, reason, idempotency_key };
        let credited = books.store.add_credit(&new, books.clock.wall()).await?;
        let people = format!(
            "{usd} USD added to {account} as lot {}; its balance is {} USD.",
            credited.lot_id, credited.balance
        );
        let added = Added { balance_micro_usd: credited.balance.0, lot_id: credited.lot_id.to_string() };
        Report::new(&added, people)
    }
}

impl Refund {
    async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        let Refund { account, lot, force, idempotency_key } = self;
        if force {
            return Err(Failure::new(
                "unsupported",
                "--force is not in this release: a refund waits for requests under way",
            ));
        }
        let account_id = books.store.find_account(&account).await?;
        let Refunded { refunded, balance } =
            ledger::refund(&books.store, account_id, lot, idempotency_key, &books.clock).await?;
        let people = match refunded {
            Micros(0) => format!(
                "Nothing of lot {lot} is left to give back; the balance of {account} is {balance} USD."
            ),
            _ => format!(
                "{refunded} USD of lot {lot} are given back; the balance of {account} is {balance} USD."
            ),
        };
        let answer = Returned { refunded_micro_usd: refunded.0, balance_micro_usd: balance.0 };
        Report::new(&answer, people)
    }
}
