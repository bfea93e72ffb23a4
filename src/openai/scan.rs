//! What is noted of a body while its reader passes over it: how many tokens it can be at most, and whether it may name a file that
//! a provider keeps.

use super::json::Watch;

/// The deepest nesting that is taken, the body itself included.
pub(super) const DEPTH_MAX: usize = 128;

/// What an image, a recording or a file is taken for in an estimate, in tokens, besides what its size says.
const MEDIA_TOKENS: u64 = 1_500;

/// A string under the key of a medium that is shorter than this is taken for text.
const MEDIA_MIN_BYTES: usize = 1024;

/// What was noted so far.
#[derive(Default)]
pub(super) struct Notes {
    media_tokens: u64,
    media_bytes: usize,
    /// Whether there is a key, somewhere, that can be read as `file_id`.
    pub(super) may_name_a_file: bool,
}

impl Notes {
    /// The most tokens that the text of a body of so many bytes can have, more or less, without counting them: no token of a
    /// tokenizer over bytes is shorter than a byte, and the JSON around each message is longer than what a model adds to it. Media
    /// inside the body count by their kind and size, for their bytes are not read as text.
    pub(super) fn input_estimate(&self, body_bytes: usize) -> u64 {
        let text_bytes = u64::try_from(body_bytes.saturating_sub(self.media_bytes)).unwrap_or(u64::MAX);
        text_bytes.saturating_add(self.media_tokens)
    }

    fn medium(&mut self, tokens: u64) {
        self.media_tokens = self.media_tokens.saturating_add(tokens);
    }
}

impl Watch for Notes {
    fn key(&mut self, key: &[u8], is_plain: bool) {
        self.may_name_a_file |= !is_plain || key == b"file_id";
    }

    fn open(&mut self, key: &[u8]) {
        if is_medium(key) {
            self.medium(MEDIA_TOKENS);
        }
    }

    fn string(&mut self, key: &[u8], string: &[u8]) {
        if let Some(tokens) = tokens_of_medium(key, string) {
            self.media_bytes += string.len();
            self.medium(tokens);
        }
        if is_medium(key) {
            self.medium(MEDIA_TOKENS);
        }
    }
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
    use crate::openai::json::object;

    fn input_estimate(text: &str) -> u64 {
        let mut notes = Notes::default();
        object(text, DEPTH_MAX, &mut notes, |_, _| ()).unwrap();
        notes.input_estimate(text.len())
    }

    #[test]
    fn text_is_at_most_a_token_a_byte() {
        for body in [r#"{"messages":[{"role":"user","content":"hi"}]}"#, r#"{"input":[1,2,3]}"#] {
            assert_eq!(input_estimate(body), body.len() as u64);
        }
    }

    #[test]
    fn a_medium_in_the_body_is_not_counted_as_text() {
        let data = "A".repeat(1 << 20);
        let image = format!(r#"{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{data}"}}}}"#);
        let tokens = input_estimate(&image);
        assert!((1_500..5_000).contains(&tokens), "{tokens}");
        let audio = format!(r#"{{"type":"input_audio","input_audio":{{"data":"{data}","format":"mp3"}}}}"#);
        assert!(input_estimate(&audio) < 20_000);
        let link = r#"{"type":"image_url","image_url":{"url":"https://example.com/a.png"}}"#;
        assert!(input_estimate(link) > 1_500);
    }

    #[test]
    fn text_is_no_medium_because_it_says_so() {
        let text = "data: ".to_owned() + &"word ".repeat(10_000);
        for body in [format!(r#"{{"content":"{text}"}}"#), format!(r#"{{"data":"{text}"}}"#)] {
            assert_eq!(input_estimate(&body), body.len() as u64);
        }
    }

    #[test]
    fn a_key_that_may_name_a_file_is_noted() {
        let noted = |text: &str| {
            let mut notes = Notes::default();
            object(text, DEPTH_MAX, &mut notes, |_, _| ()).unwrap();
            notes.may_name_a_file
        };
        assert!(noted(r#"{"a":[{"file":{"file_id":"x"}}]}"#));
        assert!(noted(r#"{"a":[{"file":{"file\u005fid":"x"}}]}"#));
        assert!(!noted(r#"{"a":["file_id","\"file_id\":1"],"b":{"file":{}}}"#));
    }
}
