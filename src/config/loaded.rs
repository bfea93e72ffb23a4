//! The configuration as a server runs on it: the file, and what it names: secrets, certificates, the file of countries.

use super::{Config, ConfigError, SecretError, file, secrets, warnings};
use crate::admit::CountryMap;
use crate::clock::UnixMicros;
use crate::document::Table;
use crate::ids::ProviderName;
use crate::provider::Dialect;
use crate::relay::{CertificateChain, ServerCertificate};
use crate::secret::{ExposeSecret, SecretString};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// A configuration that a server can run on. `weir check`, a start and a reload read it by the same function, so that what one refuses
/// the others do.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The file.
    pub config: Config,
    contents: Contents,
}

/// What a configuration names and does not contain.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    /// By the names of their providers.
    keys: HashMap<ProviderName, SecretString>,
    /// In the order of the file, by their names.
    certificates: Vec<(String, Arc<ServerCertificate>)>,
    countries: Option<Arc<CountryMap>>,
}

/// Whether that is read, and what was.
pub(super) enum Outside {
    /// It stays names.
    Named,
    /// What cannot be read or used is a problem of the configuration.
    Read(Contents),
}

/// The longest file, in bytes: thousands of models.
const FILE_MAX_BYTES: u64 = 4 << 20;

impl Loaded {
    /// Reads the file and what it names; without a file, the default. Makes nothing: a pepper that is missing and can be made
    /// is not missed.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or it is wrong: then all that is wrong with it is told.
    pub fn read(path: Option<&Path>) -> Result<Loaded, ConfigError> {
        let Some(path) = path else {
            let config = Config::default();
            secrets::check_pepper(&config.auth.pepper).map_err(ConfigError::Pepper)?;
            return Ok(Loaded { config, contents: Contents::default() });
        };
        let mut outside = Outside::Read(Contents::default());
        let config = file::parse(&text(path)?, &path.display().to_string(), &mut outside)?;
        let contents = match outside {
            Outside::Read(contents) => contents,
            Outside::Named => Contents::default(),
        };
        Ok(Loaded { config, contents })
    }

    /// The operator's key for a provider, where the file names one.
    pub fn key(&self, provider: &ProviderName) -> Option<&SecretString> {
        self.contents.keys.get(provider)
    }

    /// The certificates, by their names, in the order of the file.
    pub fn certificates(&self) -> &[(String, Arc<ServerCertificate>)] {
        &self.contents.certificates
    }

    /// Which address is in which country, where that plays a part.
    pub fn countries(&self) -> Option<&Arc<CountryMap>> {
        self.contents.countries.as_ref()
    }

    /// What is worth a look; also certificates that clients refuse, or will within two weeks.
    pub fn warnings(&self, now: UnixMicros) -> Vec<String> {
        let ends = self.certificates().iter().map(|(name, certificate)| (name, certificate.ends_at_s()));
        let certificates =
            ends.filter_map(|(name, ends_at_s)| warnings::of_certificate(name, ends_at_s, now));
        self.config.warnings().into_iter().chain(certificates).collect()
    }
}

impl Outside {
    /// Reads what a provider's `api_key` names.
    pub(super) fn read_key(
        &mut self,
        table: &Table<'_>,
        provider: Option<&ProviderName>,
        reference: &super::SecretRef,
        dialect: Option<&'static dyn Dialect>,
    ) {
        let Outside::Read(contents) = self else { return };
        match reference.resolve() {
            Err(error) => table.problem_at("api_key", format!("`api_key`: {error}")),
            Ok(key) if dialect.is_some_and(|it| it.authorization(key.expose_secret()).is_none()) => {
                table.problem_at("api_key", format!(
                    "`api_key`: {reference} cannot stand in a header; a key is one line of visible ASCII characters"
                ));
            }
            Ok(key) => {
                contents.keys.extend(provider.map(|provider| (provider.clone(), key)));
            }
        }
    }

    /// Reads a certificate and its key, which must fit together.
    pub(super) fn read_certificate(
        &mut self,
        table: &Table<'_>,
        name: Option<&String>,
        chain: Option<&Path>,
        key: Option<&super::SecretRef>,
    ) {
        let Outside::Read(contents) = self else { return };
        let problem = |key: &str, error: &dyn std::error::Error| {
            table.problem_at(key, format!("`{key}`: {error}"));
        };
        let chain = chain
            .and_then(|path| CertificateChain::read(path).inspect_err(|error| problem("chain", error)).ok());
        let key = key.and_then(|key| key.resolve().inspect_err(|error| problem("key", error)).ok());
        let (Some(chain), Some(key)) = (chain, key) else { return };
        match chain.with_key(&key) {
            Ok(certificate) => {
                contents.certificates.extend(name.map(|name| (name.clone(), Arc::new(certificate))));
            }
            Err(error) => problem("key", &error),
        }
    }

    /// Reads the file of countries.
    pub(super) fn read_countries(&mut self, table: &Table<'_>, file: &Path) {
        let Outside::Read(contents) = self else { return };
        match CountryMap::read(file) {
            Ok(countries) => contents.countries = Some(Arc::new(countries)),
            Err(error) => table.problem_at("countries_file", format!("`countries_file`: {error}")),
        }
    }

    /// Looks whether the pepper is there, or can be made.
    pub(super) fn check_pepper(&self, reference: &super::SecretRef) -> Result<(), SecretError> {
        match self {
            Outside::Named => Ok(()),
            Outside::Read(_) => secrets::check_pepper(reference),
        }
    }
}

/// The file, which is UTF-8.
pub(super) fn text(path: &Path) -> Result<String, ConfigError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > FILE_MAX_BYTES {
        return Err(ConfigError::TooLong { path: path.to_owned(), max_bytes: FILE_MAX_BYTES });
    }
    String::from_utf8(bytes).map_err(|not_text| {
        let at = not_text.utf8_error().valid_up_to();
        let before = &not_text.as_bytes()[..at];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let byte = not_text.as_bytes().get(at).copied().unwrap_or_default();
        ConfigError::NotText { path: path.to_owned(), line, byte }
    })
}
