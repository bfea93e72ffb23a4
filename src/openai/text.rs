//! Text inside JSON that somebody else wrote: read for counting, so leniently and without copies where there are no escapes.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// The text of a JSON string; `None` for any other value. Half a surrogate pair, which some providers send when they cut a
/// character in two, reads as U+FFFD.
pub(super) fn string(json: &str) -> Option<Cow<'_, str>> {
    let inner = json.strip_prefix('"')?.strip_suffix('"')?;
    Some(if inner.contains('\\') { Cow::Owned(unescape(inner)) } else { Cow::Borrowed(inner) })
}

/// A part of a message, or of what a message streams.
#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    refusal: Option<&'a RawValue>,
    #[serde(borrow, default)]
    thinking: Option<&'a RawValue>,
}

/// Hands on every text of a value that is a string, a part, or an array of them. Returns how many parts had none.
pub(super) fn each_text(json: &str, text: &mut dyn FnMut(&str)) -> u64 {
    if let Some(whole) = string(json) {
        text(&whole);
        return 0;
    }
    match json.as_bytes().first() {
        Some(b'{') => part_text(json, text),
        Some(b'[') => {
            let mut without = 0;
            let parts: Vec<&RawValue> = serde_json::from_str(json).unwrap_or_default();
            for part in parts {
                match string(part.get()) {
                    Some(whole) => text(&whole),
                    None => without += part_text(part.get(), text),
                }
            }
            without
        }
        Some(_) | None => 0,
    }
}

/// Hands on the texts of a part. Returns whether it has none, as a number.
fn part_text(json: &str, text: &mut dyn FnMut(&str)) -> u64 {
    match serde_json::from_str::<Part<'_>>(json) {
        Ok(Part { text: None, refusal: None, thinking: None }) => return 1,
        Ok(Part { text: plain, refusal, thinking }) => {
            let texts = [plain, refusal, thinking].into_iter().flatten();
            texts.for_each(|value| each_inner_text(value, text));
        }
        // Not a part as anybody knows it: its JSON is its text.
        Err(_) => text(json),
    }
    0
}

/// The text of a part's field: a string, or an array of objects with a `text` each.
fn each_inner_text(raw: &RawValue, text: &mut dyn FnMut(&str)) {
    #[derive(Deserialize)]
    struct Inner<'a> {
        #[serde(borrow)]
        text: &'a RawValue,
    }
    if let Some(whole) = string(raw.get()) {
        return text(&whole);
    }
    match serde_json::from_str::<Vec<Inner<'_>>>(raw.get()) {
        Ok(parts) => parts.iter().filter_map(|part| string(part.text.get())).for_each(|whole| text(&whole)),
        Err(_) => text(raw.get()),
    }
}

fn unescape(inner: &str) -> String {
    let mut out = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        out.push_str(plain);
        let Some(kind) = escaped.chars().next() else { return out };
        rest = &escaped[kind.len_utf8()..];
        match kind {
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'u' => out.push(code_point(&mut rest)),
            other => out.push(other),
        }
    }
    out.push_str(rest);
    out
}

/// The character of one or two `\u` escapes, the first of them begun.
fn code_point(rest: &mut &str) -> char {
    let Some(first) = unit(rest) else { return char::REPLACEMENT_CHARACTER };
    if (0xd800..0xdc00).contains(&first)
        && let Some(mut after) = rest.strip_prefix("\\u")
        && let Some(second @ 0xdc00..0xe000) = unit(&mut after)
    {
        *rest = after;
        let point = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        return char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER);
    }
    char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn unit(rest: &mut &str) -> Option<u32> {
    let unit = u32::from_str_radix(rest.get(..4)?, 16).ok()?;
    *rest = &rest[4..];
    Some(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_read_as_json_says() {
        for text in ["", "plain", "a\"b\\c/\n\r\t\u{8}\u{c}\u{1}", "川\u{1f30a}é"] {
            let plain = serde_json::to_string(text).unwrap();
            let ascii: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
            assert_eq!(string(&plain).unwrap(), text);
            assert_eq!(string(&format!("\"{ascii}\"")).unwrap(), text);
        }
        assert_eq!(string("\"\\/\"").unwrap(), "/");
        assert_eq!(string("5"), None);
    }

    #[test]
    fn half_a_character_does_not_lose_the_text() {
        assert_eq!(string(r#""a\ud83db\udf0a\ud83d\u0041""#).unwrap(), "a\u{fffd}b\u{fffd}\u{fffd}A");
    }

    #[test]
    fn every_text_of_every_part_is_found() {
        let json = r#"["a",{"type":"text","text":"b"},{"type":"image_url","image_url":{"url":"x"}},
            {"type":"thinking","thinking":[{"type":"text","text":"c"}]},{"refusal":"d"},7]"#;
        let mut texts = Vec::new();
        assert_eq!(each_text(json, &mut |text| texts.push(text.to_owned())), 1);
        assert_eq!(texts, ["a", "b", "c", "d", "7"]);
    }
}
