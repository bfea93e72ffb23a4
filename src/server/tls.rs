//! TLS on the side of the clients: certificates chosen by the name that a client asks for, replaced while connections go on.
//!
//! Promises: TLS 1.2 and 1.3 only, HTTP/2 where the client offers it; a client that names no host, or one that nothing here is for, gets
//! the first certificate; a handshake that has begun ends with the certificate that it began with. Refuses to know: who asks for what.

use crate::relay::ServerCertificate;
use arc_swap::ArcSwap;
use pingora::listeners::tls::Acceptor;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};
use std::collections::HashMap;
use std::sync::Arc;

/// The certificates in force.
#[derive(Debug)]
pub(super) struct Certificates(ArcSwap<Set>);

/// Certificates by the names that they are for.
#[derive(Debug, Default)]
pub(super) struct Set {
    first: Option<Arc<CertifiedKey>>,
    /// In small letters.
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// Of `*.example.com`, what follows the star and its dot.
    wild: HashMap<String, Arc<CertifiedKey>>,
    expiries: Vec<Expiry>,
}

/// When a certificate ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expiry {
    /// As the configuration calls it.
    pub(super) name: String,
    /// In seconds since 1970.
    pub(super) at_s: i64,
}

/// What HTTP versions are offered, the best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

impl Set {
    /// These, by the names that the configuration gives them; of two for one host the first counts.
    pub(super) fn new(certificates: &[(String, Arc<ServerCertificate>)]) -> Self {
        let mut set = Set::default();
        for (name, certificate) in certificates {
            let certified = certificate.certified();
            for host in certificate.names() {
                let (hosts, host) = match host.strip_prefix("*.") {
                    Some(parent) => (&mut set.wild, parent),
                    None => (&mut set.exact, host.as_str()),
                };
                hosts.entry(host.to_owned()).or_insert_with(|| Arc::clone(certified));
            }
            set.first.get_or_insert_with(|| Arc::clone(certified));
            set.expiries.push(Expiry { name: name.clone(), at_s: certificate.ends_at_s() });
        }
        set
    }

    /// When each ends.
    pub(super) fn expiries(&self) -> &[Expiry] {
        &self.expiries
    }

    /// The certificate for a host (RFC 9525, section 6.3: a star stands for one label).
    fn of(&self, host: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let host = host.map(str::to_ascii_lowercase);
        let found = host.as_deref().and_then(|host| {
            let parent = host.split_once('.').map(|(_, parent)| parent);
            self.exact.get(host).or_else(|| self.wild.get(parent?))
        });
        found.or(self.first.as_ref()).cloned()
    }
}

impl Certificates {
    pub(super) fn new(set: Set) -> Self {
        Certificates(ArcSwap::from_pointee(set))
    }

    /// From now on handshakes begin with these.
    pub(super) fn replace(&self, set: Set) {
        self.0.store(Arc::new(set));
    }

    /// When each ends.
    pub(super) fn expiries(&self) -> Vec<Expiry> {
        self.0.load().expiries().to_vec()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().of(hello.server_name())
    }
}

/// What makes a TLS connection of an accepted one.
///
/// # Errors
///
/// The library does not offer what is asked of it.
pub(super) fn acceptor(certificates: Arc<Certificates>) -> Result<Acceptor, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(Acceptor::from_server_config(Arc::new(config)))
}
