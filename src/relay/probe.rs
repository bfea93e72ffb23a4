//! Whether a provider can be reached as the relay would reach it: name, connection, TLS with the same trust. Nothing is asked of it.

use super::Origin;
use crate::clock::{Clock, UnixMicros};
use pingora::tls::{
    ClientConfig, RootCertStore, ServerName, TlsConnector, install_default_crypto_provider,
    load_platform_certs_incl_env_into_store,
};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use x509_parser::parse_x509_certificate;

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    /// How many addresses the name has.
    pub addresses: usize,
    /// For the TCP connection, to the first of them that took it.
    pub connect: Duration,
    /// For the handshake, where it speaks TLS.
    pub tls: Option<Duration>,
    /// When its certificate ends.
    pub expires_at: Option<UnixMicros>,
}

/// Why a provider cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum Unreached {
    /// Its name has no address.
    #[error("the name {0} has no address: {1}")]
    Name(String, io::Error),
    /// No address of it takes a connection.
    #[error("no connection to {0}: {1}")]
    Connection(String, io::Error),
    /// The handshake failed: its certificate, most of the time.
    #[error("no TLS with {0}: {1}")]
    Tls(String, String),
    /// The certificates that this machine trusts cannot be read.
    #[error("the certificates that this machine trusts: {0}")]
    Trust(String),
}

/// Resolves, connects, and shakes hands, each step within the bound.
pub async fn probe(origin: &Origin, bound: Duration, clock: &Clock) -> Result<Reached, Unreached> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {bound:?}"));
    let place = (origin.host.as_str(), origin.port);
    let found = timeout(bound, tokio::net::lookup_host(place)).await.unwrap_or_else(|_| Err(late()));
    let no_name = |error| Unreached::Name(origin.host.clone(), error);
    let addresses: Vec<_> = found.map_err(no_name)?.collect();
    let begun = clock.now();
    let connected = timeout(bound, TcpStream::connect(addresses.as_slice())).await;
    let stream = connected
        .unwrap_or_else(|_| Err(late()))
        .map_err(|error| Unreached::Connection(origin.authority.clone(), error))?;
    let connect = clock.now().saturating_duration_since(begun);
    let mut reached = Reached { addresses: addresses.len(), connect, tls: None, expires_at: None };
    if origin.tls {
        let begun = clock.now();
        let shaken = timeout(bound, shake(origin, stream)).await;
        reached.expires_at =
            shaken.unwrap_or_else(|_| Err(Unreached::Tls(origin.host.clone(), late().to_string())))?;
        reached.tls = Some(clock.now().saturating_duration_since(begun));
    }
    Ok(reached)
}

/// When the certificate ends that it shows, which must be good for its host.
async fn shake(origin: &Origin, stream: TcpStream) -> Result<Option<UnixMicros>, Unreached> {
    install_default_crypto_provider();
    let mut trusted = RootCertStore::empty();
    load_platform_certs_incl_env_into_store(&mut trusted)
        .map_err(|error| Unreached::Trust(error.to_string()))?;
    let config = ClientConfig::builder().with_root_certificates(trusted).with_no_client_auth();
    let no_tls = |why: String| Unreached::Tls(origin.host.clone(), why);
    let name = ServerName::try_from(origin.host.clone()).map_err(|error| no_tls(error.to_string()))?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| no_tls(error.to_string()))?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    Ok(shown.and_then(|certificate| {
        let (_, certificate) = parse_x509_certificate(certificate).ok()?;
        let seconds = certificate.validity().not_after.timestamp();
        Some(UnixMicros(seconds.saturating_mul(1_000_000)))
    }))
}
