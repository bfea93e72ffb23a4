//! One walk over a body before anything parses it: how deep it nests, and how many tokens it can be at most.
//!
//! No recursion, no allocation: a body of brackets alone costs a pass over it. What is not JSON is left to the parser to refuse.

use memchr::memchr2;

/// The deepest nesting that is taken, the body itself included.
pub(super) const DEPTH_MAX: u32 = 128;

/// The body nests deeper than [`DEPTH_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooDeep;

/// What an image, a recording or a file is taken for in an estimate, in tokens, besides what its size says.
const MEDIA_TOKENS: u64 = 1_500;

/// A string under the key of a medium that is shorter than this is taken for text.
const MEDIA_MIN_BYTES: usize = 1024;

/// The most tokens that the body's text can have, more or less, without counting them: no token of a tokenizer over bytes is
/// shorter than a byte, and the JSON around each message is longer than what a model adds to it. Media inside the body count
/// by their kind and size, for their bytes are not read as text.
///
/// # Errors
///
/// [`TooDeep`].
pub(super) fn input_estimate(text: &str) -> Result<u64, TooDeep> {
    let bytes = text.as_bytes();
    let (mut depth, mut at) = (0_u32, 0);
    let (mut last, mut key): (&[u8], Option<&[u8]>) = (&[], None);
    let (mut media_tokens, mut media_bytes) = (0_u64, 0);
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'"' => {
                let string = string_at(bytes, at);
                at += string.len() + 1;
                let medium = key.and_then(|key| tokens_of_medium(key, string));
                if let Some(tokens) = medium {
                    media_bytes += string.len();
                    media_tokens = media_tokens.saturating_add(tokens);
                }
                if key.take().is_some_and(is_medium) {
                    media_tokens = media_tokens.saturating_add(MEDIA_TOKENS);
                }
                last = string;
            }
            b':' => key = Some(last),
            b',' => key = None,
            b'{' | b'[' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(TooDeep);
                }
                if key.take().is_some_and(is_medium) {
                    media_tokens = media_tokens.saturating_add(MEDIA_TOKENS);
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    let text_bytes = u64::try_from(bytes.len() - media_bytes).unwrap_or(u64::MAX);
    Ok(text_bytes.saturating_add(media_tokens))
}

/// The inside of the string whose opening quote stands before `start`. One that does not end goes to the end.
fn string_at(bytes: &[u8], start: usize) -> &[u8] {
    let mut at = start;
    while let Some(next) = bytes.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += next;
        if bytes[at] == b'"' {
            return &bytes[start..at];
        }
        at += 2;
    }
    &bytes[start..]
}

/// Whether a value under this key is an image, a recording or a file.
fn is_medium(key: &[u8]) -> bool {
    matches!(key, b"image_url" | b"video_url" | b"input_audio" | b"file")
}

/// The tokens of a medium that is in the body, by its size; `None` for text. Generous: what an hour of speech, or a file full of
/// words, comes to depends on how it was packed.
fn tokens_of_medium(key: &[u8], string: &[u8]) -> Option<u64> {
    if string.len() < MEDIA_MIN_BYTES {
        return None;
    }
    let bytes_per_token = match key {
        b"url" | b"image_url" | b"video_url" if string.starts_with(b"data:") => 512,
        b"data" if string.iter().take(MEDIA_MIN_BYTES).all(|byte| is_base64(*byte)) => 64,
        b"file_data" => 4,
        _ => return None,
    };
    Some(u64::try_from(string.len()).unwrap_or(u64::MAX) / bytes_per_token)
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_that_of_brackets_outside_of_text() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(input_estimate(&nested(128)).is_ok());
        assert_eq!(input_estimate(&nested(129)), Err(TooDeep));
        assert_eq!(input_estimate(&"{\"a\":".repeat(100_000)), Err(TooDeep));
        let wide = format!("[{}]", "[],".repeat(1_000));
        assert!(input_estimate(&wide).is_ok());
        assert!(
            input_estimate(&format!(r#"{{"a":"\"{}\\","b":"\\{}"}}"#, "[".repeat(500), "{".repeat(500)))
                .is_ok()
        );
        assert!(input_estimate("\"ends in a backslash \\").is_ok());
    }

    #[test]
    fn text_is_at_most_a_token_a_byte() {
        for body in [r#"{"messages":[{"role":"user","content":"hi"}]}"#, r#"{"input":[1,2,3]}"#] {
            assert_eq!(input_estimate(body).unwrap(), body.len() as u64);
        }
    }

    #[test]
    fn a_medium_in_the_body_is_not_counted_as_text() {
        let data = "A".repeat(1 << 20);
        let image = format!(r#"{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{data}"}}}}"#);
        let tokens = input_estimate(&image).unwrap();
        assert!((1_500..5_000).contains(&tokens), "{tokens}");
        let audio = format!(r#"{{"type":"input_audio","input_audio":{{"data":"{data}","format":"mp3"}}}}"#);
        assert!(input_estimate(&audio).unwrap() < 20_000);
        let link = r#"{"type":"image_url","image_url":{"url":"https://example.com/a.png"}}"#;
        assert!(input_estimate(link).unwrap() > 1_500);
    }

    #[test]
    fn text_is_no_medium_because_it_says_so() {
        let text = "data: ".to_owned() + &"word ".repeat(10_000);
        for body in [format!(r#"{{"content":"{text}"}}"#), format!(r#"{{"data":"{text}"}}"#)] {
            assert_eq!(input_estimate(&body).unwrap(), body.len() as u64);
        }
    }
}
