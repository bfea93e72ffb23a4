//! Secrets: API keys of ours, the pepper that their hashes are keyed with, and provider credentials.
//!
//! Promises: nothing here prints its secret; junk is told from a key without a look-up; a stored hash cannot be turned back.
//! Refuses to know: where secrets are kept, and whose they are.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt;

pub use secrecy::{ExposeSecret, SecretString};

/// What every key begins with.
pub const KEY_PREFIX: &str = "sk-weir-";
/// Base62 characters of random: 28 hold 166 bits.
const RANDOM_CHARS: usize = 28;
/// Base62 characters of the CRC32 (IEEE) of everything before them.
const CHECK_CHARS: usize = 6;
/// The length of a whole key, in bytes.
pub const KEY_LEN: usize = KEY_PREFIX.len() + RANDOM_CHARS + CHECK_CHARS;
/// The shortest pepper, in bytes.
pub const PEPPER_MIN_BYTES: usize = 32;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A well-formed API key: prefix, random part, checksum. Its text is shown once, when it is made.
#[derive(Clone)]
pub struct ApiKey(String);

/// HMAC-SHA256 of a key under the pepper: what is stored and looked up.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(pub [u8; 32]);

/// The secret that key hashes are keyed with; the same on every host of a fleet.
#[derive(Clone)]
pub struct Pepper(Hmac<Sha256>);

/// A pepper shorter than [`PEPPER_MIN_BYTES`].
#[derive(Debug, thiserror::Error)]
#[error("the pepper has {0} bytes; it needs {PEPPER_MIN_BYTES} or more")]
pub struct ShortPepper(usize);

impl ApiKey {
    /// A new key from the operating system's random numbers.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut text = String::with_capacity(KEY_LEN);
        text.push_str(KEY_PREFIX);
        while text.len() < KEY_PREFIX.len() + RANDOM_CHARS {
            let mut bytes = [0u8; 64];
            getrandom::fill(&mut bytes)?;
            // 248 is the largest multiple of 62 in a byte: no character is likelier than another.
            let unbiased =
                bytes.iter().filter(|b| **b < 248).map(|b| char::from(BASE62[usize::from(b % 62)]));
            text.extend(unbiased.take(KEY_PREFIX.len() + RANDOM_CHARS - text.len()));
        }
        let check = checksum(text.as_bytes());
        text.extend(check.map(char::from));
        Ok(ApiKey(text))
    }

    /// The key, if the text is one: prefix, length, alphabet and checksum are right.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != KEY_LEN || !text.starts_with(KEY_PREFIX) {
            return None;
        }
        let (body, check) = bytes.split_at(KEY_LEN - CHECK_CHARS);
        let in_alphabet = bytes[KEY_PREFIX.len()..].iter().all(u8::is_ascii_alphanumeric);
        (in_alphabet && checksum(body) == *check).then(|| ApiKey(text.to_owned()))
    }

    /// The text, to be shown once to whoever made the key.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The first characters, by which a person tells keys apart.
    pub fn prefix(&self) -> &str {
        &self.0[..KEY_PREFIX.len() + 4]
    }

    /// The last four characters.
    pub fn last_four(&self) -> &str {
        &self.0[KEY_LEN - 4..]
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({KEY_PREFIX}[redacted])")
    }
}

impl Pepper {
    /// A pepper of at least [`PEPPER_MIN_BYTES`] bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, ShortPepper> {
        if bytes.len() < PEPPER_MIN_BYTES {
            return Err(ShortPepper(bytes.len()));
        }
        Hmac::new_from_slice(bytes).map(Pepper).map_err(|_| ShortPepper(bytes.len()))
    }

    /// The hash that is stored for a key.
    pub fn hash(&self, key: &ApiKey) -> KeyHash {
        let mut mac = self.0.clone();
        mac.update(key.0.as_bytes());
        KeyHash(mac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper([redacted])")
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(..)")
    }
}

fn checksum(body: &[u8]) -> [u8; CHECK_CHARS] {
    let mut rest = crc32fast::hash(body);
    let mut text = [b'0'; CHECK_CHARS];
    for place in text.iter_mut().rev() {
        *place = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_key_parses_and_any_changed_character_does_not() {
        let key = ApiKey::generate().unwrap();
        assert_eq!(key.expose().len(), KEY_LEN);
        assert!(ApiKey::parse(key.expose()).is_some());
        for at in 0..KEY_LEN {
            let mut bytes = key.expose().as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
            assert!(ApiKey::parse(std::str::from_utf8(&bytes).unwrap()).is_none(), "at {at}");
        }
        assert!(ApiKey::parse("").is_none());
        assert!(ApiKey::parse(&format!("{}x", key.expose())).is_none());
    }

    #[test]
    fn hashes_depend_on_the_pepper_and_debug_shows_nothing() {
        let key = ApiKey::generate().unwrap();
        let (one, two) = (Pepper::new(&[1; 32]).unwrap(), Pepper::new(&[2; 32]).unwrap());
        assert!(one.hash(&key) == one.hash(&key));
        assert!(one.hash(&key) != two.hash(&key));
        assert!(Pepper::new(&[1; 31]).is_err());
        assert!(!format!("{key:?}{one:?}").contains(&key.expose()[8..]));
    }
}
