//! The outermost level of a JSON text: its keys, and where their values stand; everything within is checked, nothing is built.
//!
//! Takes exactly the texts that `serde_json` takes when it passes over the values, and gives the same keys and values; the tests
//! hold the two against each other. It stands beside `serde_json` because every request, every answer and every event of a stream
//! goes through it, and on a request it takes half of the time, and less where escapes are few: `serde_json` needs a pass of
//! its own for the depth, looks at long texts a word at a time, and pays for each value that it lends. What is wrong with a text
//! is still for `serde_json` to say.
//!
//! No recursion, and no allocation above 64 levels.

mod cursor;
mod plain;

use cursor::Cursor;
use std::borrow::Cow;

/// Why a text is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Not JSON, or not of the kind that was asked for.
    Syntax,
    /// It nests deeper than it may.
    TooDeep,
}

/// Told of what is passed over. Keys and strings are as they were written; in an array, the key is empty.
pub(super) trait Watch {
    /// A key within a value, and whether it has no escapes.
    fn key(&mut self, _key: &[u8], _is_plain: bool) {}
    /// An object or an array begins under this key.
    fn open(&mut self, _key: &[u8]) {}
    /// A string under this key.
    fn string(&mut self, _key: &[u8], _string: &[u8]) {}
}

/// Watches nothing.
impl Watch for () {}

/// Reads a text that is one object: `member` gets each key, owned exactly where it was written with escapes, and the text of its
/// value. What it got before a fault counts for nothing.
pub(super) fn object<'a>(
    text: &'a str,
    depth_max: usize,
    watch: &mut impl Watch,
    mut member: impl FnMut(Cow<'a, str>, &'a str),
) -> Result<(), Fault> {
    let mut cursor = Cursor::new(text, depth_max);
    if cursor.peek() != Some(b'{') {
        // How deep it nests is told of whatever it is.
        cursor.value(b"", watch)?;
        return Err(Fault::Syntax);
    }
    cursor.open(true)?;
    if !cursor.take(b'}') {
        loop {
            let (at, is_plain) = cursor.key()?;
            let key = &text[at];
            let value = cursor.value(key.as_bytes(), watch)?;
            member(if is_plain { Cow::Borrowed(key) } else { Cow::Owned(unescape(key)?) }, value);
            if !cursor.goes_on(b'}')? {
                break;
            }
        }
    }
    cursor.end()
}

/// Reads a text that is one array: `item` gets the text of each value.
pub(super) fn array<'a>(text: &'a str, mut item: impl FnMut(&'a str)) -> Result<(), Fault> {
    let mut cursor = Cursor::new(text, usize::MAX);
    if !cursor.take(b'[') {
        return Err(Fault::Syntax);
    }
    cursor.space();
    if !cursor.take(b']') {
        loop {
            item(cursor.value(b"", &mut ())?);
            if !cursor.goes_on(b']')? {
                break;
            }
        }
    }
    cursor.end()
}

/// The values of an object under some names; null is as good as absent. A name that stands twice is a fault.
pub(super) fn fields<'a, const N: usize>(
    text: &'a str,
    names: [&str; N],
) -> Result<[Option<&'a str>; N], Fault> {
    let mut values = [None; N];
    let mut is_twice = false;
    object(text, usize::MAX, &mut (), |key, value| {
        let key: &str = &key;
        if let Some(position) = names.iter().position(|name| *name == key) {
            is_twice |= values[position].replace(value).is_some();
        }
    })?;
    if is_twice { Err(Fault::Syntax) } else { Ok(values.map(|value| value.filter(|value| *value != "null"))) }
}

/// The string that a text begins with, with its quotes, and what is behind it.
pub(super) fn leading_string(text: &str) -> Option<(&str, &str)> {
    if !text.starts_with('"') {
        return None;
    }
    let (inside, _) = Cursor::new(text, 0).string().ok()?;
    text.split_at_checked(inside.end + 1)
}

fn unescape(key: &str) -> Result<String, Fault> {
    serde_json::from_str(&format!("\"{key}\"")).map_err(|_| Fault::Syntax)
}

#[cfg(test)]
mod tests;
