//! What makes two requests parts of one conversation: they begin with the same words, or say so themselves.

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};

/// A prompt is told by so much of its beginning, in bytes.
const PROMPT_MAX_BYTES: usize = 1_024;

/// A number for the messages up to the first that is not an instruction: what stays the same from turn to turn of a conversation, and
/// differs between two that have their instructions in common.
pub(super) fn of_messages(raw: &str, hasher: &mut DefaultHasher) {
    let mut deserializer = serde_json::Deserializer::from_str(raw);
    // It ends at the first message that is no instruction, which serde takes for an error. So is anything that is not an array: there
    // is nothing to stay with, then.
    let _read_so_far = deserializer.deserialize_seq(Opening(hasher));
}

/// A number for a text, or for what stands in its place.
pub(super) fn of_prompt(raw: &str, hasher: &mut DefaultHasher) {
    hasher.write(&raw.as_bytes()[..raw.len().min(PROMPT_MAX_BYTES)]);
}

struct Opening<'h>(&'h mut DefaultHasher);

impl<'de> Visitor<'de> for Opening<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("messages")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut messages: A) -> Result<(), A::Error> {
        #[derive(Deserialize)]
        struct Role<'a> {
            #[serde(borrow, default)]
            role: Option<Cow<'a, str>>,
        }
        while let Some(message) = messages.next_element::<&RawValue>()? {
            self.0.write(message.get().as_bytes());
            let role = serde_json::from_str::<Role<'_>>(message.get()).ok().and_then(|role| role.role);
            if !matches!(role.as_deref(), Some("system" | "developer")) {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(raw: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        of_messages(raw, &mut hasher);
        hasher.finish()
    }

    #[test]
    fn a_conversation_keeps_its_number_while_it_goes_on() {
        let begun = r#"[{"role":"system","content":"Be brief."},{"role":"user","content":"Hello"}"#;
        let first = of(&format!("{begun}]"));
        let second = of(&format!(
            r#"{begun},{{"role":"assistant","content":"Hi"}},{{"role":"user","content":"Go on"}}]"#
        ));
        assert_eq!(first, second);
        let other = of(r#"[{"role":"system","content":"Be brief."},{"role":"user","content":"Good day"}]"#);
        assert_ne!(first, other);
        assert_eq!(of("[]"), of("7"));
    }
}
