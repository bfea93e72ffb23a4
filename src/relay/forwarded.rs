//! What forwarders say of the client: `X-Forwarded-For`, or `Forwarded` (RFC 7239).
//!
//! Promises: a header is read from its end, where forwarders append, and only as far as forwarders vouch for it: nothing that a client has
//! written before changes what they appended; no input panics, and none takes more time than its length. Refuses to know: who is a
//! forwarder, and what the address is for.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The header that forwarders set. A client may send the other one: it is not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwarderHeader {
    /// `X-Forwarded-For`: addresses, with or without a port.
    #[default]
    XForwardedFor,
    /// `Forwarded`: elements of RFC 7239, of which `for` counts.
    Forwarded,
}

/// The longest port in a node, in digits (RFC 7239, section 6).
const PORT_DIGITS_MAX: usize = 5;

impl ForwarderHeader {
    /// Its name, in small letters.
    pub const fn name(self) -> &'static str {
        match self {
            ForwarderHeader::XForwardedFor => "x-forwarded-for",
            ForwarderHeader::Forwarded => "forwarded",
        }
    }

    /// The client, where `peer` is a forwarder: of the addresses in all lines of the header the last that is no forwarder's. Where a
    /// forwarder does not say whom it heard (`unknown`, a name of its own, nothing, or what is no address) it is the client itself.
    pub fn client<'a>(
        self,
        peer: IpAddr,
        lines: impl DoubleEndedIterator<Item = &'a [u8]>,
        is_forwarder: impl Fn(IpAddr) -> bool,
    ) -> IpAddr {
        let mut client = peer;
        for hop in lines.rev().flat_map(|line| FromEnd { rest: Some(line), header: self }) {
            let Some(address) = self.address(hop) else { break };
            client = address;
            if !is_forwarder(address) {
                break;
            }
        }
        client
    }

    fn address(self, hop: &[u8]) -> Option<IpAddr> {
        let hop = std::str::from_utf8(hop).ok()?;
        match self {
            ForwarderHeader::XForwardedFor => node(hop),
            ForwarderHeader::Forwarded => node(&for_of(hop)?),
        }
    }
}

/// The members of a list, the last one first, without empty ones (RFC 9110, section 5.6.1.2).
struct FromEnd<'a> {
    rest: Option<&'a [u8]>,
    header: ForwarderHeader,
}

impl<'a> Iterator for FromEnd<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let rest = self.rest.take()?;
            let member = match last_comma(rest, self.header == ForwarderHeader::Forwarded) {
                Some(at) => {
                    self.rest = Some(&rest[..at]);
                    &rest[at + 1..]
                }
                None => rest,
            };
            let member = member.trim_ascii();
            if !member.is_empty() {
                return Some(member);
            }
        }
    }
}

/// The last comma that is in no quoted string. It is looked for backwards, so that a quotation mark that somebody has left open before it
/// does not take it in.
fn last_comma(text: &[u8], has_quotes: bool) -> Option<usize> {
    let mut is_quoted = false;
    for at in (0..text.len()).rev() {
        match text[at] {
            b'"' if has_quotes && !is_escaped(text, at) => is_quoted = !is_quoted,
            b',' if !is_quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// Whether an odd number of backslashes stands before it.
fn is_escaped(text: &[u8], at: usize) -> bool {
    text[..at].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// What an element says of whom it is for: once, or it says nothing (RFC 7239, section 4).
fn for_of(element: &str) -> Option<Cow<'_, str>> {
    let mut found = None;
    let mut rest = element;
    loop {
        rest = rest.trim_ascii_start();
        if !(rest.is_empty() || rest.starts_with(';')) {
            let (name, after) = rest.split_once('=')?;
            let (value, behind) = value(after)?;
            if name.eq_ignore_ascii_case("for") && found.replace(value).is_some() {
                return None;
            }
            rest = behind.trim_ascii_start();
        }
        match rest.strip_prefix(';') {
            Some(next) => rest = next,
            None if rest.is_empty() => return found,
            None => return None,
        }
    }
}

/// A token or a quoted string at the beginning, and what is behind it. Of a token more is taken than the grammar has, since forwarders
/// write `192.0.2.7:80` without quotation marks.
fn value(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (token, behind) = text.split_at(text.find(';').unwrap_or(text.len()));
        return (!token.contains('"')).then(|| (Cow::Borrowed(token.trim_ascii_end()), behind));
    };
    let mut unescaped = String::new();
    let mut from = 0;
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' if unescaped.is_empty() => {
                return Some((Cow::Borrowed(&quoted[from..at]), &quoted[at + 1..]));
            }
            '"' => {
                unescaped.push_str(&quoted[from..at]);
                return Some((Cow::Owned(unescaped), &quoted[at + 1..]));
            }
            '\\' => {
                unescaped.push_str(&quoted[from..at]);
                let (next, character) = characters.next()?;
                unescaped.push(character);
                from = next + character.len_utf8();
            }
            _ => {}
        }
    }
    None
}

/// An address as forwarders write it: alone, in brackets, and with a port or without. `unknown` and names that hide one are none.
fn node(text: &str) -> Option<IpAddr> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let address = address.parse::<Ipv6Addr>().ok()?;
        return (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then_some(address.into());
    }
    text.parse().ok().or_else(|| {
        let (address, port) = text.split_once(':')?;
        let address = address.parse::<Ipv4Addr>().ok()?;
        is_port(port).then_some(address.into())
    })
}

