//! The keys of a request that are acted on, each with one reading or none.

use super::json::{Fault, Watch, object};
use std::borrow::Cow;
use std::ops::Range;

/// A top-level key that is acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Model,
    Messages,
    Stream,
    StreamOptions,
    MaxTokens,
    MaxCompletionTokens,
    N,
    BestOf,
    ServiceTier,
    Prompt,
    Store,
    PreviousResponseId,
    Conversation,
    PromptCacheKey,
}

/// Each [`Name`] as it is written, in the order of the type; behind them, those that are only counted.
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
    "store",
    "previous_response_id",
    "conversation",
    "prompt_cache_key",
    "input",
    "suffix",
    "tools",
    "functions",
];

impl Name {
    pub(super) const fn as_str(self) -> &'static str {
        NAMES[self as usize]
    }
}

/// An object's values under the names that matter, and the name that could be read in two ways.
#[derive(Default)]
pub(super) struct Object<'a> {
    values: [Option<&'a str>; NAMES.len()],
    pub(super) ambiguous: Option<&'static str>,
}

impl<'a> Object<'a> {
    /// Reads a body.
    pub(super) fn read(text: &'a str, depth_max: usize, watch: &mut impl Watch) -> Result<Self, Fault> {
        let mut read = Object::default();
        object(text, depth_max, watch, |key, value| match slot(&key, is_plain(&key), &NAMES) {
            Some((position, true)) if read.values[position].is_none() => read.values[position] = Some(value),
            Some((position, _)) => read.ambiguous = read.ambiguous.or(Some(NAMES[position])),
            None => {}
        })?;
        Ok(read)
    }

    /// The value under a name, null included.
    pub(super) fn raw(&self, name: Name) -> Option<&'a str> {
        self.values[name as usize]
    }

    /// The value under a name; null is as good as absent.
    pub(super) fn get(&self, name: Name) -> Option<&'a str> {
        self.raw(name).filter(|value| *value != "null")
    }
}

#[expect(clippy::ptr_arg, reason = "whether it is borrowed is what is asked")]
fn is_plain(key: &Cow<'_, str>) -> bool {
    matches!(key, Cow::Borrowed(_))
}

/// Which of the names some reader could take the key for, and whether every reader would.
fn slot(key: &str, is_plain: bool, names: &[&str]) -> Option<(usize, bool)> {
    if let Some(position) = names.iter().position(|name| **name == *key) {
        return Some((position, is_plain));
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
    pub(super) include_usage: Option<&'a str>,
    pub(super) is_empty: bool,
    pub(super) is_ambiguous: bool,
}

impl<'a> StreamOptions<'a> {
    /// Reads the value of `stream_options`.
    pub(super) fn read(text: &'a str) -> Result<Self, Fault> {
        let mut options = StreamOptions { is_empty: true, ..StreamOptions::default() };
        object(text, usize::MAX, &mut (), |key, value| {
            options.is_empty = false;
            match slot(&key, is_plain(&key), &["include_usage"]) {
                None => {}
                Some((_, true)) if options.include_usage.is_none() => options.include_usage = Some(value),
                Some(_) => options.is_ambiguous = true,
            }
        })?;
        Ok(options)
    }
}

/// Where a borrowed value stands in the text that it was read from.
pub(super) fn span(value: &str, text: &str) -> Range<usize> {
    let start = value.as_ptr().addr() - text.as_ptr().addr();
    start..start + value.len()
}
