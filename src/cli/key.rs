//! `weir key`: API keys of accounts.

use super::failure::Failure;
use super::output::Report;
use super::table::{Table, or_dash};
use super::{Books, values};
use crate::clock::UnixMicros;
use crate::config;
use crate::ids::KeyId;
use crate::money::Micros;
use crate::secret::ApiKey;
use crate::store::{KeyRecord, NewKey};
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
  weir key create --account ada@example.com --models gpt-4o-mini,demo --expires 2030-01-31T00:00:00Z")]
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
    /// The most that it may spend, in dollars; not in this release
    #[arg(long, value_name = "USD", value_parser = values::usd)]
    spend_limit_usd: Option<Micros>,
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
        let Create { account, name, models, expires, spend_limit_usd } = self;
        if spend_limit_usd.is_some() {
            return Err(Failure::new(
                "unsupported",
                "spend limits are not in this release: make the key without one",
            ));
        }
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

impl List {
    async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        let account = books.store.find_account(&self.account).await?;
        let keys = books.store.keys(account).await?;
        let now = books.clock.wall();
        let listed: Vec<Listed<'_>> = keys.iter().map(|key| listed(key, now)).collect();
        let people = if keys.is_empty() {
            format!("{} has no keys; `weir key create` makes one.", self.account)
        } else {
            people(&keys, now)
        };
        Report::new(&listed, people)
    }
}

fn listed(key: &KeyRecord, now: UnixMicros) -> Listed<'_> {
    Listed {
        key_id: key.key_id.to_string(),
        name: key.name.as_deref(),
        prefix: &key.prefix,
        last_four: &key.last_four,
        status: status(key, now),
        created_at: values::rfc3339(key.created_at),
        expires_at: key.expires_at.map(values::rfc3339),
        last_used_at: key.last_used_at.map(values::rfc3339),
    }
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

fn people(keys: &[KeyRecord], now: UnixMicros) -> String {
    let mut table =
        Table::new(&["key id", "name", "key", "status", "created", "expires", "last used", "models"]);
    for key in keys {
        table.row([
            key.key_id.to_string(),
            or_dash(key.name.as_deref()),
            format!("{}...{}", key.prefix, key.last_four),
            status(key, now).to_owned(),
            values::to_the_second(key.created_at),
            or_dash(key.expires_at.map(values::to_the_second)),
            or_dash(key.last_used_at.map(values::to_the_second)),
            key.models.as_ref().map_or_else(|| "all".to_owned(), |models| models.join(",")),
        ]);
    }
    table.to_string()
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
            account_status: AccountStatus::Active,
            tier: None,
        };
        assert_eq!(status(&key, UnixMicros(9)), "active");
        assert_eq!(status(&key, UnixMicros(10)), "expired");
        assert!(people(&[key.clone()], UnixMicros(9)).contains("sk-weir-abcd...wxyz"));
        key.revoked = true;
        assert_eq!(status(&key, UnixMicros(9)), "revoked");
    }
}
