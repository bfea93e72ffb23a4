//! `weir key`: API keys of accounts.

use super::account::known_tier;
use super::failure::Failure;
use super::output::Report;
use super::table::{Table, or_dash};
use super::{Books, values};
use crate::authenticate::Network;
use crate::clock::UnixMicros;
use crate::config;
use crate::ids::KeyId;
use crate::money::Micros;
use crate::secret::ApiKey;
use crate::spend::{SpendLimit, SpendWindow};
use crate::store::{KeyPolicy, KeyRecord, NewKey};
use serde::Serialize;

/// Make, list and revoke API keys
#[derive(Debug, clap::Subcommand)]
pub(super) enum Key {
    Create(Create),
    List(List),
    Revoke(Revoke),
}

/// Make a key and print it: this once, since only its hash is kept
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  weir key create --account ada@example.com --name laptop
  weir key create --account ada@example.com --models gpt-4o-mini,demo --expires 2030-01-31T00:00:00Z
  weir key create --account ada@example.com --spend-limit-usd 5 --spend-window day --addresses 192.0.2.0/24")]
pub(super) struct Create {
    /// Whose it is: id or e-mail address
    #[arg(long, value_name = "ACCOUNT")]
    account: String,
    /// What its holder calls it
    #[arg(long, value_name = "NAME", value_parser = values::line)]
    name: Option<String>,
    /// The models that it may use, with commas between them; without it, all
    #[arg(long, value_name = "MODEL,..", value_delimiter = ',', value_parser = values::line)]
    models: Option<Vec<String>>,
    /// When it ends (RFC 3339); without it, never
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    expires: Option<UnixMicros>,
    /// The most that it may spend, in dollars; without it, what its account has
    #[arg(long, value_name = "USD", value_parser = values::usd)]
    spend_limit_usd: Option<Micros>,
    /// In which time: total, day, week (from Monday) or month, in UTC
    #[arg(long, value_name = "WINDOW", value_parser = values::spend_window, requires = "spend_limit_usd", default_value = "total")]
    spend_window: SpendWindow,
    /// Addresses and networks from which it may be used, with commas between them; without it, any
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',', value_parser = values::network)]
    addresses: Option<Vec<Network>>,
    /// A tier of the configuration whose limits apply to it, besides those of its account
    #[arg(long, value_name = "TIER", value_parser = values::line)]
    tier: Option<String>,
    /// Values of service_tier that it may ask for, with commas between them; without it, those of the configuration
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', value_parser = values::line)]
    service_tiers: Option<Vec<String>>,
}

/// List the keys of an account, newest first
#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Whose they are: id or e-mail address
    #[arg(long, value_name = "ACCOUNT")]
    account: String,
}

/// End a key, for good
///
/// A running server refuses it within a second. Requests under way finish and are billed.
#[derive(Debug, clap::Args)]
pub(super) struct Revoke {
    /// Its id, as `weir key list` shows it; not the key itself
    #[arg(value_name = "KEY_ID")]
    key_id: KeyId,
}

#[derive(Serialize)]
struct Created<'a> {
    key_id: String,
    key: &'a str,
}

#[derive(Serialize)]
struct Listed<'a> {
    key_id: String,
    name: Option<&'a str>,
    prefix: &'a str,
    last_four: &'a str,
    status: &'static str,
    created_at: String,
    expires_at: Option<String>,
    last_used_at: Option<String>,
    models: Option<&'a [String]>,
    spend_limit_micro_usd: Option<i64>,
    spend_window: Option<&'static str>,
    spent_micro_usd: Option<i64>,
    addresses: Option<&'a [String]>,
    tier: Option<&'a str>,
    service_tiers: Option<&'a [String]>,
}

impl Key {
    pub(super) async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        match self {
            Key::Create(create) => create.run(books).await,
            Key::List(list) => list.run(books).await,
            Key::Revoke(revoke) => revoke.run(books).await,
        }
    }
}

impl Create {
    async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        let policy = self.policy(books)?;
        let Create { account, name, models, expires, .. } = self;
        let account_id = books.store.find_account(&account).await?;
        let pepper = config::pepper(books.config)?;
        let key = ApiKey::generate().map_err(|error| {
            Failure::new("system", format!("the operating system gives no random numbers: {error}"))
        })?;
        let new = NewKey {
            key_id: KeyId::new(),
            account_id,
            hash: pepper.hash(&key),
            name,
            prefix: key.prefix().to_owned(),
            last_four: key.last_four().to_owned(),
            models,
            expires_at: expires,
            policy,
        };
        books.store.create_key(&new, books.clock.wall()).await?;
        let people = format!(
            "Key {} of {account} is made. It is shown this once: only its hash is kept.\n\n  {}",
            new.key_id,
            key.expose()
        );
        Report::new(&Created { key_id: new.key_id.to_string(), key: key.expose() }, people)
    }
}

impl Create {
    fn policy(&self, books: &Books<'_>) -> Result<KeyPolicy, Failure> {
        if let Some(tier) = &self.tier {
            known_tier(books, tier)?;
        }
        let texts = |networks: &Vec<Network>| networks.iter().map(Network::to_string).collect();
        Ok(KeyPolicy {
            spend_limit: self.spend_limit_usd.map(|amount| SpendLimit { amount, window: self.spend_window }),
            addresses: self.addresses.as_ref().map(texts),
            tier: self.tier.clone(),
            service_tiers: self.service_tiers.clone(),
        })
    }
}

