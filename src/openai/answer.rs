//! What is read of an answer: one that came whole, or a chunk of a stream. Both have the same keys.
//!
//! One pass, no tree, nothing copied; what has an unknown shape is not an error but text that counts.

use super::Endpoint;
use super::text::{Key, each_text, string};
use super::usage;
use crate::usage::Usage;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// The keys of an answer that the gateway reads, borrowed from its text.
#[derive(Default)]
pub struct Answer<'a> {
    choices: Choices<'a>,
    usage: Option<&'a RawValue>,
    /// Of a vendor's own extension, whose keys begin with `x_`.
    extension_usage: Option<&'a RawValue>,
    service_tier: Option<&'a RawValue>,
    is_error: bool,
}

/// The text is not a JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON object")]
pub struct NotAnAnswer;

/// A piece of output text, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said<'a> {
    /// The choice.
    pub choice: u32,
    /// Texts of one channel of a choice are one text; different channels are different texts.
    pub channel: u32,
    /// Never empty.
    pub text: &'a str,
}

enum Choices<'a> {
    Read(Vec<Choice<'a>>),
    /// Not shaped as choices are.
    Odd(&'a RawValue),
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: Option<u32>,
    #[serde(borrow, default)]
    delta: Option<Message<'a>>,
    #[serde(borrow, default)]
    message: Option<Message<'a>>,
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    finish_reason: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow, default)]
    refusal: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_calls: Option<Vec<ToolCall<'a>>>,
    #[serde(borrow, default)]
    function_call: Option<Function<'a>>,
    #[serde(borrow, default)]
    audio: Option<Audio<'a>>,
}

#[derive(Deserialize)]
struct ToolCall<'a> {
    #[serde(default)]
    index: Option<u32>,
    #[serde(borrow, default)]
    function: Option<Function<'a>>,
    #[serde(borrow, default)]
    custom: Option<Function<'a>>,
}

#[derive(Deserialize)]
struct Function<'a> {
    #[serde(borrow, default)]
    name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
    #[serde(borrow, default)]
    input: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Audio<'a> {
    #[serde(borrow, default)]
    transcript: Option<&'a RawValue>,
}

const CONTENT: u32 = 0;
const REASONING: u32 = 1;
const REFUSAL: u32 = 2;
const TRANSCRIPT: u32 = 3;
/// The first channel of tools: a name and its arguments each.
const TOOLS: u32 = 4;

impl<'a> Answer<'a> {
    /// Reads an answer.
    ///
    /// # Errors
    ///
    /// [`NotAnAnswer`] when the text is not one JSON object.
    pub fn parse(text: &'a str) -> Result<Self, NotAnAnswer> {
        parse(text, true).or_else(|_| parse(text, false)).map_err(|_| NotAnAnswer)
    }

    /// Whether it tells of an error, instead of choices or beside them.
    pub fn is_error(&self) -> bool {
        self.is_error
    }

    /// Whether it has a choice.
    pub fn has_choices(&self) -> bool {
        match &self.choices {
            Choices::Read(choices) => !choices.is_empty(),
            Choices::Odd(_) => true,
        }
    }

    /// Whether a usage stands in it, one that can be billed by or not.
    pub fn has_usage(&self) -> bool {
        self.usage.is_some()
    }

    /// The usage that it reports, wherever it stands; `None` also where the numbers are none to bill by.
    pub fn usage(&self, endpoint: Endpoint) -> Option<Usage> {
        let read = |raw| usage::read(endpoint, raw);
        self.usage.and_then(read).or_else(|| self.extension_usage.and_then(read))
    }

    /// The service tier that it names.
    pub fn service_tier(&self) -> Option<Cow<'a, str>> {
        self.service_tier.and_then(string)
    }

    /// Every choice in it, and whether it says that the choice is finished.
    pub fn each_choice(&self, mut choice: impl FnMut(u32, bool)) {
        if let Choices::Read(choices) = &self.choices {
            for (position, read) in choices.iter().enumerate() {
                choice(read.index(position), read.is_finished());
            }
        }
    }

    /// Every piece of output text in it.
    pub fn each_text(&self, mut said: impl FnMut(Said<'_>)) {
        match &self.choices {
            Choices::Read(choices) => {
                for (position, choice) in choices.iter().enumerate() {
                    choice.each_text(choice.index(position), &mut said);
                }
            }
            Choices::Odd(raw) => said(Said { choice: 0, channel: CONTENT, text: raw.get() }),
        }
    }
}

