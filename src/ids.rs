//! Identities as types, so that one cannot be passed for another.
//!
//! Promises: each prints and parses as a UUID; [`RequestId`]s and [`SessionId`]s sort by the time at which they were made.
//! Refuses to know: what the things are.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new identity: UUID version 7 (RFC 9562), ordered by time.
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The 16 bytes, as the store keeps them.
            pub fn as_bytes(&self) -> &[u8] {
                self.0.as_bytes()
            }

            /// From the 16 bytes that the store keeps; `None` for any other length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Uuid::from_slice(bytes).ok().map(Self)
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0.as_hyphenated())
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

id!(
    /// Who pays.
    AccountId
);
id!(
    /// One API key of an account.
    KeyId
);
id!(
    /// One request; the answer's `x-request-id`. Always made here, never taken from a client.
    RequestId
);
id!(
    /// One incarnation of the process. A session is never resumed.
    SessionId
);
id!(
    /// One purchase, grant or adjustment of credit.
    LotId
);

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(name: &str) -> Self {
                Self(name.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// A model as the catalogue calls it: what clients ask for and what is priced.
    ModelName
);
name!(
    /// A provider as the configuration calls it.
    ProviderName
);
name!(
    /// A tier of limits as the configuration calls it.
    TierName
);

impl RequestId {
    /// Sixty-two random bits of the identity, for choices that should differ between requests.
    pub fn low_bits(&self) -> u64 {
        self.0.as_u64_pair().1
    }
}
