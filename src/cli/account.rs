//! `weir account`: who pays.

use super::failure::Failure;
use super::output::Report;
use super::table::{Table, facts, or_dash};
use super::{Books, values};
use crate::money::Micros;
use crate::store::{self, Lot};
use serde::Serialize;

/// Make, show, suspend and resume accounts
#[derive(Debug, clap::Subcommand)]
pub(super) enum Account {
    Create(Create),
    Show(Show),
    Suspend(Suspend),
    Resume(Resume),
}

/// Make an account
///
/// It has no credit and no key yet: see `weir credit add` and `weir key create`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Example:
  weir account create --email ada@example.com")]
pub(super) struct Create {
    /// The address of its holder, by which commands find it, too
    #[arg(long, value_name = "EMAIL", value_parser = values::email)]
    email: String,
    /// Its tier of limits, of those in the configuration; without it, `default`
    #[arg(long, value_name = "TIER", value_parser = values::line)]
    tier: Option<String>,
}

/// Show an account with its money and its lots of credit
///
/// The balance is what it can still spend; what open requests hold is part of it.
#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// Its id or e-mail address
    #[arg(value_name = "ID|EMAIL")]
    account: String,
}

/// Refuse an account's requests from now on
///
/// Requests under way finish and are billed. Its keys stay, and work again once it is resumed.
#[derive(Debug, clap::Args)]
pub(super) struct Suspend {
    /// Its id or e-mail address
    #[arg(value_name = "ID|EMAIL")]
    account: String,
    /// Why, for the people who keep the books
    #[arg(long, value_name = "REASON", value_parser = values::line)]
    reason: String,
}

/// Let a suspended account ask again
#[derive(Debug, clap::Args)]
pub(super) struct Resume {
    /// Its id or e-mail address
    #[arg(value_name = "ID|EMAIL")]
    account: String,
}

#[derive(Serialize)]
struct Created {
    account_id: String,
}

#[derive(Serialize)]
struct Shown<'a> {
    account_id: String,
    email: &'a str,
    status: &'static str,
    tier: Option<&'a str>,
    balance_micro_usd: i64,
    held_micro_usd: i64,
    consumed_micro_usd: i64,
    owed_micro_usd: i64,
}

impl Account {
    pub(super) async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        match self {
            Account::Create(create) => create.run(books).await,
            Account::Show(show) => show.run(books).await,
            Account::Suspend(suspend) => suspend.run(books).await,
            Account::Resume(resume) => resume.run(books).await,
        }
    }
}

impl Create {
    async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        let Create { email, tier } = self;
        if let Some(tier) = &tier {
            known_tier(books, tier)?;
        }
        let account = books.store.create_account(&email, tier.as_deref(), books.clock.wall()).await?;
        let people = format!(
            "Account {account} of {email} is made. Next:\n\
             \x20 weir credit add --account {email} --usd 10.00 --reason \"...\"\n\
             \x20 weir key create --account {email}"
        );
        Report::new(&Created { account_id: account.to_string() }, people)
    }
}

/// An account of a tier that is not configured would get the limits of another one.
pub(super) fn known_tier(books: &Books<'_>, tier: &str) -> Result<(), Failure> {
    let names: Vec<&str> = books.config.tiers.iter().map(|known| known.name.as_str()).collect();
    if names.contains(&tier) {
        return Ok(());
    }
    let message = format!("there is no tier {tier} in the configuration; there is: {}", names.join(", "));
    Err(Failure::new("unknown_tier", message))
}

impl Show {
    async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        let id = books.store.find_account(&self.account).await?;
        let account = books.store.account(id).await?;
        let lots = books.store.lots(id).await?;
        let shown = Shown {
            account_id: account.account_id.to_string(),
            email: &account.email,
            status: account.status.as_str(),
            tier: account.tier.as_deref(),
            balance_micro_usd: account.balance.0,
            held_micro_usd: account.held.0,
            consumed_micro_usd: account.consumed.0,
            owed_micro_usd: account.owed.0,
        };
        Report::new(&shown, people(&account, &lots))
    }
}

fn people(account: &store::Account, lots: &[Lot]) -> String {
    let usd = |amount: Micros| format!("{amount} USD");
    let mut text = facts(&[
        ("account", account.account_id.to_string()),
        ("e-mail", account.email.clone()),
        ("status", account.status.as_str().to_owned()),
        ("tier", account.tier.clone().unwrap_or_else(|| "default".to_owned())),
        ("balance", usd(account.balance)),
        ("held", usd(account.held)),
        ("consumed", usd(account.consumed)),
        ("owed", usd(account.owed)),
    ]);
    if lots.is_empty() {
        text.push_str("\nIt was never given credit.\n");
        return text;
    }
    let mut table = Table::new(&["lot", "added", "kind", ">USD", ">unused", ">refunded", "reason"]);
    for lot in lots {
        table.row([
            lot.lot_id.to_string(),
            values::to_the_second(lot.created_at),
            lot.kind.as_str().to_owned(),
            lot.amount.to_string(),
            lot.unused.to_string(),
            lot.refunded.to_string(),
            or_dash(Some(&lot.reason)),
        ]);
    }
    text.push('\n');
    text.push_str(&table.to_string());
    text
}

impl Suspend {
    async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        let Suspend { account, reason } = self;
        let id = books.store.find_account(&account).await?;
        books.store.suspend_account(id, &reason, books.clock.wall()).await?;
        Report::done(format!(
            "Account {account} is suspended; `weir account resume {account}` lets it ask again."
        ))
    }
}

impl Resume {
    async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        let id = books.store.find_account(&self.account).await?;
        books.store.resume_account(id, books.clock.wall()).await?;
        Report::done(format!("Account {} may ask again.", self.account))
    }
}