impl List {
    async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        let account = books.store.find_account(&self.account).await?;
        let keys = books.store.keys(account).await?;
        let now = books.clock.wall();
        let mut spent = Vec::with_capacity(keys.len());
        for key in &keys {
            spent.push(self::spent(books, key, now).await?);
        }
        let listed: Vec<Listed<'_>> =
            keys.iter().zip(&spent).map(|(key, spent)| listed(key, *spent, now)).collect();
        let people = if keys.is_empty() {
            format!("{} has no keys; `{} key create` makes one.", self.account, books.again)
        } else {
            people(&keys, &spent, now)
        };
        Report::new(&listed, people)
    }
}

fn listed(key: &KeyRecord, spent: Option<Micros>, now: UnixMicros) -> Listed<'_> {
    let policy = &key.policy;
    Listed {
        key_id: key.key_id.to_string(),
        name: key.name.as_deref(),
        prefix: &key.prefix,
        last_four: &key.last_four,
        status: status(key, now),
        created_at: values::rfc3339(key.created_at),
        expires_at: key.expires_at.map(values::rfc3339),
        last_used_at: key.last_used_at.map(values::rfc3339),
        models: key.models.as_deref(),
        spend_limit_micro_usd: policy.spend_limit.map(|limit| limit.amount.0),
        spend_window: policy.spend_limit.map(|limit| limit.window.as_str()),
        spent_micro_usd: spent.map(|spent| spent.0),
        addresses: policy.addresses.as_deref(),
        tier: policy.tier.as_deref(),
        service_tiers: policy.service_tiers.as_deref(),
    }
}

/// What a key with a limit has spent in its window.
async fn spent(books: &Books<'_>, key: &KeyRecord, now: UnixMicros) -> Result<Option<Micros>, Failure> {
    let Some(limit) = key.policy.spend_limit else { return Ok(None) };
    let spent = books.store.key_spent(key.key_id, limit.window.start(now)).await?;
    Ok(Some(spent.split().0))
}

fn status(key: &KeyRecord, now: UnixMicros) -> &'static str {
    if key.revoked {
        "revoked"
    } else if key.expires_at.is_some_and(|end| end <= now) {
        "expired"
    } else {
        "active"
    }
}

fn people(keys: &[KeyRecord], spent: &[Option<Micros>], now: UnixMicros) -> String {
    let mut table = Table::new(&[
        "key id",
        "name",
        "key",
        "status",
        "created",
        "expires",
        "last used",
        "models",
        "spent",
        "may do",
    ]);
    for (key, spent) in keys.iter().zip(spent) {
        table.row([
            key.key_id.to_string(),
            or_dash(key.name.as_deref()),
            format!("{}...{}", key.prefix, key.last_four),
            status(key, now).to_owned(),
            values::to_the_second(key.created_at),
            or_dash(key.expires_at.map(values::to_the_second)),
            or_dash(key.last_used_at.map(values::to_the_second)),
            key.models.as_ref().map_or_else(|| "all".to_owned(), |models| models.join(",")),
            or_dash(spent.map(|spent| spent.to_string())),
            limits(&key.policy),
        ]);
    }
    table.to_string()
}

/// What the policy sets, in words.
fn limits(policy: &KeyPolicy) -> String {
    let KeyPolicy { spend_limit, addresses, tier, service_tiers } = policy;
    let spend = spend_limit.map(|limit| match limit.window {
        SpendWindow::Total => format!("spend {}", limit.amount),
        SpendWindow::Day | SpendWindow::Week | SpendWindow::Month => {
            format!("spend {} a {}", limit.amount, limit.window.as_str())
        }
    });
    let parts = [
        spend,
        tier.as_ref().map(|tier| format!("tier {tier}")),
        addresses.as_ref().map(|addresses| format!("from {}", addresses.join(","))),
        service_tiers.as_ref().map(|tiers| format!("service tiers {}", tiers.join(","))),
    ];
    let told: Vec<String> = parts.into_iter().flatten().collect();
    if told.is_empty() { "-".to_owned() } else { told.join("; ") }
}

impl Revoke {
    async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        books.store.revoke_key(self.key_id, books.clock.wall()).await?;
        Report::done(format!("Key {} is revoked.", self.key_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::AccountId;
    use crate::store::AccountStatus;

    #[test]
    fn a_key_is_active_until_it_ends_or_is_ended() {
        let mut key = KeyRecord {
            key_id: KeyId::new(),
            account_id: AccountId::new(),
            name: None,
            prefix: "sk-weir-abcd".into(),
            last_four: "wxyz".into(),
            revoked: false,
            created_at: UnixMicros(0),
            expires_at: Some(UnixMicros(10)),
            last_used_at: None,
            models: None,
            policy: KeyPolicy::default(),
            account_status: AccountStatus::Active,
            account_tier: None,
        };
        assert_eq!(status(&key, UnixMicros(9)), "active");
        assert_eq!(status(&key, UnixMicros(10)), "expired");
        assert!(people(&[key.clone()], &[None], UnixMicros(9)).contains("sk-weir-abcd...wxyz"));
        key.revoked = true;
        assert_eq!(status(&key, UnixMicros(9)), "revoked");
    }
}
