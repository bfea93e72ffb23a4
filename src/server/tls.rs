//! TLS on the side of the clients: certificates chosen by the name that a client asks for, replaced while connections go on.
//!
//! Promises: TLS 1.2 and 1.3 only, HTTP/2 where the client offers it; a client that names no host, or one that nothing here is for, gets
//! the first certificate; a handshake that has begun ends with the certificate that it began with. Refuses to know: who asks for what.

use crate::clock::UnixMicros;
use crate::config::{self, Config};
use crate::secret::ExposeSecret as _;
use arc_swap::ArcSwap;
use pingora::listeners::tls::Acceptor;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};
use std::collections::HashMap;
use std::sync::Arc;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

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

/// So long before its end a certificate is warned of, in seconds.
const EXPIRES_SOON_S: i64 = 14 * 86_400;
/// What HTTP versions are offered, the best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Reads every certificate that the configuration names, with its key.
///
/// # Errors
///
/// The first that cannot be read, is none, or does not fit its key, in words for operators.
pub(super) fn read(config: &Config) -> Result<Set, String> {
    let mut set = Set::default();
    for certificate in &config.certificates {
        set.add(certificate).map_err(|fault| format!("certificate {}: {fault}", certificate.name))?;
    }
    Ok(set)
}

impl Set {
    fn add(&mut self, named: &config::Certificate) -> Result<(), String> {
        let chain = CertificateDer::pem_file_iter(&named.chain)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| format!("{}: {error}", named.chain.display()))?;
        let end = chain.first().ok_or_else(|| format!("{}: no certificate in it", named.chain.display()))?;
        let (_, parsed) =
            X509Certificate::from_der(end).map_err(|error| format!("{}: {error}", named.chain.display()))?;
        let names = names(&parsed);
        let at_s = parsed.validity().not_after.timestamp();
        let key = named.key.resolve().map_err(|error| format!("key: {error}"))?;
        let key = PrivateKeyDer::from_pem_slice(key.expose_secret().as_bytes())
            .map_err(|error| format!("key: {}: {error}", named.key))?;
        let certified = CertifiedKey::from_der(chain.clone(), key, &ring::default_provider())
            .map_err(|error| format!("key: {}: {error}", named.key))?;
        let certified = Arc::new(certified);
        for name in names {
            match name.strip_prefix("*.") {
                Some(parent) => self.wild.entry(parent.to_owned()).or_insert_with(|| Arc::clone(&certified)),
                None => self.exact.entry(name).or_insert_with(|| Arc::clone(&certified)),
            };
        }
        self.first.get_or_insert(certified);
        self.expiries.push(Expiry { name: named.name.clone(), at_s });
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// When each ends.
    pub(super) fn expiries(&self) -> &[Expiry] {
        &self.expiries
    }

    /// The certificates that clients refuse, or will within two weeks.
    pub(super) fn warnings(&self, now: UnixMicros) -> Vec<String> {
        let told = |Expiry { name, at_s }: &Expiry| match at_s.saturating_sub(now.0 / 1_000_000) {
            left if left <= 0 => Some(format!("certificate {name}: it has expired, and clients refuse it")),
            left if left <= EXPIRES_SOON_S => {
                Some(format!("certificate {name}: it expires in {} days", left / 86_400))
            }
            _ => None,
        };
        self.expiries.iter().filter_map(told).collect()
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

/// The DNS names that a certificate is for, in small letters.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let general = alternative.map(|found| found.value.general_names.clone()).unwrap_or_default();
    let dns = general.into_iter().filter_map(|name| {
        if let GeneralName::DNSName(name) = name { Some(name.to_ascii_lowercase()) } else { None }
    });
    dns.collect()
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
