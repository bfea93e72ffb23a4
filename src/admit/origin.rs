//! Where requests may come from: networks, and countries by a file in MaxMind's format.
//!
//! Promises: decided on the address alone, before anything else is looked at; what is denied is denied, also where something allows it.
//! Refuses to know: how the address was found, and who asks.

use crate::authenticate::Network;
use crate::refusal::{Kind, Refused};
use maxminddb::{PathElement, Reader};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What may come, and from where.
#[derive(Default)]
pub struct OriginSettings {
    /// Networks from which requests may come; empty allows all.
    pub allow: Vec<Network>,
    /// Networks from which they may not.
    pub deny: Vec<Network>,
    /// Countries, where they play a part.
    pub countries: Option<Countries>,
}

/// Countries by address.
pub struct Countries {
    /// Which address is where.
    pub map: Arc<CountryMap>,
    /// Countries from which requests may come, in capitals (ISO 3166-1 alpha-2); empty allows all.
    pub allow: Vec<String>,
    /// Countries from which they may not.
    pub deny: Vec<String>,
    /// Whether requests may come from an address that the file does not have.
    pub is_unknown_allowed: bool,
}

/// A file in MaxMind's format, in memory.
pub struct CountryMap(Reader<Vec<u8>>);

/// Why a file of countries cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {cause}", path = path.display())]
pub struct CountryMapError {
    path: PathBuf,
    cause: String,
}

impl CountryMap {
    /// Reads a file whole, and looks at every part of it: what is damaged is found here and not at a request.
    ///
    /// # Errors
    ///
    /// It cannot be read, is none, or is damaged.
    pub fn read(path: &Path) -> Result<Self, CountryMapError> {
        let failed = |cause: String| CountryMapError { path: path.to_owned(), cause };
        let reader = Reader::open_readfile(path).map_err(|error| failed(error.to_string()))?;
        let kind = &reader.metadata().database_type;
        if !["Country", "City", "Enterprise"].iter().any(|known| kind.contains(known)) {
            return Err(failed(format!("a file of the kind {kind} does not have countries")));
        }
        reader.verify().map_err(|error| failed(format!("it is damaged: {error}")))?;
        Ok(CountryMap(reader))
    }

    /// The country of an address, where the file has it: the one in which it is, else the one that it is registered in.
    fn country(&self, address: IpAddr) -> Option<String> {
        let found = self.0.lookup(address.to_canonical()).ok()?;
        ["country", "registered_country"].into_iter().find_map(|key| {
            found.decode_path(&[PathElement::Key(key), PathElement::Key("iso_code")]).ok().flatten()
        })
    }
}

impl fmt::Debug for CountryMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CountryMap").field(&self.0.metadata()).finish()
    }
}

impl OriginSettings {
    /// Whether requests may come from there. A request without an address comes from this machine, over a socket in its file system.
    ///
    /// # Errors
    ///
    /// `AddressNotAllowed` by network, `UnsupportedCountry` by country.
    pub fn may_come(&self, address: Option<IpAddr>) -> Result<(), Refused> {
        let Some(address) = address else { return Ok(()) };
        let is_in = |networks: &[Network]| networks.iter().any(|network| network.contains(address));
        if is_in(&self.deny) || !self.allow.is_empty() && !is_in(&self.allow) {
            return Err(Refused::new(
                Kind::AddressNotAllowed,
                "Requests from this network are not served here.",
            ));
        }
        self.countries.as_ref().map_or(Ok(()), |countries| countries.may_come(address))
    }
}

impl Countries {
    fn may_come(&self, address: IpAddr) -> Result<(), Refused> {
        // Its own machine is in no file.
        if address.to_canonical().is_loopback() {
            return Ok(());
        }
        let may = match self.map.country(address) {
            Some(country) => {
                !self.deny.contains(&country) && (self.allow.is_empty() || self.allow.contains(&country))
            }
            None => self.is_unknown_allowed,
        };
        if may {
            return Ok(());
        }
        Err(Refused::new(
            Kind::UnsupportedCountry,
            "This service is not available in your country, region, or territory.",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(allow: &[&str], deny: &[&str], address: &str) -> Option<Kind> {
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let origins = OriginSettings { allow: networks(allow), deny: networks(deny), countries: None };
        origins.may_come(Some(address.parse().unwrap())).err().map(|refused| refused.kind)
    }

    #[test]
    fn what_is_denied_is_denied_also_where_it_is_allowed() {
        assert_eq!(decide(&[], &[], "192.0.2.1"), None);
        assert_eq!(decide(&["192.0.2.0/24"], &[], "192.0.2.1"), None);
        assert_eq!(decide(&["192.0.2.0/24"], &[], "198.51.100.1"), Some(Kind::AddressNotAllowed));
        assert_eq!(
            decide(&["192.0.2.0/24"], &["192.0.2.1"], "::ffff:192.0.2.1"),
            Some(Kind::AddressNotAllowed)
        );
        assert_eq!(decide(&[], &["2001:db8::/32"], "2001:db8:1::1"), Some(Kind::AddressNotAllowed));
    }
}
