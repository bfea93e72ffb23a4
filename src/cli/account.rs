//! `weir account`: who pays.

use super::again::Again;
use super::failure::Failure;
use super::output::Report;
use super::table::{Table, facts, or_dash};
use super::{Books, values};
use crate::money::Micros;
use crate::store::{self, AccountPage, ListedAccount, Lot};
use serde::Serialize;

/// The most accounts that one answer has.
const LIMIT_MAX: i64 = 10_000;

/// Make, list, show, suspend and resume accounts
#[derive(Debug, clap::Subcommand)]
pub(super) enum Account {
    Create(Create),
    List(List),
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

/// List accounts, oldest first, with what each can still spend
///
/// An active key is neither revoked nor expired. What does not fit on a page is on the next, which begins --after the last account of this
/// one; with --json, too, where a page with fewer accounts than --limit is the last.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  weir account list
  weir account list --limit 1000 --after ada@example.com --json")]
pub(super) struct List {
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
    limit: u32,
    /// Only accounts that were made after this one: id or e-mail address
    #[arg(long, value_name = "ACCOUNT")]
    after: Option<String>,
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
struct Listed<'a> {
    account_id: String,
    email: &'a str,
    status: &'static str,
    tier: Option<&'a str>,
    balance_micro_usd: i64,
    active_keys: u64,
    created_at: String,
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
            Account::List(list) => list.run(books).await,
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
        let weir = &books.again;
        let people = format!(
            "Account {account} of {email} is made. Next:\n\
             \x20 {weir} credit add --account {email} --usd 10.00 --reason \"...\"\n\
             \x20 {weir} key create --account {email}"
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

impl List {
    async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        let after = match &self.after {
            Some(account) => Some(books.store.find_account(account).await?),
            None => None,
        };
        let page = books.store.accounts(after, self.limit, books.clock.wall()).await?;
        let listed: Vec<Listed<'_>> = page.accounts.iter().map(listed).collect();
        Report::new(&listed, self.people(&page, &books.again))
    }

    fn people(&self, page: &AccountPage, weir: &Again<'_>) -> String {
        let Some(last) = page.accounts.last() else {
            return match &self.after {
                Some(account) => format!("No account was made after {account}."),
                None => format!("There are no accounts; `{weir} account create` makes one."),
            };
        };
        let mut table =
            Table::new(&["account", "e-mail", "status", "tier", ">balance USD", ">active keys", "created"]);
        for ListedAccount { account, created_at, active_keys } in &page.accounts {
            table.row([
                account.account_id.to_string(),
                account.email.clone(),
                account.status.as_str().to_owned(),
                tier(account),
                account.balance.to_string(),
                active_keys.to_string(),
                values::to_the_second(*created_at),
            ]);
        }
        let mut text = table.to_string();
        if page.has_more {
            let (limit, last) = (self.limit, last.account.account_id);
            text.push_str(&format!("\nThere are more: {weir} account list --limit {limit} --after {last}\n"));
        }
        text
    }
}

fn listed(listed: &ListedAccount) -> Listed<'_> {
    let ListedAccount { account, created_at, active_keys } = listed;
    Listed {
        account_id: account.account_id.to_string(),
        email: &account.email,
        status: account.status.as_str(),
        tier: account.tier.as_deref(),
        balance_micro_usd: account.balance.0,
        active_keys: *active_keys,
        created_at: values::rfc3339(*created_at),
    }
}

/// What people read as its tier.
fn tier(account: &store::Account) -> String {
    account.tier.clone().unwrap_or_else(|| "default".to_owned())
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
        ("tier", tier(account)),
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
        let weir = &books.again;
        Report::done(format!(
            "Account {account} is suspended; `{weir} account resume {account}` lets it ask again."
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
