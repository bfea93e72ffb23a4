//! What the head of a request says of its client, besides the key.

use crate::authenticate::Network;
use crate::refusal::{Kind, Refused};
use crate::relay::forwarded::ForwarderHeader;
use pingora::proxy::Session;
use std::net::IpAddr;

/// The longest idempotency key, in bytes.
const IDEMPOTENCY_KEY_MAX_BYTES: usize = 255;

/// Where the request comes from: the other end of the connection or, where that is a forwarder, whom it names in its header.
pub(super) fn address(session: &Session, forwarders: &[Network], header: ForwarderHeader) -> Option<IpAddr> {
    let peer = session.client_addr().and_then(|address| address.as_inet()).map(|inet| inet.ip())?;
    let is_forwarder = |address: IpAddr| forwarders.iter().any(|network| network.contains(address));
    if !is_forwarder(peer) {
        return Some(peer);
    }
    let lines = session.req_header().headers.get_all(header.name()).iter();
    Some(header.client(peer, lines.map(|line| line.as_bytes()), is_forwarder))
}

/// The key in the header `Idempotency-Key`, if there is one.
pub(super) fn idempotency_key(session: &Session) -> Result<Option<String>, Refused> {
    let mut all =
        session.req_header().headers.get_all("idempotency-key").iter().map(|value| value.as_bytes());
    let Some(key) = all.next() else { return Ok(None) };
    let is_key = (1..=IDEMPOTENCY_KEY_MAX_BYTES).contains(&key.len()) && key.iter().all(u8::is_ascii_graphic);
    match String::from_utf8(key.to_vec()) {
        Ok(key) if is_key && all.next().is_none() => Ok(Some(key)),
        Ok(_) | Err(_) => Err(Refused::new(
            Kind::InvalidValue,
            format!(
                "The header Idempotency-Key must stand once and have 1 to {IDEMPOTENCY_KEY_MAX_BYTES} visible ASCII characters."
            ),
        )
        .param("Idempotency-Key")),
    }
}
