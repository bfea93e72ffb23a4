//! The configuration as a server runs on it: the file, and the secrets that it names.

use super::{Config, ConfigError, SecretError, file, secrets};
use crate::document::Table;
use crate::ids::ProviderName;
use crate::provider::Dialect;
use crate::secret::{ExposeSecret, SecretString};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A configuration that a server can run on. `weir check`, a start and a reload read it by the same function, so that what one refuses
/// the others do.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The file.
    pub config: Config,
    keys: HashMap<ProviderName, SecretString>,
}

/// Whether the secrets of a file are read, and those that were.
pub(super) enum Secrets {
    /// They stay names.
    Named,
    /// One that cannot be read is a problem of the file. The keys, by the names of their providers.
    Read(HashMap<ProviderName, SecretString>),
}

/// The longest file, in bytes: thousands of models.
const FILE_MAX_BYTES: u64 = 4 << 20;

impl Loaded {
    /// Reads the file and the secrets that it names; without a file, the default. Makes nothing: a pepper that is missing and can be made
    /// is not missed.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or it is wrong: then all that is wrong with it is told.
    pub fn read(path: Option<&Path>) -> Result<Loaded, ConfigError> {
        let Some(path) = path else {
            let config = Config::default();
            secrets::check_pepper(&config.auth.pepper).map_err(ConfigError::Pepper)?;
            return Ok(Loaded { config, keys: HashMap::new() });
        };
        let mut secrets = Secrets::Read(HashMap::new());
        let config = file::parse(&text(path)?, &path.display().to_string(), &mut secrets)?;
        let keys = match secrets {
            Secrets::Read(keys) => keys,
            Secrets::Named => HashMap::new(),
        };
        Ok(Loaded { config, keys })
    }

    /// The operator's key for a provider, where the file names one.
    pub fn key(&self, provider: &ProviderName) -> Option<&SecretString> {
        self.keys.get(provider)
    }
}

impl Secrets {
    /// Reads what a provider's `api_key` names.
    pub(super) fn read_key(
        &mut self,
        table: &Table<'_>,
        provider: Option<&ProviderName>,
        reference: &super::SecretRef,
        dialect: Option<&'static dyn Dialect>,
    ) {
        let Secrets::Read(keys) = self else { return };
        match reference.resolve() {
            Err(error) => table.problem_at("api_key", format!("`api_key`: {error}")),
            Ok(key) if dialect.is_some_and(|it| it.authorization(key.expose_secret()).is_none()) => {
                table.problem_at("api_key", format!(
                    "`api_key`: {reference} cannot stand in a header; a key is one line of visible ASCII characters"
                ));
            }
            Ok(key) => {
                keys.extend(provider.map(|provider| (provider.clone(), key)));
            }
        }
    }

    /// Looks whether the pepper is there, or can be made.
    pub(super) fn check_pepper(&self, reference: &super::SecretRef) -> Result<(), SecretError> {
        match self {
            Secrets::Named => Ok(()),
            Secrets::Read(_) => secrets::check_pepper(reference),
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
