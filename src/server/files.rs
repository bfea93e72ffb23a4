//! What the configuration names and is read with it: certificates, and the file of countries.
//!
//! Promises: read whole before anything of it is put in place. Refuses to know: how it is used.

use super::tls;
use crate::admit::{Countries, CountryMap, OriginSettings};
use crate::config::Config;

/// The contents of the files.
pub(super) struct Files {
    pub(super) certificates: tls::Set,
    pub(super) origins: OriginSettings,
}

impl Files {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// One cannot be read, or is not what it should be, in words for operators.
    pub(super) fn read(config: &Config) -> Result<Self, String> {
        Ok(Files { certificates: tls::read(config)?, origins: origins(config)? })
    }
}

fn origins(config: &Config) -> Result<OriginSettings, String> {
    let networks = &config.networks;
    let countries = networks.countries.as_ref().map(|countries| {
        let map = CountryMap::read(&countries.file)
            .map_err(|error| format!("[network] countries_file: {error}"))?;
        Ok::<_, String>(Countries {
            map,
            allow: countries.allow.clone(),
            deny: countries.deny.clone(),
            is_unknown_allowed: countries.is_unknown_allowed,
        })
    });
    Ok(OriginSettings {
        allow: networks.allow.clone(),
        deny: networks.deny.clone(),
        countries: countries.transpose()?,
    })
}
