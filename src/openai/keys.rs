//! The keys of a request that are acted on, each with one reading or none.

use super::text::Key;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// The top-level keys that are acted on, or counted.
const NAMES: [&str; 18] = [
    "model",
    "messages",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "best_of",
    "service_tier",
    "prompt",
    "input",
    "suffix",
    "tools",
    "functions",
    "store",
    "previous_response_id",
    "conversation",
    "prompt_cache_key",
];

/// An object's values under the names that matter, and the name that could be read in two ways.
#[derive(Default)]
pub(super) struct Object<'a> {
    values: [Option<&'a RawValue>; NAMES.len()],
    pub(super) ambiguous: Option<&'static str>,
}

impl<'a> Object<'a> {
    /// The value under a name of [`NAMES`], null included.
    pub(super) fn raw(&self, name: &str) -> Option<&'a RawValue> {
        NAMES.iter().position(|known| *known == name).and_then(|position| self.values[position])
    }

    /// The value under a name of [`NAMES`]; null is as good as absent.
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.raw(name).filter(|raw| raw.get() != "null")
    }
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut object = Object::default();
                while let Some(key) = map.next_key::<Key<'de>>()? {
                    match slot(&key, &NAMES) {
                        Some((position, true)) if object.values[position].is_none() => {
                            object.values[position] = Some(map.next_value()?);
                        }
                        Some((position, _)) => {
                            object.ambiguous.get_or_insert(NAMES[position]);
                            map.next_value::<IgnoredAny>()?;
                        }
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(object)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// Which of the names some reader could take the key for, and whether every reader would.
fn slot(Key(key): &Key<'_>, names: &[&str]) -> Option<(usize, bool)> {
    if let Some(position) = names.iter().position(|name| name == key) {
        return Some((position, matches!(key, Cow::Borrowed(_))));
    }
    let folds = |byte: u8| byte.is_ascii_uppercase() || !byte.is_ascii();
    if !key.bytes().any(folds) {
        return None;
    }
    // Readers that fold case as Unicode does take these two for letters of ASCII, too.
    let folded: String = key
        .chars()
        .map(|letter| match letter {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            other => other.to_ascii_lowercase(),
        })
        .collect();
    names.iter().position(|name| *name == folded).map(|position| (position, false))
}

/// The options of a stream, as far as they are acted on.
#[derive(Default)]
pub(super) struct StreamOptions<'a> {
    pub(super) include_usage: Option<&'a RawValue>,
    pub(super) is_empty: bool,
    pub(super) is_ambiguous: bool,
}

impl<'de> Deserialize<'de> for StreamOptions<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Options;
        impl<'de> Visitor<'de> for Options {
            type Value = StreamOptions<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StreamOptions<'de>, A::Error> {
                let mut options = StreamOptions { is_empty: true, ..StreamOptions::default() };
                while let Some(key) = map.next_key::<Key<'de>>()? {
                    options.is_empty = false;
                    let value: &RawValue = map.next_value()?;
                    match slot(&key, &["include_usage"]) {
                        None => {}
                        Some((_, true)) if options.include_usage.is_none() => {
                            options.include_usage = Some(value)
                        }
                        Some(_) => options.is_ambiguous = true,
                    }
                }
                Ok(options)
            }
        }
        deserializer.deserialize_map(Options)
    }
}

/// Where a borrowed value stands in the text that it was read from.
pub(super) fn span(raw: &RawValue, text: &str) -> Range<usize> {
    let start = raw.get().as_ptr().addr() - text.as_ptr().addr();
    start..start + raw.get().len()
}