/// A number, or a name that hides it.
fn is_port(text: &str) -> bool {
    let is_in_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match text.strip_prefix('_') {
        Some(name) => !name.is_empty() && name.bytes().all(is_in_name),
        None => (1..=PORT_DIGITS_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

#[cfg(test)]
mod tests {
    use super::ForwarderHeader::{Forwarded, XForwardedFor};
    use super::*;
    use proptest::prelude::*;

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

    /// Forwarders are those of 10.0.0.0/8.
    fn client(header: ForwarderHeader, lines: &[&[u8]]) -> String {
        let is_forwarder = |address: IpAddr| matches!(address, IpAddr::V4(it) if it.octets()[0] == 10);
        header.client(PEER, lines.iter().copied(), is_forwarder).to_string()
    }

    #[test]
    fn an_element_is_read_as_rfc_7239_writes_it() {
        for (line, address) in [
            ("for=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60"),
            ("For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("proto=https;FOR=\"[2001:db8::1]\" ; host=\"a;b,c\"", "2001:db8::1"),
            ("for=192.0.2.43, for=198.51.100.17", "198.51.100.17"),
            ("for=192.0.2.43,,for=\"10.1.1.1:80\", ,", "192.0.2.43"),
            ("for=\"192.0.2.43:_gazonk\"", "192.0.2.43"),
            ("for=192.0.2.43:47011", "192.0.2.43"),
            (r#"host="\"for=203.0.113.9\", for=203.0.113.9";for="192\.0.2.7""#, "192.0.2.7"),
            (r#"for=192.0.2.7;by="\\""#, "192.0.2.7"),
            ("for=192.0.2.7;;", "192.0.2.7"),
        ] {
            assert_eq!(client(Forwarded, &[line.as_bytes()]), address, "{line}");
        }
    }

    #[test]
    fn where_a_forwarder_does_not_say_whom_it_heard_it_is_the_client_itself() {
        for last in [
            "for=unknown",
            "for=_hidden",
            "for=\"_SEVKISEK\"",
            "proto=https",
            "for=192.0.2.1;for=192.0.2.2",
            "for=\"192.0.2.1",
            "for=192.0.2.1\"",
            "for=\"[2001:db8::1\"",
            "for=\"[2001:db8::1]x\"",
            "for=192.0.2.1:",
            "for=192.0.2.1:123456",
            "for=\"192.0.2.1\" by",
            "for",
            "=",
            "\"",
        ] {
            let line = format!("for=203.0.113.7, for=10.2.2.2, {last}");
            assert_eq!(client(Forwarded, &[line.as_bytes()]), PEER.to_string(), "{line}");
            let line = format!("for=203.0.113.7, {last}, for=10.2.2.2");
            assert_eq!(client(Forwarded, &[line.as_bytes()]), "10.2.2.2", "{line}");
        }
        for last in ["unknown", "192.0.2", "[::1", "::1]", "192.0.2.1:x", "1.2.3.4 5.6.7.8", "\u{ff}"] {
            let line = format!("203.0.113.7, {last}");
            assert_eq!(client(XForwardedFor, &[line.as_bytes()]), PEER.to_string(), "{line}");
        }
    }

    #[test]
    fn lines_are_one_list_and_the_last_stranger_in_it_is_the_client() {
        let lines: &[&[u8]] = &[b"192.0.2.1, 192.0.2.2", b"10.3.3.3", b"10.4.4.4:80"];
        assert_eq!(client(XForwardedFor, lines), "192.0.2.2");
        assert_eq!(client(XForwardedFor, &[b"192.0.2.1", b"[2001:db8::7]:443"]), "2001:db8::7");
        assert_eq!(client(Forwarded, &[b"for=192.0.2.1", b"for=10.3.3.3;proto=http"]), "192.0.2.1");
        assert_eq!(client(Forwarded, &[]), PEER.to_string());
    }

    #[test]
    fn of_a_head_full_of_quotation_marks_each_is_looked_at_once() {
        for piece in ["\"", "\\", "\\\"", "\",", "for=\"\\\\", "for=10.1.1.1,"] {
            // Looked at again and again, so much of it would keep the suite for hours.
            let told = client(Forwarded, &[piece.repeat((8 << 20) / piece.len()).as_bytes()]);
            assert!(told.starts_with("10."), "{told}");
        }
    }

    proptest! {
        #[test]
        fn what_a_client_wrote_before_changes_nothing_of_what_a_forwarder_appended(
            before in proptest::collection::vec(prop_oneof![
                any::<u8>().prop_map(|byte| vec![byte]),
                proptest::sample::select(vec![
                    "\"", "\\", ",", ";", "for=", "for=\"", "203.0.113.9", "10.1.1.1", "[", "]", "unknown", "_x", "\\\"",
                ]).prop_map(|text| text.as_bytes().to_vec()),
            ], 0..24),
            apart in any::<bool>(),
        ) {
            let before = before.concat();
            for (header, appended) in [(XForwardedFor, "192.0.2.7"), (Forwarded, "for=\"192.0.2.7:80\";by=\"a\\\",\"")] {
                let told = if apart {
                    client(header, &[&before, appended.as_bytes()])
                } else {
                    client(header, &[&[before.as_slice(), b", ", appended.as_bytes()].concat()])
                };
                prop_assert_eq!(told, "192.0.2.7");
                client(header, &[&before]);
            }
        }
    }
}
