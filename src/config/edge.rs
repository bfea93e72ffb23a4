//! How clients come in, and from where.

use super::SecretRef;
use crate::authenticate::Network;
use crate::relay::forwarded::ForwarderHeader;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where plain HTTP may be listened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainHttp {
    /// At addresses of this machine only.
    Loopback,
    /// Anywhere: a proxy in front speaks TLS.
    Anywhere,
}

/// Where HTTPS is spoken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// All distinct, and none of them a plain one.
    pub listen: Vec<SocketAddr>,
}

/// Sockets in the file system, where plain HTTP is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unix {
    /// Their paths, all distinct.
    pub listen: Vec<PathBuf>,
    /// Their permissions.
    pub mode: u32,
}

impl Default for Unix {
    fn default() -> Self {
        Unix { listen: Vec::new(), mode: 0o660 }
    }
}

/// A certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// What metrics and messages call it.
    pub name: String,
    /// A PEM file: the certificate, then those that lead to its authority.
    pub chain: PathBuf,
    /// Its private key, in PEM.
    pub key: SecretRef,
}

/// Who stands between, and who may come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    /// Balancers whose connections begin with a head of the PROXY protocol.
    pub proxy_protocol: Vec<Network>,
    /// Proxies whose word on the client's address is believed.
    pub forwarders: Vec<Network>,
    /// The header in which they give it.
    pub forwarder_header: ForwarderHeader,
    /// Networks from which requests may come; empty allows all.
    pub allow: Vec<Network>,
    /// Networks from which they may not.
    pub deny: Vec<Network>,
    /// Countries, where they play a part.
    pub countries: Option<Countries>,
}

/// Countries from which requests may come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Countries {
    /// In MaxMind's format.
    pub file: PathBuf,
    /// ISO 3166-1 alpha-2; empty allows all.
    pub allow: Vec<String>,
    /// ISO 3166-1 alpha-2.
    pub deny: Vec<String>,
    /// Whether an address may come that the file does not have.
    pub is_unknown_allowed: bool,
}
