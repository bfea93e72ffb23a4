//! Secrets that the configuration names but does not contain.

use super::Config;
use crate::secret::{Pepper, SecretString, ShortPepper};
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where a secret is: `env:NAME`, `file:PATH`, or `credential:NAME` (systemd).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SecretRef {
    /// In a variable of the environment.
    Env(String),
    /// In a file.
    File(PathBuf),
    /// In a file that systemd puts into `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

/// Why a secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The environment has no such variable, or it is no text.
    #[error("the environment variable {0} is not set")]
    NotSet(String),
    /// It is to come from systemd, which has given none.
    #[error(
        "credential:{0}: $CREDENTIALS_DIRECTORY is not set; systemd sets it for a unit with LoadCredential=, and while that runs a command finds them \
         with CREDENTIALS_DIRECTORY=/run/credentials/weir.service"
    )]
    NoCredentials(String),
    /// It is there, and there is nothing in it.
    #[error("{0} is empty")]
    Empty(SecretRef),
    /// It is not UTF-8.
    #[error("{0} is not text")]
    NotText(SecretRef),
    /// It is longer than a secret can be.
    #[error("{0} is longer than {SECRET_MAX_BYTES} bytes")]
    TooLong(SecretRef),
    /// Its file cannot be read, or made.
    #[error("{path}: {cause}", path = path.display())]
    File {
        /// The file or its directory.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The pepper is too short.
    #[error("{0}: {1}")]
    Short(SecretRef, ShortPepper),
    /// No random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

/// The longest secret, in bytes.
const SECRET_MAX_BYTES: u64 = 64 * 1024;
/// A new pepper, in bytes.
const NEW_PEPPER_BYTES: usize = 32;
const LINE_ENDS: [char; 2] = ['\n', '\r'];
/// Where systemd puts credentials.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

impl SecretRef {
    /// Reads a reference as the configuration has it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let expected = || {
            "env:NAME, file:PATH or credential:NAME is expected; the secret itself does not belong here"
                .to_owned()
        };
        let (kind, rest) = text.split_once(':').ok_or_else(expected)?;
        let is_name = !rest.is_empty() && !rest.contains(['/', '=', '\0']) && rest != "." && rest != "..";
        match kind {
            "env" if is_name => Ok(SecretRef::Env(rest.to_owned())),
            "file" if !rest.is_empty() => Ok(SecretRef::File(rest.into())),
            "credential" if is_name => Ok(SecretRef::Credential(rest.to_owned())),
            _ => Err(expected()),
        }
    }

    /// The secret, without a line end behind it.
    ///
    /// # Errors
    ///
    /// It is not there, cannot be read, or is not a text of 1 to 65,536 bytes. No message shows anything of it.
    pub fn resolve(&self) -> Result<SecretString, SecretError> {
        let text = String::from_utf8(self.bytes()?).map_err(|_| SecretError::NotText(self.clone()))?;
        let text = text.trim_end_matches(LINE_ENDS);
        if text.is_empty() {
            return Err(SecretError::Empty(self.clone()));
        }
        Ok(SecretString::from(text))
    }

    /// The bytes as they are kept.
    fn bytes(&self) -> Result<Vec<u8>, SecretError> {
        match self {
            SecretRef::Env(name) => {
                environment(name).map(String::into_bytes).ok_or_else(|| SecretError::NotSet(name.clone()))
            }
            SecretRef::File(path) => self.read(path),
            SecretRef::Credential(name) => {
                let directory = environment(CREDENTIALS_DIRECTORY);
                let directory = directory.ok_or_else(|| SecretError::NoCredentials(name.clone()))?;
                self.read(&Path::new(&directory).join(name))
            }
        }
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, SecretError> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(SECRET_MAX_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|cause| SecretError::File { path: path.to_owned(), cause })?;
        match u64::try_from(bytes.len()) {
            Ok(0..=SECRET_MAX_BYTES) => Ok(bytes),
            Ok(_) | Err(_) => Err(SecretError::TooLong(self.clone())),
        }
    }

    /// Whether others than the owner may read it; `false` where that cannot be told.
    pub(super) fn is_open_to_others(&self) -> bool {
        match self {
            SecretRef::File(path) => {
                fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o077 != 0)
            }
            SecretRef::Env(_) | SecretRef::Credential(_) => false,
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretRef::Env(name) => write!(f, "env:{name}"),
            SecretRef::File(path) => write!(f, "file:{}", path.display()),
            SecretRef::Credential(name) => write!(f, "credential:{name}"),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The pepper of the configuration. Where it is a file that does not exist it is made, of random bytes, for its owner alone; of
/// several processes that do so at once one makes it and all read the same.
///
/// # Errors
///
/// It cannot be read or made, or has fewer than 32 bytes.
pub fn pepper(config: &Config) -> Result<Pepper, SecretError> {
    let reference = &config.auth.pepper;
    if let SecretRef::File(path) = reference {
        create_when_missing(path)?;
    }
    load_pepper(reference)
}

/// Whether the pepper is there, or will be made.
pub(super) fn check_pepper(reference: &SecretRef) -> Result<(), SecretError> {
    match reference {
        SecretRef::File(path) if !path.exists() => Ok(()),
        SecretRef::File(_) | SecretRef::Env(_) | SecretRef::Credential(_) => {
            load_pepper(reference).map(|_| ())
        }
    }
}

/// Any bytes will do. Where they are a line of text its end is not part of them.
fn load_pepper(reference: &SecretRef) -> Result<Pepper, SecretError> {
    let bytes = reference.bytes()?;
    let bytes = match std::str::from_utf8(&bytes) {
        Ok(line) => line.trim_end_matches(LINE_ENDS).as_bytes(),
        Err(_) => &bytes,
    };
    Pepper::new(bytes).map_err(|short| SecretError::Short(reference.clone(), short))
}

/// The file is written whole under another name first, so that nobody reads half of it, and then gets its name unless another
/// process was faster.
fn create_when_missing(path: &Path) -> Result<(), SecretError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |cause| SecretError::File { path, cause }
    };
    if path.try_exists().map_err(failed(path))? {
        return Ok(());
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed(directory))?;
    let mut random = [0; NEW_PEPPER_BYTES];
    getrandom::fill(&mut random)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", uuid::Uuid::now_v7().as_simple()));
    let whole = path.with_file_name(name);
    let made = write_new(&whole, &(hex(&random) + "\n")).and_then(|()| match fs::hard_link(&whole, path) {
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    let removed = fs::remove_file(&whole);
    made.and(removed).map_err(failed(path))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed(directory))
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{ApiKey, ExposeSecret};

    fn file(path: &Path) -> SecretRef {
        SecretRef::File(path.to_owned())
    }

    fn with_pepper(path: &Path) -> Config {
        let mut config = Config::default();
        config.auth.pepper = file(path);
        config
    }

    #[test]
    fn a_reference_is_read_as_it_is_shown_and_a_secret_in_its_place_is_refused() {
        for text in ["env:OPENAI_API_KEY", "file:/etc/weir/key", "credential:openai"] {
            assert_eq!(SecretRef::parse(text).unwrap().to_string(), text);
        }
        for text in ["sk-proj-abc", "env:", "file:", "credential:../x", "vault:x", "env:A=B", ""] {
            let refused = SecretRef::parse(text).unwrap_err();
            assert!(text.is_empty() || !refused.contains("sk-proj"), "{refused}");
        }
    }

    #[test]
    fn a_secret_file_is_read_without_its_line_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "sk-test\r\n").unwrap();
        assert_eq!(file(&path).resolve().unwrap().expose_secret(), "sk-test");
        fs::write(&path, "\n").unwrap();
        assert!(matches!(file(&path).resolve(), Err(SecretError::Empty(_))));
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(file(&path).resolve(), Err(SecretError::NotText(_))));
        fs::write(&path, vec![b'x'; 70_000]).unwrap();
        assert!(matches!(file(&path).resolve(), Err(SecretError::TooLong(_))));
        assert!(file(&directory.path().join("none")).resolve().unwrap_err().to_string().contains("none"));
        let unset = SecretRef::Env("WEIR_NO_SUCH_VARIABLE".into());
        assert!(unset.resolve().unwrap_err().to_string().contains("WEIR_NO_SUCH_VARIABLE"));
    }

    #[test]
    fn a_missing_pepper_is_made_once_for_its_owner_alone_and_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data/pepper");
        assert!(check_pepper(&file(&path)).is_ok());
        assert!(!path.exists(), "a check makes nothing");
        let key = ApiKey::generate().unwrap();
        let hashes = std::thread::scope(|scope| {
            let made: Vec<_> =
                (0..8).map(|_| scope.spawn(|| pepper(&with_pepper(&path)).unwrap().hash(&key))).collect();
            made.into_iter().map(|made| made.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "racing processes hold one pepper");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left behind");
        assert_eq!(fs::read(&path).unwrap().len(), 65);
    }

    #[test]
    fn a_short_pepper_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pepper");
        for short in [&b"0123456789012345678901234567890\n"[..], b""] {
            fs::write(&path, short).unwrap();
            assert!(matches!(pepper(&with_pepper(&path)), Err(SecretError::Short(..))));
            assert!(check_pepper(&file(&path)).is_err());
        }
        fs::write(&path, [0xff; 32]).unwrap();
        assert!(pepper(&with_pepper(&path)).is_ok());
    }
}
