//! The PROXY protocol, versions 1 and 2: who is behind a balancer that passes connections on
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).
//!
//! Promises: no input makes it read on beyond [`MAX_BYTES`]; a head is taken whole or not at all. Refuses to know: sockets, and whom to
//! believe.

use ppp::{HeaderResult, PartialResult as _, v1, v2};
use std::net::SocketAddr;

/// The largest head that is accepted, in bytes. Version 1 has at most 107; version 2 has 16, addresses, and whatever a balancer adds.
pub const MAX_BYTES: usize = 4 << 10;

/// The largest head of version 1, its line end included.
const VERSION_1_MAX_BYTES: usize = 107;
/// How a head of version 2 begins.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// How one of version 1 does.
const WORD: &[u8] = b"PROXY ";

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// The head is not whole yet.
    Incomplete,
    /// This is no head, or one that cannot be.
    Bad,
    /// A whole head.
    Whole {
        /// The client; `None` where the balancer speaks for itself (`LOCAL`) or does not know (`UNKNOWN`).
        client: Option<SocketAddr>,
        /// Its length in bytes; what follows is the client's.
        bytes: usize,
    },
}

/// Reads the head at the beginning of these bytes.
pub fn parse(bytes: &[u8]) -> Head {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(one, other)| one == other);
    if !begins(SIGNATURE) && !begins(WORD) {
        return Head::Bad;
    }
    let mut read = &bytes[..bytes.len().min(MAX_BYTES)];
    if begins(WORD) {
        match memchr::memmem::find(&bytes[..bytes.len().min(VERSION_1_MAX_BYTES)], b"\r\n") {
            // A carriage return on its own would end the head for the library, and leave the rest of the line to the client.
            Some(end) if bytes[..end].contains(&b'\r') => return Head::Bad,
            Some(end) => read = &bytes[..end + 2],
            None if bytes.len() < VERSION_1_MAX_BYTES => return Head::Incomplete,
            None => return Head::Bad,
        }
    }
    let parsed = HeaderResult::parse(read);
    let is_incomplete = parsed.is_incomplete();
    match parsed {
        HeaderResult::V1(Ok(head)) => {
            let client = match head.addresses {
                v1::Addresses::Unknown => None,
                v1::Addresses::Tcp4(it) => Some(SocketAddr::from((it.source_address, it.source_port))),
                v1::Addresses::Tcp6(it) => Some(SocketAddr::from((it.source_address, it.source_port))),
            };
            Head::Whole { client, bytes: head.header.len() }
        }
        HeaderResult::V2(Ok(head)) => {
            let client = match (head.command, head.addresses) {
                (v2::Command::Proxy, v2::Addresses::IPv4(it)) => {
                    Some(SocketAddr::from((it.source_address, it.source_port)))
                }
                (v2::Command::Proxy, v2::Addresses::IPv6(it)) => {
                    Some(SocketAddr::from((it.source_address, it.source_port)))
                }
                (v2::Command::Proxy, v2::Addresses::Unspecified | v2::Addresses::Unix(_))
                | (v2::Command::Local, _) => None,
            };
            Head::Whole { client, bytes: head.header.len() }
        }
        HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) if is_incomplete && bytes.len() < MAX_BYTES => {
            Head::Incomplete
        }
        HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) => Head::Bad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version_2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut head = SIGNATURE.to_vec();
        head.extend([0x20 | command, family]);
        head.extend(u16::try_from(addresses.len()).unwrap().to_be_bytes());
        head.extend(addresses);
        head
    }

    fn client(bytes: &[u8]) -> Option<SocketAddr> {
        match parse(bytes) {
            Head::Whole { client, bytes: length } => {
                assert!(length <= bytes.len());
                client
            }
            other @ (Head::Incomplete | Head::Bad) => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_client_of_each_version_is_found_and_what_follows_is_left() {
        let first = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\nPOST / HTTP/1.1\r\n";
        assert_eq!(client(first), Some("192.0.2.7:56324".parse().unwrap()));
        assert_eq!(parse(first), Head::Whole { client: client(first), bytes: 45 });
        assert_eq!(
            client(b"PROXY TCP6 2001:db8::7 2001:db8::1 1 2\r\n"),
            Some("[2001:db8::7]:1".parse().unwrap())
        );
        let second = version_2(1, 0x11, &[192, 0, 2, 9, 198, 51, 100, 1, 0x10, 0x01, 1, 187]);
        assert_eq!(client(&second), Some("192.0.2.9:4097".parse().unwrap()));
        let followed = [second.as_slice(), b"GET / HTTP/1.1\r\n"].concat();
        assert_eq!(parse(&followed), Head::Whole { client: client(&second), bytes: second.len() });
    }

    #[test]
    fn a_balancer_that_speaks_for_itself_names_no_client() {
        assert_eq!(client(b"PROXY UNKNOWN\r\n"), None);
        assert_eq!(client(&version_2(0, 0, &[])), None);
    }

    #[test]
    fn what_is_no_head_is_refused_at_its_first_bytes() {
        for bad in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01",
            b"PROXX",
            b"PROXY TCP4 x y 1 2\r\n",
            b"PROXY UNKNOWN \rGET\r\n",
            b"\r\n\r\n\0\r\nQUIX",
        ] {
            assert_eq!(parse(bad), Head::Bad, "{}", String::from_utf8_lossy(bad));
        }
        assert_eq!(parse(&[WORD, &[b'a'; MAX_BYTES]].concat()), Head::Bad);
    }

    #[test]
    fn a_head_that_comes_in_pieces_is_incomplete_until_its_last_byte() {
        let heads = [
            b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n".to_vec(),
            version_2(1, 0x11, &[192, 0, 2, 9, 198, 51, 100, 1, 0x10, 0x01, 1, 187]),
        ];
        for head in heads {
            for length in 0..head.len() {
                assert_eq!(parse(&head[..length]), Head::Incomplete, "{length}");
            }
            assert!(matches!(parse(&head), Head::Whole { .. }));
        }
    }

    proptest! {
        #[test]
        fn no_input_panics_or_is_read_beyond_its_end(bytes in proptest::collection::vec(any::<u8>(), 0..300), choice in 0..3_u8) {
            let begun = match choice {
                0 => bytes,
                1 => [WORD, &bytes].concat(),
                _ => [SIGNATURE, &bytes].concat(),
            };
            if let Head::Whole { bytes, .. } = parse(&begun) {
                prop_assert!(bytes <= begun.len());
            }
        }
    }
}
