//! Where a provider is, and how Pingora is to talk to it.
//!
//! Promises: a peer always has an address, never a name; TLS is always verified, against the host of the base URL; no
//! wait is without a bound; connections are shared within a provider and never between two.
//! Refuses to know: how an address was found, and what is sent.

use super::joined;
use std::net::SocketAddr;
use std::time::Duration;

use http::Uri;
use pingora::protocols::ALPN;
use pingora::protocols::l4::ext::TcpKeepalive;
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};

/// Streams on one HTTP/2 connection before another is opened; what most servers allow.
const MAX_H2_STREAMS: usize = 100;
/// What a provider may send ahead of a client that does not read, in bytes.
const H2_STREAM_WINDOW: u32 = 256 << 10;
/// For all streams of a connection together: so much that no stream waits for the client of another.
const H2_CONNECTION_WINDOW: u32 = 100 * H2_STREAM_WINDOW;

/// A provider's base URL, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Whether to speak TLS.
    pub tls: bool,
    /// The host: a name, or an address without brackets.
    pub host: String,
    /// The port, told or of the scheme.
    pub port: u16,
    /// The `Host` that goes with every request: as the URL has it.
    pub authority: String,
    /// The path before what is appended, without a slash at its end: `/v1`, or nothing.
    pub base_path: String,
}

/// What is wrong with a base URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// It cannot be parsed.
    #[error("not a URL such as https://api.example.com/v1")]
    NotAUrl,
    /// Neither scheme that providers are reached by.
    #[error("must begin with https:// or http://")]
    Scheme,
    /// Keys belong in `api_key`.
    #[error("must not contain a user name or password")]
    Credentials,
    /// A path is appended to it, so nothing can follow.
    #[error("must not contain a query or a fragment")]
    Query,
}

/// How long each step with a provider may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// The TCP connection.
    pub connect: Duration,
    /// The TCP connection and the TLS handshake together.
    pub total_connection: Duration,
    /// One read. The last resort behind the adapter's own timeouts, so not below the longer one of those.
    pub read: Duration,
    /// One write: an HTTP/1 provider that answers before it has read the body is noticed by nothing else.
    pub write: Duration,
    /// How long an unused connection is kept.
    pub idle: Duration,
}

impl Origin {
    /// Takes a base URL apart.
    ///
    /// # Errors
    ///
    /// What is wrong with it, to be shown beside the configuration's line.
    pub fn parse(base_url: &str) -> Result<Origin, OriginError> {
        if base_url.contains(['?', '#']) {
            return Err(OriginError::Query);
        }
        let uri = base_url.parse::<Uri>().map_err(|_| OriginError::NotAUrl)?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(_) | None => return Err(OriginError::Scheme),
        };
        let authority = uri.authority().ok_or(OriginError::NotAUrl)?;
        if authority.as_str().contains('@') {
            return Err(OriginError::Credentials);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(OriginError::NotAUrl);
        }
        Ok(Origin {
            tls,
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            base_path: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// The path at the provider: `rest` begins with a slash, and is what follows `/v1` here.
    pub fn path(&self, rest: &str) -> String {
        format!("{}{rest}", self.base_path)
    }
}

/// The peer at this address, for an [`super::engine()`]: no other proxy of Pingora's knows how to connect to it without TLS. `group` is the provider's own: connections are not shared across groups.
pub fn build(address: SocketAddr, origin: &Origin, timeouts: &Timeouts, group: u64) -> HttpPeer {
    // An address and not a name: for a name this call would block, and panic where it cannot be resolved.
    let mut peer = HttpPeer::new(address, origin.tls, origin.host.clone());
    peer.group_key = group;
    let options = &mut peer.options;
    options.connection_timeout = Some(timeouts.connect);
    options.total_connection_timeout = Some(timeouts.total_connection);
    options.read_timeout = Some(timeouts.read);
    options.write_timeout = Some(timeouts.write);
    options.idle_timeout = Some(timeouts.idle);
    options.alpn = if origin.tls { ALPN::H2H1 } else { joined::protocol() };
    options.max_h2_streams = MAX_H2_STREAMS;
    options.h2_stream_window_size = Some(H2_STREAM_WINDOW);
    options.h2_connection_window_size = Some(H2_CONNECTION_WINDOW);
    options.verify_cert = true;
    options.verify_hostname = true;
    options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
    options.tcp_keepalive = Some(TcpKeepalive {
        idle: Duration::from_secs(60),
        interval: Duration::from_secs(15),
        count: 4,
        #[cfg(target_os = "linux")]
        user_timeout: Duration::ZERO,
    });
    peer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeouts() -> Timeouts {
        let second = Duration::from_secs(1);
        Timeouts { connect: second, total_connection: second, read: second, write: second, idle: second }
    }

    #[test]
    fn a_base_url_is_taken_apart() {
        let origin = Origin::parse("https://api.openai.com/v1/").unwrap();
        assert_eq!((origin.tls, origin.port), (true, 443));
        assert_eq!((origin.host.as_str(), origin.authority.as_str()), ("api.openai.com", "api.openai.com"));
        assert_eq!(origin.path("/chat/completions"), "/v1/chat/completions");
        let local = Origin::parse("http://[::1]:8000").unwrap();
        assert_eq!((local.tls, local.port, local.host.as_str()), (false, 8000, "::1"));
        assert_eq!((local.authority.as_str(), local.path("/models").as_str()), ("[::1]:8000", "/models"));
    }

    #[test]
    fn a_base_url_that_cannot_be_used_is_refused_with_its_reason() {
        assert_eq!(Origin::parse("ftp://a/v1"), Err(OriginError::Scheme));
        assert_eq!(Origin::parse("api.openai.com/v1"), Err(OriginError::NotAUrl));
        assert_eq!(Origin::parse("/v1"), Err(OriginError::Scheme));
        assert_eq!(Origin::parse("https://key@a/v1"), Err(OriginError::Credentials));
        assert_eq!(Origin::parse("https://a/v1?x=1"), Err(OriginError::Query));
        assert_eq!(Origin::parse("not a url"), Err(OriginError::NotAUrl));
    }

    #[test]
    fn tls_is_verified_against_the_host_and_speaks_http_2() {
        let origin = Origin::parse("https://api.openai.com/v1").unwrap();
        let peer = build("192.0.2.1:443".parse().unwrap(), &origin, &timeouts(), 7);
        assert!(peer.options.verify_cert && peer.options.verify_hostname && peer.is_tls());
        assert_eq!((peer.sni.as_str(), peer.group_key), ("api.openai.com", 7));
        assert_eq!(peer.options.alpn, ALPN::H2H1);
        assert_eq!(peer.options.max_h2_streams, 100);
    }

    #[test]
    fn no_wait_is_without_a_bound() {
        let origin = Origin::parse("http://127.0.0.1:1").unwrap();
        let options = build("127.0.0.1:1".parse().unwrap(), &origin, &timeouts(), 0).options;
        assert!(options.connection_timeout.is_some() && options.total_connection_timeout.is_some());
        assert!(options.read_timeout.is_some() && options.write_timeout.is_some());
        assert!(options.idle_timeout.is_some());
        assert_eq!(options.alpn, joined::protocol());
    }
}