impl Choice<'_> {
    fn index(&self, position: usize) -> u32 {
        self.index.unwrap_or_else(|| u32::try_from(position).unwrap_or(u32::MAX))
    }

    fn is_finished(&self) -> bool {
        // Some providers send an empty reason with each chunk.
        self.finish_reason.is_some_and(|reason| reason.get() != "\"\"")
    }

    fn each_text(&self, choice: u32, said: &mut impl FnMut(Said<'_>)) {
        let mut tell = |channel: u32, raw: Option<&RawValue>| {
            let Some(raw) = raw else { return };
            each_text(raw, &mut |text| {
                if !text.is_empty() {
                    said(Said { choice, channel, text });
                }
            });
        };
        tell(CONTENT, self.text);
        for message in [&self.delta, &self.message].into_iter().flatten() {
            // Some providers say the same under both names.
            let reasoning = message.reasoning_content.filter(|raw| raw.get() != "\"\"").or(message.reasoning);
            tell(REASONING, reasoning);
            tell(CONTENT, message.content);
            tell(REFUSAL, message.refusal);
            tell(TRANSCRIPT, message.audio.as_ref().and_then(|audio| audio.transcript));
            for (position, call) in message.tool_calls.iter().flatten().enumerate() {
                let index = call.index.unwrap_or_else(|| u32::try_from(position).unwrap_or(u32::MAX));
                let channel = index.saturating_mul(2).saturating_add(TOOLS);
                for function in [&call.function, &call.custom].into_iter().flatten() {
                    tell(channel, function.name);
                    tell(channel.saturating_add(1), function.arguments.or(function.input));
                }
            }
            if let Some(function) = &message.function_call {
                tell(TOOLS, function.name);
                tell(TOOLS + 1, function.arguments);
            }
        }
    }
}

impl Default for Choices<'_> {
    fn default() -> Self {
        Choices::Read(Vec::new())
    }
}

fn parse(text: &str, choices_read: bool) -> Result<Answer<'_>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let answer = TopLevel { choices_read }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(answer)
}

/// Reads the top level. A key that stands twice counts with its last value that is not null.
struct TopLevel {
    choices_read: bool,
}

