//! What is read of an answer: one that came whole, or a chunk of a stream. Both have the same keys.
//!
//! Nothing is copied, and choices are looked into only when somebody asks for them: whose usage is told is billed without. What has
//! an unknown shape is not an error but text that counts.

use super::Endpoint;
use super::json::{array, fields, object};
use super::text::{each_text, string};
use super::usage;
use crate::usage::Usage;
use std::borrow::Cow;

/// The keys of an answer that the gateway reads, borrowed from its text.
#[derive(Default)]
pub struct Answer<'a> {
    choices: Option<&'a str>,
    usage: Option<&'a str>,
    /// Of a vendor's own extension, whose keys begin with `x_`.
    extension_usage: Option<&'a str>,
    service_tier: Option<&'a str>,
    padding: Option<&'a str>,
    is_error: bool,
}

/// The text is not a JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON object")]
pub struct NotAnAnswer;

/// One choice of an answer, or what a chunk adds to it.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Which one.
    pub index: u32,
    /// Whether it says that it is finished.
    pub is_finished: bool,
    said: Saying<'a>,
}

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

/// Where a choice's text stands.
#[derive(Clone, Copy, Debug)]
enum Saying<'a> {
    /// In a text of its own, and in messages.
    Known { text: Option<&'a str>, messages: [Option<&'a str>; 2] },
    /// Nobody knows where: all of it is text.
    Odd(&'a str),
}

const CONTENT: u32 = 0;
const REASONING: u32 = 1;
const REFUSAL: u32 = 2;
const TRANSCRIPT: u32 = 3;
/// The first channel of tools: a name and its arguments each.
const TOOLS: u32 = 4;

impl<'a> Answer<'a> {
    /// Reads an answer. A key that stands twice counts with its last value that is not null.
    ///
    /// # Errors
    ///
    /// [`NotAnAnswer`] when the text is not one JSON object.
    pub fn parse(text: &'a str) -> Result<Self, NotAnAnswer> {
        let mut answer = Answer::default();
        object(text, usize::MAX, &mut (), |key, value| answer.member(&key, value))
            .map_err(|_| NotAnAnswer)?;
        Ok(answer)
    }

    fn member(&mut self, key: &str, value: &'a str) {
        if value == "null" {
            return;
        }
        match key {
            "choices" => self.choices = Some(value),
            "usage" => self.usage = Some(value),
            "service_tier" => self.service_tier = Some(value),
            "obfuscation" => self.padding = Some(value),
            "error" => self.is_error |= !matches!(value, "false" | "\"\"" | "{}"),
            "object" | "type" => self.is_error |= value == "\"error\"",
            name if name.starts_with("x_") => {
                let usage = fields(value, ["usage"]).map_or(None, |[usage]| usage);
                self.extension_usage = usage.or(self.extension_usage);
            }
            _ => {}
        }
    }

    /// Whether it tells of an error, instead of choices or beside them.
    pub fn is_error(&self) -> bool {
        self.is_error
    }

    /// Whether it has a choice.
    pub fn has_choices(&self) -> bool {
        let is_empty =
            |choices: &str| choices.strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with(']'));
        self.choices.is_some_and(|choices| !is_empty(choices))
    }

    /// Whether a usage stands in it, one that can be billed by or not.
    pub fn has_usage(&self) -> bool {
        self.usage.is_some()
    }

    /// The usage that it reports, wherever it stands; `None` also where the numbers are none to bill by.
    pub fn usage(&self, endpoint: Endpoint) -> Option<Usage> {
        let read = |json| usage::read(endpoint, json);
        self.usage.and_then(read).or_else(|| self.extension_usage.and_then(read))
    }

    /// The service tier that it names.
    pub fn service_tier(&self) -> Option<Cow<'a, str>> {
        self.service_tier.and_then(string)
    }

    /// The string that only makes it longer, as it was written, with its quotes.
    pub(super) fn padding(&self) -> Option<&'a str> {
        self.padding.filter(|padding| padding.starts_with('"'))
    }

    /// Every choice in it.
    pub fn each_choice(&self, mut choice: impl FnMut(Choice<'a>)) {
        let Some(choices) = self.choices else { return };
        let mut position = 0;
        let read = array(choices, |json| {
            choice(Choice::read(json, position));
            position = position.saturating_add(1);
        });
        if read.is_err() {
            choice(Choice::odd(choices, 0));
        }
    }
}

impl<'a> Choice<'a> {
    fn read(json: &'a str, position: u32) -> Self {
        let names = ["index", "delta", "message", "text", "finish_reason"];
        let Ok([index, delta, message, text, finish_reason]) = fields(json, names) else {
            return Choice::odd(json, position);
        };
        let Ok(index) = index.map_or(Ok(position), str::parse) else {
            return Choice::odd(json, position);
        };
        // Some providers send an empty reason with each chunk.
        let is_finished = finish_reason.is_some_and(|reason| reason != "\"\"");
        Choice { index, is_finished, said: Saying::Known { text, messages: [delta, message] } }
    }

