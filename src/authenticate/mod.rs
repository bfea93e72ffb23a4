//! Whose request it is: the `Authorization` header to a [`Caller`].
//!
//! Promises: junk costs no look-up; a known key costs none either; a hit counts only if nothing about that key or its account
//! has changed since it was read; one loader per key and a bound on all of them. Refuses to know: balances, models, bodies.

mod cache;
mod network;

pub use cache::{Authenticator, CacheStats, Settings};
pub use network::{Network, NetworkError};

use crate::clock::UnixMicros;
use crate::ids::{AccountId, KeyId, TierName};
use crate::refusal::{Kind, Refused};
use crate::secret::ApiKey;
use crate::spend::SpendLimit;
use crate::store::{AccountStatus, KeyRecord};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Who asks: proof that the key was good when the request came.
#[derive(Clone, Debug)]
pub struct Caller {
    policy: Arc<Policy>,
}

/// What is known of a key and does not change while an entry of the cache lives.
#[derive(Debug)]
pub struct Policy {
    /// The key.
    pub key: KeyId,
    /// Its account.
    pub account: AccountId,
    /// The account's tier; `None` is the default one.
    pub account_tier: Option<TierName>,
    /// The tier whose limits apply to the key, besides those of the account.
    pub key_tier: Option<TierName>,
    /// What the key may spend.
    pub spend_limit: Option<SpendLimit>,
    /// Service tiers that the key may ask for; `None` is what the configuration allows.
    pub service_tiers: Option<Vec<String>>,
    /// The models that the key may use; `None` is all.
    pub models: Option<Vec<String>>,
    networks: Option<Vec<Network>>,
    expires_at: Option<UnixMicros>,
    revoked: bool,
    account_status: AccountStatus,
    last_used_at: AtomicI64,
}

impl Caller {
    /// The key's policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Refuses a model that the key may not use.
    pub fn may_use(&self, model: &str) -> Result<(), Refused> {
        match &self.policy.models {
            Some(models) if !models.iter().any(|allowed| allowed == model) => Err(Refused::new(
                Kind::ModelNotAllowed,
                "This API key may not use the requested model. Use another key, or one of the models of GET /v1/models.",
            )
            .param("model")),
            Some(_) | None => Ok(()),
        }
    }
}

impl Caller {
    /// Refuses an address from which the key may not be used. Where a proxy stands in front, that is the proxy's.
    pub fn may_come_from(&self, address: Option<IpAddr>) -> Result<(), Refused> {
        let Some(networks) = &self.policy.networks else { return Ok(()) };
        if address.is_some_and(|address| networks.iter().any(|network| network.contains(address))) {
            return Ok(());
        }
        Err(Refused::new(
            Kind::AddressNotAllowed,
            "This API key may not be used from this address. Its addresses were set when it was made.",
        ))
    }

    /// Refuses a service tier that the key may not ask for. `default_tiers` are those of keys that have no list of their own. What the
    /// provider would do without being asked is always allowed.
    pub fn may_ask_for(&self, service_tier: Option<&str>, default_tiers: &[String]) -> Result<(), Refused> {
        let Some(asked) = service_tier.filter(|tier| !matches!(*tier, "auto" | "default")) else {
            return Ok(());
        };
        let allowed = self.policy.service_tiers.as_deref().unwrap_or(default_tiers);
        if allowed.iter().any(|tier| tier == asked) {
            return Ok(());
        }
        Err(Refused::new(
            Kind::UnsupportedParameter,
            "This API key may not ask for this service tier. Leave \"service_tier\" out, or use another key.",
        )
        .param("service_tier"))
    }
}

impl Policy {
    fn new(record: KeyRecord) -> Self {
        let KeyRecord { key_id, account_id, revoked, expires_at, models, policy, account_status, .. } =
            record;
        // What cannot be read lets nobody in.
        let networks = |texts: Vec<String>| texts.iter().filter_map(|text| text.parse().ok()).collect();
        Policy {
            key: key_id,
            account: account_id,
            account_tier: record.account_tier.as_deref().map(TierName::from),
            key_tier: policy.tier.as_deref().map(TierName::from),
            spend_limit: policy.spend_limit,
            service_tiers: policy.service_tiers,
            networks: policy.addresses.map(networks),
            models,
            expires_at,
            revoked,
            account_status,
            last_used_at: AtomicI64::new(0),
        }
    }

    /// Refuses a key that is revoked or past its end, and an account that is closed to new requests.
    fn check(&self, now: UnixMicros) -> Result<(), Refused> {
        if self.revoked {
            return Err(invalid_key("This API key has been revoked. Create a new one."));
        }
        if self.expires_at.is_some_and(|end| end <= now) {
            return Err(invalid_key("This API key has expired. Create a new one."));
        }
        match self.account_status {
            AccountStatus::Active => {}
            AccountStatus::Suspended => {
                return Err(Refused::new(
                    Kind::AccountSuspended,
                    "This account is suspended. Contact the operator of this service.",
                ));
            }
        }
        self.last_used_at.store(now.0, Ordering::Relaxed);
        Ok(())
    }
}

/// The key in an `Authorization: Bearer` header, if it is one of ours by form and checksum.
fn bearer(authorization: Option<&[u8]>) -> Result<ApiKey, Refused> {
    let Some(header) = authorization else {
        return Err(invalid_key(
            "No API key was given. Send it in the header \"Authorization: Bearer sk-weir-...\".",
        ));
    };
    let text = std::str::from_utf8(header).unwrap_or("");
    let (scheme, token) = text.split_once(' ').unwrap_or(("", ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(invalid_key("The Authorization header must be \"Bearer\", a space, and an API key."));
    }
    ApiKey::parse(token.trim()).ok_or_else(|| {
        invalid_key(
            "This is not an API key of this service: keys begin with \"sk-weir-\" and end in a checksum.",
        )
    })
}

fn unknown_key() -> Refused {
    invalid_key("This API key is not known here. It may have been mistyped or belong to another service.")
}

fn invalid_key(message: &str) -> Refused {
    Refused::new(Kind::InvalidApiKey, message)
}
