//! Addresses and networks from which a key may be used.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A network in CIDR notation, or one address. IPv4 that is written as IPv6 is IPv4 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix_bits: u8,
}

/// Why a text is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Not an address, with or without a prefix length.
    #[error("not an address or network, such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32")]
    NotANetwork,
    /// Bits after the prefix are set: it is not clear what was meant.
    #[error("has bits set after its prefix; the network would be {0}")]
    HostBits(Network),
}

impl Network {
    /// Whether the address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.prefix_bits) == self.address
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| NetworkError::NotANetwork)?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let is_number = |bits: &str| !bits.is_empty() && bits.bytes().all(|byte| byte.is_ascii_digit());
        let bits = match prefix {
            None => width,
            Some(bits) if is_number(bits) => bits.parse().map_err(|_| NetworkError::NotANetwork)?,
            Some(_) => return Err(NetworkError::NotANetwork),
        };
        if bits > width {
            return Err(NetworkError::NotANetwork);
        }
        // Only a prefix that reaches into the IPv4 part leaves an IPv4 network.
        let (address, bits) = match address.to_canonical() {
            IpAddr::V4(inner) if width == 128 && bits >= 96 => (IpAddr::V4(inner), bits - 96),
            IpAddr::V4(_) | IpAddr::V6(_) => (address, bits),
        };
        let network = Network { address: masked(address, bits), prefix_bits: bits };
        if network.address == address { Ok(network) } else { Err(NetworkError::HostBits(network)) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(u32::from(bits))).unwrap_or(0);
            IpAddr::V4((u32::from(address) & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(u32::from(bits))).unwrap_or(0);
            IpAddr::V6((u128::from(address) & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(network: &str, address: &str) -> bool {
        network.parse::<Network>().unwrap().contains(address.parse().unwrap())
    }

    #[test]
    fn a_network_contains_what_shares_its_prefix() {
        assert!(contains("192.0.2.0/24", "192.0.2.255") && !contains("192.0.2.0/24", "192.0.3.0"));
        assert!(contains("192.0.2.7", "192.0.2.7") && !contains("192.0.2.7", "192.0.2.8"));
        assert!(contains("192.0.2.0/24", "::ffff:192.0.2.9"), "the same address on a listener of both kinds");
        assert!(contains("::ffff:192.0.2.0/120", "192.0.2.9"));
        assert!(
            contains("2001:db8::/33", "2001:db8:7fff::1") && !contains("2001:db8::/33", "2001:db8:8000::1")
        );
        assert!(contains("0.0.0.0/0", "203.0.113.1") && !contains("0.0.0.0/0", "2001:db8::1"));
        assert!(contains("::/0", "2001:db8::1") && !contains("::/0", "203.0.113.1"));
    }

    #[test]
    fn what_could_be_meant_in_two_ways_is_refused() {
        for text in
            ["", "192.0.2", "192.0.2.0/33", "::/129", "192.0.2.0/", "192.0.2.0/+8", "host", "192.0.2.0/24/8"]
        {
            assert_eq!(text.parse::<Network>(), Err(NetworkError::NotANetwork), "{text}");
        }
        let meant = "192.0.2.0/24".parse().unwrap();
        assert_eq!("192.0.2.1/24".parse::<Network>(), Err(NetworkError::HostBits(meant)));
        assert_eq!("192.0.2.0/24".parse::<Network>().unwrap().to_string(), "192.0.2.0/24");
    }
}