    fn odd(json: &'a str, position: u32) -> Self {
        Choice { index: position, is_finished: false, said: Saying::Odd(json) }
    }

    /// Every piece of output text in it.
    pub fn each_text(&self, mut said: impl FnMut(Said<'_>)) {
        let choice = self.index;
        let mut say = |channel: u32, text: &str| {
            if !text.is_empty() {
                said(Said { choice, channel, text });
            }
        };
        match self.said {
            Saying::Odd(json) => say(CONTENT, json),
            Saying::Known { text, messages } => {
                if let Some(json) = text {
                    each_text(json, &mut |text| say(CONTENT, text));
                }
                messages.into_iter().flatten().for_each(|json| each_of_message(json, &mut say));
            }
        }
    }
}

/// The texts of a message, or of a piece of one, by channel.
fn each_of_message(json: &str, say: &mut dyn FnMut(u32, &str)) {
    let names =
        ["content", "reasoning_content", "reasoning", "refusal", "tool_calls", "function_call", "audio"];
    let Ok([content, reasoning_content, reasoning, refusal, tool_calls, function_call, audio]) =
        fields(json, names)
    else {
        return say(CONTENT, json);
    };
    let mut tell = |channel: u32, json: Option<&str>| {
        if let Some(json) = json {
            each_text(json, &mut |text| say(channel, text));
        }
    };
    // Some providers say the same under both names.
    tell(REASONING, reasoning_content.filter(|json| *json != "\"\"").or(reasoning));
    tell(CONTENT, content);
    tell(REFUSAL, refusal);
    if let Some(json) = audio {
        match fields(json, ["transcript"]) {
            Ok([transcript]) => tell(TRANSCRIPT, transcript),
            Err(_) => say(TRANSCRIPT, json),
        }
    }
    if let Some(json) = tool_calls {
        let mut position = 0;
        let read = array(json, |call| {
            each_of_tool_call(call, position, say);
            position = position.saturating_add(1);
        });
        if read.is_err() {
            say(TOOLS, json);
        }
    }
    if let Some(json) = function_call {
        each_of_function(json, TOOLS, say);
    }
}

fn each_of_tool_call(json: &str, position: u32, say: &mut dyn FnMut(u32, &str)) {
    let channel = |index: u32| index.saturating_mul(2).saturating_add(TOOLS);
    let Ok([index, function, custom]) = fields(json, ["index", "function", "custom"]) else {
        return say(channel(position), json);
    };
    let Ok(index) = index.map_or(Ok(position), str::parse) else {
        return say(channel(position), json);
    };
    for function in [function, custom].into_iter().flatten() {
        each_of_function(function, channel(index), say);
    }
}

fn each_of_function(json: &str, channel: u32, say: &mut dyn FnMut(u32, &str)) {
    let Ok([name, arguments, input]) = fields(json, ["name", "arguments", "input"]) else {
        return say(channel, json);
    };
    if let Some(json) = name {
        each_text(json, &mut |text| say(channel, text));
    }
    if let Some(json) = arguments.or(input) {
        each_text(json, &mut |text| say(channel.saturating_add(1), text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(json: &str) -> Vec<(u32, u32, String)> {
        let mut texts = Vec::new();
        Answer::parse(json).unwrap().each_choice(|choice| {
            choice.each_text(|said| texts.push((said.choice, said.channel, said.text.to_owned())));
        });
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
        for (choices, channel, text) in [
            (r#"{"a":1}"#, 0, r#"{"a":1}"#),
            (r#"[{"delta":"a"}]"#, 0, r#""a""#),
            (r#"[{"index":-1,"delta":{"content":"x"}}]"#, 0, r#"{"index":-1,"delta":{"content":"x"}}"#),
            (r#"[["a"]]"#, 0, r#"["a"]"#),
            (r#"[{"delta":{"content":"a","content":"b"}}]"#, 0, r#"{"content":"a","content":"b"}"#),
            (r#"[{"delta":{"audio":"a"}}]"#, 3, r#""a""#),
            (r#"[{"delta":{"tool_calls":{"a":1}}}]"#, 4, r#"{"a":1}"#),
            (r#"[{"delta":{"tool_calls":[{"index":"x"}]}}]"#, 4, r#"{"index":"x"}"#),
            (r#"[{"delta":{"tool_calls":[{"index":1,"function":"f"}]}}]"#, 6, r#""f""#),
            (r#"[{"delta":{"function_call":[1]}}]"#, 4, "[1]"),
        ] {
            let json = format!(r#"{{"choices":{choices}}}"#);
            assert_eq!(texts(&json), [(0, channel, text.to_owned())], "{json}");
        }
        let one_of_two = r#"{"choices":[7,{"index":1,"text":"b"}]}"#;
        assert_eq!(texts(one_of_two), [(0, 0, "7".to_owned()), (1, 0, "b".to_owned())]);
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