impl<'de> DeserializeSeed<'de> for TopLevel {
    type Value = Answer<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Answer<'de>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TopLevel {
    type Value = Answer<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Answer<'de>, A::Error> {
        let mut answer = Answer::default();
        while let Some(Key(key)) = map.next_key::<Key<'de>>()? {
            match &*key {
                "choices" if self.choices_read => {
                    answer.choices =
                        Choices::Read(map.next_value::<Option<Vec<Choice<'de>>>>()?.unwrap_or_default());
                }
                "choices" => {
                    answer.choices =
                        map.next_value::<Option<&RawValue>>()?.map(Choices::Odd).unwrap_or_default()
                }
                "usage" => answer.usage = map.next_value::<Option<&RawValue>>()?.or(answer.usage),
                "service_tier" => {
                    answer.service_tier = map.next_value::<Option<&RawValue>>()?.or(answer.service_tier)
                }
                "error" => {
                    let error = map.next_value::<Option<&RawValue>>()?;
                    answer.is_error |=
                        error.is_some_and(|error| !matches!(error.get(), "false" | "\"\"" | "{}"));
                }
                "object" | "type" => {
                    let kind = map.next_value::<Option<&RawValue>>()?;
                    answer.is_error |= kind.is_some_and(|kind| kind.get() == "\"error\"");
                }
                name if name.starts_with("x_") => {
                    let extension = map.next_value::<Option<&RawValue>>()?;
                    answer.extension_usage = extension.and_then(usage_within).or(answer.extension_usage);
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(answer)
    }
}

fn usage_within(extension: &RawValue) -> Option<&RawValue> {
    #[derive(Deserialize)]
    struct Extension<'a> {
        #[serde(borrow, default)]
        usage: Option<&'a RawValue>,
    }
    serde_json::from_str::<Extension<'_>>(extension.get()).ok()?.usage
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(json: &str) -> Vec<(u32, u32, String)> {
        let mut texts = Vec::new();
        Answer::parse(json)
            .unwrap()
            .each_text(|said| texts.push((said.choice, said.channel, said.text.to_owned())));
        texts
    }

    #[test]
    fn every_kind_of_output_is_text() {
        let delta = r#"{"choices":[{"index":2,"delta":{"role":"assistant","content":"a","reasoning_content":"","reasoning":"b","refusal":"c",
            "audio":{"id":"x","data":"AAAA","transcript":"d"},
            "tool_calls":[{"index":1,"id":"call_1","type":"function","function":{"name":"e","arguments":"{}"}}]}}]}"#;
        let want = [(1, "b"), (0, "a"), (2, "c"), (3, "d"), (6, "e"), (7, "{}")];
        assert_eq!(texts(delta), want.map(|(channel, text)| (2, channel, text.to_owned())));
        let whole = r#"{"choices":[{"message":{"content":[{"type":"text","text":"a"}],"function_call":{"name":"f","arguments":"g"}}},{"text":"b"}]}"#;
        let want = [(0, 0, "a"), (0, 4, "f"), (0, 5, "g"), (1, 0, "b")];
        assert_eq!(texts(whole), want.map(|(choice, channel, text)| (choice, channel, text.to_owned())));
    }

    #[test]
    fn what_has_an_odd_shape_is_counted_all_the_same() {
        for choices in [r#"[{"delta":"a"}]"#, r#"{"a":1}"#, r#"[{"index":-1,"delta":{"content":"x"}}]"#] {
            assert_eq!(texts(&format!(r#"{{"choices":{choices}}}"#)), [(0, 0, choices.to_owned())]);
        }
        for json in [
            r#"{"choices":null}"#,
            r#"{"choices":[]}"#,
            "{}",
            r#"{"choices":[{"delta":null,"finish_reason":null}]}"#,
        ] {
            assert_eq!(texts(json), [], "{json}");
        }
    }

    #[test]
    fn errors_are_seen_in_every_form() {
        for json in [
            r#"{"error":{"message":"x"}}"#,
            r#"{"error":"x"}"#,
            r#"{"object":"error","message":"x"}"#,
            r#"{"type":"error","code":"x"}"#,
            r#"{"choices":[{"delta":{}}],"error":{"code":502}}"#,
        ] {
            assert!(Answer::parse(json).unwrap().is_error(), "{json}");
        }
        for json in [r#"{"error":null}"#, r#"{"object":"chat.completion.chunk"}"#, "{}"] {
            assert!(!Answer::parse(json).unwrap().is_error(), "{json}");
        }
    }

    #[test]
    fn usage_counts_wherever_it_stands_and_null_erases_nothing() {
        let usage = r#"{"prompt_tokens":10,"completion_tokens":2}"#;
        for json in [
            format!(r#"{{"usage":{usage}}}"#),
            format!(r#"{{"x_vendor":{{"id":1,"usage":{usage}}},"usage":null}}"#),
            format!(r#"{{"usage":{usage},"x_other":"text","usage":null}}"#),
        ] {
            let answer = Answer::parse(&json).unwrap();
            assert_eq!(answer.usage(Endpoint::ChatCompletions).unwrap().input, 10, "{json}");
        }
    }

    #[test]
    fn only_an_object_is_an_answer() {
        for text in ["", "[]", "null", "\"x\"", "{", "{} {}", "<html>", r#"{"a":01}"#] {
            assert!(Answer::parse(text).is_err(), "{text}");
        }
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert!(Answer::parse(&deep).is_ok());
        let deep = format!(r#"{{"choices":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert!(Answer::parse(&deep).is_ok());
    }
}
