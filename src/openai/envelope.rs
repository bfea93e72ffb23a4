//! What the chunks of one stream have in common, for the chunks that the gateway adds to it.

use super::{Endpoint, to_json};
use crate::usage::Usage;
use serde::{Deserialize, Serialize};

/// The keys that stand in every chunk of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Envelope {
    id: String,
    object: String,
    created: u64,
    model: String,
}

/// The longest name that is taken over, in bytes.
const NAME_MAX_BYTES: usize = 256;

impl Envelope {
    /// What this chunk has. Keys that are not shaped as usual are left empty.
    pub fn of(chunk: &str) -> Envelope {
        let read: Envelope = serde_json::from_str(chunk).unwrap_or_default();
        let bounded = |name: String| if name.len() <= NAME_MAX_BYTES { name } else { String::new() };
        Envelope {
            id: bounded(read.id),
            object: bounded(read.object),
            created: read.created,
            model: bounded(read.model),
        }
    }

    /// A chunk that ends these choices before their time.
    pub fn cut_short(&self, endpoint: Endpoint, choices: impl Iterator<Item = u32>) -> Vec<u8> {
        #[derive(Serialize)]
        struct Nothing {}
        #[derive(Serialize)]
        struct Choice {
            index: u32,
            #[serde(skip_serializing_if = "Option::is_none")]
            delta: Option<Nothing>,
            #[serde(skip_serializing_if = "Option::is_none")]
            text: Option<&'static str>,
            logprobs: (),
            finish_reason: &'static str,
        }
        #[derive(Serialize)]
        struct Chunk<'a> {
            #[serde(flatten)]
            envelope: &'a Envelope,
            choices: Vec<Choice>,
        }
        let is_chat = endpoint == Endpoint::ChatCompletions;
        let choices = choices.map(|index| Choice {
            index,
            delta: is_chat.then_some(Nothing {}),
            text: (!is_chat).then_some(""),
            logprobs: (),
            finish_reason: "length",
        });
        to_json(&Chunk { envelope: self, choices: choices.collect() })
    }

    /// The chunk that tells what was used.
    pub fn usage(&self, usage: &Usage) -> Vec<u8> {
        #[derive(Serialize)]
        struct Told {
            prompt_tokens: u64,
            completion_tokens: u64,
            total_tokens: u64,
        }
        #[derive(Serialize)]
        struct Chunk<'a> {
            #[serde(flatten)]
            envelope: &'a Envelope,
            choices: [(); 0],
            usage: Told,
        }
        let (prompt_tokens, completion_tokens) = (usage.input_total(), usage.output_total());
        let total_tokens = prompt_tokens.saturating_add(completion_tokens);
        to_json(&Chunk {
            envelope: self,
            choices: [],
            usage: Told { prompt_tokens, completion_tokens, total_tokens },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_chunks_are_shaped_as_those_of_the_stream() {
        let chunk = r#"{"id":"c-1","object":"chat.completion.chunk","created":7,"model":"m","x":1,"choices":[{"index":0}]}"#;
        let envelope = Envelope::of(chunk);
        let head = r#"{"id":"c-1","object":"chat.completion.chunk","created":7,"model":"m","choices":["#;
        let choice = |index: u32, text: &str| {
            format!(r#"{{"index":{index},{text},"logprobs":null,"finish_reason":"length"}}"#)
        };
        let cut = |endpoint| String::from_utf8(envelope.cut_short(endpoint, [0, 2].into_iter())).unwrap();
        let chat = r#""delta":{}"#;
        assert_eq!(
            cut(Endpoint::ChatCompletions),
            format!("{head}{},{}]}}", choice(0, chat), choice(2, chat))
        );
        let text = r#""text":"""#;
        assert_eq!(cut(Endpoint::Completions), format!("{head}{},{}]}}", choice(0, text), choice(2, text)));
        let usage = Usage { input: 3, cache_read: 1, output: 2, ..Usage::default() };
        let told = String::from_utf8(envelope.usage(&usage)).unwrap();
        let want = r#"],"usage":{"prompt_tokens":4,"completion_tokens":2,"total_tokens":6}}"#;
        assert_eq!(told, format!("{head}{want}"));
    }

    #[test]
    fn what_is_odd_is_left_out() {
        assert_eq!(Envelope::of("[]"), Envelope::default());
        assert_eq!(Envelope::of(r#"{"id":5}"#), Envelope::default());
        let long = format!(r#"{{"id":"{}","model":"m"}}"#, "x".repeat(300));
        assert_eq!(Envelope::of(&long), Envelope { model: "m".into(), ..Envelope::default() });
    }
}
